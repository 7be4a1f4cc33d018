"""Reductions by blocks of rows, against numpy on the whole."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from polarax.kernels.gram import both_triangles
from polarax.kernels.row_blocks import fold_row_blocks, reduce_row_blocks
from polarax.kernels.triangle import triangle_by_blocks


@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, np.float16, np.float32, ml_dtypes.float8_e4m3fn])
@pytest.mark.parametrize("rows", [1, 1023, 1024, 2500, 5000])
def test_a_sum_over_rows(rows, dtype):
    x = np.random.default_rng(rows).standard_normal((2, rows, 3)).astype(dtype)
    found = jax.jit(lambda x: reduce_row_blocks(lambda rows: jnp.sum(rows.astype(jnp.float32), axis=-2), x))(x)
    np.testing.assert_allclose(found, x.astype(np.float64).sum(axis=-2), rtol=1e-4, atol=1e-2)


def test_another_way_to_combine():
    x = np.random.default_rng(0).standard_normal((4000, 2)).astype(np.float32)
    norm = reduce_row_blocks(lambda rows: jnp.sqrt(jnp.sum(rows**2)), x, combine=jnp.hypot)
    np.testing.assert_allclose(norm, np.linalg.norm(x.astype(np.float64)), rtol=1e-5)


@pytest.mark.parametrize(("rows", "block_rows"), [(10, 3), (9, 3), (2, 3), (7, 7)])
def test_a_fold_sees_every_row_once_and_in_order(rows, block_rows):
    x = np.arange(rows, dtype=np.float32)[:, None]

    def following(found, rows):
        return found * 2.0 ** rows.shape[0] + binary(rows)

    def binary(rows):  # the rows' parity as the digits of a number
        digits = rows[:, 0] % 2
        return jnp.sum(digits * 2.0 ** jnp.arange(rows.shape[0] - 1, -1, -1))

    found = fold_row_blocks(binary, following, x, block_rows=block_rows)
    assert float(found) == sum(2 ** (rows - 1 - i) for i in range(1, rows, 2))


@pytest.mark.parametrize("rows", [8, 9, 31, 64])
def test_a_triangle(rows):
    rng = np.random.default_rng(rows)
    first, second = rng.standard_normal((2, 3, rows, 4))
    with jax.enable_x64(True):
        found = np.asarray(triangle_by_blocks(lambda a, b: jnp.concatenate([a, b], axis=-1), first, second))
    both = np.concatenate([first, second], axis=-1)
    expected = np.linalg.qr(both, mode="r")
    signs = np.sign(np.diagonal(expected, axis1=-2, axis2=-1) * np.diagonal(found, axis1=-2, axis2=-1))
    np.testing.assert_allclose(found * signs[..., None], expected, rtol=1e-10, atol=1e-12)


def test_a_triangle_of_stored_numbers_is_that_of_the_working_dtype():
    x = np.random.default_rng(1).standard_normal((300, 5)).astype(ml_dtypes.bfloat16)
    with jax.enable_x64(True):
        found = np.asarray(triangle_by_blocks(lambda rows: rows.astype(jnp.float64), x))
    exact = x.astype(np.float64)
    np.testing.assert_allclose(found.T @ found, exact.T @ exact, rtol=1e-12)


@pytest.mark.parametrize("size", [1, 500, 1024])
def test_both_triangles(size):
    # 1024: with a choice between a matrix and its transpose jaxlib 0.10 ended the process.
    upper = np.random.default_rng(size).normal(size=(size, size))
    with jax.enable_x64(True):
        found = np.asarray(jax.jit(lambda x: both_triangles(x @ jnp.eye(size, dtype=x.dtype)))(upper))
    np.testing.assert_array_equal(found, np.triu(upper) + np.triu(upper, 1).T)
