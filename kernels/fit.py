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
from polarax.kernels.products import frobenius, inner, matmul, transpose
from polarax.kernels.sequential import one_at_a_time
from polarax.kernels.sides import is_tall, longer_side
from polarax.kernels.symmetric_eigen import eigh_ascending

# ||I - X^T X||_F of X = (Q_U + Q_V) / 2 up to which X is iterated on. At most 27 singular values are below 0.3 then:
# each of them takes 0.91^2 of its square. Three steps make 0.3 to 0.66, 0.98 and 1 - 1e-8.
_NEAR, _MOST_STEPS = 5.0, 3
# Directions in which those that are left then are looked for, some more than there are.
_FEW = 40
# What a step multiplies a singular value by, at most: 1 + 1/2 + 3/8 + 5/16 + 35/128.
_GROWTH = 2.4609375
# The distance from an orthogonal matrix that is left, beside which every drift is large; and that from which the first
# term of the series alone is enough: d becomes 3/4 d^2.
_ORTHOGONAL, _ONE_TERM = 1e-8, 1e-5


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
    turn = _turn(pair)
    # In the frames' dtype: alpha hangs on the few largest singular values, whose errors do not average out.
    turned = matmul(turn * values[..., None, :], transpose(turn))
    alpha = _inner(turned, base + change) / _inner(turned, turned)
    growth = _inner(base, change) / _inner(base, base)  # alpha - 1 of the best multiple of the base

    norm = pair.change_norm / unit
    share_inside = frobenius(change / jnp.where(norm > 0, norm, 1)[..., None, None]) ** 2
    # A square matrix of full rank has no outside; elsewhere it is known up to sqrt(eps) ||D||.
    has_outside = pair.rank_base < longer_side(pair.shape)
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


def _turn(pair):
    """Polar factor of X = (Q_U + Q_V) / 2, (..., r, r), over the singular values that are not rounding errors."""
    middle = (pair.left + pair.right) / 2
    rotation = pair.right if is_tall(pair.shape) else pair.left  # of the short side: if both have full rank
    full_rank = jnp.all(jnp.minimum(pair.rank_base, pair.rank_post) == middle.shape[-1])
    off = lax.cond(full_rank, _off_by_rotation, lambda x, _: _off(x), middle, rotation)
    near = full_rank & (_largest_norm(off) <= _NEAR)
    return lax.cond(near, _by_series, lambda x, *_: _by_eigenvectors(x), middle, off, rotation)


def _by_series(middle, off, rotation):
    """X (I - E)^(-1/2), E = I - X^T X, by the series up to E^4 until X is orthogonal: a distance d becomes d^5 / 2.

    What the series adds to X is of size d, so float32 products hold it to 1e-7 d. After a small drift one step is
    enough, three products. Singular values near 0, where left and right turned to opposite directions, grow slowly:
    the few that are left are brought to 1 in the space that their vectors span.
    """

    def unfinished(state):
        _, distance, steps = state
        return (distance > _ORTHOGONAL) & (steps < _MOST_STEPS)

    def step(state):
        x, _, steps = state
        off = _off_by_rotation(x, rotation)
        x, distance = lax.cond(_largest_norm(off) <= _ONE_TERM, _add_one_term, _add_four_terms, x, off)
        return x, distance, steps + 1

    x, distance = _add_four_terms(middle, off)
    x, distance, _ = lax.while_loop(unfinished, step, (x, distance, jnp.int32(1)))
    return lax.cond(distance > _ORTHOGONAL, _straighten_few, lambda x: x, x)


def _off(x):
    """I - X^T X."""
    return jnp.eye(x.shape[-1], dtype=x.dtype) - inner(x, x)


def _off_by_rotation(x, rotation):
    """I - X^T X for an X that is near a rotation R, to 1e-7 ||R - X|| by a float32 product.

    With D = R - X it is R^T D + D^T R - D^T D, the symmetric part of (2 R - D)^T D.
    """
    apart = rotation - x
    half = inner((rotation - apart / 2).astype(jnp.float32), apart.astype(jnp.float32)).astype(x.dtype)
    return half + transpose(half)


def _add_four_terms(x, off):
    off = off.astype(jnp.float32)
    square = matmul(off, off)
    added = off / 2 + 3 / 8 * square + matmul(square, 5 / 16 * off + 35 / 128 * square)
    return _grown(x, added), _largest_norm(square).astype(x.dtype) ** 2.5 / 2


def _add_one_term(x, off):
    return _grown(x, off.astype(jnp.float32) / 2), 0.75 * _largest_norm(off) ** 2


def _grown(x, added):
    return x + matmul(x.astype(jnp.float32), added).astype(x.dtype)


def _straighten_few(x):
    """X after the steps, with its few singular values that are not 1: 1, or 0 where they were rounding errors."""
    off, size = _off(x), x.shape[-1]
    sketch = jax.random.normal(jax.random.key(0, impl="threefry2x32"), (size, min(_FEW, size)), x.dtype)
    basis = one_at_a_time(lambda y: jnp.linalg.qr(y)[0], matmul(off, sketch))
    vectors, distances = eigh_ascending(inner(basis, matmul(off, basis)))
    squares = 1 - distances
    kept = squares > _GROWTH ** (2 * _MOST_STEPS) * _rounding(x)
    factor = jnp.where(kept, 1 / jnp.sqrt(jnp.where(kept, squares, 1)), 0)
    vectors = matmul(basis, vectors)
    return x + matmul(matmul(x, vectors) * (factor - 1)[..., None, :], transpose(vectors))


def _by_eigenvectors(middle):
    vectors, distances = eigh_ascending(_off(middle))
    squares = 1 - distances
    kept = squares > _rounding(middle)
    inverse_roots = jnp.where(kept, 1 / jnp.sqrt(jnp.where(kept, squares, 1)), 0)
    return matmul(matmul(middle, vectors * inverse_roots[..., None, :]), transpose(vectors))


def _rounding(x):
    """Squares of singular values below 1e-6 in float64, 2e-3 in float32: the frames are known to a tenth of that."""
    return jnp.finfo(x.dtype).eps ** 0.75


def _largest_norm(x):
    return jnp.max(frobenius(x), initial=0)


def _inner(x, y):
    return jnp.sum(x * y, axis=(-2, -1))
