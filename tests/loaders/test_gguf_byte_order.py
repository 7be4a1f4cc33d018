"""Big-endian GGUF files against the same numbers in little-endian ones.

The bytes are exchanged here by the structures of ggml/src/ggml-common.h, as NumPy dtypes: `ggml_half` and `uint16_t`
are what differs between two machines.
"""

import gguf
import ml_dtypes
import numpy as np
import pytest

from polarax.loaders import open_checkpoint, pair_checkpoints

TYPES = gguf.GGMLQuantizationType
HALF = "u2"
BLOCKS = {
    "Q4_0": [("d", HALF), ("qs", "u1", 16)],
    "Q4_1": [("d", HALF), ("m", HALF), ("qs", "u1", 16)],
    "Q8_0": [("d", HALF), ("qs", "i1", 32)],
    "Q2_K": [("scales", "u1", 16), ("qs", "u1", 64), ("d", HALF), ("dmin", HALF)],
    "Q3_K": [("hmask", "u1", 32), ("qs", "u1", 64), ("scales", "u1", 12), ("d", HALF)],
    "Q4_K": [("d", HALF), ("dmin", HALF), ("scales", "u1", 12), ("qs", "u1", 128)],
    "Q5_K": [("d", HALF), ("dmin", HALF), ("scales", "u1", 12), ("qh", "u1", 32), ("qs", "u1", 128)],
    "Q6_K": [("ql", "u1", 128), ("qh", "u1", 64), ("scales", "i1", 16), ("d", HALF)],
    "IQ4_NL": [("d", HALF), ("qs", "u1", 16)],
    "IQ4_XS": [("d", HALF), ("scales_h", "u2"), ("scales_l", "u1", 4), ("qs", "u1", 128)],
    "TQ1_0": [("qs", "u1", 48), ("qh", "u1", 4), ("d", HALF)],
    "TQ2_0": [("qs", "u1", 64), ("d", HALF)],
    "BF16": [("x", "u2")],
    "MXFP4": [("e", "u1"), ("qs", "u1", 16)],
}
LITTLE, BIG = gguf.GGUFEndian.LITTLE, gguf.GGUFEndian.BIG


def of_blocks(kind, rows=24, columns=512, seed=0):
    """Rows of random blocks, whose scales are of the sizes that weights have."""
    rng = np.random.default_rng(seed)
    size, block_bytes = gguf.GGML_QUANT_SIZES[TYPES[kind]]
    dtype = np.dtype(BLOCKS[kind])
    assert dtype.itemsize == block_bytes
    blocks = np.frombuffer(rng.bytes(rows * columns // size * block_bytes), dtype).copy()
    for field in ("d", "dmin", "m"):
        if field in dtype.names:
            blocks[field] = rng.lognormal(-6, 0.5, len(blocks)).astype(np.float16).view(np.uint16)
    if kind == "BF16":
        blocks["x"] = rng.normal(size=len(blocks)).astype(ml_dtypes.bfloat16).view(np.uint16)
    if kind == "MXFP4":
        blocks["e"] = rng.integers(115, 125, len(blocks))
    return blocks.view(np.uint8).reshape(rows, -1)


def exchanged(data, kind):
    """The same blocks as a machine of the other order keeps them."""
    dtype = np.dtype(BLOCKS[kind])
    blocks = np.ascontiguousarray(data).reshape(-1).view(dtype).astype(dtype.newbyteorder("S"))
    return blocks.view(np.uint8).reshape(data.shape)


def write(path, order, tensors, architecture="qwen2", kind=None, **settings):
    writer = gguf.GGUFWriter(path, architecture, endianess=order)
    writer.add_block_count(1)
    for name, value in settings.items():
        getattr(writer, f"add_{name}")(value)
    for name, array in tensors.items():
        raw = TYPES[kind] if kind and array.dtype == np.uint8 else None
        writer.add_tensor(name, array.copy(), raw_dtype=raw)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


NAME = "blk.0.ffn_up.weight"


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.float64])
def test_plain_numbers(tmp_path, dtype):
    weight = np.random.default_rng(0).normal(size=(32, 16)).astype(dtype)
    little, big = (open_checkpoint(write(tmp_path / f"{o.name}.gguf", o, {NAME: weight})) for o in (LITTLE, BIG))
    assert big.names() == little.names()
    assert big.dtype(NAME) == little.dtype(NAME) == dtype
    for index in (None, (slice(3, 7), slice(None, None, -2))):
        read = big.read(NAME, index).result()
        assert read.dtype.isnative
        np.testing.assert_array_equal(read, weight[index] if index else weight)
    assert big.fingerprint() == little.fingerprint()


