"""What counts as several posts, and what they are called."""

import numpy as np
import pytest

import polarax
from polarax.planning.post_labels import named_posts


@pytest.mark.parametrize(
    ("given", "labels"),
    [
        (["runs/sft", "runs/rl/"], ["sft", "rl"]),
        (["a/model.safetensors", "b/model.safetensors.index.json"], ["a", "b"]),
        (["one.safetensors", "two.gguf"], ["one", "two"]),
        (["hf://owner/name@main", "https://host/path/other?token=secret"], ["name", "other"]),
        (["x=runs/sft", "y=runs/sft"], ["x", "y"]),
        (["https://host/a?sig=secret", "s3://bucket/it"], ["a", "it"]),
        ({"one": "runs/sft", "two": "runs/sft"}, ["one", "two"]),
        ({"only": "runs/sft"}, ["only"]),
    ],
)
def test_labels(given, labels):
    assert list(named_posts(given)) == labels


def test_a_path_with_an_equals_sign_that_is_there_is_a_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "step=10").mkdir()
    assert named_posts(["step=10", "step=20"]) == {"step-10": "step=10", "step": "20"}


@pytest.mark.parametrize("post", ["a", ["a"], [np.ones((2, 2))] * 2, {"q": np.ones((2, 2))}, [{"q": 1}, {"q": 2}]])
def test_one_post(post):
    assert named_posts(post) is None


def test_checkpoints_in_memory():
    opened = [polarax.open_checkpoint({"q": np.ones((2, 2))}) for _ in range(2)]
    assert list(named_posts({"a": opened[0], "b": opened[1]}).values()) == opened


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["a/x", "b/x"], "Two posts are named 'x'"),
        ({"../up": "a"}, "cannot be called '../up'"),
        ({"between": "a"}, "cannot be called 'between'"),
        ({".hidden": "a"}, "cannot be called '.hidden'"),
        ({"": "a"}, "cannot be called ''"),
    ],
)
def test_labels_that_are_refused(given, words):
    with pytest.raises(polarax.UsageError, match=words):
        named_posts(given)
