"""SVD and singular values, judged the way LAPACK judges its drivers."""

import functools

import jax
import ml_dtypes
import numpy as np
import pytest

from polarax import kernels
from tests.kernels import lapack_ratios, matrices

svd = jax.jit(kernels.svd, static_argnames="method")
singular_values = jax.jit(kernels.singular_values, static_argnames="method")


@functools.partial(jax.jit, static_argnames="method")
def both(x, method="auto"):
    """The SVD, and the singular values alone: one program to compile."""
    return kernels.svd(x, method=method), kernels.singular_values(x, method=method)


METHODS = ("auto", "lapack", "polar")  # those that promise working accuracy whatever the condition


def _check_values(x, s, dtype):
    """s holds the singular values of x to working accuracy, in descending order."""
    s = np.asarray(s)
    assert s.dtype == dtype and s.shape == (min(x.shape),)
    assert np.all(s >= 0)
    assert np.all(np.diff(s) <= 0)
    assert lapack_ratios.value_error(x, s, dtype) < lapack_ratios.THRESHOLD


def _check(x, found, dtype):
    """x = U S V^T to working accuracy, in the shapes and the order promised."""
    u, s, v = (np.asarray(part) for part in found)
    rows, cols = x.shape
    size = min(rows, cols)
    assert (u.shape, s.shape, v.shape) == ((rows, size), (size,), (cols, size))
    assert {part.dtype for part in (u, s, v)} == {np.dtype(dtype)}
    assert lapack_ratios.residual(x, u, s, v, dtype) < lapack_ratios.THRESHOLD
    assert lapack_ratios.orthogonality(u, dtype) < lapack_ratios.THRESHOLD
    assert lapack_ratios.orthogonality(v, dtype) < lapack_ratios.THRESHOLD
    _check_values(x, s, dtype)


@pytest.mark.pairwise("shape", "dtype", "method")
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", matrices.WORKING_DTYPES)
@pytest.mark.parametrize("shape", matrices.SHAPES, ids=str)
@pytest.mark.parametrize("kind", matrices.KINDS)
def test_ratios(kind, shape, dtype, method):
    x = matrices.matrix(kind, shape, dtype)
    with jax.enable_x64(dtype == "float64"):
        found, values = both(x, method=method)
    _check(x, found, dtype)
    _check_values(x, values, dtype)


@pytest.mark.pairwise("shape", "dtype")
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float8_e4m3fn", "float8_e5m2"])
@pytest.mark.parametrize("shape", [(24, 24), (40, 17), (17, 40)], ids=str)
@pytest.mark.parametrize("kind", ["mild", "rank_deficient", "llm_like", "gaussian"])
def test_small_floats_are_computed_in_float32(kind, shape, dtype):
    x = matrices.matrix(kind, shape, dtype)
    _check(x.astype(np.float32), svd(x), "float32")


@pytest.mark.parametrize("shape", [(24, 24), (40, 17), (17, 40), (9, 1)], ids=str)
@pytest.mark.parametrize("kind", matrices.WELL_CONDITIONED)
def test_every_method_on_well_conditioned_matrices(kind, shape):
    x = matrices.matrix(kind, shape)
    for method in kernels.SVD_METHODS:
        found, values = both(x, method=method)
        _check(x, found, "float32")
        _check_values(x, values, "float32")


@pytest.mark.pairwise("shape", "dtype")
@pytest.mark.parametrize("dtype", matrices.WORKING_DTYPES)
@pytest.mark.parametrize("shape", [(24, 24), (40, 17), (17, 40), (1, 9)], ids=str)
@pytest.mark.parametrize("kind", matrices.KINDS)
def test_gram_by_name_gives_orthonormal_vectors_whatever_the_rank(kind, shape, dtype):
    """Its singular values are right to 1e-8 of the largest."""
    x = matrices.matrix(kind, shape, dtype)
    with jax.enable_x64(dtype == "float64"):
        u, s, v = (np.asarray(part) for part in svd(x, method="gram"))
    assert lapack_ratios.orthogonality(u, dtype) < lapack_ratios.THRESHOLD
    assert lapack_ratios.orthogonality(v, dtype) < lapack_ratios.THRESHOLD
    scale = max(np.abs(x.astype(np.float64)).max(), np.finfo(dtype).tiny)
    reference = np.linalg.svd(x.astype(np.float64) / scale, compute_uv=False)
    allowed = 1e-8 * reference[0] if dtype == "float64" else 1e-6 * reference[0]
    np.testing.assert_allclose(s / scale, reference, rtol=0, atol=allowed)
    np.testing.assert_allclose((u * (s / scale)) @ v.T, x / scale, rtol=0, atol=3 * allowed)


