import json
import os
import resource
import shutil
import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from polarax.loaders import CheckpointError, open_checkpoint, write_checkpoint

FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
INDEX = "model.safetensors.index.json"

# The disk fills up after the space was looked at, when the first of two tensors is on it.
FILLING_DISK = """
import os, pathlib, subprocess, sys
import numpy as np
from polarax.loaders import CheckpointError, open_checkpoint, write_checkpoint
disk, source = pathlib.Path(sys.argv[1]), sys.argv[2]
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", disk], check=True)
def fill():
    (disk / "other").write_bytes(bytes(1000 << 10))
    return np.zeros(10)
try:
    write_checkpoint(open_checkpoint(source), disk / "out", {"a": fill})
except CheckpointError as error:
    print(error)
print(sorted(os.listdir(disk)))
(disk / "other").unlink()
out = write_checkpoint(open_checkpoint(source), disk / "out", {})
print((out / "m.safetensors").read_bytes() == pathlib.Path(source).read_bytes())
"""


@pytest.fixture
def folder(save_raw, save, tmp_path):
    """A sharded checkpoint as a hub would have it: odd header, files of other kinds beside it."""
    folder = tmp_path / "model"
    folder.mkdir()
    data = np.arange(8, dtype=np.float32).tobytes() + np.arange(6).astype(ml_dtypes.bfloat16).tobytes() + b"\1\2\3"
    header = b"""{"__metadata__": {"format": "pt", "\xc3\xbc": "1"},
        "c": {"shape": [3], "dtype": "U8", "data_offsets": [44, 47]},
        "a": {"dtype": "F32", "shape": [2, 4], "data_offsets": [0, 32]},
        "b": {"dtype": "BF16", "shape": [2, 3], "data_offsets": [32, 44]}}   """
    save_raw(folder / FIRST, header, data)
    save(folder / SECOND, {"d": np.eye(3, dtype=np.float32)})
    weight_map = {"a": FIRST, "b": FIRST, "c": FIRST, "d": SECOND}
    (folder / INDEX).write_text(json.dumps({"metadata": {"total_size": 83}, "weight_map": weight_map}))
    (folder / "config.json").write_text('{"hidden_size":  3}')
    (folder / "tokenizer.json").write_bytes(b"\0" * 100)
    (folder / "pytorch_model.bin").write_bytes(b"not ours")
    (folder / "onnx").mkdir()
    (folder / "onnx/model.onnx").write_bytes(b"not ours")
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling/config.json").write_text("{}")
    return folder


