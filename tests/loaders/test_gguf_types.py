"""The quantised types of GGUF: random blocks, read as the gguf package reads them and as their definitions say."""

import pathlib
import re

import gguf
import numpy as np
import pytest

from polarax.loaders import open_checkpoint

TYPES = gguf.GGMLQuantizationType
PLAIN = ("F64", "F32", "F16", "BF16", "I8", "I16", "I32", "I64")
DOCS = pathlib.Path(__file__).parents[2] / "docs" / "formats.md"


def dequantisable():
    """Every quantised type that the package can turn into numbers."""
    for kind, (_, block_bytes) in gguf.GGML_QUANT_SIZES.items():
        if kind.name not in PLAIN:
            try:
                gguf.quants.dequantize(np.zeros((1, block_bytes), np.uint8), kind)
            except NotImplementedError:
                continue
            yield kind.name


def random_blocks(kind, rows=6, blocks=2):
    """Rows of blocks of random bytes; those whose scale is not a finite number are drawn again."""
    rng = np.random.default_rng(0)
    size = gguf.GGML_QUANT_SIZES[kind][1]
    found = np.empty((0, size), np.uint8)
    while len(found) < rows * blocks:
        drawn = rng.integers(0, 256, (64, size), np.uint8)
        with np.errstate(all="ignore"):
            found = np.concatenate([found, drawn[np.isfinite(gguf.quants.dequantize(drawn, kind)).all(1)]])
    return found[: rows * blocks].reshape(rows, blocks * size)


