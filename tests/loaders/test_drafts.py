"""Drafts: every format is written as it was read, but for the matrices that were put."""

import json

import flax.serialization
import ml_dtypes
import numpy as np
import orbax.checkpoint as ocp
import pytest
import safetensors.numpy

from polarax.loaders import CheckpointError, open_checkpoint, open_draft, rounded
from polarax.loaders.matrices import take_inventory
from polarax.loaders.matrices.view import View


def views_of(checkpoint):
    return {view.name: view for views in take_inventory(checkpoint).views.values() for view in views}


def put_all(checkpoint, folder, names, **options):
    """Writes a copy in which the named matrices are counted upwards; those, (out, in)."""
    views = views_of(checkpoint)
    draft = open_draft(checkpoint, folder, {views[name].tensor for name in names}, **options)
    draft.prepare()
    put = {}
    for name in names:
        shape = views[name].shape
        put[name] = np.arange(np.prod(shape)).reshape(shape).astype(draft.dtype(views[name].tensor))
        draft.put(views[name], put[name])
        draft.sync()
    draft.finish({"note.json": b"{}"})
    assert (folder / "note.json").read_bytes() == b"{}"
    return put


def check(before, after, put):
    """What was put is there, and all else is as it was."""
    views = views_of(before)
    assert before.names() == after.names()
    for name, view in views.items():
        found, old = (view.read(x).result() for x in (after, before))
        np.testing.assert_array_equal(found, put.get(name, old))
    for name in before.names():
        if name not in {view.tensor for view in views.values()}:
            np.testing.assert_array_equal(after.read(name).result(), before.read(name).result())


