import json
import os
import pathlib

import numpy as np
import pytest

from polarax.loaders import CheckpointError, open_checkpoint

INDEX = "model.safetensors.index.json"


def matrix(value):
    return np.full((2, 3), value, np.float32)


def write_index(folder, weight_map, name=INDEX):
    (folder / name).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def values(checkpoint):
    return {name: float(checkpoint.read(name).result()[0, 0]) for name in checkpoint.names()}


@pytest.fixture
def sharded(save, tmp_path):
    """Tensors a and b in the first of two shards, c in the second."""
    save(tmp_path / "model-00001-of-00002.safetensors", {"a": matrix(1), "b": matrix(2)})
    save(tmp_path / "model-00002-of-00002.safetensors", {"c": matrix(3)})
    first, second = sorted(path.name for path in tmp_path.glob("*.safetensors"))
    write_index(tmp_path, {"c": second, "a": first, "b": first})
    return tmp_path


def test_an_index_in_a_folder(sharded):
    checkpoint = open_checkpoint(sharded)
    assert checkpoint.names() == ("a", "b", "c")
    assert values(checkpoint) == {"a": 1, "b": 2, "c": 3}


def test_an_index_by_its_own_path(sharded):
    assert values(open_checkpoint(sharded / INDEX)) == {"a": 1, "b": 2, "c": 3}


def test_an_index_of_any_name(sharded):
    (sharded / INDEX).rename(sharded / "other.fp16.safetensors.index.json")
    assert values(open_checkpoint(sharded)) == {"a": 1, "b": 2, "c": 3}


def test_an_index_goes_before_files_that_it_does_not_name(sharded, save):
    save(sharded / "consolidated.safetensors", {"a": matrix(9)})
    checkpoint = open_checkpoint(sharded)
    assert values(checkpoint) == {"a": 1, "b": 2, "c": 3}
    assert checkpoint.notes == ("consolidated.safetensors: beside the model, and not read",)


def test_shards_without_an_index(sharded):
    (sharded / INDEX).unlink()
    assert values(open_checkpoint(sharded)) == {"a": 1, "b": 2, "c": 3}


def test_a_shard_in_a_folder_below(sharded):
    (sharded / "parts").mkdir()
    (sharded / "model-00002-of-00002.safetensors").rename(sharded / "parts/c.safetensors")
    first = "model-00001-of-00002.safetensors"
    write_index(sharded, {"a": first, "b": first, "c": "parts/c.safetensors"})
    assert values(open_checkpoint(sharded))["c"] == 3


def test_model_safetensors_goes_before_other_files(save, tmp_path):
    save(tmp_path / "model.safetensors", {"a": matrix(1)})
    save(tmp_path / "adapter.safetensors", {"a": matrix(2)})
    (tmp_path / "._model.safetensors").write_bytes(b"left there by another system")
    assert values(open_checkpoint(tmp_path)) == {"a": 1}


def test_a_single_file_of_any_name(save, tmp_path):
    save(tmp_path / "weights.safetensors", {"a": matrix(1)})
    assert values(open_checkpoint(tmp_path)) == {"a": 1}
    assert values(open_checkpoint(str(tmp_path / "weights.safetensors"))) == {"a": 1}


def test_links_are_followed_as_the_hub_cache_needs(save, tmp_path):
    (tmp_path / "blobs").mkdir()
    (tmp_path / "snapshot").mkdir()
    save(tmp_path / "blobs/0123abc", {"a": matrix(1)})
    (tmp_path / "snapshot/model.safetensors").symlink_to("../blobs/0123abc")
    assert values(open_checkpoint(tmp_path / "snapshot")) == {"a": 1}


@pytest.mark.parametrize("name", ["a b", "100%", "x%20y", "#1?", "ünï", "q'\"", "a\nb", "{*}", "..."])
def test_folders_with_odd_names(save, tmp_path, name):
    folder = tmp_path / name
    folder.mkdir()
    save(folder / "model.safetensors", {"a": matrix(1)})
    assert values(open_checkpoint(folder)) == {"a": 1}
    assert values(open_checkpoint(folder.as_uri())) == {"a": 1}


