"""Which of Orbax's steps were finished, after runs that were killed while they saved."""

import asyncio
import json
import os
import shutil

import numpy as np
import orbax.checkpoint as ocp
import pytest

import polarax
from polarax.loaders import CheckpointError, open_checkpoint
from polarax.loaders.formats import by_folder
from polarax.loaders.formats.orbax_folders import UNFINISHED

STEPS = (100, 200, 300)


def tree(step):
    kernel = np.random.default_rng(0).normal(size=(64, 48)).astype(np.float32) + step
    return {"layers_0": {"q_proj": {"kernel": kernel}, "norm": {"scale": np.ones(3, np.float32)}}}


def save(folder, prefix=None, **items):
    options = ocp.CheckpointManagerOptions(step_prefix=prefix)
    with ocp.CheckpointManager(folder, options=options) as manager:
        for step in STEPS:
            if items:
                args = ocp.args.Composite(**{name: ocp.args.StandardSave(tree(step)) for name in items})
            else:
                args = ocp.args.StandardSave(tree(step))
            manager.save(step, args=args)
        manager.wait_until_finished()


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("orbax")
    save(folder / "run")
    save(folder / "prefixed", prefix="step")
    save(folder / "items", params=1, opt_state=1)
    with ocp.CheckpointManager(folder / "plain", item_handlers=ocp.PyTreeCheckpointHandler(use_ocdbt=False)) as manager:
        for step in STEPS:
            manager.save(step, args=ocp.args.PyTreeSave(tree(step)))
    return folder


@pytest.fixture
def copy(saved, tmp_path):
    def make(name="run"):
        shutil.copytree(saved / name, tmp_path / name)
        return tmp_path / name

    return make


def step_read(source):
    checkpoint = open_checkpoint(source)
    kernel = next(name for name in checkpoint.names() if name.endswith("kernel"))
    return round(float(checkpoint.read(kernel).result().mean() / 100)) * 100


@pytest.mark.parametrize("tail", ["", "-6", "-680", "-1718000000123456"])
@pytest.mark.parametrize(("layout", "name"), [("run", "300"), ("prefixed", "step_300")])
def test_every_way_to_name_a_step_that_is_being_written(copy, layout, name, tail):
    run = copy(layout)
    (run / name).rename(run / f"{name}{UNFINISHED}{tail}")
    assert step_read(run) == 200
    (note,) = open_checkpoint(run).notes
    assert note.endswith(f"200 is the latest finished step: {name}{UNFINISHED}{tail} was still being written")
    for below in ("", "/default"):
        with pytest.raises(CheckpointError, match=rf"is not finished: Orbax was still writing {name}{UNFINISHED}"):
            open_checkpoint(f"{run}/{name}{UNFINISHED}{tail}{below}")


def test_the_names_are_those_that_orbax_knows(copy):
    run = copy()
    for name in (f"400{UNFINISHED}", f"step_500{UNFINISHED}-7"):
        (run / name).mkdir()
    says = {name: ocp.utils.is_checkpoint_finalized(run / name) for name in os.listdir(run)}
    assert {name for name in says if by_folder(str(run / name)) is not None} == {n for n, good in says.items() if good}


def test_finished_steps_have_nothing_to_say(saved):
    for layout in ("run", "prefixed", "items", "plain"):
        assert (step_read(saved / layout), open_checkpoint(saved / layout).notes) == (300, ())


def test_an_item_that_is_being_written(copy):
    run = copy()
    (run / "300" / "default").rename(run / "300" / f"default{UNFINISHED}-3")
    assert step_read(run) == 200
    assert f"300 default{UNFINISHED}-3 in it was still being written" in open_checkpoint(run).notes[0]
    with pytest.raises(CheckpointError, match="is not finished"):
        open_checkpoint(run / "300")


def test_another_item_is_not_taken_for_the_one_that_is_being_written(copy):
    run = copy("items")
    (run / "300" / "params").rename(run / "300" / f"params{UNFINISHED}-3")
    assert step_read(run) == 200
    with pytest.raises(CheckpointError, match=rf"still writing params{UNFINISHED}-3; name an item"):
        open_checkpoint(run / "300")
    assert step_read(run / "300" / "opt_state") == 300


