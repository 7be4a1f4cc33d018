"""The route by polar factor and eigendecomposition itself: `kernels.svd` falls back where this one gives up."""

import jax
import numpy as np
import pytest

from polarax.kernels.svd_polar import svd_by_polar
from tests.kernels import lapack_ratios, matrices

decompose = jax.jit(svd_by_polar)


def _check(x, left, values, right, dtype):
    left, values, right = (np.asarray(part) for part in (left, values, right))
    assert np.all(np.diff(values) <= 0) and np.all(values >= 0)
    assert lapack_ratios.residual(x, left, values, right, dtype) < lapack_ratios.THRESHOLD
    assert lapack_ratios.orthogonality(left, dtype) < lapack_ratios.THRESHOLD
    assert lapack_ratios.orthogonality(right, dtype) < lapack_ratios.THRESHOLD
    assert lapack_ratios.value_error(x, values, dtype) < lapack_ratios.THRESHOLD


@pytest.mark.pairwise("shape", "dtype")
@pytest.mark.parametrize("dtype", matrices.WORKING_DTYPES)
@pytest.mark.parametrize("shape", [(24, 24), (40, 17), (20, 17), (9, 1)], ids=str)
@pytest.mark.parametrize("kind", matrices.WELL_CONDITIONED)
def test_what_it_finds_is_right_to_working_accuracy(kind, shape, dtype):
    x = matrices.matrix(kind, shape, dtype)
    with jax.enable_x64(dtype == "float64"):
        left, values, right, found = decompose(x)
    assert found
    _check(x, left, values, right, dtype)


@pytest.mark.parametrize("condition", [1e2, 1e3, 1e4, 1e5])
def test_float32_is_backward_stable_whatever_the_condition(condition):
    """Within a small multiple of float32's rounding; polar factors by minimax polynomials leave 100 times as much."""
    rng = np.random.default_rng(7)
    left, right = (np.linalg.qr(rng.standard_normal((128, 128)))[0] for _ in range(2))
    x = ((left * np.geomspace(1, 1 / condition, 128)) @ right.T).astype(np.float32)
    left, values, right, found = (np.asarray(part).astype(np.float64) for part in decompose(x))
    assert found
    error = np.linalg.norm((left * values) @ right.T - x) / np.linalg.norm(x)
    assert error < 40 * np.finfo(np.float32).eps


@pytest.mark.parametrize("kind", ["rank_one", "rank_deficient"])
def test_it_says_which_matrices_it_cannot_decompose(kind):
    mild = matrices.matrix("mild", (24, 24))
    left, values, right, found = decompose(np.stack([mild, matrices.matrix(kind, (24, 24))]))
    assert found.tolist() == [True, False]
    _check(mild, left[0], values[0], right[0], "float32")


def test_zero_matrices_are_decomposed_among_others():
    """They pad the last stack of a run; a fallback for their sake would cost the whole stack its speed."""
    mild = matrices.matrix("mild", (30, 12))
    zero = np.zeros_like(mild)
    left, values, right, found = decompose(np.stack([zero, mild]))
    assert found.all()
    _check(mild, left[1], values[1], right[1], "float32")
    assert not np.any(values[0])
    for vectors in (left[0], right[0]):
        assert lapack_ratios.orthogonality(np.asarray(vectors), "float32") < lapack_ratios.THRESHOLD
