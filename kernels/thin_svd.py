"""Thin SVDs, W = U S V^T: what they are, and what is the same for every method that makes them."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from polarax.kernels.products import promote, transpose
from polarax.kernels.sequential import by_leading_axes
from polarax.kernels.sides import Side, longer_side, root

# U, s and V of a tall stack: (..., m, r), (..., r) and (..., r, r).
Parts = tuple[jax.Array, jax.Array, jax.Array]


class Svd(NamedTuple):
    """A thin SVD, r = min(m, n)."""

    left: jax.Array  # U, (..., m, r), orthonormal columns
    values: jax.Array  # s, (..., r), descending, >= 0
    right: jax.Array  # V (not its transpose), (..., n, r), orthonormal columns


def thin_svd(x: jax.typing.ArrayLike, decompose_tall: Callable[..., Parts], *, vectors: bool = True) -> Svd:
    """Thin SVD of every matrix of a stack, by a function that need only know tall and finite ones.

    Wide matrices are decomposed as their transposes: LAPACK's tall path is the faster one.

    Args:
        x: (..., m, n), floating-point; bfloat16 and float16 are computed in float32.
        decompose_tall: Maps a stack and `vectors` to its parts, as `Method.svd_of_tall` does.
        vectors: Whether singular vectors are wanted; without them `left` and `right` are empty.

    Returns:
        An `Svd` in the working dtype, NaN throughout for a matrix with NaN or Inf.

    Raises:
        ValueError: x is not a floating-point array of shape (..., m, n) with m, n >= 1.
    """
    x = promote(x)
    if 0 in x.shape[-2:]:
        raise ValueError(f"Matrices must have at least one row and one column. Got shape={x.shape}.")
    wide = x.shape[-2] < x.shape[-1]
    finite = jnp.all(jnp.isfinite(x), axis=(-2, -1), keepdims=True)
    # XLA's threads on CPU take subnormal numbers for zero, but not everywhere: LAPACK's pivots then go wrong.
    clean = jnp.where(finite & (jnp.abs(x) >= jnp.finfo(x.dtype).tiny), x, 0)
    decompose = by_leading_axes(functools.partial(decompose_tall, vectors=vectors))
    left, values, right = (_poison(part, finite) for part in decompose(transpose(clean) if wide else clean))
    return Svd(right, values, left) if wide else Svd(left, values, right)


def without_vectors(values: jax.Array) -> Parts:
    """The parts of a thin SVD of which only the values were computed."""
    empty = jnp.zeros((*values.shape[:-1], 0, 0), values.dtype)
    return empty, values, empty


def numerical_rank(values: jax.Array, rows: Side, cols: int) -> jax.Array:
    """Number of singular values above s_1 sqrt(max(m, n)) eps.

    `numpy.linalg.matrix_rank` has max(m, n) instead, LAPACK's bound for the worst case; in float32 that would call
    ordinary singular values of 1e-3 s_1 zero. Errors seen in practice stay below a few eps s_1.

    Args:
        values: (..., r), descending.
        rows: m.
        cols: n.

    Returns:
        (...), int32; 0 for a zero matrix and for one with NaN.
    """
    tolerance = values[..., :1] * (root(longer_side((rows, cols))) * jnp.finfo(values.dtype).eps)
    return jnp.sum((values > tolerance) & (values > 0), axis=-1).astype(jnp.int32)


def _poison(part, finite):
    return jnp.where(finite if part.ndim == finite.ndim else finite[..., 0], part, jnp.nan)