@pytest.mark.parametrize("shape", [(48, 48), (96, 32), (32, 96)], ids=str)
@pytest.mark.parametrize("kind", ["mild", "separated", "geometric", "llm_like", "gaussian"])
def test_small_values_of_float32_matrices_are_right_in_relative_terms(kind, shape):
    """The accuracy that reports rest on: 1e-5 of each value and 1e-9 of the largest, where there is float64."""
    x = matrices.matrix(kind, shape)
    expected = np.linalg.svd(x.astype(np.float64), compute_uv=False)
    error = np.abs(np.asarray(singular_values(x)).astype(np.float64) - expected)
    assert np.max(error / (1e-5 * expected + 1e-9 * expected[0])) < 1


@pytest.mark.pairwise("shape", "method")
@pytest.mark.parametrize("method", kernels.SVD_METHODS)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("shape", [(12, 7), (7, 12)], ids=str)
def test_nan_and_inf_stay_in_their_matrix(shape, bad, method):
    stack = np.stack([matrices.matrix("mild", shape, seed=i) for i in range(4)])
    whole = stack.copy()
    stack[1, 3, 2] = bad
    stack[2] = bad
    found, values = both(stack, method=method)
    for index in (1, 2):
        assert all(np.all(np.isnan(part[index])) for part in (*found, values))
    for index in (0, 3):
        _check(whole[index], [part[index] for part in found], "float32")
        _check_values(whole[index], values[index], "float32")


@pytest.mark.parametrize("kind", ["zero", "one_small", "near_overflow"])
def test_a_hard_matrix_does_not_harm_its_neighbours(kind):
    stack = np.stack([matrices.matrix("mild", (20, 12)), matrices.matrix(kind, (20, 12))])
    found = svd(stack)
    for index in range(2):
        _check(stack[index], [part[index] for part in found], "float32")


@pytest.mark.parametrize("dtype", matrices.WORKING_DTYPES)
@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_tiny_and_huge_entries(scale, dtype):
    x = (matrices.matrix("mild", (20, 12), "float64") * scale).astype(dtype)
    with jax.enable_x64(dtype == "float64"):
        found, values = both(x)
    _check(x, found, dtype)
    _check_values(x, values, dtype)


@pytest.mark.parametrize("method", kernels.SVD_METHODS)
@pytest.mark.parametrize("dtype", matrices.WORKING_DTYPES)
def test_subnormal_entries_give_something_defined(dtype, method):
    """XLA may take them for zero: the values are in order and between nothing and what they are."""
    tiny = float(np.finfo(dtype).tiny)
    for scale in (1e-3, 1.0, 10.0, 1e3):
        x = (matrices.matrix("mild", (20, 12), "float64") * scale * tiny).astype(dtype)
        expected = np.linalg.svd(x.astype(np.float64) / tiny, compute_uv=False)
        with jax.enable_x64(dtype == "float64"):
            found, values = both(x, method=method)
        assert np.all(np.isfinite(found.left)) and np.all(np.isfinite(found.right))
        for s in (np.asarray(found.values), np.asarray(values)):
            assert np.all(s >= 0) and np.all(np.diff(s) <= 0)
            # Every entry flushed is an error of at most the smallest normal number.
            assert np.all(np.abs(s.astype(np.float64) / tiny - expected) <= 2 * np.sqrt(x.size))


@pytest.mark.parametrize("method", kernels.SVD_METHODS)
@pytest.mark.parametrize("shape", [(0, 5, 3), (0, 3, 5), (2, 0, 4, 4)], ids=str)
def test_empty_stacks(shape, method):
    *batch, rows, cols = shape
    size = min(rows, cols)
    (u, s, v), values = both(np.zeros(shape, np.float32), method=method)
    assert (u.shape, s.shape, v.shape) == (
        (*batch, rows, size),
        (*batch, size),
        (*batch, cols, size),
    )
    assert values.shape == (*batch, size)


@pytest.mark.parametrize("method", kernels.SVD_METHODS)
@pytest.mark.parametrize("shape", [(11, 6), (6, 11)], ids=str)
def test_leading_axes_jit_and_vmap(shape, method):
    rows = [[matrices.matrix("mild", shape, seed=3 * i + j) for j in range(3)] for i in range(2)]
    stack = np.array(rows)

    def decompose(x):
        return kernels.svd(x, method=method)

    ways = {
        "eager": decompose,
        "jit": jax.jit(decompose),
        "vmap of jit": jax.vmap(jax.jit(decompose)),
        "jit of vmaps": jax.jit(jax.vmap(jax.vmap(decompose), in_axes=1, out_axes=1)),
    }
    for name, way in ways.items():
        found = way(stack)
        for i in range(2):
            for j in range(3):
                _check(stack[i, j], [part[i, j] for part in found], "float32")
        assert found.values.shape == (2, 3, 6), name


def test_float64_input_without_the_flag_is_float32():
    found = kernels.svd(matrices.matrix("mild", (8, 5), "float64"))
    assert {part.dtype for part in found} == {np.dtype("float32")}


