"""Frames of two decompositions turned to each other, and the one rotation that is nearest to both sides.

A singular vector pair has one sign, and vectors of equal singular values one rotation, that is free. Both are chosen so
that the base's pairs lie as near to the post's as they can: of a block M of (U_b^T U_p + V_b^T V_p) by its polar factor,
which for a single vector is a sign.
"""

import jax
import jax.numpy as jnp
from jax import lax

from polarax.kernels.edits.decomposed import Decomposed
from polarax.kernels.polar import polar
from polarax.kernels.products import frobenius, inner, matmul, transpose
from polarax.kernels.symmetric_eigen import eigh_ascending

# ||I - X^T X||_F of X = (Q_U + Q_V) / 2 up to which X is iterated on: few of its singular values are far from 1 then.
_NEAR, _MOST_STEPS = 5.0, 8


def aligned(base: Decomposed, post: Decomposed) -> tuple[Decomposed, Decomposed]:
    """Both with what is free in them chosen so that their vector pairs, joined by their index, agree best."""
    agreement = jnp.sum(base.left * post.left, axis=-2) + jnp.sum(base.right * post.right, axis=-2)
    identity = jnp.eye(base.values.shape[-1], dtype=bool)
    tied_base, tied_post = base.tied, post.tied

    def by_signs():
        return _times(base, jnp.where(agreement < 0, -1, 1).astype(agreement.dtype)), post

    def by_blocks():
        across = inner(base.left, post.left) + inner(base.right, post.right)
        turn_base = _block_polar(across, tied_base)
        turn_post = _block_polar(inner(turn_base, across), tied_post)
        return _turned(base, turn_base), _turned(post, transpose(turn_post))

    return lax.cond(jnp.any((tied_base | tied_post) & ~identity), by_blocks, by_signs)


def _times(parts, signs):
    return parts._replace(left=parts.left * signs[..., None, :], right=parts.right * signs[..., None, :])


def _turned(parts, turn):
    return parts._replace(left=matmul(parts.left, turn), right=matmul(parts.right, turn))


def _block_polar(across, tied):
    """Signs where nothing is tied, polar factors of blocks elsewhere; (..., r, r)."""
    diagonal = jnp.diagonal(across, axis1=-2, axis2=-1)
    signs = jnp.where(diagonal < 0, -1, 1).astype(across.dtype)
    alone = jnp.sum(tied, axis=-1) == 1
    blocks = jnp.where(tied & ~alone[..., None, :], across, 0)
    identity = jnp.eye(across.shape[-1], dtype=across.dtype)
    return polar(blocks, method="svd").factor + identity * jnp.where(alone, signs, 0)[..., None, :]


def one_rotation(base: Decomposed, post: Decomposed) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Q = polar(Q_U + Q_V), (..., r, r), with Q_U and Q_V; what neither side determines of it is zero.

    Signs are of no concern: what a column of Q_U and Q_V is multiplied by, that of Q is too.
    """
    left, right = inner(base.left, post.left), inner(base.right, post.right)
    middle = (left + right) / 2
    off = _off(middle)
    tolerance = 8 * jnp.finfo(middle.dtype).eps * middle.shape[-1] ** 0.5

    def unfinished(state):
        _, off, step = state
        return (_largest(off) > tolerance) & (step < _MOST_STEPS)

    def advance(state):
        x, off, step = state
        x = x + matmul(x, off / 2 + 3 / 8 * matmul(off, off))
        return x, _off(x), step + 1

    def iterated():
        x, off, _ = lax.while_loop(unfinished, advance, (middle, _off(middle), jnp.int32(0)))
        return lax.cond(_largest(off) > 100 * tolerance, lambda: _by_eigenvectors(middle), lambda: x)

    rotation = lax.cond(_largest(off) <= _NEAR, iterated, lambda: _by_eigenvectors(middle))
    return rotation, left, right


def _off(x):
    """I - X^T X."""
    return jnp.eye(x.shape[-1], dtype=x.dtype) - inner(x, x)


def _by_eigenvectors(x):
    vectors, squares = eigh_ascending(inner(x, x))
    kept = squares > jnp.finfo(x.dtype).eps ** 0.75
    inverse_roots = jnp.where(kept, 1 / jnp.sqrt(jnp.where(kept, squares, 1)), 0)
    return matmul(matmul(x, vectors * inverse_roots[..., None, :]), transpose(vectors))


def _largest(x):
    return jnp.max(frobenius(x), initial=0)
