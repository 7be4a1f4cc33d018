"""Thin SVDs that edits are made from: what a matrix does not determine is zero, and what is tied is known to be.

Where there is float64, the right vectors of a tall matrix are those of its Gram matrix (`polarax.kernels.gram`), and
its left vectors the columns of W V at unit length. Errors of V between two singular values are weighted in every edit
by how little these two differ, so that an edited matrix is accurate to far better than its vectors are.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from polarax.kernels.gram import UNRESOLVED, right_frame, stored_gram
from polarax.kernels.products import matmul, transpose
from polarax.kernels.svd import svd

# Singular values that are closer than this, relative to the largest one, span one eigenspace: some times the rounding
# errors of their differences, and far less than the distances between values that are not equal.
_TIED = {"float64": 1e-12, "float32": 5e-7}


class Decomposed(NamedTuple):
    """W = U S V^T with r = min(m, n). Vectors that W does not determine are zero, and so are their singular values."""

    left: jax.Array  # U, (..., m, r)
    values: jax.Array  # s, (..., r), descending up to rounding
    right: jax.Array  # V, (..., n, r)

    @property
    def inside(self) -> jax.Array:
        """(..., r), bool: which directions are determined."""
        return self.values > 0

    @property
    def tied(self) -> jax.Array:
        """(..., r, r), bool: which singular values are equal up to rounding, each to itself at least."""
        values = self.values
        tolerance = jnp.max(values, axis=-1, keepdims=True) * _TIED[values.dtype.name]
        apart = values[..., :-1] - values[..., 1:] > tolerance
        group = jnp.cumsum(jnp.pad(apart, [(0, 0)] * (apart.ndim - 1) + [(1, 0)]), axis=-1)
        both = self.inside[..., :, None] & self.inside[..., None, :]
        return both & (group[..., :, None] == group[..., None, :]) | jnp.eye(values.shape[-1], dtype=bool)


def transposed(parts: Decomposed) -> Decomposed:
    """The decomposition of the transpose."""
    return Decomposed(parts.right, parts.values, parts.left)


def decompose(x: jax.Array, /, *, method: str = "auto") -> Decomposed:
    """Decomposes every matrix of a stack; "auto" in the float64 scope of the caller, where the platform has float64.

    Args:
        x: (..., m, n), float32 or float64, finite.
        method: One of `polarax.kernels.SVD_METHODS`; "auto" takes Gram matrices where x is float64, else `svd`'s choice.

    Returns:
        A `Decomposed` in the dtype of x.
    """
    wide = x.shape[-2] < x.shape[-1]
    tall = transpose(x) if wide else x
    if method == "auto" and x.dtype == jnp.float64:
        parts = _by_gram(tall)
    else:
        parts = _determined(*svd(tall, method=method))
    return transposed(parts) if wide else parts


def _by_gram(tall):
    largest = jnp.max(jnp.abs(tall), axis=(-2, -1))
    # A power of two, so that squares stay in range and nothing is rounded.
    unit = jnp.where(largest > 0, lax.reduce_precision(largest, 11, 0), 1)[..., None]
    scaled = tall / unit[..., None]
    frame = right_frame(stored_gram(scaled, lambda x: x), lambda rows: stored_gram(scaled, lambda x: x, rows))
    right = transpose(frame.rows)
    left = matmul(scaled, right)
    # Lengths of W v are better singular values than the roots of the Gram matrix's eigenvalues: to the second order.
    lengths = jnp.sqrt(jnp.sum(left**2, axis=-2))
    kept = lengths > UNRESOLVED * jnp.max(lengths, axis=-1, keepdims=True)
    left = left * jnp.where(kept, 1 / jnp.where(kept, lengths, 1), 0)[..., None, :]
    return Decomposed(left, jnp.where(kept, lengths, 0) * unit, jnp.where(kept[..., None, :], right, 0))


def _determined(left, values, right):
    """A thin SVD without what rounding errors make of directions that the matrix does not have."""
    size = max(left.shape[-2], right.shape[-2])
    floor = UNRESOLVED if values.dtype == jnp.float64 else math.sqrt(size) * float(jnp.finfo(values.dtype).eps)
    kept = values > floor * values[..., :1]
    return Decomposed(
        jnp.where(kept[..., None, :], left, 0), jnp.where(kept, values, 0), jnp.where(kept[..., None, :], right, 0)
    )
