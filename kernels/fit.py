"""The framework's fit: the post as the base, scaled and turned by one rotation on both sides.

He and Cao (arXiv:2509.17866) model post-training as W_p ~ alpha (U_b Q) S_b (V_b Q)^T. Here Q = polar(Q_U + Q_V), the
one rotation nearest to both Q_U and Q_V (Procrustes; Golub and Van Loan, Matrix Computations, 4th edition, section
6.4), and alpha is least squares. In the base's frame the fit is M = alpha Q S_b Q^T and the post S_b + E, so that

    ||W_p - fit||^2 = ||S_b + E - M||^2 + ||D||^2 - ||E||^2,

the last two being what of D lies outside: nothing larger than r x r is needed.

Where a left and a right vector turned to opposite directions, Q_U + Q_V is singular and Q a partial isometry, which is
all that is determined. That is no rare case: it is so for every square matrix whose determinant changed its sign.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from polarax.kernels.frames_type import Frames
from polarax.kernels.gram import gram
from polarax.kernels.products import frobenius, matmul, transpose
from polarax.kernels.sequential import one_at_a_time

# ||I - X^T X||_F of X = (Q_U + Q_V) / 2 up to which X is iterated on: no singular value is below 1/2 then.
_NEAR = 0.75
# The distance from an orthogonal matrix that is left, beside which every drift is large.
_ORTHOGONAL = 1e-8


class Fit(NamedTuple):
    """What three models of the post leave of it, over ||W_p||_F; each (...), NaN where base or post is zero."""

    error: jax.Array  # of alpha (U_b Q) S_b (V_b Q)^T
    alpha: jax.Array  # its scale
    error_unchanged: jax.Array  # of W_b: ||D|| / ||W_p||
    error_scaled: jax.Array  # of the best multiple of W_b


def fit_of_frames(pair: Frames) -> Fit:
    """The fit of a pair whose frames are at hand.

    Directions that a rank-deficient matrix does not determine are no part of the fit: Q is a partial isometry then too.
    """
    inside = jnp.arange(pair.s_base.shape[-1]) < pair.rank_base[..., None]
    unit = jnp.where(pair.rank_base > 0, pair.s_base[..., 0], jnp.nan)
    values = jnp.where(inside, pair.s_base / unit[..., None], 0)  # free of the unit, so that squares stay in range
    change = pair.change / unit[..., None, None]
    base = values[..., :, None] * jnp.eye(values.shape[-1], dtype=values.dtype)
    turn = _turn((pair.left + pair.right) / 2)
    turned = gram(transpose(turn * jnp.sqrt(values)[..., None, :]))
    alpha = _inner(turned, base + change) / _inner(turned, turned)
    growth = _inner(base, change) / _inner(base, base)  # alpha - 1 of the best multiple of the base

    norm = pair.change_norm / unit
    share_inside = frobenius(change / jnp.where(norm > 0, norm, 1)[..., None, None]) ** 2
    # A square matrix of full rank has no outside; elsewhere it is known up to sqrt(eps) ||D||.
    has_outside = pair.rank_base < max(pair.shape)
    outside = norm * jnp.where(has_outside, jnp.sqrt(jnp.clip(1 - share_inside, 0, 1)), 0)
    post_norm = frobenius(pair.s_post[..., None, :]) / unit
    post_norm = jnp.where(post_norm > 0, post_norm, jnp.nan)

    def error(left_inside):
        return jnp.hypot(frobenius(left_inside), outside) / post_norm

    return Fit(
        error=error(base + change - alpha[..., None, None] * turned),
        alpha=alpha,
        error_unchanged=norm / post_norm,
        error_scaled=error(change - growth[..., None, None] * base),
    )


def _turn(middle):
    """Polar factor of X = (Q_U + Q_V) / 2, (..., r, r), over the singular values that are not rounding errors."""
    gram_matrix = gram(middle)
    distance = jnp.max(frobenius(_beyond_identity(gram_matrix)), initial=0)
    return lax.cond(distance <= _NEAR, _by_series, _by_eigenvectors, middle, gram_matrix)


def _by_series(near, gram_matrix):
    """X (I - E)^(-1/2), E = I - X^T X, by the series up to E^4 until it is orthogonal: a distance d becomes d^5 / 2.

    What the series adds to X is of size d, so float32 products hold it to 1e-7 d. After a small drift one step is
    enough, three products; `polar` would scale the matrix first, and take many times as many.
    """

    def step(state):
        x, _ = state
        return advance(x, gram(x))

    def advance(x, gram_matrix):
        off = -_beyond_identity(gram_matrix).astype(jnp.float32)
        square = matmul(off, off)
        added = off / 2 + 3 / 8 * square + matmul(square, 5 / 16 * off + 35 / 128 * square)
        distance = jnp.max(frobenius(off), initial=0).astype(x.dtype)
        return x + matmul(x.astype(jnp.float32), added).astype(x.dtype), distance**5 / 2

    return lax.while_loop(lambda state: state[1] > _ORTHOGONAL, step, advance(near, gram_matrix))[0]


def _by_eigenvectors(middle, gram_matrix):
    vectors, squares = one_at_a_time(lambda x: tuple(lax.linalg.eigh(x, symmetrize_input=False)), gram_matrix)
    # Singular values above 1e-6 in float64, 2e-3 in float32: the frames are known to about a tenth of that.
    kept = squares > jnp.finfo(middle.dtype).eps ** 0.75
    inverse_roots = jnp.where(kept, 1 / jnp.sqrt(jnp.where(kept, squares, 1)), 0)
    return matmul(matmul(middle, vectors * inverse_roots[..., None, :]), transpose(vectors))


def _beyond_identity(gram_matrix):
    return gram_matrix - jnp.eye(gram_matrix.shape[-1], dtype=gram_matrix.dtype)


def _inner(x, y):
    return jnp.sum(x * y, axis=(-2, -1))
