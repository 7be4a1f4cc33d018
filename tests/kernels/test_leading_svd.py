"""Leading singular values and subspaces against numpy in float64: from nothing, from last time's, and by surprise."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from polarax.kernels.leading_svd import FRESH, leading_svd, restarted
from tests.kernels import matrices

K, BLOCK = 8, 16
SHAPES = ((60, 40), (40, 60), (48, 48))
KINDS = ("geometric", "arithmetic", "llm_like", "clustered", "separated")

find = jax.jit(leading_svd, static_argnames=("k", "cycles", "vector_tolerance"))


def _random_start(shape, block=BLOCK):
    return jax.random.normal(jax.random.key(3), (shape[1], block))


def _left_out(reference, found):
    """Share of the span of the found vectors' first K that the reference's subspace does not hold."""
    return 1 - np.sum((reference[:, :K].T @ np.asarray(found, np.float64)[:, :K]) ** 2) / K


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_values_and_vectors_from_a_random_start(shape, kind):
    x = matrices.matrix(kind, shape, "float32")
    left, values, right = np.linalg.svd(x.astype(np.float64), full_matrices=False)
    found = find(x, _random_start(shape), k=K)
    np.testing.assert_allclose(found.values[:K], values[:K], rtol=1e-5)
    for vectors, found_vectors in ((left, found.left), (right.T, found.right)):
        gram = np.asarray(found_vectors).T @ np.asarray(found_vectors)
        np.testing.assert_allclose(gram, np.eye(BLOCK), atol=2e-5 * values[0] / values[BLOCK - 1])
        if values[K] < 0.99 * values[K - 1]:  # else the subspace is not determined
            assert _left_out(vectors, found_vectors) < 1e-3


def _largest_angle(reference, vectors):
    """Between the first K true vectors and their part in the span of the block."""
    span = np.linalg.qr(np.asarray(vectors, np.float64))[0]
    return np.max(np.linalg.norm(reference[:, :K] - span @ (span.T @ reference[:, :K]), axis=0))


@pytest.mark.parametrize("kind", ["gaussian", "arithmetic", "llm_like"])
@pytest.mark.parametrize("tolerance", [1e-3, 1e-5])
def test_vectors_are_found_where_they_are_wanted(kind, tolerance):
    """A value that no longer grows says that the square of the vectors' error is small."""
    x = matrices.matrix(kind, (200, 160), "float32")
    _, values, right = np.linalg.svd(x.astype(np.float64), full_matrices=False)
    # Rounding leaves eps s_1^2 over the gap to what is outside of the block, a few times.
    rounding = 8 * np.finfo(np.float32).eps * values[0] ** 2 / (values[K - 1] ** 2 - values[BLOCK] ** 2)
    found = find(x, _random_start(x.shape), k=K, cycles=100, vector_tolerance=tolerance)
    assert _largest_angle(right.T, found.right) < max(tolerance, rounding)
    assert found.angle < max(tolerance, rounding)
    # What is said of vectors is true of them, from the first cycle on.
    for cycles in range(1, int(found.cycles) + 1):
        early = find(x, _random_start(x.shape), k=K, cycles=cycles, vector_tolerance=0.0)
        if early.angle < 0.1:  # to first order
            assert _largest_angle(right.T, early.right) < 1.5 * early.angle + rounding


def test_vectors_that_rounding_keeps_apart_end():
    """What cannot be found, here vectors to float32's last bit, takes no more cycles than there is progress."""
    x = matrices.matrix("gaussian", (200, 160), "float32")
    found = find(x, _random_start(x.shape), k=K, cycles=100, vector_tolerance=0.0)
    assert int(found.cycles) < 40


def test_last_times_vectors_save_cycles():
    x = matrices.matrix("gaussian", (240, 200), "float32")
    first = find(x, _random_start(x.shape), k=K)
    moved = matrices.drifted(x, 1e-3)
    again = find(moved, restarted(first.right, jax.random.key(0)), k=K)
    np.testing.assert_allclose(again.values[:K], np.linalg.svd(moved.astype(np.float64))[1][:K], rtol=1e-5)
    assert int(again.cycles) < int(first.cycles)


@pytest.mark.parametrize("size", [1.05, 3.0, 100.0])
def test_a_direction_that_was_not_there_is_found(size):
    x = matrices.matrix("arithmetic", (60, 40), "float32")
    left, values, right = np.linalg.svd(x.astype(np.float64), full_matrices=False)
    last = jnp.asarray(right.T[:, :BLOCK], jnp.float32)
    # A value far down becomes the largest: its vectors are exactly orthogonal to all that is known.
    values[-1] = size * values[0]
    grown = ((left * values) @ right).astype(np.float32)
    found = find(grown, restarted(last, jax.random.key(1)), k=K)
    np.testing.assert_allclose(found.values[:K], np.sort(values)[::-1][:K], rtol=1e-5)
    assert abs(right[-1] @ np.asarray(found.right)[:, 0]) > 1 - 1e-5


