"""What is free in two decompositions, chosen so that they lie nearest to each other; and the one nearest rotation.

A singular vector pair has one sign, and vectors of equal singular values one rotation, that is free. Both are chosen so
that the base's pairs lie as near to the post's as they can: of a block of Q_U + Q_V by its polar factor, which for a
single vector is a sign.
"""

import jax
import jax.numpy as jnp
from jax import lax

from polarax.kernels.edits.tall_pair import TallPair
from polarax.kernels.polar import polar
from polarax.kernels.products import frobenius, inner, matmul, transpose
from polarax.kernels.symmetric_eigen import eigh_ascending

# ||I - X^T X||_F of X = (Q_U + Q_V) / 2 up to which X is iterated on: few of its singular values are far from 1 then.
_NEAR, _MOST_STEPS = 5.0, 8


def aligned(pair: TallPair) -> TallPair:
    """The pair with what is free in its vectors chosen so that vector pairs, joined by their index, agree best."""
    base, post = pair.base, pair.post
    tied_base, tied_post = base.tied, post.tied

    def by_signs():
        left = jnp.sum(base.right * pair.turned, axis=-2) * base.inverses * post.inverses
        agreement = left + jnp.sum(base.right * post.right, axis=-2)
        return base.frame * _signs(agreement)[..., None, :], post.frame, pair.turned

    def by_blocks():
        across = pair.left + pair.right
        turn = _block_polar(across, tied_base)
        turn_post = transpose(_block_polar(inner(turn, across), tied_post))
        return matmul(base.frame, turn), matmul(post.frame, turn_post), matmul(pair.turned, turn_post)

    ties = (tied_base | tied_post) & ~jnp.eye(base.values.shape[-1], dtype=bool)
    frame, frame_post, turned = lax.cond(jnp.any(ties), by_blocks, by_signs)
    # Only vectors of equal singular values are mixed.
    return pair._replace(base=base._replace(frame=frame), post=post._replace(frame=frame_post), turned=turned)


def one_rotation(pair: TallPair) -> jax.Array:
    """Q = polar(Q_U + Q_V), (..., r, r); what neither side determines of it is zero.

    Signs are of no concern: what a column of Q_U and Q_V is multiplied by, that of Q is too.
    """
    middle = (pair.left + pair.right) / 2
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
        x, off_left, _ = lax.while_loop(unfinished, advance, (middle, off, jnp.int32(0)))
        return lax.cond(_largest(off_left) > 100 * tolerance, lambda: _by_eigenvectors(middle), lambda: x)

    return lax.cond(_largest(off) <= _NEAR, iterated, lambda: _by_eigenvectors(middle))


def _signs(agreement):
    return jnp.where(agreement < 0, -1, 1).astype(agreement.dtype)


def _block_polar(across, tied):
    """Signs where nothing is tied, polar factors of blocks elsewhere; (..., r, r)."""
    alone = jnp.sum(tied, axis=-1) == 1
    blocks = jnp.where(tied & ~alone[..., None, :], across, 0)
    signs = jnp.where(alone, _signs(jnp.diagonal(across, axis1=-2, axis2=-1)), 0)
    identity = jnp.eye(across.shape[-1], dtype=across.dtype)
    return polar(blocks, method="svd").factor + identity * signs[..., None, :]


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