def write(path, tensors):
    writer = gguf.GGUFWriter(path, "qwen2")
    for name, (data, kind) in tensors.items():
        writer.add_tensor(name, data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return open_checkpoint(path)


@pytest.mark.parametrize("name", tuple(dequantisable()))
def test_every_type_is_read_as_the_package_reads_it(tmp_path, name):
    kind = TYPES[name]
    data = random_blocks(kind)
    checkpoint = write(tmp_path / "m.gguf", {"blk.0.ffn_up.weight": (data, kind)})
    expected = gguf.quants.dequantize(data, kind)
    assert checkpoint.shape("blk.0.ffn_up.weight") == expected.shape == (6, 2 * gguf.GGML_QUANT_SIZES[kind][0])
    assert checkpoint.dtype_name("blk.0.ffn_up.weight") == name
    assert checkpoint.dtype("blk.0.ffn_up.weight") == np.float32
    for index in (None, slice(1, 3), (slice(None, None, -2), slice(3, 40))):
        read = checkpoint.read("blk.0.ffn_up.weight", index).result()
        np.testing.assert_array_equal(read, expected if index is None else expected[index])


def test_experts_of_a_quantised_type_are_read_by_themselves(tmp_path):
    data = np.stack([random_blocks(TYPES.Q6_K), random_blocks(TYPES.Q6_K)[::-1]])
    checkpoint = write(tmp_path / "m.gguf", {"blk.0.ffn_up_exps.weight": (data, TYPES.Q6_K)})
    read = checkpoint.read("blk.0.ffn_up_exps.weight", (slice(1, 2), slice(2, 4))).result()
    np.testing.assert_array_equal(read[0], gguf.quants.dequantize(data[1, 2:4], TYPES.Q6_K))


# What one block means, number by number, after the definitions of the blocks and of their dequantisation in llama.cpp's
# ggml/src/ggml-common.h and ggml-quants.c.


def half(block, place):
    return float(block[place : place + 2].view("<f2")[0])


def scale_and_minimum(packed, part):
    """One of eight pairs of 6 bits in 12 bytes; of the last four pairs two bits each are in the first eight bytes."""
    if part < 4:
        return packed[part] & 63, packed[part + 4] & 63
    low = packed[part + 4]
    return low & 15 | packed[part - 4] >> 6 << 4, low >> 4 | packed[part] >> 6 << 4


def meaning_of_q4_k(block):
    d, minimum, packed, quants = half(block, 0), half(block, 2), block[4:16].tolist(), block[16:144].tolist()
    for i in range(256):
        scale, low = scale_and_minimum(packed, i // 32)
        quant = quants[i // 64 * 32 + i % 32] >> (4 if i // 32 % 2 else 0) & 15
        yield d * scale * quant - minimum * low


def meaning_of_q5_k(block):
    d, minimum, packed = half(block, 0), half(block, 2), block[4:16].tolist()
    high, quants = block[16:48].tolist(), block[48:176].tolist()
    for i in range(256):
        scale, low = scale_and_minimum(packed, i // 32)
        quant = quants[i // 64 * 32 + i % 32] >> (4 if i // 32 % 2 else 0) & 15 | (high[i % 32] >> i // 32 & 1) << 4
        yield d * scale * quant - minimum * low


def meaning_of_q6_k(block):
    low, high, d = block[:128].tolist(), block[128:192].tolist(), half(block, 208)
    scales = block[192:208].view(np.int8).tolist()
    for i in range(256):
        side, quarter, place = i // 128, i % 128 // 32, i % 32
        quant = low[64 * side + 32 * (quarter % 2) + place] >> (4 if quarter > 1 else 0) & 15
        quant |= (high[32 * side + place] >> 2 * quarter & 3) << 4
        yield d * scales[i // 16] * (quant - 32)


def meaning_of_q8_0(block):
    yield from half(block, 0) * block[2:].view(np.int8).astype(float)


MEANINGS = {"Q4_K": meaning_of_q4_k, "Q5_K": meaning_of_q5_k, "Q6_K": meaning_of_q6_k, "Q8_0": meaning_of_q8_0}


@pytest.mark.parametrize("name", MEANINGS)
def test_a_type_is_read_as_its_definition_says(tmp_path, name):
    kind = TYPES[name]
    data = random_blocks(kind)
    read = write(tmp_path / "m.gguf", {"w": (data, kind)}).read("w").result()
    blocks = data.reshape(-1, gguf.GGML_QUANT_SIZES[kind][1])
    expected = np.array([list(MEANINGS[name](block)) for block in blocks])
    error = np.abs(read.reshape(expected.shape) - expected).max(1)
    assert (error <= 4 * np.finfo(np.float32).eps * np.abs(expected).max(1)).all()


def nearest_q6_k(values):
    """Blocks of Q6_K: of every 16 numbers the largest is at the end of the range; all are the nearest there are."""
    parts = values.reshape(-1, 16, 16)
    largest = np.take_along_axis(parts, np.abs(parts).argmax(-1)[..., None], -1)[..., 0]
    steps = -largest / 32
    d = (steps[np.arange(len(steps)), np.abs(steps).argmax(1)] / -128).astype(np.float16)
    scales = np.clip(np.round(steps / d[:, None].astype(float)), -128, 127).astype(np.int8)
    step = d[:, None].astype(float) * scales
    quants = np.clip(np.round(parts / np.where(step, step, 1)[..., None]), -32, 31).astype(np.int64) + 32
    sides = quants.reshape(-1, 2, 4, 32)  # two halves of four times 32
    low = sides[:, :, :2] & 15 | (sides[:, :, 2:] & 15) << 4
    high = sum(sides[:, :, quarter] >> 4 << 2 * quarter for quarter in range(4))
    columns = (low.reshape(-1, 128), high.reshape(-1, 64), scales.view(np.uint8), d[:, None].view(np.uint8))
    return np.concatenate([column.astype(np.uint8) for column in columns], axis=1)


def test_the_rounding_of_types_is_as_documented(tmp_path):
    """What the types that the package, or a simple rule, can write do to normal weights."""
    stated = {
        name: float(share) / 100
        for name, share in re.findall(r"^\| (\w+) \| [\d.]+ \| ([\d.]+)% \|", DOCS.read_text(), re.M)
    }
    weights = np.random.default_rng(0).normal(size=(64, 2048)).astype(np.float32)
    written = {name: gguf.quants.quantize(weights, TYPES[name]) for name in ("Q8_0", "Q5_1", "Q5_0", "Q4_1", "Q4_0")}
    written["Q6_K"] = nearest_q6_k(weights).reshape(64, -1)
    checkpoint = write(tmp_path / "m.gguf", {name: (data, TYPES[name]) for name, data in written.items()})
    for name in written:
        rounding = np.linalg.norm(checkpoint.read(name).result() - weights) / np.linalg.norm(weights)
        # llama.cpp searches for the scales of K-quants, and gains a little over the rule above.
        gain = 0.1 * stated[name] if name == "Q6_K" else 0
        assert stated[name] - 0.0006 < rounding < stated[name] + 0.0006 + gain, name
    bits = {name: float(bits) for name, bits in re.findall(r"^\| (\w+) \| ([\d.]+) \|", DOCS.read_text(), re.M)}
    for name in set(bits) & {kind.name for kind in TYPES} - {"BF16"}:
        block, size = gguf.GGML_QUANT_SIZES[TYPES[name]]
        assert bits[name] == pytest.approx(8 * size / block, abs=0.05), name
