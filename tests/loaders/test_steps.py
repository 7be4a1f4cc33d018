"""Which checkpoints a folder, a pattern or a list stands for, and in which order."""

import numpy as np
import pytest
import safetensors.numpy
from flax.serialization import msgpack_serialize

import polarax
from polarax.loaders import CheckpointError, find_steps
from polarax.loaders.steps import step_of


@pytest.mark.parametrize(
    ("name", "step"),
    [
        ("1000", 1000),
        ("runs/checkpoint-1000/", 1000),
        ("step_000020", 20),
        ("a/b7/model.safetensors", 7),
        ("model.step300.safetensors", 300),
        ("s3://bucket/run/900", 900),
        ("7/model-00001-of-00002.safetensors", 7),
        ("final", None),
        ("10.orbax-checkpoint-tmp-1", None),
        ("run7/final", None),
        ("run7/20/default", 20),
    ],
)
def test_the_step_in_a_name(name, step):
    assert step_of(name) == step


def put(folder, name="model.safetensors", value=1):
    """Makes a folder that holds a checkpoint."""
    folder.mkdir(exist_ok=True)
    safetensors.numpy.save_file({"q": np.full((2, 2), value, np.float32)}, folder / name)


@pytest.fixture
def folder(tmp_path):
    for name in ("logs", "20.orbax-checkpoint-tmp-3"):
        (tmp_path / name).mkdir()
    for step in (9, 100, 10):
        put(tmp_path / f"checkpoint-{step}")
    (tmp_path / "notes-3.txt").write_text("")
    return tmp_path


def test_a_folder_in_the_order_of_the_steps(folder):
    assert find_steps(folder) == {step: str(folder / f"checkpoint-{step}") for step in (9, 10, 100)}


def test_files_that_are_called_after_steps(tmp_path):
    for step in (2, 11):
        put(tmp_path, f"step{step}.safetensors")
    assert list(find_steps(str(tmp_path))) == [2, 11]


def test_patterns_and_lists(folder):
    assert list(find_steps(str(folder / "checkpoint-1*"))) == [10, 100]
    assert list(find_steps(str(folder / "[0-9c]*"))) == [9, 10, 100]
    assert list(find_steps([str(folder / "checkpoint-1*"), folder / "checkpoint-9"])) == [9, 10, 100]
    assert list(find_steps(["hf://owner/run@step-5", "https://host/run/3"])) == [3, 5]


def test_a_mapping(folder):
    checkpoint = polarax.open_checkpoint({"q": np.ones((2, 2))})
    assert find_steps({"20": "b", 3: checkpoint}) == {3: checkpoint, 20: "b"}


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("{}/nothing-*", "matches no checkpoint"),
        ("{}/nothing", "no such file or folder"),
        ("{}/logs", "named after their step"),
        (["{}/logs", "{}/checkpoint-9"], "expected a name that ends in its step"),
        (["{}/checkpoint-9", "{}/a/9"], "no such file"),
        (["{}/checkpoint-9", "https://host/9"], "another checkpoint of step 9"),
        ([], "no checkpoint"),
    ],
)
def test_what_is_refused(folder, given, words):
    filled = given.format(folder) if isinstance(given, str) else [one.format(folder) for one in given]
    with pytest.raises(CheckpointError, match=words):
        find_steps(filled)


@pytest.mark.parametrize(
    "name",
    [
        *("tmp-checkpoint-100", "checkpoint-100.tmp", "checkpoint-100_tmp", "100-unfinished"),
        *(".checkpoint-100.partial-x1", "100.orbax-checkpoint-tmp", "100.orbax-checkpoint-tmp-6"),
        "step_100.orbax-checkpoint-tmp-1718000000123456",
    ],
)
def test_what_was_still_being_written_is_named(folder, name):
    put(folder / name)
    unusable = {}
    assert list(find_steps(folder, unusable)) == [9, 10, 100]
    assert unusable[name] == f"{folder / name}: its name is that of a checkpoint which was still being written"
    assert set(unusable) == {name, "20.orbax-checkpoint-tmp-3"}


def test_folders_of_a_step_that_hold_no_checkpoint(folder):
    for name in ("eval_100", "eval_200", "global_step10", "100", "checkpoint-11"):
        (folder / name).mkdir()
    (folder / "eval_100" / "results.json").write_text("{}")
    safetensors.numpy.save_file({"m": np.ones(2)}, folder / "checkpoint-11" / "optimizer.safetensors")
    put(folder / "eval_100" / "below")
    unusable = {}
    assert find_steps(folder, unusable) == {step: str(folder / f"checkpoint-{step}") for step in (9, 10, 100)}
    unusable.pop("20.orbax-checkpoint-tmp-3")
    # By the step where it has no checkpoint, else by the name, which must not look like a step.
    assert set(unusable) == {"eval_100", f"{folder.name}/100", "global_step10", "200", "11"}
    assert unusable.pop("eval_100").endswith("no checkpoint there, but in folders in it; name one of them: below")
    assert all("no checkpoint there; looked for" in reason for reason in unusable.values())


def test_half_a_checkpoint_is_none(folder):
    put(folder / "checkpoint-12", "model-00001-of-00002.safetensors")
    (folder / "300").mkdir()
    (folder / "300" / "model.safetensors.index.json").write_text(
        '{"weight_map": {"a": "model-00001-of-00002.safetensors"}}'
    )
    unusable = {}
    assert list(find_steps(folder, unusable)) == [9, 10, 100]
    assert "model-00002-of-00002.safetensors: no such file" in unusable["12"]
    assert "model-00001-of-00002.safetensors: no such file" in unusable["300"]


def test_a_checkpoint_whose_name_ends_in_no_step_is_named(folder):
    names = {"checkpoint-100-best", "step_500_adapter", "final"}
    for name in names:
        put(folder / name)
    unusable = {}
    assert list(find_steps(folder, unusable)) == list(find_steps(str(folder / "*"))) == [9, 10, 100]
    assert {name for name, why in unusable.items() if "does not end in a step" in why} == names


def test_two_true_checkpoints_of_a_step_are_refused(folder):
    put(folder / "best-100")
    with pytest.raises(CheckpointError, match=r"another checkpoint of step 100 is .*/best-100"):
        find_steps(folder)


def test_a_damaged_checkpoint_is_one(folder):
    (folder / "checkpoint-9" / "model.safetensors").write_bytes(b"cut")
    unusable = {}
    assert list(find_steps(folder, unusable)) == [9, 10, 100]
    assert set(unusable) == {"20.orbax-checkpoint-tmp-3"}


def test_no_whole_checkpoint_at_all_says_why(tmp_path):
    (tmp_path / "checkpoint-5").mkdir()
    with pytest.raises(CheckpointError, match=r"named after their step; .*/checkpoint-5: no checkpoint there"):
        find_steps(tmp_path)


def test_files_of_flax_by_their_steps(tmp_path):
    for step in (10, 9):
        (tmp_path / f"checkpoint_{step}").write_bytes(msgpack_serialize({"params": {"kernel": np.ones((2, 3))}}))
    (tmp_path / "checkpoint_11").write_text("no msgpack")
    assert find_steps(tmp_path) == {step: str(tmp_path / f"checkpoint_{step}") for step in (9, 10)}
