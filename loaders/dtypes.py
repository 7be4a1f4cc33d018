"""Element types: how safetensors spells them, their width, and which of them polarax computes with.

The spellings and widths are those of the safetensors format
(https://github.com/huggingface/safetensors, enum ``Dtype``). NumPy itself has no bfloat16 and no
8-bit floating-point types; they come from ``ml_dtypes``, which is also what JAX arrays use.
"""

import ml_dtypes
import numpy as np

FLOATING: frozenset[np.dtype] = frozenset(
    np.dtype(scalar_type)
    for scalar_type in (
        np.float64,
        np.float32,
        np.float16,
        ml_dtypes.bfloat16,
        ml_dtypes.float8_e4m3fn,
        ml_dtypes.float8_e5m2,
    )
)
"""The element types whose matrices can be compared."""

_FROM_SPELLING: dict[str, np.dtype] = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "F8_E8M0": np.dtype(ml_dtypes.float8_e8m0fnu),  # powers of two: of scales only
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "I16": np.dtype(np.int16),
    "I8": np.dtype(np.int8),
    "U64": np.dtype(np.uint64),
    "U32": np.dtype(np.uint32),
    "U16": np.dtype(np.uint16),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}

# Bits per element of the types that are listed but not read; some are narrower than a byte.
_UNREAD_BITS: dict[str, int] = {
    "F4": 4,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
    "F8_E4M3FNUZ": 8,
    "F8_E5M2FNUZ": 8,
    "C64": 64,
}

_BITS: dict[str, int] = {spelling: 8 * dtype.itemsize for spelling, dtype in _FROM_SPELLING.items()} | _UNREAD_BITS

_INTEGER_KINDS = "biu"  # NumPy's kind codes of boolean, signed and unsigned integers
_ML_INTEGERS = frozenset(
    np.dtype(scalar_type) for scalar_type in (ml_dtypes.int2, ml_dtypes.int4, ml_dtypes.uint2, ml_dtypes.uint4)
)


def dtype_of(spelling: str) -> np.dtype | None:
    """The NumPy dtype of a safetensors spelling ("BF16"), or None if it is not one that is read."""
    return _FROM_SPELLING.get(spelling)


def spelling_of(dtype: np.dtype) -> str:
    """The safetensors spelling of a dtype that is read.

    >>> spelling_of(np.dtype("float32"))
    'F32'
    """
    return next(spelling for spelling, known in _FROM_SPELLING.items() if known == dtype)


def bits_of(spelling: str) -> int | None:
    """Bits per element of a safetensors spelling, or None if the spelling is unknown."""
    return _BITS.get(spelling)


def is_floating(dtype: np.dtype | None) -> bool:
    """Whether matrices of this dtype can be compared."""
    return dtype in FLOATING


def is_integer(dtype: np.dtype | None) -> bool:
    """Whether the dtype is boolean or an integer of any width."""
    return dtype is not None and (dtype.kind in _INTEGER_KINDS or dtype in _ML_INTEGERS)
