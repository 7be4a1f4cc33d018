import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from polarax.loaders.slices import plan_run

bound = st.none() | st.integers(-12, 12)
step = st.none() | st.integers(-4, 4).filter(bool)
any_slice = st.builds(slice, bound, bound, step)


@st.composite
def shape_and_index(draw):
    shape = tuple(draw(st.lists(st.integers(0, 6), max_size=4)))
    index = tuple(draw(st.lists(any_slice, max_size=len(shape))))
    return shape, draw(st.sampled_from([index, index[0] if index else None, None]))


@given(shape_and_index())
def test_a_run_holds_what_numpy_would_pick(case):
    shape, index = case
    array = np.arange(math.prod(shape)).reshape(shape)
    run = plan_run(shape, index)
    part = array.reshape(-1)[run.start : run.stop].reshape(run.shape)[run.cut]
    np.testing.assert_array_equal(part, array[() if index is None else index])


@given(shape_and_index())
def test_a_run_begins_and_ends_in_wanted_rows(case):
    shape, index = case
    rows = np.indices(shape)[0].reshape(-1) if shape else np.zeros(1, int)
    run = plan_run(shape, index)
    wanted = np.arange(shape[0] if shape else 1)
    if shape and index is not None and index != ():
        wanted = wanted[index[0] if isinstance(index, tuple) else index]
    if run.start < run.stop:
        assert {rows[run.start], rows[run.stop - 1]} <= set(wanted.tolist())


def test_one_row_is_narrowed_to_its_wanted_columns():
    run = plan_run((1, 1000), (slice(None), slice(10, 20)))
    assert (run.start, run.stop) == (10, 20)


@pytest.mark.parametrize("index", [3, (slice(2), 1), Ellipsis, [0, 1], (None,), np.array([True])])
def test_only_slices_are_accepted(index):
    with pytest.raises(TypeError, match="slices only"):
        plan_run((4, 4), index)


def test_too_many_slices_are_refused():
    with pytest.raises(IndexError, match="2 slices"):
        plan_run((4,), (slice(None), slice(None)))
