"""How far sums over singular values and vectors spread under a random change of any size: the law's second order.

The logarithms of determinants log det(z - H) of base plus change, H = [[0, W], [W^T, 0]], are jointly nearly normal
for large r, and the polar factor's trace and the nuclear norm are integrals of them over the imaginary axis. For real
random changes the covariance at two points is

    cov = -2 log det(I - e_D e_b),

where e_b and e_D are 2 x 2 matrices of inner products of what base and change have at the two points, and 0 for a
base or a change of zero: no small number is a difference of large ones (docs: definitions, "How far nf spreads").
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from polarax.kernels.noise_law.polar_law import start_of_axis
from polarax.kernels.noise_law.spectrum_law import Spectrum, axis_nodes, meet, solve
from polarax.kernels.products import at_full_precision
from polarax.kernels.sides import Shape, entry_count, longer_side, root
from polarax.kernels.thin_svd import numerical_rank

# The trapezoidal rule in log(t - t0), for isotropic noise. Integrands are known to a percent with these.
_NODES = 64
_BELOW, _ABOVE = 14.0, 9.0


class SecondOrder(NamedTuple):
    """Variances under a random change, each (...)."""

    turn: jax.Array  # of r nf^2
    nuclear: jax.Array  # of sum s_p, in units of (sum s_b)^2


@at_full_precision
def second_order(
    s_base: jax.Array,
    change_norm: jax.Array,
    s_change: jax.Array | None,
    *,
    shape: Shape,
    log_t: jax.Array | None = None,
) -> SecondOrder:
    """The variances of r nf^2 and of the nuclear norm, to leading order in 1/r. O(64 r) and products of that size.

    Args:
        s_base: Singular values of the base, (..., r), descending.
        change_norm: ||D||_F, (...), in the unit of s_base.
        s_change: Singular values of a change in random directions, (..., r), in any order and unit; None for isotropic
            noise.
        shape: (m, n) of the matrix, m an operand or a number.
        log_t: Of `spectrum_law` of base and change of norm `change_norm`, if it is known, (..., nodes).

    Returns:
        A `SecondOrder`; NaN for a base that is zero or not finite, 0 where nothing changes. Values beyond the base's
        numerical rank count as zeros.
    """
    s = jnp.asarray(s_base)
    size = s.shape[-1]
    norm = jnp.broadcast_to(jnp.asarray(change_norm, s.dtype), s.shape[:-1])
    longer = jnp.asarray(longer_side(shape), s.dtype)
    unit = jnp.where(s[..., 0] > 0, s[..., 0], jnp.nan)
    rank = numerical_rank(s, *shape)
    relative = norm / unit
    inside = jnp.arange(size) < rank[..., None]
    changed = relative > 0
    # Where there is nothing to compute, of a base of ones and a change of 1: no loop runs on numbers that are none.
    sound = changed & (rank > 0) & jnp.isfinite(relative)
    relative = jnp.where(sound, relative, 1)
    values = jnp.where(sound[..., None], jnp.where(inside, s / unit[..., None], 0), 1)
    inside |= ~sound[..., None]
    if s_change is None:
        change = relative / root(entry_count(shape))
        change = change[..., None]
    else:
        d = jnp.broadcast_to(jnp.asarray(s_change, s.dtype), s.shape)
        d = d / jnp.max(jnp.where(d > 0, d, jnp.finfo(s.dtype).tiny), axis=-1, keepdims=True)
        length = jnp.sqrt(jnp.sum(d**2, axis=-1))
        usable = (length > 0) & jnp.isfinite(length)
        d = jnp.where(usable[..., None], d, 1)
        change = d * (relative / jnp.where(usable, length, root(size)))[..., None]

    def of_matrix(operands):
        values, inside, change, log_t = operands
        if s_change is None:
            points = _isotropic(values, inside, change[0], longer)
        else:
            points = _own(values, inside, change, longer, log_t)
        turn, nuclear = _variances(points)
        return turn, nuclear / jnp.sum(values) ** 2

    log_t = None if log_t is None else jnp.where(sound[..., None], log_t, 0)
    flat = jax.tree.map(lambda x: x.reshape(-1, x.shape[-1]), (values, inside, change, log_t))
    still = jnp.where((rank > 0) & (norm == 0), 0, jnp.nan)
    return SecondOrder(*(jnp.where(sound, x.reshape(sound.shape), still) for x in lax.map(of_matrix, flat)))


class _Vectors(NamedTuple):
    """What a spectrum has at each point: the entries of e at two points are inner products of these."""

    rows: jax.Array  # (points, r)
    outside: jax.Array  # (points,), the rows outside of the spectrum's space
    columns: jax.Array  # (points, r)
    across: jax.Array  # (points, r)


class _Points(NamedTuple):
    """Points of the imaginary axis, the last of them at its origin.

    The vectors come with their derivatives: by a shift of all values of the base, at the last point by kappa.
    """

    base: tuple[_Vectors, _Vectors]
    change: tuple[_Vectors, _Vectors] | None  # None for isotropic noise
    width: jax.Array  # of dy, (points,), 0 for the last one
    reach: jax.Array  # of kappa, (points,), 0 for all but the last one


def _variances(points):
    value, derivative = zip(points.base, points.change or (None, None), strict=True)

    def along_second(first):
        return jax.jvp(functools.partial(_log_determinant, first), (value,), (derivative,))

    (logarithm, _), (_, mixed) = jax.jvp(along_second, (value,), (derivative,))
    weights = 2 / jnp.pi * points.width + points.reach
    nuclear = points.width / jnp.pi
    return tuple(jnp.maximum(-2 * (w @ x @ w), 0) for w, x in ((weights, mixed), (nuclear, logarithm)))


def _log_determinant(first, second):
    """log det(I - e_D e_b) at each pair of points."""
    (base, change), (other_base, other_change) = first, second
    rows, columns, across = _products(base, other_base)
    own = (0, 0, 1) if change is None else _products(change, other_change)
    trace = rows * own[0] + columns * own[1] + 2 * across * own[2]
    minors = (rows * columns - across**2) * (own[0] * own[1] - own[2] ** 2)
    # Where noise covers the smallest values, it falls to 0 towards the origin, where intervals are small.
    least = 4 * jnp.finfo(trace.dtype).eps
    return jnp.log1p(jnp.maximum(minors - trace, least - 1))


def _products(vectors, others):
    """The entries of the symmetric matrix e."""
    return (
        -(vectors.rows @ others.rows.T) - jnp.outer(vectors.outside, others.outside),
        -(vectors.columns @ others.columns.T),
        vectors.across @ others.across.T,
    )


def _isotropic(s, inside, sd, longer):
    """The points of a base (r,) with s_1 = 1 under noise."""
    squares, variance, free = s**2, sd**2, longer - s.shape[-1]
    delta = variance * free
    start, x_start, _ = start_of_axis(squares, variance, delta)
    low = jnp.log(jnp.min(jnp.where(inside, squares, 1)) + start) - _BELOW
    high = jnp.log(1 + variance * s.shape[-1] + delta) + _ABOVE
    step = (high - low) / (_NODES - 1)
    ahead = jnp.exp(low + step * jnp.arange(_NODES, dtype=s.dtype))
    t = start + ahead
    inverse = 1 / (t[:, None] + squares)
    inverse_start = jnp.where(squares + start > 0, 1 / (squares + start), 0)
    slope = variance * jnp.sum(inverse**2, axis=1)
    f = ahead * (x_start + variance * t * (inverse @ inverse_start))
    x = (f + delta) / t
    y = jnp.sqrt(x * f)
    h = 2 * f + delta
    growth = x**2 + slope * h
    # By a shift of all values at a given y; at the origin by kappa, with tau x(tau) = delta (1 + kappa').
    by_shift = -2 * variance * h * (inverse**2 @ s) / (growth * t)
    by_kappa = x[0] / (x[0] + t[0] * slope[0])

    def vectors(log_t, kappa, shift):
        t = jnp.exp(log_t)[:, None]
        values = s + jnp.where(inside, shift[:, None], 0)
        inverse = sd / (t + values**2)
        rows = jnp.sqrt(t) * inverse
        return _Vectors(rows, jnp.sqrt(delta) * jnp.exp(-log_t / 2) * (1 + kappa), rows, values * inverse)

    base = _with_derivative(vectors, jnp.log(t), by_shift, by_kappa)
    width = step * ahead * growth / (2 * y)
    return _Points(base, None, *_weights(width, step / 2, x_start))


def _own(s, inside, d, longer, log_t):
    """The points of a base (r,) with s_1 = 1 and a change with singular values d in random directions."""
    ones, free = jnp.ones_like(s), longer - s.shape[-1]
    spectrum, change_spectrum = Spectrum(s**2, ones), Spectrum(d**2, ones)
    y, step = axis_nodes(s, inside, change_spectrum.squares)
    log_t = solve(spectrum, change_spectrum, y, free) if log_t is None else log_t

    def at(log_t, shift):
        shifted = Spectrum(jnp.where(inside, s + shift, 0) ** 2, ones)
        point = meet(log_t, shifted, change_spectrum, y, free)
        return point.residual, point.log_tau

    none, still_all = jnp.zeros((), s.dtype), jnp.zeros(y.size + 1, s.dtype)
    (_, log_across), along = jax.linearize(at, log_t, none)
    each = jnp.asarray([1, 0], s.dtype)
    (by_t, by_s), (across_by_t, across_by_s) = jax.vmap(along)(jnp.outer(each, jnp.ones_like(log_t)), 1 - each)
    by_shift = -by_s / by_t
    # At the origin phi_b + phi_D = r, and (phi_b + (1 + kappa') (m - r)) phi_b / t = (phi_D + m - r) phi_D / tau.
    point = jax.tree.map(lambda x: x[0], meet(log_t, spectrum, change_spectrum, y, free))
    bases, changes = point.base, point.change
    held, held_change = (1 - x.slope * (1 / x.seen + 1 / (x.seen + free)) for x in (bases, changes))
    reach = free / (bases.seen + free)
    by_kappa = reach * changes.slope / (held * changes.slope + held_change * bases.slope)
    across_by_kappa = -bases.slope * by_kappa / changes.slope
    base = _with_derivative(functools.partial(_vectors, s, inside, longer), log_t, by_shift, by_kappa)

    def of_change(log_t, *_):
        return _vectors(d, jnp.zeros_like(inside), longer, log_t, still_all, still_all)

    across_by_shift = across_by_t * by_shift + across_by_s
    change = _with_derivative(of_change, log_across, across_by_shift, across_by_kappa)
    return _Points(base, change, *_weights(step * y, step, reach))


def _vectors(values, inside, longer, log_t, kappa, shift):
    """Of a spectrum (r,) in random directions at t (points,)."""
    size = values.shape[-1]
    free = longer - size
    t, values = jnp.exp(log_t)[:, None], values + jnp.where(inside, shift[:, None], 0)
    inverse = 1 / (t + values**2)
    seen, rest = t * inverse, values**2 * inverse
    all_seen, all_rest = jnp.sum(seen, axis=1, keepdims=True), jnp.sum(rest, axis=1, keepdims=True)
    uneven = jnp.where(2 * all_seen > size, rest - all_rest / size, all_seen / size - seen)
    long = all_seen + free * (1 + kappa[:, None])
    return _Vectors(
        jnp.sqrt(longer) * uneven / long,
        (jnp.sqrt(free / size) * (all_rest + size * kappa[:, None]) / long)[:, 0],
        jnp.sqrt(size) * uneven / all_seen,
        (longer * size) ** 0.25 * values * inverse * jnp.sqrt(t / (all_seen * long)),
    )


def _with_derivative(vectors, log_t, by_shift, by_kappa):
    """`vectors` at all points log t, with their derivatives by a shift, and at the first again with those by kappa."""
    log_t, none = jnp.append(log_t, log_t[0]), jnp.zeros(log_t.size + 1, log_t.dtype)
    at_origin = none.at[-1].set(1)
    return jax.jvp(vectors, (log_t, none, none), (jnp.append(by_shift, by_kappa), at_origin, 1 - at_origin))


def _weights(width, fall, reach):
    """Of all points: intervals of y, with what is beyond if terms fall by exp(-fall) a step, and that of kappa."""
    beyond = 1 / jnp.expm1(fall)
    width = jnp.append(width.at[0].multiply(1 + beyond).at[-1].multiply(1 + beyond), 0)
    return width, jnp.zeros_like(width).at[-1].set(reach)