def test_what_is_left_of_an_item_that_was_saved_again_is_of_no_concern(copy):
    run = copy()
    shutil.copytree(run / "300" / "default", run / "300" / f"default{UNFINISHED}-3")
    shutil.copytree(run / "200", run / f"300{UNFINISHED}-3")
    assert (step_read(run), open_checkpoint(run).notes) == (300, ())


@pytest.mark.parametrize(
    ("layout", "gone"),
    [
        ("run", ("ocdbt.process_0",)),
        ("run", ("d",)),
        ("run", ("d", "ocdbt.process_0")),
        ("run", ("manifest.ocdbt",)),
        ("run", ("manifest.ocdbt", "d", "ocdbt.process_0")),
        ("run", ("_METADATA",)),
        ("plain", ("layers_0.q_proj.kernel",)),
        ("plain", ("layers_0.q_proj.kernel/.zarray",)),
    ],
)
def test_metadata_without_arrays(copy, layout, gone):
    run = copy(layout)
    item = run / "300" / "default"
    for name in gone:
        if (item / name).is_dir():
            shutil.rmtree(item / name)
        else:
            (item / name).unlink()
    assert step_read(run) == 200
    (note,) = open_checkpoint(run).notes
    assert note.startswith("200 is the latest finished step: ") and "300" in note and "\n" not in note
    with pytest.raises(CheckpointError, match="300"):
        open_checkpoint(run / "300")


def test_a_chunk_that_is_gone_is_not_read_as_zeros(copy):
    run = copy("plain")
    (run / "300" / "default" / "layers_0.q_proj.kernel" / "0.0").unlink()
    checkpoint = open_checkpoint(run / "300")
    with pytest.raises(CheckpointError, match="q_proj.kernel': cannot be read"):
        checkpoint.read("layers_0.q_proj.kernel").result()


def test_a_bucket_that_was_copied_here(copy):
    """There a step is finished by a file that is written last, and has its name from the beginning."""
    run = copy()
    (run / "300" / "commit_success.txt").unlink()
    assert step_read(run) == 200
    assert "300 has no commit_success.txt, which an earlier step has" in open_checkpoint(run).notes[0]
    for step in (100, 200):
        (run / str(step) / "commit_success.txt").unlink()
    assert (step_read(run), open_checkpoint(run).notes) == (300, ())  # as early Orbax left all of them


def test_folders_that_are_no_steps(copy):
    run = copy()
    for name in ("eval_400", "tmp_500", ".600"):
        (run / name).mkdir()
    assert step_read(run) == 300
    assert open_checkpoint(run).notes == ("300 is the latest finished step: eval_400 has no Orbax tree in it",)


def test_no_finished_step(tmp_path):
    (tmp_path / f"5{UNFINISHED}-1").mkdir()
    with pytest.raises(CheckpointError, match=rf"no checkpoint there; .*; 5{UNFINISHED}-1 was still being written"):
        open_checkpoint(tmp_path)


def test_damaged_metadata_of_the_latest_step_is_an_error(copy):
    run = copy()
    (run / "300" / "default" / "_METADATA").write_text("{")
    with pytest.raises(CheckpointError, match="300/default/_METADATA: expected JSON"):
        open_checkpoint(run)


def test_a_history_names_them(copy):
    run = copy()
    (run / "300").rename(run / f"300{UNFINISHED}-6")
    (run / "eval_200").mkdir()
    found = polarax.history(run, metrics="change", progress=False)
    assert found.steps == (200,)
    assert set(found.unusable()) == {f"300{UNFINISHED}-6", "eval_200"}
    reading = found.summary()["reading"]
    assert any(sentence.startswith("eval_200 was not compared: ") for sentence in reading)
    assert json.dumps(found.summary()["unusable"])


@pytest.mark.parametrize("running", [False, True])
def test_within_a_running_event_loop(saved, running):
    """As in a notebook: Orbax starts a loop of its own."""

    async def main():
        return step_read(saved / "run")

    assert (asyncio.run(main()) if running else step_read(saved / "run")) == 300