def files(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_nothing_replaced_is_the_same_to_the_byte(folder, tmp_path):
    written = write_checkpoint(open_checkpoint(folder), tmp_path / "out/below", {})
    before = files(folder)
    for other in ("pytorch_model.bin", "onnx/model.onnx"):
        del before[other]
    assert files(written) == before
    assert os.listdir(tmp_path / "out") == ["below"]


def test_the_rest_keeps_its_bytes(folder, tmp_path):
    calls = []

    def compute():
        calls.append("b")
        return np.full((2, 3), 7.0)

    out = write_checkpoint(open_checkpoint(folder), tmp_path / "out", {"b": compute, "d": np.ones((3, 3))})
    assert calls == ["b"]
    before, after = files(folder), files(out)
    length = 8 + int.from_bytes(before[FIRST][:8], "little")
    expected = np.full((2, 3), 7, ml_dtypes.bfloat16).tobytes()
    assert after[FIRST] == before[FIRST][: length + 32] + expected + before[FIRST][length + 44 :]
    np.testing.assert_array_equal(safetensors.numpy.load_file(out / SECOND)["d"], np.ones((3, 3)))
    assert after[INDEX] == before[INDEX]


def test_another_dtype_for_what_is_replaced(folder, tmp_path):
    out = write_checkpoint(open_checkpoint(folder), tmp_path / "out", {"b": np.full((2, 3), 1.5)}, dtype="float64")
    written, source = open_checkpoint(out), open_checkpoint(folder)
    assert written.names() == source.names()
    assert [written.dtype_name(name) for name in written.names()] == ["float32", "float64", "uint8", "float32"]
    np.testing.assert_array_equal(written.read("b").result(), np.full((2, 3), 1.5))
    for name in "acd":
        np.testing.assert_array_equal(written.read(name).result(), source.read(name).result())
    assert safetensors.deserialize((out / FIRST).read_bytes())
    with safetensors.safe_open(out / FIRST, "np") as opened:
        assert opened.metadata() == {"format": "pt", "ü": "1"}
    index = json.loads((out / INDEX).read_text())
    assert index["metadata"]["total_size"] == 83 + 6 * 6


def test_a_single_file(save, tmp_path):
    (tmp_path / "in").mkdir()
    path = save(tmp_path / "in/weights.safetensors", {"w": np.zeros((2, 2), np.float32)})
    out = write_checkpoint(open_checkpoint(path), tmp_path / "out", {"w": np.ones((2, 2), np.float32)})
    assert list(files(out)) == ["weights.safetensors"]
    assert open_checkpoint(out).read("w").result().sum() == 4


def test_tensors_larger_than_a_chunk(save, tmp_path, monkeypatch):
    monkeypatch.setattr("polarax.loaders.writing.copies._CHUNK_BYTES", 1000)
    arrays = {name: np.random.default_rng(i).standard_normal((40, 17)) for i, name in enumerate("abcde")}
    path = save(tmp_path / "m.safetensors", arrays)
    out = write_checkpoint(open_checkpoint(path), tmp_path / "out", {"c": arrays["c"]})
    assert (out / "m.safetensors").read_bytes() == path.read_bytes()


def test_a_checkpoint_of_the_web(save, web, tmp_path):
    path = save(web.root / "model.safetensors", {"w": np.ones((2, 2)), "v": np.zeros(3)})
    (web.root / "config.json").write_text("{}")
    out = write_checkpoint(open_checkpoint(web.url), tmp_path / "out", {"w": np.ones((2, 2))})
    assert files(out) == {"model.safetensors": path.read_bytes(), "config.json": b"{}"}


def test_files_of_the_hub_cache_are_links(save, tmp_path):
    (tmp_path / "blobs").mkdir()
    (tmp_path / "snapshot").mkdir()
    blob = save(tmp_path / "blobs/1", {"w": np.ones((2, 2))})
    (tmp_path / "snapshot/model.safetensors").symlink_to("../blobs/1")
    before = blob.read_bytes()
    out = write_checkpoint(open_checkpoint(tmp_path / "snapshot"), tmp_path / "out", {"w": np.zeros((2, 2))})
    assert not (out / "model.safetensors").is_symlink()
    assert blob.read_bytes() == before != (out / "model.safetensors").read_bytes()


def refused(source, out, replacements, problem, **options):
    with pytest.raises(CheckpointError, match=problem) as caught:
        write_checkpoint(source, out, replacements, **options)
    assert "\n" not in str(caught.value)


def test_never_over_the_source(folder, tmp_path):
    source, before = open_checkpoint(folder), files(folder)
    (tmp_path / "link").symlink_to(folder)
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    twin = tmp_path / "twin"
    twin.mkdir()
    os.link(folder / FIRST, twin / FIRST)
    zeros = {"a": np.zeros((2, 4), np.float32)}
    refused(source, folder, zeros, "is where the checkpoint is read from")
    refused(source, tmp_path / "link", zeros, "is where the checkpoint is read from")
    refused(source, tmp_path / "dangling", zeros, "is a link")
    refused(source, twin, zeros, "is not empty")
    refused(source, folder / FIRST, zeros, "is a file")
    assert files(folder) == before
    inside = write_checkpoint(source, folder / "edited", zeros)
    assert "edited" not in "".join(files(inside))


@pytest.mark.parametrize(
    ("replacements", "options", "problem"),
    [
        ({"x": np.zeros(3)}, {}, "has no tensor 'x'"),
        ({"a": np.zeros((4, 2))}, {}, r"'a' .*expected a replacement of shape \(2, 4\). Got \(4, 2\)"),
        ({"c": np.zeros(3)}, {}, "'c' .*expected a replacement of type uint8. Got float64"),
        ({"a": np.full((2, 4), 1e6)}, {"dtype": "float16"}, "'a' .*too large for float16"),
        ({"a": np.zeros((2, 4))}, {"dtype": "int8"}, "dtype must be a floating-point type"),
    ],
)
def test_what_does_not_fit_leaves_nothing(folder, tmp_path, replacements, options, problem):
    refused(open_checkpoint(folder), tmp_path / "out", replacements, problem, **options)
    assert os.listdir(tmp_path) == ["model"]


def test_an_error_in_the_middle_leaves_nothing(folder, tmp_path):
    def fails():
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        write_checkpoint(open_checkpoint(folder), tmp_path / "out", {"d": fails})
    assert os.listdir(tmp_path) == ["model"]


def test_a_source_that_changes_meanwhile_leaves_nothing(folder, tmp_path):
    def meddle():
        (folder / SECOND).write_bytes(b"other")
        return np.zeros((2, 4))

    refused(open_checkpoint(folder), tmp_path / "out", {"a": meddle}, rf"{SECOND}: .*it changed")
    assert os.listdir(tmp_path) == ["model"]


def test_a_tree_cannot_be_written(tmp_path):
    refused(open_checkpoint({"w": np.eye(2)}), tmp_path / "out", {}, "only safetensors checkpoints can be written")


def test_too_little_space_is_said_before_anything_is_written(folder, tmp_path, monkeypatch):
    free = shutil.disk_usage(tmp_path)._replace(free=82)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: free)
    refused(open_checkpoint(folder), tmp_path / "out", {}, "83 bytes are needed, 82 are free")
    assert os.listdir(tmp_path) == ["model"]


def test_a_full_disk_leaves_nothing(save, tmp_path):
    path = save(tmp_path / "m.safetensors", {"w": np.zeros((1000, 100))})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, hard))  # the system then refuses longer files
    try:
        refused(
            open_checkpoint(path), tmp_path / "out", {}, "/out: cannot be written: the disk is full: File too large"
        )
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert os.listdir(tmp_path) == ["m.safetensors"]


def test_a_disk_that_fills_up_meanwhile_leaves_nothing(save, tmp_path, small_disk):
    path = save(tmp_path / "m.safetensors", {"a": np.zeros(10), "w": np.ones((300, 100))})
    done = subprocess.run(
        [*small_disk.prefix, sys.executable, "-c", FILLING_DISK, small_disk.path, path],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.stdout.splitlines() == [
        f"{small_disk.path}/out: cannot be written: the disk is full: No space left on device; nothing is left there",
        "['other']",
        "True",
    ], done.stderr
