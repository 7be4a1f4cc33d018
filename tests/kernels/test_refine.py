"""Refinement against numpy in float64: from starts that are too rough to be of use."""

import jax
import numpy as np
import pytest

from polarax import kernels
from polarax.kernels.refine import refine_svd
from tests.kernels import lapack_ratios, matrices

refine = jax.jit(refine_svd)


def _refine(x, right):
    with jax.enable_x64(True):
        return jax.tree.map(np.asarray, refine(x, right.astype(np.float64)))


def _right_vectors(x):
    """By LAPACK in float32."""
    right_t = np.linalg.svd(x.astype(np.float32), full_matrices=False)[2]
    return np.swapaxes(right_t, -1, -2)


def _check(x, refined):
    dtype = "float64"
    assert lapack_ratios.residual(x, refined.left, refined.values, refined.right, dtype) < lapack_ratios.THRESHOLD
    assert lapack_ratios.orthogonality(refined.left, dtype) < lapack_ratios.THRESHOLD
    assert lapack_ratios.orthogonality(refined.right, dtype) < lapack_ratios.THRESHOLD
    assert lapack_ratios.value_error(x, refined.values, dtype) < lapack_ratios.THRESHOLD
    assert np.all(np.diff(refined.values) <= 0)


@pytest.mark.parametrize("shape", [(24, 24), (40, 17), (9, 1)], ids=str)
@pytest.mark.parametrize("kind", ["identity", "mild", "clustered", "separated", "llm_like", "gaussian"])
def test_a_float32_svd_becomes_a_float64_one(kind, shape):
    x = matrices.matrix(kind, shape, "float64")
    refined = _refine(x, _right_vectors(x))
    assert refined.steps <= 3
    _check(x, refined)


@pytest.mark.parametrize("condition", [1e3, 1e5, 1e6])
def test_the_gram_matrix_gives_a_start_good_enough_for_ill_conditioned_matrices(condition):
    rng = np.random.default_rng(5)
    left, right = (np.linalg.qr(rng.standard_normal((n, 40)))[0] for n in (70, 40))
    x = (left * np.geomspace(1, 1 / condition, 40)) @ right.T
    _, vectors = np.linalg.eigh(x.T @ x)
    refined = _refine(x, vectors[:, ::-1])
    assert 1 <= refined.steps <= 4
    _check(x, refined)


def test_what_cannot_be_refined_is_left_alone_and_reported():
    rng = np.random.default_rng(6)
    x = np.stack([matrices.matrix("mild", (20, 12), "float64") for _ in range(2)])
    right = _right_vectors(x)
    right[1] = rng.standard_normal((12, 12))
    refined = _refine(x, right)
    assert refined.residual[0] < 1e-13 and refined.residual[1] > 0.1
    _check(x[0], jax.tree.map(lambda part: part[0] if np.ndim(part) else part, refined))
    assert sorted(map(tuple, refined.right[1].T)) == sorted(map(tuple, right[1].T))


def test_rank_deficient_matrices_are_reported():
    x = matrices.matrix("rank_deficient", (20, 12), "float64")
    assert _refine(x, _right_vectors(x)).residual > 1e-3


@pytest.mark.parametrize("kind", ["mild", "gaussian", "llm_like"])
def test_float64_vectors_come_from_the_gram_matrix(kind):
    """By name it has no LAPACK SVD to fall back to."""
    x = matrices.matrix(kind, (48, 32), "float64")
    with jax.enable_x64(True):
        left, values, right = jax.tree.map(np.asarray, kernels.svd(x, method="gram"))
    for vectors in (left, right):
        assert lapack_ratios.orthogonality(vectors, "float64") < lapack_ratios.THRESHOLD
    assert lapack_ratios.residual(x, left, values, right, "float64") < lapack_ratios.THRESHOLD
