import ml_dtypes
import numpy as np
import pytest

from polarax.loaders.dtypes import FLOATING, bits_of, dtype_of, is_floating, is_integer


def test_spellings_and_widths(dtypes):
    for spelling, dtype in dtypes.items():
        assert dtype_of(spelling) == dtype
        assert bits_of(spelling) == 8 * dtype.itemsize


@pytest.mark.parametrize(("spelling", "bits"), [("F4", 4), ("F6_E2M3", 6), ("C64", 64), ("Q", None)])
def test_types_that_are_listed_only(spelling, bits):
    assert dtype_of(spelling) is None
    assert bits_of(spelling) == bits


def test_kinds():
    for dtype in FLOATING:
        assert is_floating(dtype)
        assert not is_integer(dtype)
    for scalar_type in (np.int8, np.uint64, np.bool_, ml_dtypes.int4, ml_dtypes.uint4):
        assert is_integer(np.dtype(scalar_type))
        assert not is_floating(np.dtype(scalar_type))
    for other in (None, np.dtype(np.complex64), np.dtype(object), np.dtype(np.longdouble)):
        assert not is_floating(other)
        assert not is_integer(other)