@pytest.mark.parametrize("method", kernels.SVD_METHODS)
@pytest.mark.parametrize("function", [kernels.svd, kernels.singular_values])
def test_the_flag_is_untouched(function, method):
    for flag in (False, True):
        with jax.enable_x64(flag):
            function(np.ones((3, 2), np.float32), method=method)
            assert jax.config.jax_enable_x64 == flag


@pytest.mark.parametrize("method", ["lapack"])
def test_derivatives(method):
    """d s_i = u_i^T dW v_i, in reverse and forward mode, alone and in a stack."""
    stack = np.stack([matrices.matrix("separated", (7, 5), seed=i) for i in range(3)])
    weights = np.arange(1, 6, dtype=np.float32)

    def loss(x):
        return (kernels.singular_values(x, method=method) * weights).sum()

    u, _, vt = np.linalg.svd(stack.astype(np.float64), full_matrices=False)
    expected = (u * weights) @ vt
    direction = matrices.generator("direction").standard_normal(stack.shape).astype(np.float32)
    for way in (jax.grad(loss), jax.jit(jax.grad(loss)), jax.vmap(jax.grad(loss))):
        np.testing.assert_allclose(way(stack), expected, atol=1e-4)
    np.testing.assert_allclose(jax.grad(loss)(stack[0]), expected[0], atol=1e-4)
    _, tangent = jax.jvp(loss, (stack,), (direction,))
    np.testing.assert_allclose(tangent, np.sum(expected * direction), rtol=1e-4)


@pytest.mark.parametrize("function", [kernels.svd, kernels.singular_values])
class TestErrors:
    def test_integers(self, function):
        with pytest.raises(ValueError, match="floating-point.*int32"):
            function(np.ones((3, 2), np.int32))

    def test_complex(self, function):
        with pytest.raises(ValueError, match="floating-point.*complex64"):
            function(np.ones((3, 2), np.complex64))

    @pytest.mark.parametrize("shape", [(), (3,)], ids=str)
    def test_too_few_axes(self, function, shape):
        with pytest.raises(ValueError, match=r"\(\.\.\., m, n\)"):
            function(np.ones(shape, np.float32))

    @pytest.mark.parametrize("shape", [(0, 3), (3, 0), (2, 0, 3)], ids=str)
    def test_no_rows_or_columns(self, function, shape):
        with pytest.raises(ValueError, match="at least one row and one column") as error:
            function(np.ones(shape, np.float32))
        assert str(shape) in str(error.value)

    def test_unknown_method(self, function):
        with pytest.raises(ValueError, match="'magic'.*lapack"):
            function(np.ones((3, 2), np.float32), method="magic")


@pytest.mark.pairwise("shape", "dtype")
@pytest.mark.parametrize("dtype", matrices.WORKING_DTYPES)
@pytest.mark.parametrize("shape", [(24, 24), (200, 30), (30, 200), (1, 9)], ids=str)
@pytest.mark.parametrize("kind", sorted(matrices.RANKS))
def test_numerical_rank_of_deficient_matrices(kind, shape, dtype):
    x = matrices.matrix(kind, shape, dtype)
    with jax.enable_x64(dtype == "float64"):
        rank = kernels.numerical_rank(singular_values(x), *shape)
    assert rank.dtype == np.int32
    assert int(rank) == matrices.RANKS[kind](min(shape))


@pytest.mark.parametrize("dtype", matrices.WORKING_DTYPES)
def test_numerical_rank_counts_what_is_small_but_there(dtype):
    eps = float(np.finfo(dtype).eps)
    values = np.array([[1, 0.1, 1e3 * eps], [1, 0.1, eps], [1e-30, 1e-31, 0]], dtype)
    with jax.enable_x64(dtype == "float64"):
        assert kernels.numerical_rank(values, 3, 3).tolist() == [3, 2, 2]
        assert kernels.numerical_rank(np.full((2, 3), np.nan, dtype), 3, 3).tolist() == [0, 0]


def test_the_matrices_are_what_they_say():
    for kind in matrices.KINDS:
        for dtype in ("float32", "float64", "bfloat16"):
            x = matrices.matrix(kind, (24, 16), dtype)
            assert x.dtype == ml_dtypes.finfo(dtype).dtype and x.shape == (24, 16)
            assert np.all(np.isfinite(x.astype(np.float64))), (kind, dtype)
            np.testing.assert_array_equal(x, matrices.matrix(kind, (24, 16), dtype))
    values = np.linalg.svd(matrices.matrix("llm_like", (64, 64), "float64"), compute_uv=False)
    np.testing.assert_allclose(values[0] / values[-1], 1e5, rtol=1e-6)
    values = np.linalg.svd(matrices.matrix("separated", (64, 64), "float64"), compute_uv=False)
    np.testing.assert_allclose(values, 0.02 ** (np.arange(64) / 63), rtol=1e-10)
    base = matrices.matrix("mild", (24, 16), "float64")
    change = matrices.drifted(base, 0.03) - base
    np.testing.assert_allclose(np.linalg.norm(change), 0.03 * np.linalg.norm(base), rtol=1e-9)
