"""Numbers rounded once to the type that they are stored in.

ml_dtypes takes float64 to bfloat16 and to the 8-bit types by way of float32, rounding twice: what lies just beside the
middle of two stored numbers may then go to the wrong one. Rounded to odd on the way, it does not (S. Boldo and
G. Melquiond, Emulation of FMA and correctly rounded sums: proved algorithms using rounding to odd, IEEE Transactions on
Computers 57, 2008).
"""

import numpy as np

_CHUNK = 1 << 16  # elements at a time: their copies stay in the processor's cache


def rounded(array: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """The array in another floating-point type, each number rounded to nearest, ties to even; itself if it has it.

    What is too large becomes infinite, or NaN in a type that has no infinity.
    """
    array, dtype = np.asarray(array), np.dtype(dtype)
    if array.dtype == dtype:
        return array
    if array.dtype != np.float64 or dtype.itemsize >= 4 or dtype == np.float16:
        with np.errstate(over="ignore", invalid="ignore"):
            return array.astype(dtype)
    source = np.ascontiguousarray(array).reshape(-1)
    result = np.empty(source.shape, dtype)
    with np.errstate(over="ignore", invalid="ignore"):
        for start in range(0, source.size, _CHUNK):
            result[start : start + _CHUNK] = _to_odd(source[start : start + _CHUNK]).astype(dtype)
    return result.reshape(array.shape)


def _to_odd(numbers: np.ndarray) -> np.ndarray:
    """Float64 numbers in float32: cut off, and the last bit set where something was."""
    single = numbers.astype(np.float32)
    back = single.astype(np.float64)
    bits = single.view(np.uint32)
    bits -= np.abs(back) > np.abs(numbers)
    bits |= back != numbers
    return single
