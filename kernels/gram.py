"""Frames by Gram matrices: all that is decomposed is r x r.

The right singular vectors and the singular values of a tall W are the eigenvectors and the square roots of the
eigenvalues of W^T W. Squaring loses every singular value below about sqrt(eps) s_1, so this is a float64 route, and
the ones it blurs are resolved by a second pass: in the basis found, the columns of W V are W's action graded by size,
and the Gram matrix of the small ones alone, whose largest entry is small, is decomposed again (deflation; the coupling
to the large ones is of relative size eps). What is too small for that as well is reported.

With V_b, V_p and X = W_b^T D at hand, E = S_b^-1 V_b^T X V_b, Q_V = V_b^T V_p and Q_U = (S_b + E) Q_V S_p^-1: no left
singular vector is ever formed.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from polarax.kernels.products import matmul, transpose
from polarax.kernels.sequential import one_at_a_time

# Relative to s_1: from here down, singular values of a float64 Gram matrix go through the second pass. Their relative
# error is about 10 eps (s_1 / s)^2 / 2, 1e-7 at this size.
RESOLVED = 1e-4
# Relative to s_1: below this, values would still be good to 1e-9 s_1, but the errors of Q_U reach 1e-6 of nf.
UNRESOLVED = 1e-6

# A Gram matrix of this many columns or more is made from blocks of columns: 5/8 of the products of a full one.
_BLOCKED_COLUMNS = 512


class RightFrame(NamedTuple):
    """Singular values and right singular vectors of a tall matrix."""

    values: jax.Array  # (..., r), descending
    vectors: jax.Array  # V, (..., n, r = n)
    resolved: jax.Array  # (...), bool: False where singular values too small for this route are left


def gram(x: jax.Array) -> jax.Array:
    """x^T x of (..., m, n), as (..., n, n)."""
    return _gram(x, levels=2 if x.shape[-1] >= _BLOCKED_COLUMNS else 0)


def right_frame(x: jax.Array, gram_matrix: jax.Array) -> RightFrame:
    """Singular values and right vectors of a tall x from its Gram matrix; finite entries, no larger than about 1.

    Args:
        x: (..., m, n), m >= n.
        gram_matrix: x^T x.
    """
    values, vectors = _eigh_descending(gram_matrix)
    values = jnp.sqrt(jnp.maximum(values, 0))
    blurred = values < RESOLVED * values[..., :1]
    values, vectors = lax.cond(
        jnp.any(blurred), _resolve_small, lambda _, s, v, __: (s, v), x, values, vectors, blurred
    )
    return RightFrame(values, vectors, values[..., -1] >= UNRESOLVED * values[..., 0])


def eigenvalue_roots(gram_matrix: jax.Array) -> jax.Array:
    """Singular values from a Gram matrix, (..., n), descending: to 1e-7 down to `RESOLVED` s_1, to 1e-8 s_1 below."""
    values, _ = _eigh_descending(gram_matrix)
    return jnp.sqrt(jnp.maximum(values, 0))


def _resolve_small(x, values, vectors, blurred):
    small = jnp.where(blurred[..., None, :], matmul(x, vectors), 0)
    block = _gram(small, levels=0)
    # The large directions must come out as they are and in front: put a descending diagonal above the block in.
    size = values.shape[-1]
    ahead = 2 + (size - jnp.arange(size)) / size
    top = jnp.max(jnp.diagonal(block, axis1=-2, axis2=-1), axis=-1)[..., None]
    top = jnp.where(top > 0, top, 1)
    diagonal = jnp.where(blurred, 0, size * top * ahead)
    squares, rotation = _eigh_descending(block + diagonal[..., None] * jnp.eye(size, dtype=block.dtype))
    values = jnp.where(blurred, jnp.sqrt(jnp.maximum(squares, 0)), values)
    return values, matmul(vectors, rotation)


def _eigh_descending(symmetric):
    vectors, values = one_at_a_time(lambda g: tuple(lax.linalg.eigh(g, symmetrize_input=False)), symmetric)
    return values[..., ::-1], vectors[..., ::-1]


def _gram(x, levels):
    if not levels:
        return matmul(transpose(x), x)
    half = x.shape[-1] // 2
    first, second = x[..., :half], x[..., half:]
    across = matmul(transpose(first), second)
    upper = jnp.concatenate([_gram(first, levels - 1), across], axis=-1)
    lower = jnp.concatenate([transpose(across), _gram(second, levels - 1)], axis=-1)
    return jnp.concatenate([upper, lower], axis=-2)
