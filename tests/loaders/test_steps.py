"""Which checkpoints a folder, a pattern or a list stands for, and in which order."""

import numpy as np
import pytest

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


@pytest.fixture
def folder(tmp_path):
    for name in ("checkpoint-9", "checkpoint-100", "checkpoint-10", "logs", "20.orbax-checkpoint-tmp-3"):
        (tmp_path / name).mkdir()
    (tmp_path / "notes-3.txt").write_text("")
    return tmp_path


def test_a_folder_in_the_order_of_the_steps(folder):
    assert find_steps(folder) == {step: str(folder / f"checkpoint-{step}") for step in (9, 10, 100)}


def test_files_that_are_called_after_steps(tmp_path):
    for step in (2, 11):
        (tmp_path / f"step{step}.safetensors").write_bytes(b"")
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