@pytest.fixture
def fused(tmp_path):
    """Head by head, in two shards: query_key_value of GPT-NeoX."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "model"
    folder.mkdir()
    name = "gpt_neox.layers.{}.attention.{}"
    arrays = {name.format(0, "query_key_value.weight"): rng.normal(size=(48, 16)).astype(np.float32)}
    arrays |= {name.format(0, "dense.weight"): rng.normal(size=(16, 16)).astype(ml_dtypes.bfloat16)}
    files = dict.fromkeys(arrays, "model-00001-of-00002.safetensors")
    safetensors.numpy.save_file(arrays, folder / "model-00001-of-00002.safetensors")
    more = {name.format(1, "query_key_value.bias"): np.ones(48, np.float32)}
    safetensors.numpy.save_file(more, folder / "model-00002-of-00002.safetensors", {"format": "pt", "other": "1"})
    files |= dict.fromkeys(more, "model-00002-of-00002.safetensors")
    index = {"metadata": {"total_size": 48 * 16 * 4 + 512 + 192}, "weight_map": files}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text(
        json.dumps({"model_type": "gpt_neox", "num_attention_heads": 4, "hidden_size": 16})
    )
    return folder


def test_parts_of_fused_tensors(fused, tmp_path):
    source = open_checkpoint(fused)
    names = [name for name in views_of(source) if name.endswith("[k]") or "dense" in name]
    put = put_all(source, tmp_path / "out", names, metadata={"mine": "2"})
    check(source, open_checkpoint(tmp_path / "out"), put)
    with safetensors.safe_open(tmp_path / "out/model-00001-of-00002.safetensors", "np") as opened:
        assert opened.metadata() == {"format": "pt", "mine": "2"}
    with safetensors.safe_open(tmp_path / "out/model-00002-of-00002.safetensors", "np") as opened:
        assert opened.metadata() == {"format": "pt", "other": "1", "mine": "2"}
    assert (tmp_path / "out/config.json").read_bytes() == (fused / "config.json").read_bytes()


def test_another_dtype_is_that_of_the_whole_tensor(fused, tmp_path):
    source = open_checkpoint(fused)
    name = next(name for name in views_of(source) if name.endswith("[v]"))
    put_all(source, tmp_path / "out", [name], dtype="float64")
    after = open_checkpoint(tmp_path / "out")
    tensor = views_of(source)[name].tensor
    assert after.dtype(tensor) == np.float64
    rest = views_of(source)[name.replace("[v]", "[q]")]
    np.testing.assert_array_equal(rest.read(after).result(), rest.read(source).result())
    index = json.loads((tmp_path / "out/model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == 48 * 16 * 8 + 512 + 192


def test_an_orbax_tree_stays_one(tmp_path):
    rng = np.random.default_rng(0)
    tree = {
        "layers": {"attention": {"query": {"kernel": rng.normal(size=(2, 12, 3, 4)).astype(np.float32)}}},
        "dense": {"kernel": rng.normal(size=(12, 20)).astype(np.float32), "bias": np.ones(20, np.float32)},
    }
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "tree", tree)
    source = open_checkpoint(tmp_path / "tree")
    names = [name for name in views_of(source) if "layer=1" in name or "dense" in name]
    put = put_all(source, tmp_path / "out", names)
    assert len(put) == 2
    check(source, open_checkpoint(tmp_path / "out"), put)
    with ocp.StandardCheckpointer() as checkpointer:
        restored = checkpointer.restore(tmp_path / "out")
    np.testing.assert_array_equal(restored["dense"]["kernel"], put["dense.kernel"].T)
    np.testing.assert_array_equal(restored["dense"]["bias"], np.ones(20))
    kernel = restored["layers"]["attention"]["query"]["kernel"]
    np.testing.assert_array_equal(kernel[0], tree["layers"]["attention"]["query"]["kernel"][0])
    matrix = put[next(name for name in put if "layer=1" in name)]
    np.testing.assert_array_equal(kernel[1].reshape(12, 12).T, matrix)


def test_a_file_of_flax_stays_one(tmp_path):
    tree = {"params": {"dense": {"kernel": np.ones((3, 4), np.float32), "bias": np.zeros(4, np.float32)}}}
    (tmp_path / "model").mkdir()
    (tmp_path / "model/flax_model.msgpack").write_bytes(flax.serialization.msgpack_serialize(tree))
    (tmp_path / "model/config.json").write_text("{}")
    source = open_checkpoint(tmp_path / "model")
    put = put_all(source, tmp_path / "out", ["dense.kernel"])
    check(source, open_checkpoint(tmp_path / "out"), put)
    restored = flax.serialization.msgpack_restore((tmp_path / "out/flax_model.msgpack").read_bytes())
    np.testing.assert_array_equal(restored["params"]["dense"]["kernel"], put["dense.kernel"].T)
    assert (tmp_path / "out/config.json").read_bytes() == b"{}"


def test_what_cannot_be_written_is_said(fused, tmp_path):
    source = open_checkpoint(fused)
    with pytest.raises(CheckpointError, match="no tensor 'x'"):
        open_draft(source, tmp_path / "out", ["x"])
    with pytest.raises(CheckpointError, match="only safetensors, Orbax and Flax checkpoints are written"):
        open_draft(open_checkpoint({"w": np.eye(2)}), tmp_path / "out", ["w"])
    scaled = {"w.weight": np.ones((4, 4), ml_dtypes.float8_e4m3fn), "w.weight_scale": np.float32(2).reshape(1)}
    safetensors.numpy.save_file(scaled, tmp_path / "scaled.safetensors")
    with pytest.raises(CheckpointError, match="cannot be written back; leave it out, or convert it"):
        open_draft(open_checkpoint(tmp_path / "scaled.safetensors"), tmp_path / "out", ["w.weight"])
    assert not (tmp_path / "out").exists()


def test_place_is_the_inverse_of_arrange():
    view = View("w", (4, 6), factors=(2, 2, 2, 6), cut=(slice(None), slice(1, 2)), order=(1, 2, 0, 3))
    matrix = view.arrange(np.arange(1.0, 49).reshape(8, 6)).copy()
    changed = np.zeros((8, 6))
    view.place(matrix, changed)
    np.testing.assert_array_equal(view.arrange(changed), matrix)
    assert np.count_nonzero(changed) == matrix.size
    with pytest.raises(ValueError, match="only a whole matrix"):
        view.first_rows(2).place(matrix[:2], changed)


def test_numbers_are_rounded_once():
    """Beside the middle of two bfloat16 numbers, where rounding to float32 before goes wrong."""
    one = 1 + 2.0**-8  # the middle of 1 and the next bfloat16
    numbers = np.array([one, one + 2.0**-40, one - 2.0**-40, -one - 2.0**-40, np.inf, np.nan, 0.0, 1e300, -0.0])
    found = rounded(numbers, np.dtype(ml_dtypes.bfloat16)).astype(np.float64)
    above = 1 + 2.0**-7
    np.testing.assert_array_equal(found, [1, above, 1, -above, np.inf, np.nan, 0, np.inf, 0])
    assert np.signbit(found[8])
    for dtype in ("float16", "float32", "float64"):
        with np.errstate(over="ignore"):
            np.testing.assert_array_equal(rounded(numbers, np.dtype(dtype)), numbers.astype(dtype))
    assert rounded(numbers, numbers.dtype) is numbers
    many = np.random.default_rng(0).normal(size=(300, 400))
    eighths = rounded(many, np.dtype(ml_dtypes.float8_e4m3fn)).astype(np.float64)
    # Of numbers above the smallest normal one, 2^-6, none is off by more than half of a unit in the last of three bits.
    normal = np.abs(many) > 2.0**-6
    assert np.all(np.abs(eighths - many)[normal] <= np.abs(many[normal]) * 2.0**-4)
