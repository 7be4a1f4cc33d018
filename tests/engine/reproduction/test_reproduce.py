"""`polarax reproduce` from files to files, on tiny models; and what each bad input is answered with."""

import json
import shutil

import numpy as np
import pytest

import polarax
from polarax.evaluation import load_decoder, measure
from polarax.evaluation.measuring import Settings
from polarax.report.reproduction.pictures import plot_experiments
from polarax.reproduction import EXPERIMENTS, reproduce
from polarax.reproduction.reading import against_random
from tests.engine.command import assert_one_line
from tests.engine.evaluation import models
from tests.engine.reproduction import pairs

FEW = "undo,replace-values,break-left,break-left-random-signs"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A pair and two texts."""
    folder = tmp_path_factory.mktemp("reproduce")
    pairs.save_pair(folder, "mistral_all")
    pairs.save_text(folder / "one.txt", 150)
    pairs.save_text(folder / "two.txt", 100, seed=2)
    return folder


@pytest.fixture
def run(cli, place, tmp_path):
    """Runs `polarax reproduce` with other flags or other values of these."""

    def call(*more, **flags):
        given = {
            "base": place / "base",
            "post": place / "post",
            "text": place / "one.txt",
            "out": tmp_path / "out",
            "window": 32,
            "experiments": FEW,
            "factors": "",
            "roles": "q,k,v,o",
            "compilation_cache": "",
        } | flags
        return cli("reproduce", *(f"--{name}={value}" for name, value in given.items() if value is not None), *more)

    return call


@pytest.fixture(scope="module")
def finished(place, tmp_path_factory):
    """All experiments, on two texts."""
    texts = [place / "one.txt", place / "two.txt"]
    out = tmp_path_factory.mktemp("finished") / "out"
    # All of one shape: compiling is what takes time.
    return reproduce(place / "base", place / "post", texts, out, window=32, factors=(0.5, 1.0, 2.0), roles="q,k,v,o")


def test_every_experiment_stands_beside_its_random_change(finished):
    content = json.loads((finished.path / "reproduction.json").read_text())
    rows = {row["name"]: row for row in content["experiments"]}
    assert list(rows) == list(EXPERIMENTS)
    for name, row in rows.items():
        assert row["matrices"] == (6 if name == "scale-values" else 12)
        for label in ("one.txt", "two.txt"):
            for side in ("edit", "random"):
                numbers = row[side]["texts"][label]
                assert all(np.isfinite(numbers[key]) for key in ("loss", "divergence", "entropy", "cka")), (name, side)
        # Of the same size, up to the rounding of weights to float32.
        assert row["random"]["drift"] == pytest.approx(row["edit"]["drift"], rel=1e-5, abs=1e-7), name
    assert rows["undo"]["edit"]["drift"] == pytest.approx(0.02, rel=0.05)
    assert rows["random-control"]["edit"]["drift"] == pytest.approx(0.02 * 2**0.5, rel=0.05)
    assert rows["scale-values"]["edit"]["drift"] == pytest.approx(0.1, rel=1e-4)
    # Signs that are not aligned destroy; values hardly matter.
    divergence = {name: row["edit"]["texts"]["one.txt"]["divergence"] for name, row in rows.items()}
    assert divergence["break-left-random-signs"] > 10 * divergence["undo"] > 20 * divergence["replace-values"]
    assert len(finished.reading()) >= 8 and "random change" in " ".join(finished.reading())


def test_an_experiment_is_what_the_written_checkpoint_does(tmp_path):
    pairs.save_pair(tmp_path, "llama")
    base, post, text = tmp_path / "base", tmp_path / "post", pairs.save_text(tmp_path / "text.txt", 150)
    kind, roles = "restore-left", "k,down"  # both of them wide
    found = reproduce(base, post, [text], tmp_path / "out", window=32, experiments=kind, roles=roles, factors=())
    polarax.edit(base, post, kind, tmp_path / "edited", roles=roles, progress=False, measure=False)
    written = measure(load_decoder(tmp_path / "edited"), models.text(150), load_decoder(post), Settings(window=32))
    numbers = found.content["experiments"][0]["edit"]["texts"]["text.txt"]
    assert numbers["loss"] == pytest.approx(written.loss, rel=1e-6)
    assert numbers["divergence"] == pytest.approx(written.divergence, rel=1e-3)
    np.testing.assert_allclose(numbers["cka_by_layer"], np.diag(written.cka), rtol=1e-5)


def test_the_base_is_what_is_left_when_all_of_it_is_undone(place, tmp_path):
    every = "q,k,v,o,gate,up,down,embed,head"
    options = {"window": 32, "experiments": "undo", "roles": every, "factors": ()}
    found = reproduce(place / "base", place / "post", [place / "one.txt"], tmp_path / "out", **options)
    undone, of_base = (
        side["texts"]["one.txt"] for side in (found.content["experiments"][0]["edit"], found.content["base"])
    )
    assert (undone["loss"], undone["divergence"]) == (of_base["loss"], of_base["divergence"])


def test_the_command_prints_writes_and_resumes(run, tmp_path, monkeypatch):
    done = run(factors="0.5,2")
    assert done.code == 0, done.err
    # A heading of two lines.
    assert "what a random" in done.out and "change does" in done.out and "temperature 1/c^2" in done.out
    for name in ("plots/experiments.png", "plots/temperature.svg", "report.html"):
        assert (tmp_path / "out" / name).stat().st_size > 1000
    page = (tmp_path / "out/report.html").read_text()
    assert "break-left-random-signs" in page and "what a random change does" in page
    first = json.loads((tmp_path / "out/reproduction.json").read_text())
    # One experiment is lost; nothing else is measured again.
    (tmp_path / "out/finished/break-left.random.json").unlink()
    calls = []
    module = "polarax.reproduction.reproducing.measure"
    monkeypatch.setattr(module, lambda *given: calls.append(given) or measure(*given))
    assert run("--noplots", factors="0.5,2").code == 0
    assert len(calls) == 1
    second = json.loads((tmp_path / "out/reproduction.json").read_text())
    assert second["experiments"] == first["experiments"] and second["temperature"] == first["temperature"]


def test_bad_input(run, place, tmp_path):
    for flag in ("base", "post", "text", "out"):
        assert_one_line(run(**{flag: None}), f"--{flag} is missing")
    assert_one_line(run(window=151), "one.txt", "150 tokens", "window of 151")
    assert_one_line(run(experiments="shuffle"), "shuffle", "replace-values")
    assert_one_line(run(factors="1,two"), "1,two")
    assert_one_line(run(factors="0"), "above 0")
    assert_one_line(run(roles="lm"), "lm")
    assert_one_line(run(text=tmp_path / "none.txt"), "none.txt")
    pairs.save_pair(tmp_path, "qwen2")
    assert_one_line(run(base=tmp_path / "base"), "qwen2", "mistral")
    (tmp_path / "unknown").mkdir()
    for side in ("base", "post"):
        shutil.copytree(place / side, tmp_path / "unknown" / side)
        config = json.loads((place / side / "config.json").read_text()) | {"model_type": "mamba"}
        (tmp_path / "unknown" / side / "config.json").write_text(json.dumps(config))
    assert_one_line(run(base=tmp_path / "unknown/base", post=tmp_path / "unknown/post"), "mamba", "llama")
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken/file").write_text("")
    assert_one_line(run(out=tmp_path / "taken"), "taken", "no reproduction")
    assert not (tmp_path / "out").exists()
    assert run("--noplots", experiments="undo").code == 0
    assert_one_line(run(experiments="undo", seed=1), "another seed")


def test_the_picture_can_be_read(finished):
    """No TeX along the axes, one legend that hides nothing, and a row for each experiment."""
    figure = plot_experiments(finished.content)
    figure.draw_without_rendering()
    assert [axis.get_title() for axis in figure.axes] == ["one.txt", "two.txt"]
    assert [tick.get_text() for tick in figure.axes[0].get_yticklabels()] == list(EXPERIMENTS)
    for axis in figure.axes:
        ticks = [tick.get_text() for tick in axis.get_xticklabels()]
        assert len(ticks) >= 2 and all(float(text) > 0 for text in ticks)
        assert axis.get_legend() is None
    below = figure.legends[0].get_window_extent()
    assert all(below.y1 <= axis.get_tightbbox().y0 for axis in figure.axes)


def test_parts_of_the_change_are_read_out_on_every_text(finished):
    lines = [line for line in finished.reading() if "nearest is" in line]
    assert len(lines) == 2
    for line, label in zip(lines, ("one.txt", "two.txt"), strict=True):
        rows = {row["name"]: row["edit"]["texts"][label]["divergence"] for row in finished.content["experiments"]}
        nearest = min((name for name in rows if name.startswith("keep-")), key=rows.__getitem__)
        assert label in line and line.endswith(f"nearest is {nearest}.")


def test_words_for_ratios():
    words_of = {(0, 0): "nothing", (1, 100): "far less", (3, 10): "less", (1, 1): "about", (3, 1): "more"}
    for (edit, random), words in (words_of | {(20, 1): "far more"}).items():
        assert against_random(edit, random).startswith(words)
