"""Weights under the names that torchao and quanto give them, and scales that are powers of two, against NumPy."""

import json

import ml_dtypes
import numpy as np
import pytest

from polarax.loaders import open_checkpoint, pair_checkpoints, write_checkpoint
from polarax.loaders.quantisation import quantised

F8, E5, E8 = ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2, ml_dtypes.float8_e8m0fnu
F32 = np.float32

# Name of the weight, of its scale, and of the weight in the model: `flatten_tensor_state_dict` of torchao today and in
# its first version; quanto's `WeightQBytesTensor.save_to_state_dict`.
STYLES = {
    "torchao": ("model.layers.0.mlp.up_proj._weight_qdata", "model.layers.0.mlp.up_proj._weight_scale"),
    "torchao, first": ("model.layers.0.mlp.up_proj.weight:qdata", "model.layers.0.mlp.up_proj.weight:scale"),
    "a colon": ("model.layers.0.mlp.up_proj.weight:_data", "model.layers.0.mlp.up_proj.weight:_scale"),
    "quanto": ("model.layers.0.mlp.up_proj.weight._data", "model.layers.0.mlp.up_proj.weight._scale"),
}
LISTED = "model.layers.0.mlp.up_proj.weight"


def numbers(dtype, shape=(48, 32)):
    rng = np.random.default_rng(0)
    if np.dtype(dtype) == np.int8:
        return rng.integers(-128, 128, shape, np.int8)
    return (40 * rng.normal(size=shape)).astype(dtype)


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("dtype", [F8, E5, np.int8])
@pytest.mark.parametrize("scale_shape", [(48, 1), (1, 1), (), (1,)])
def test_a_weight_has_the_name_of_the_model(save, tmp_path, style, dtype, scale_shape):
    weight, scale = STYLES[style]
    stored = numbers(dtype)
    scales = np.asarray(np.random.default_rng(1).lognormal(size=scale_shape)).astype(ml_dtypes.bfloat16)
    tensors = {weight: stored, scale: scales, "model.norm.weight": np.ones(4, F32)}
    checkpoint = open_checkpoint(str(save(tmp_path / "m.safetensors", tensors)))
    assert set(checkpoint.names()) == {LISTED, "model.norm.weight"}
    expected = stored.astype(F32) * scales.astype(F32)
    np.testing.assert_array_equal(checkpoint.read(LISTED).result(), expected, strict=True)
    np.testing.assert_array_equal(checkpoint.read(LISTED, slice(5, 9)).result(), expected[5:9])
    assert not quantised(checkpoint)
    model = open_checkpoint({LISTED: expected, "model.norm.weight": np.ones(4, F32)})
    pairs, _ = pair_checkpoints(model, checkpoint)
    assert [(pair.name, pair.name_post, pair.role) for pair in pairs] == [(LISTED, LISTED, "up")]


def test_other_tensors_of_the_first_version_have_their_own_names(save, tmp_path):
    tensors = {"l.weight:qdata": numbers(F8), "l.weight:scale": np.ones((48, 1), F32)}
    tensors |= {"e.weight:_data": np.full((3, 2), 2, F32), "l.bias:_data": np.ones(3, F32)}
    path = save(tmp_path / "m.safetensors", tensors)
    checkpoint = open_checkpoint(str(path))
    assert set(checkpoint.names()) == {"l.weight", "e.weight", "l.bias"}
    np.testing.assert_array_equal(checkpoint.read("e.weight").result(), tensors["e.weight:_data"])
    assert checkpoint.nbytes("e.weight") == 24
    written = write_checkpoint(checkpoint, tmp_path / "out", {"e.weight": np.zeros((3, 2), F32)})
    assert b"e.weight:_data" in (written / "m.safetensors").read_bytes()
    assert not open_checkpoint(written).read("e.weight").result().any()


@pytest.mark.parametrize(
    "tensors",
    [
        {"l._weight_qdata": "i1", "l._weight_scale": "f4", "l._weight_zero_point": "i1"},  # IntxUnpackedToInt8Tensor
        {"l._weight_qdata": "i1", "l._weight_scale": "f4", "l._weight_act_pre_scale": "f4"},
        {"l._weight_qdata": "u1", "l._weight_scale": F8, "l._weight_per_tensor_scale": "f4"},  # NVFP4Tensor
        {"l._weight_qdata": F8, "l._weight_scale": E8},  # MXTensor, with scales in rows or in tiles
        {"l.weight:qdata": "i1", "l.weight:scale": "f4", "l.weight:zero_point": "i1"},
        {"l.weight._data": "u1", "l.weight._scale": "f4", "l.weight._shift": "f4"},  # quanto's qint4
        {"l.weight:_data": F8, "l.weight:a_scale_of_theirs": "f4"},
        {"l.weight": F8, "l.some_new_scale": "f4"},
        {"l.weight": "i1", "l.weight_scales": "f2"},  # EETQ
        {"l.weight": "u1", "l.weight.absmax": "f4", "l.weight.quant_map": "f4"},
        {"l.W_q": "u1", "l.scale": "f2", "l.zero": "f2"},  # HQQ
        {"l.codes": "i1", "l.codebooks": "f2", "l.scales": "f2"},  # AQLM
        {"l.B": "i4", "l.s": "f2"},  # Marlin
        {"l.packed": "i4", "l.scales": "f2", "l.zeros": "f2"},
        {"experts.up": "u1", "experts.up_amax": "f4"},
    ],
    ids=lambda tensors: next(iter(tensors)) + f", {len(tensors)}",
)
def test_what_is_not_understood_is_quantised(tmp_path, tensors):
    """Never read as raw numbers, with everything that belongs to it."""
    arrays = {name: np.ones((32, 32), dtype) for name, dtype in tensors.items()}
    arrays["m.weight"] = np.ones((2, 2), F32)
    checkpoint = open_checkpoint(save_any(tmp_path / "m.safetensors", arrays))
    pairs, skipped = pair_checkpoints(checkpoint, checkpoint)
    assert [pair.name for pair in pairs] == ["m.weight"]
    assert {name for name, _ in skipped} == {name.removesuffix(":_data") for name in tensors}
    assert all(reason.startswith("quantised: ") for _, reason in skipped)


