"""GGUF files in the byte order that is not this machine's, such as those for IBM Z on any other computer.

Numbers of the header and of plain types are of the file's order throughout. In blocks of quantised types the fields of
two bytes are, where llama.cpp wrote the file on such a machine or its gguf_convert_endian.py did; its converter from
Hugging Face (`--bigendian`) left blocks and BF16 as they are on the machine that ran it, because gguf-py hands them on
as bytes. The numbers show which it was: a scale with its two bytes exchanged is anything from 1e-7 to 65504, and
infinite now and then, where the scales of one matrix are of one size.
"""

from typing import Any, NamedTuple

import numpy as np

_BIG_MAGIC = b"FUGG"  # instead of "GGUF": how newer versions of gguf_convert_endian.py mark what they wrote

# Where the fields of two bytes begin in a block, the first of them a scale in float16: the structures block_* of
# ggml/src/ggml-common.h. Types with fields of four bytes or tables (Q5_0, Q5_1, the other IQ types) are left out: no
# program says how those are exchanged.
_FIELDS: dict[str, tuple[int, ...]] = {
    "Q4_0": (0,),
    "Q4_1": (0, 2),
    "Q8_0": (0,),
    "Q2_K": (80, 82),
    "Q3_K": (108,),
    "Q4_K": (0, 2),
    "Q5_K": (0, 2),
    "Q6_K": (208,),
    "IQ4_NL": (0,),
    "IQ4_XS": (0, 2),
    "Q1_0": (0,),
    "TQ1_0": (52,),
    "TQ2_0": (64,),
}
_BYTES_ALONE = {"MXFP4", "NVFP4"}  # scales of one byte
_BF16 = "BF16"

# How much of a tensor is looked at: a run of blocks in its middle.
_SAMPLE = 512

# Scales of one matrix differ by a power of two or four; exchanged they differ by some eight. A spread is taken for
# that of exchanged bytes only if it is well above the other one.
_CLEARLY = 2.0
_LEAST_SAMPLE = 8
_INFINITE = 100.0  # the spread, where some are no numbers


class Order(NamedTuple):
    """What is to be done with the bytes of a tensor's blocks."""

    exchanged: bool  # whether two bytes are to be exchanged in each field
    reason: str = ""  # why that cannot be told; the tensor is then not to be read


def open_reader(gguf: Any, file: str) -> Any:
    """The package's reader of a file, whichever way it is marked: older versions of it know "GGUF" alone.

    Raises:
        Exception: Whatever the package raises.
    """
    with open(file, "rb") as opened:
        marked = opened.read(len(_BIG_MAGIC)) == _BIG_MAGIC
    if not marked or hasattr(gguf.constants, "GGUF_MAGIC_BE"):
        return gguf.GGUFReader(file)

    class Reader(gguf.GGUFReader):  # type: ignore[name-defined, misc]
        def _get(self, offset: int, dtype: Any, count: int = 1, override_order: Any = None) -> np.ndarray:
            if offset == 0:
                return np.array([gguf.constants.GGUF_MAGIC], np.uint32)
            return super()._get(offset, dtype, count, override_order)

    return Reader(file)


def order_of(kind: str, data: np.ndarray, block_bytes: int) -> Order:
    """Which order the blocks of a tensor are in, in a file of the other order.

    Args:
        kind: GGUF's name of its type, which is no plain one but BF16.
        data: The tensor as bytes.
        block_bytes: Bytes of a block.
    """
    if kind in _BYTES_ALONE:
        return Order(False)
    if kind != _BF16 and kind not in _FIELDS:
        return Order(False, f"{kind} in the other byte order")
    blocks = data.reshape(-1, block_bytes)
    start = max(0, (len(blocks) - _SAMPLE) // 2)
    sample = np.array(blocks[start : start + _SAMPLE])
    field = 0 if kind == _BF16 else _FIELDS[kind][0]
    stored = sample[:, field : field + 2].copy().view(np.uint16)[:, 0]
    numbers = stored[stored != 0]
    if not len(numbers):
        return Order(True) if not data.any() else Order(False, f"{kind} in a byte order that its scales do not tell")
    kept, exchanged = (_spread(numbers.byteswap() if swap else numbers, kind == _BF16) for swap in (False, True))
    if len(numbers) >= _LEAST_SAMPLE and exchanged > kept + _CLEARLY:
        return Order(False)
    if len(numbers) >= _LEAST_SAMPLE and kept > exchanged + _CLEARLY:
        return Order(True)
    return Order(False, f"{kind} in a byte order that its scales do not tell")


def in_native_order(data: np.ndarray, kind: str, block_bytes: int) -> np.ndarray:
    """Bytes with two exchanged in each field, as this machine has them.

    Args:
        data: Whole blocks, (..., bytes).
        kind: GGUF's name of their type, which `order_of` has known.
        block_bytes: Bytes of a block.
    """
    if kind == _BF16:
        return np.ascontiguousarray(data).view(np.uint16).byteswap().view(np.uint8)
    swapped = np.array(data).reshape(-1, block_bytes)
    for field in _FIELDS[kind]:
        swapped[:, [field, field + 1]] = swapped[:, [field + 1, field]]
    return swapped.reshape(data.shape)


def _spread(stored: np.ndarray, bfloat16: bool) -> float:
    """By how many powers of two numbers of 16 bits differ, as a standard deviation."""
    with np.errstate(invalid="ignore"):  # some exchanged ones are no numbers
        numbers = (stored.astype(np.uint32) << 16).view(np.float32) if bfloat16 else stored.view(np.float16)
        values = numbers.astype(np.float64)
    values = np.abs(values)
    if not np.isfinite(values).all():
        return _INFINITE
    values = values[values > 0]
    return float(np.std(np.log2(values))) if len(values) else _INFINITE