def test_noise_below_one_large_value_is_resolved():
    """A float32 Gram matrix could not tell it apart."""
    rng = np.random.default_rng(0)
    x = np.outer(rng.normal(size=100), rng.normal(size=60)) + 1e-2 * rng.normal(size=(100, 60))
    x = x.astype(np.float32)
    found = find(x, _random_start(x.shape), k=K)
    np.testing.assert_allclose(found.values[:K], np.linalg.svd(x.astype(np.float64))[1][:K], rtol=1e-4)


@pytest.mark.parametrize("unit", [1e-30, 1e30])
def test_units_do_not_matter(unit):
    x = matrices.matrix("arithmetic", (60, 40), "float32")
    found = find(np.float32(unit) * x, _random_start(x.shape), k=K)
    np.testing.assert_allclose(found.values[:K] / unit, np.linalg.svd(x.astype(np.float64))[1][:K], rtol=1e-5)


def test_zero_and_rank_deficient_matrices():
    zero = find(np.zeros((60, 40), np.float32), _random_start((60, 40)), k=K)
    assert not np.any(zero.values) and not np.any(zero.left)
    assert np.all(np.isfinite(zero.right))
    x = np.outer(np.arange(60.0), np.arange(40.0)).astype(np.float32)
    found = find(x, _random_start(x.shape), k=K)
    np.testing.assert_allclose(found.values[0], np.linalg.norm(x), rtol=1e-6)
    np.testing.assert_allclose(found.values[1:], 0, atol=1e-5 * np.linalg.norm(x))


def test_the_error_tells_of_an_early_end():
    x = matrices.matrix("arithmetic", (60, 40), "float32")
    few, enough = (find(x, _random_start(x.shape), k=K, cycles=cycles) for cycles in (1, 40))
    assert int(few.cycles) == 1 and float(few.error) > 1e-5
    assert float(enough.error) <= 1e-6


@pytest.mark.parametrize("kind", ["gaussian", "arithmetic", "llm_like", "clustered"])
@pytest.mark.parametrize("cycles", [1, 2, 4, 40])
def test_residuals_certify_values_whether_they_converged_or_not(kind, cycles):
    """A singular value lies within each residual (Weyl); the products' own rounding adds a few eps."""
    x = matrices.matrix(kind, (200, 160), "float32")
    values = np.linalg.svd(x.astype(np.float64), compute_uv=False)
    found = find(x, _random_start(x.shape), k=K, cycles=cycles)
    exact = x.astype(np.float64).T @ found.left[:, :K] - np.asarray(found.right[:, :K], np.float64) * found.values[:K]
    rounding = 16 * np.finfo(np.float32).eps
    of_largest = np.linalg.norm(exact, axis=0) / found.values[0]
    np.testing.assert_allclose(found.residuals, of_largest, rtol=1e-3, atol=rounding)
    nearest = np.min(np.abs(values[:, None] - np.asarray(found.values, np.float64)[:K]), axis=0) / found.values[0]
    assert np.all(nearest <= np.asarray(found.residuals) + rounding)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_small_floats_are_worked_on_in_float32(dtype):
    x = jnp.asarray(matrices.matrix("arithmetic", (60, 40), "float32"), dtype)
    values = np.linalg.svd(np.asarray(x, np.float64), compute_uv=False)
    found = find(x, _random_start(x.shape), k=K)
    assert found.left.dtype == found.values.dtype == found.right.dtype == jnp.float32
    np.testing.assert_allclose(found.values[:K], values[:K], rtol=1e-5)


def test_a_block_may_be_the_whole_matrix():
    x = matrices.matrix("separated", (6, 4), "float32")
    found = find(x, _random_start(x.shape, 4), k=4)
    np.testing.assert_allclose(found.values, np.linalg.svd(x.astype(np.float64))[1], rtol=1e-5)


def test_a_stack_by_lax_map_inside_jit():
    stack = np.stack([matrices.matrix("arithmetic", (60, 40), "float32", seed=seed) for seed in range(3)])
    one = functools.partial(leading_svd, k=K)
    found = jax.jit(lambda stack: jax.lax.map(lambda x: one(x, _random_start((60, 40))), stack))(stack)
    np.testing.assert_allclose(
        found.values[:, :K], np.linalg.svd(stack.astype(np.float64), compute_uv=False)[:, :K], rtol=1e-5
    )


def test_restarted_keeps_the_leading_columns():
    right = np.linalg.qr(np.random.default_rng(0).normal(size=(40, BLOCK)))[0].astype(np.float32)
    start = restarted(jnp.asarray(right), jax.random.key(0))
    np.testing.assert_array_equal(start[:, :-FRESH], right[:, :-FRESH])
    assert np.linalg.norm(start[:, -FRESH:] - right[:, -FRESH:]) > 1


@pytest.mark.parametrize("shapes", [((6, 4), (5, 2)), ((6, 4), (4, 5)), ((6, 4), (4, 1)), ((2, 6, 4), (4, 2))], ids=str)
def test_shapes_that_do_not_fit(shapes):
    with pytest.raises(ValueError, match="Expected"):
        leading_svd(jnp.ones(shapes[0]), jnp.ones(shapes[1]), k=2)