def test_unknown_scales_of_other_modules_do_not_matter():
    tensors = {"l.weight": (4, 2, F8), "n.scale": (4, 2, "f4"), "logit_scale": (1, 1, "f4"), "l.mask": (2, 2, "?")}
    tensors |= {"a.index": (2, 2, "i8"), "a.logit_scale": (2, 1, "f4"), "a.ids": (4, "i4")}
    checkpoint = open_checkpoint({name: np.ones(shape, dtype) for name, (*shape, dtype) in tensors.items()})
    assert not quantised(checkpoint)


def save_any(path, arrays, metadata=None):
    """A safetensors file, with types that the library for NumPy does not write."""
    header, data = {"__metadata__": metadata or {}}, b""
    spelling = {np.dtype(E8): "F8_E8M0", np.dtype(F8): "F8_E4M3", np.dtype(E5): "F8_E5M2"}
    for name, array in arrays.items():
        plain = f"{'F' if array.dtype.kind == 'f' else array.dtype.kind.upper()}{8 * array.dtype.itemsize}"
        dtype = spelling.get(array.dtype, plain)
        offsets = [len(data), len(data) + array.nbytes]
        header[name] = {"dtype": dtype, "shape": list(array.shape), "data_offsets": offsets}
        data += np.ascontiguousarray(array).tobytes()
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return str(path)


def powers(shape):
    """Exponents of every size that float32 has, as E8M0 stores them."""
    return np.random.default_rng(2).integers(100, 150, shape).astype(np.uint8)


@pytest.mark.parametrize("as_bytes", [False, True])
@pytest.mark.parametrize("dtype", [F8, E5])
@pytest.mark.parametrize("shape", [(48, 96), (3, 16, 64)])
def test_powers_of_two_for_blocks_of_32(tmp_path, as_bytes, dtype, shape):
    """OCP MX: the byte is the exponent, biased by 127."""
    stored, exponents = numbers(dtype, shape), powers((*shape[:-1], shape[-1] // 32))
    scale = exponents if as_bytes else exponents.view(E8)
    checkpoint = open_checkpoint(save_any(tmp_path / "m.safetensors", {"l.up": stored, "l.up_scale": scale}))
    expected = stored.astype(F32) * np.repeat(np.ldexp(F32(1), exponents.astype(int) - 127), 32, axis=-1)
    np.testing.assert_array_equal(checkpoint.read("l.up").result(), expected.astype(F32), strict=True)
    part = (slice(1, 2), slice(3, 9)) if len(shape) == 3 else (slice(7, 20), slice(30, 70))
    np.testing.assert_array_equal(checkpoint.read("l.up", part).result(), expected[part])


def test_powers_of_two_for_square_blocks(tmp_path):
    stored, exponents = numbers(F8, (256, 200)), powers((2, 2))
    arrays = {"l.weight": stored, "l.weight_scale_inv": exponents.view(E8)}
    checkpoint = open_checkpoint(save_any(tmp_path / "m.safetensors", arrays))
    factors = np.ldexp(F32(1), exponents.astype(int) - 127).repeat(128, 0).repeat(128, 1)[:, :200]
    np.testing.assert_array_equal(checkpoint.read("l.weight").result(), stored.astype(F32) * factors)


@pytest.mark.parametrize("swizzled", [False, True, None])
def test_tiles_of_scales_are_not_taken_for_rows(tmp_path, swizzled):
    """torchao's MXTensor says in the file's metadata how its scales lie; their shape does not."""
    stored, exponents = numbers(F8, (128, 128)), powers((128, 4))
    arrays = {"l._weight_qdata": stored, "l._weight_scale": exponents.view(E8)}
    said = {} if swizzled is None else {"is_swizzled_scales": swizzled}
    metadata = {"l.weight": json.dumps({"_type": "MXTensor", "_data": {"block_size": 32, **said}})}
    checkpoint = open_checkpoint(save_any(tmp_path / "m.safetensors", arrays, metadata))
    if swizzled is False:
        expected = stored.astype(F32) * np.repeat(np.ldexp(F32(1), exponents.astype(int) - 127), 32, axis=1)
        np.testing.assert_array_equal(checkpoint.read("l.weight").result(), expected)
    else:
        assert "whose order is not written down" in quantised(checkpoint)["l._weight_qdata"]


def test_a_weight_that_is_there_twice_is_not_read(save, tmp_path):
    tensors = {
        "l._weight_qdata": numbers(F8),
        "l._weight_scale": np.ones((48, 1), F32),
        "l.weight": np.ones((3, 2), F32),
    }
    checkpoint = open_checkpoint(str(save(tmp_path / "m.safetensors", tensors)))
    assert "l.weight is there as well" in quantised(checkpoint)["l._weight_qdata"]
