"""The polar factor: orthonormal, nearest, and canonical where the matrix is rank-deficient."""

import jax
import numpy as np
import pytest
import scipy.linalg

from polarax import kernels
from tests.kernels import lapack_ratios, matrices

polar = jax.jit(kernels.polar, static_argnames="method")

FULL_RANK = ("identity", "mild", "separated", "clustered", "llm_like", "gaussian")
# These assume full rank, and their residual says where that was wrong.
ITERATIONS = ("polynomial", "qdwh")
SHAPES = ((24, 24), (60, 17), (17, 60), (1, 9), (9, 1), (1, 1))


def _tall(x):
    return x if x.shape[0] >= x.shape[1] else x.T


def _condition(x):
    values = np.linalg.svd(x.astype(np.float64), compute_uv=False)
    return values[0] / values[values > values[0] * 1e-7][-1]


def _canonical(x, rank):
    """U_r V_r^T: the polar factor of the canonical polar decomposition, by numpy in float64."""
    u, _, vt = np.linalg.svd(lapack_ratios.scaled(x)[0], full_matrices=False)
    return u[:, :rank] @ vt[:rank]


@pytest.mark.pairwise("shape", "dtype")
@pytest.mark.parametrize("dtype", matrices.WORKING_DTYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("kind", FULL_RANK)
def test_full_rank(kind, shape, dtype):
    x = matrices.matrix(kind, shape, dtype)
    eps = np.finfo(dtype).eps
    with jax.enable_x64(dtype == "float64"):
        found = polar(x)
    factor = np.asarray(found.factor)
    assert factor.shape == shape and factor.dtype == dtype
    assert int(found.rank) == min(shape)
    assert lapack_ratios.orthogonality(_tall(factor), dtype) < lapack_ratios.THRESHOLD
    # Perturbing W moves P by at most about condition times as much (Higham 2008, theorem 8.9).
    expected, _ = scipy.linalg.polar(_tall(x).astype(np.float64))
    error = np.linalg.norm(_tall(factor) - expected, 2)
    assert error < lapack_ratios.THRESHOLD * max(shape) * eps * _condition(x)


@pytest.mark.pairwise("shape", "dtype")
@pytest.mark.parametrize("dtype", matrices.WORKING_DTYPES)
@pytest.mark.parametrize("shape", [(24, 24), (60, 17), (17, 60)], ids=str)
@pytest.mark.parametrize("kind", [*FULL_RANK, "one_small", "near_underflow", "near_overflow"])
def test_the_other_factor_is_symmetric_and_semidefinite(kind, shape, dtype):
    """P^T W is symmetric, has no negative eigenvalue, and P times it is W: however ill-conditioned W is."""
    x = matrices.matrix(kind, shape, dtype)
    with jax.enable_x64(dtype == "float64"):
        factor = np.asarray(polar(x).factor)
    x, factor = _tall(lapack_ratios.scaled(x)[0]), _tall(factor.astype(np.float64))
    unit = np.linalg.norm(x, 2) * max(shape) * np.finfo(dtype).eps
    other = factor.T @ x
    assert np.linalg.norm(other - other.T, 2) < lapack_ratios.THRESHOLD * unit
    assert np.linalg.eigvalsh((other + other.T) / 2)[0] > -lapack_ratios.THRESHOLD * unit
    assert np.linalg.norm(factor @ other - x, 2) < lapack_ratios.THRESHOLD * unit


@pytest.mark.parametrize("shape", [(12, 12), (20, 8), (8, 20)], ids=str)
def test_nothing_orthonormal_is_nearer(shape):
    x = matrices.matrix("separated", shape, "float64")
    with jax.enable_x64(True):
        factor = np.asarray(polar(x).factor)
    distance = np.linalg.norm(x - factor)
    rng = matrices.generator("nearest", shape)
    size, longest = min(shape), max(shape)
    for _ in range(20):
        other = matrices.orthonormal(longest, size, rng)
        assert distance < np.linalg.norm(_tall(x) - other)
    for turn in (1e-1, 1e-2, 1e-3):  # rotated a little, the factor is a little further away
        skew = rng.standard_normal((longest, longest))
        rotation = scipy.linalg.expm(turn * (skew - skew.T))
        assert distance < np.linalg.norm(_tall(x) - rotation @ _tall(factor))


@pytest.mark.pairwise("shape", "dtype")
@pytest.mark.parametrize("dtype", matrices.WORKING_DTYPES)
@pytest.mark.parametrize("shape", [(24, 24), (60, 17), (17, 60), (1, 9)], ids=str)
@pytest.mark.parametrize("kind", ["rank_deficient", "rank_one"])
def test_rank_deficient_gives_the_canonical_partial_isometry(kind, shape, dtype):
    x = matrices.matrix(kind, shape, dtype)
    rank = matrices.RANKS[kind](min(shape))
    with jax.enable_x64(dtype == "float64"):
        found = polar(x)
    factor = np.asarray(found.factor).astype(np.float64)
    unit = max(shape) * np.finfo(dtype).eps
    assert int(found.rank) == rank
    assert np.linalg.norm(factor - _canonical(x, rank), 2) < 2 * lapack_ratios.THRESHOLD * unit
    values = np.linalg.svd(factor, compute_uv=False)
    np.testing.assert_allclose(values[:rank], 1, atol=lapack_ratios.THRESHOLD * unit)
    np.testing.assert_allclose(values[rank:], 0, atol=lapack_ratios.THRESHOLD * unit)


@pytest.mark.parametrize("kind", matrices.KINDS)
def test_residual_says_what_it_says(kind):
    x = matrices.matrix(kind, (24, 17))
    found = polar(x)
    factor = np.asarray(found.factor).astype(np.float64)
    defect = np.linalg.norm(factor @ factor.T @ factor - factor) / np.sqrt(max(int(found.rank), 1))
    assert float(found.residual) < lapack_ratios.THRESHOLD * 24 * np.finfo(np.float32).eps
    assert abs(float(found.residual) - defect) < 24 * np.finfo(np.float32).eps


@pytest.mark.pairwise("shape", "method")
@pytest.mark.parametrize("method", kernels.POLAR_METHODS)
@pytest.mark.parametrize("shape", [(24, 24), (60, 17), (17, 60), (9, 1)], ids=str)
@pytest.mark.parametrize("kind", matrices.WELL_CONDITIONED)
def test_every_method_on_well_conditioned_matrices(kind, shape, method):
    x = matrices.matrix(kind, shape)
    found = polar(x, method=method)
    error = np.linalg.norm(np.asarray(found.factor) - _canonical(x, min(shape)), 2)
    assert error < lapack_ratios.THRESHOLD * max(shape) * np.finfo(np.float32).eps
    assert int(found.rank) == min(shape)
    assert found.factor.dtype == np.float32


@pytest.mark.parametrize("method", kernels.POLAR_METHODS)
@pytest.mark.parametrize("shape", [(12, 7), (7, 12)], ids=str)
def test_zero_nan_and_inf_stay_in_their_matrix(shape, method):
    stack = np.stack([matrices.matrix("mild", shape, seed=i) for i in range(5)])
    expected = [_canonical(x, 7) for x in stack]
    stack[1, 2, 3] = np.nan
    stack[2, 2, 3] = -np.inf
    stack[3] = 0
    found = polar(stack, method=method)
    assert np.all(np.isnan(found.factor[1])) and np.all(np.isnan(found.factor[2]))
    assert np.isnan(found.residual).tolist() == [False, True, True, False, False]
    assert found.rank[:3].tolist() == [7, 0, 0]
    if method in ITERATIONS:  # the residual says that nothing came of it
        assert found.residual[3] > 0.1
    else:
        assert found.rank[3] == 0
        assert np.all(np.asarray(found.factor[3]) == 0)
    for index in (0, 4):
        np.testing.assert_allclose(found.factor[index], expected[index], atol=1e-5)


@pytest.mark.parametrize("dtype", matrices.WORKING_DTYPES)
def test_the_unit_does_not_matter(dtype):
    x = matrices.matrix("mild", (20, 12), dtype)
    with jax.enable_x64(dtype == "float64"):
        plain = np.asarray(polar(x).factor)
        for exponent in (-100, 100):
            moved = polar(np.ldexp(x, exponent))
            assert int(moved.rank) == 12
            np.testing.assert_allclose(moved.factor, plain, atol=500 * np.finfo(dtype).eps)


@pytest.mark.parametrize("method", kernels.POLAR_METHODS)
@pytest.mark.parametrize("shape", [(11, 6), (6, 11)], ids=str)
def test_leading_axes_jit_and_vmap(shape, method):
    stack = np.array([[matrices.matrix("mild", shape, seed=3 * i + j) for j in range(3)] for i in range(2)])

    def factor(x):
        return kernels.polar(x, method=method).factor

    expected = np.array([[_canonical(x, 6) for x in row] for row in stack])
    for way in (factor, jax.jit(factor), jax.jit(jax.vmap(jax.vmap(factor)))):
        np.testing.assert_allclose(way(stack), expected, atol=1e-5)
    assert factor(stack[:0]).shape == (0, 3, *shape)


def test_small_floats_are_computed_in_float32():
    x = matrices.matrix("mild", (12, 7), "bfloat16")
    factor = polar(x).factor
    assert factor.dtype == np.float32
    np.testing.assert_allclose(factor, _canonical(x.astype(np.float32), 7), atol=1e-5)


def test_errors():
    with pytest.raises(ValueError, match="'magic'.*svd"):
        kernels.polar(np.ones((3, 2), np.float32), method="magic")
    with pytest.raises(ValueError, match="floating-point.*int32"):
        kernels.polar(np.ones((3, 2), np.int32))
    with pytest.raises(ValueError, match=r"\(\.\.\., m, n\)"):
        kernels.polar(np.ones(3, np.float32))
    with pytest.raises(ValueError, match="at least one row and one column"):
        kernels.polar(np.ones((0, 3), np.float32))