@pytest.mark.parametrize("name", ["back\\slash", "x.__lock", os.fsdecode(b"\xff")])
def test_a_folder_that_tensorstore_cannot_address_is_one_line(save_raw, tmp_path, name):
    folder = tmp_path / name
    folder.mkdir()
    header = {"a": {"dtype": "I8", "shape": [1], "data_offsets": [0, 1]}}
    save_raw(folder / "model.safetensors", header, b"1")
    try:
        checkpoint = open_checkpoint(folder)
    except CheckpointError as error:
        assert "\n" not in str(error)
    else:
        assert checkpoint.read("a").result() == [ord("1")]


def test_relative_paths_and_home(save, tmp_path, monkeypatch):
    (tmp_path / "m").mkdir()
    save(tmp_path / "m/model.safetensors", {"a": matrix(1)})
    monkeypatch.chdir(tmp_path / "m")
    monkeypatch.setenv("HOME", str(tmp_path))
    for source in (".", "model.safetensors", "../m/", "~/m", pathlib.Path("../m"), b"../m"):
        assert values(open_checkpoint(source)) == {"a": 1}


def refused(source, problem):
    with pytest.raises(CheckpointError, match=problem) as caught:
        open_checkpoint(source)
    assert "\n" not in str(caught.value)


def test_a_missing_path(tmp_path):
    refused(tmp_path / "nowhere", r"/nowhere: no such file or folder")
    refused("", "empty")


def test_a_folder_without_a_checkpoint(tmp_path):
    (tmp_path / "notes.txt").touch()
    refused(tmp_path, r"no checkpoint there; looked for \*.safetensors.index.json and \*")


def test_pickles_are_mentioned_and_not_opened(tmp_path):
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80")
    refused(tmp_path, r"there is pytorch_model\.bin, but pickle files .* never opened")
    refused(tmp_path / "pytorch_model.bin", r"pytorch_model\.bin: not opened: pickle")


def test_several_indexes(sharded):
    (sharded / INDEX).rename(sharded / "a.safetensors.index.json")
    (sharded / "b.safetensors.index.json").write_text("{}")
    refused(sharded, r"several indexes; name one of them: a\.safe.*, b\.safe")


def test_a_folder_where_a_file_is_expected(tmp_path):
    (tmp_path / "model.safetensors").mkdir()
    refused(tmp_path, r"model\.safetensors: expected a file, found a folder")


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "model.safetensors")
    refused(tmp_path, r"model\.safetensors: expected a regular file")


def test_an_empty_file(tmp_path):
    (tmp_path / "model.safetensors").touch()
    refused(tmp_path, r"model\.safetensors: is empty")


def test_a_name_in_two_shards(sharded, save):
    save(sharded / "model-00002-of-00002.safetensors", {"c": matrix(3), "a": matrix(4)})
    problem = r"-00002-of-00002\.safetensors: tensor 'a' is also in model-00001-of-00002"
    refused(sharded, problem)
    (sharded / INDEX).unlink()
    refused(sharded, problem)


def test_an_index_that_names_a_missing_shard(sharded):
    (sharded / "model-00002-of-00002.safetensors").unlink()
    refused(sharded, rf"-00002-of-00002\.safetensors: no such file; {INDEX} names it")


def test_an_index_that_names_a_tensor_its_shard_lacks(sharded):
    first, second = sorted(path.name for path in sharded.glob("*.safetensors"))
    write_index(sharded, {"a": first, "d": second})
    refused(sharded, rf"{second}: has no tensor 'd', which {INDEX} says is there")
    write_index(sharded, {"a": second, "b": first})
    refused(sharded, rf"{second}: has no tensor 'a'")


@pytest.mark.parametrize(
    "file",
    [
        "../m.safetensors",
        "/etc/m.safetensors",
        "a/../../m",
        "",
        "a//b",
        "./a",
        "a\\b",
        "a\0b",
        3,
        None,
    ],
)
def test_an_index_that_leaves_its_folder(sharded, file):
    write_index(sharded, {"a": file})
    refused(sharded, rf"{INDEX}: tensor 'a' is said to be in .* expected a file in the folder")


@pytest.mark.parametrize("text", [b"", b"[]", b"{", b"\xff", b"{}", b'{"weight_map": []}'])
def test_an_index_that_is_none(sharded, text):
    (sharded / INDEX).write_bytes(text)
    refused(sharded, rf"{INDEX}: ")


def test_an_index_that_lists_nothing(sharded):
    write_index(sharded, {})
    refused(sharded, rf"{INDEX}: expected weight_map")


def test_an_absurdly_long_index(sharded):
    with (sharded / INDEX).open("wb") as file:
        file.truncate(1 << 40)
    refused(sharded, "too many for an index")
