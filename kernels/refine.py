"""Refinement of an approximate SVD by matrix products alone, to working accuracy.

Ogita and Aishima 2020, Iterative refinement for singular value decomposition based on matrix multiplication (J. Comput.
Appl. Math. 369, 112512). With R = I - U^T U, S = I - V^T V and T = U^T W V, first-order corrections U F and V G are
read off elementwise; each step squares the error. Between singular values that are too close for the accuracy reached
so far, a step only restores orthogonality; the next ones, more accurate, take them apart.

U is thin here, and starts as the columns of W V at unit length: what rounding leaves of them outside the range of W,
eps s_1 / s_i, changes W - U S V^T by eps s_1 only, and its effect on orthogonality is part of R.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from polarax.kernels.polar_polynomial import orthogonality_tolerance
from polarax.kernels.products import frobenius, inner, matmul, transpose

_MOST_STEPS = 5
# Errors are squared: from here down, relative to 1, they shrink.
_CONVERGES = 0.1


class Refined(NamedTuple):
    """A refined thin SVD of a tall stack and how good it is."""

    left: jax.Array  # U, (..., m, r)
    values: jax.Array  # s, (..., r), descending
    right: jax.Array  # V, (..., r, r)
    steps: jax.Array  # (), int32: of the whole stack
    residual: jax.Array  # (...): largest of ||R||_F, ||S||_F and ||T - diag T||_F / s_1, over sqrt(r)


class _State(NamedTuple):
    left: jax.Array
    right: jax.Array
    off_left: jax.Array  # R
    off_right: jax.Array  # S
    across: jax.Array  # T
    residual: jax.Array


def refine_svd(x: jax.Array, right: jax.Array) -> Refined:
    """The SVD of a tall stack from approximate right singular vectors, in the dtype of x.

    Args:
        x: W, (..., m, r), m >= r, finite.
        right: V, (..., r, r), nearly orthonormal: errors up to about s_r / (10 s_1) are refined.

    Returns:
        A `Refined`. A matrix whose vectors were too far off to be refined keeps them, and has a large residual; so has
        a rank-deficient one.
    """
    size = x.shape[-1]
    left = matmul(x, right)
    lengths = jnp.sqrt(jnp.sum(left**2, axis=-2, keepdims=True))
    left = left / jnp.where(lengths > 0, lengths, 1)
    identity = jnp.eye(size, dtype=x.dtype)

    def measured(left, right):
        off_left = identity - inner(left, left)
        off_right = identity - inner(right, right)
        across = inner(left, matmul(x, right))
        diagonal = jnp.diagonal(across, axis1=-2, axis2=-1)
        largest = jnp.max(jnp.abs(diagonal), axis=-1)
        off = frobenius(across - diagonal[..., None, :] * identity) / jnp.where(largest > 0, largest, 1)
        worst = jnp.maximum(jnp.maximum(frobenius(off_left), frobenius(off_right)), off)
        return _State(left, right, off_left, off_right, across, worst / math.sqrt(size))

    def improvable(state):
        return (state.residual > orthogonality_tolerance(x)) & (state.residual < _CONVERGES)

    def advance(carried):
        state, step = carried
        grow_left, grow_right = _corrections(state)
        improved = improvable(state)[..., None, None]
        left = jnp.where(improved, state.left + matmul(state.left, grow_left), state.left)
        right = jnp.where(improved, state.right + matmul(state.right, grow_right), state.right)
        return measured(left, right), step + 1

    def unfinished(carried):
        state, step = carried
        return (step < _MOST_STEPS) & jnp.any(improvable(state))

    state, steps = lax.while_loop(unfinished, advance, (measured(left, right), jnp.int32(0)))
    values = _values(state)
    order = jnp.argsort(-values, axis=-1)
    return Refined(
        jnp.take_along_axis(state.left, order[..., None, :], axis=-1),
        jnp.maximum(jnp.take_along_axis(values, order, axis=-1), 0),
        jnp.take_along_axis(state.right, order[..., None, :], axis=-1),
        steps,
        state.residual,
    )


def _values(state):
    diagonals = (jnp.diagonal(x, axis1=-2, axis2=-1) for x in (state.across, state.off_left, state.off_right))
    across, off_left, off_right = diagonals
    return across / (1 - (off_left + off_right) / 2)


def _corrections(state):
    """F and G: the vectors become U (I + F) and V (I + G)."""
    values = _values(state)
    row, column = values[..., :, None], values[..., None, :]
    largest = jnp.max(jnp.abs(values), axis=-1)[..., None, None]
    alpha = state.across + column * state.off_left
    beta = transpose(state.across) + column * state.off_right
    # Frobenius norms over sqrt(r) stand for the 2-norms that the error bound has; later steps have smaller ones.
    close = jnp.abs(column - row) <= 2 * largest * state.residual[..., None, None]
    gap = jnp.where(close, 1, (column - row) * (column + row))
    gap = jnp.where(gap == 0, 1, gap)
    grow_left = jnp.where(close, state.off_left / 2, (column * alpha + row * beta) / gap)
    grow_right = jnp.where(close, state.off_right / 2, (row * alpha + column * beta) / gap)
    return grow_left, grow_right