@pytest.mark.parametrize("converted", [False, True], ids=["by llama.cpp", "by its converter"])
@pytest.mark.parametrize("kind", BLOCKS)
def test_blocks(tmp_path, kind, converted):
    """As they are on such a machine, and as they are when gguf-py has written them on this one."""
    data = of_blocks(kind)
    little = open_checkpoint(write(tmp_path / "little.gguf", LITTLE, {NAME: data}, kind=kind))
    stored = data if converted else exchanged(data, kind)
    big = open_checkpoint(write(tmp_path / "big.gguf", BIG, {NAME: stored}, kind=kind))
    assert big.dtype_name(NAME) == little.dtype_name(NAME)
    expected = little.read(NAME).result()
    assert np.isfinite(expected.astype(np.float32)).all()
    for index in (None, slice(3, 9), (slice(None, None, -5), slice(40, 300)), slice(0, 0)):
        wanted = expected[index] if index is not None else expected
        np.testing.assert_array_equal(big.read(NAME, index).result(), wanted, strict=True)


@pytest.mark.parametrize("kind", ["Q5_0", "Q5_1"])
def test_types_that_nobody_converts_are_skipped_as_quantised(tmp_path, kind):
    data = gguf.quants.quantize(np.random.default_rng(0).normal(size=(32, 64)).astype(np.float32), TYPES[kind])
    big = open_checkpoint(
        write(tmp_path / "big.gguf", BIG, {NAME: data, "output.weight": np.eye(4, dtype="f4")}, kind=kind)
    )
    pairs, skipped = pair_checkpoints(big, big)
    assert [pair.name for pair in pairs] == ["output.weight"]
    assert skipped == [(NAME, f"quantised: {kind} in the other byte order")]


@pytest.mark.parametrize("blocks", [np.full, None])
def test_scales_that_do_not_tell_the_order(tmp_path, blocks):
    """All scales 1.0, or too few of them."""
    data = of_blocks("Q8_0", rows=4 if blocks is None else 24, columns=32)
    if blocks is not None:
        data.reshape(-1, 34)[:, :2] = np.array([1.0], np.float16).view(np.uint8)
    big = open_checkpoint(
        write(tmp_path / "big.gguf", BIG, {NAME: data, "output.weight": np.eye(4, dtype="f4")}, kind="Q8_0")
    )
    _, skipped = pair_checkpoints(big, big)
    assert skipped == [(NAME, "quantised: Q8_0 in a byte order that its scales do not tell")]


def test_a_matrix_of_zeros_has_no_order(tmp_path):
    data = np.zeros((24, 34), np.uint8)
    big = open_checkpoint(write(tmp_path / "big.gguf", BIG, {NAME: data}, kind="Q8_0"))
    assert not big.read(NAME).result().any()


def test_a_file_that_is_marked_as_big_endian(tmp_path):
    """Newer versions of gguf_convert_endian.py turn the mark around as well."""
    weight = np.random.default_rng(0).normal(size=(32, 16)).astype(np.float32)
    path = write(tmp_path / "big.gguf", BIG, {NAME: weight})
    path.write_bytes(b"FUGG" + path.read_bytes()[4:])
    np.testing.assert_array_equal(open_checkpoint(path).read(NAME).result(), weight)


def test_settings_and_reordered_rows(tmp_path):
    """Numbers of heads are of the file's order as well."""
    weight = np.random.default_rng(0).normal(size=(32, 16)).astype(np.float32)
    interleaved = weight.reshape(4, 2, 4, 16).swapaxes(1, 2).reshape(32, 16)
    tensors = {"blk.0.attn_q.weight": interleaved}
    path = write(tmp_path / "big.gguf", BIG, tensors, "llama", head_count=4, head_count_kv=4, embedding_length=16)
    checkpoint = open_checkpoint(path)
    assert checkpoint.config["num_attention_heads"] == 4
    np.testing.assert_array_equal(checkpoint.read("blk.0.attn_q.weight").result(), weight)
