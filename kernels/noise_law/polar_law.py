"""The polar factor of a matrix plus isotropic noise, at any size of the noise (docs: definitions, "The noise law").

First-order theory ends where the condition number times the drift passes 1. Here the resolvent of base plus noise is
replaced by its deterministic equivalent (Dozier and Silverstein 2007; Hachem, Loubaton and Najim 2007), which on the
imaginary axis is explicit in one variable t: no fixed point is iterated for, but for the one number t0 where the axis
begins. Every sum below is of terms of one sign, so that small noise doesn't vanish in rounding errors of float32.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from polarax.kernels.noise_law.one_column import by_weight, isolation, one_column
from polarax.kernels.products import at_full_precision
from polarax.kernels.sides import Shape, entry_count, longer_side, root
from polarax.kernels.thin_svd import numerical_rank

# The trapezoidal rule in u = log(t - t0) errs by about exp(-2 pi^2 / h): 1e-7 at steps of 1.2, which spectra of
# condition number 1e15 have with this many nodes.
_NODES = 80
# Where the nodes begin and end, beyond the scales of the spectrum. At e^-16 what is left out is a geometric series
# that begins with the square root of it, and is added; at e^12 integrands have fallen by its power 3/2.
_BELOW, _ABOVE = 36.0, 12.0
_ALONE = 8.0  # beyond so many standard deviations a sign doesn't flip
_FAR = 1e8  # so many are infinite
_NEWTON_STEPS = 16  # from within a factor of a few, quadratic: 6 to 8 are enough


class PolarLaw(NamedTuple):
    """What isotropic noise does to the polar factor of a base."""

    nf: jax.Array  # root mean square of nf, (...)
    nuclear_norm_ratio: jax.Array  # mean of sum s_p / sum s_b, (...)
    kept: jax.Array  # mean of u_i^T P_p v_i, the diagonal of the post's polar factor in the base's frame, (..., r)
    lost: jax.Array  # mean squared length of P_p v_i outside of the base's column space, (..., r)
    residual: jax.Array  # |c(t0) + delta / t0 - 1|: a few units of rounding, (...)


@at_full_precision
def polar_law(s_base: jax.Array, change_norm: jax.typing.ArrayLike, *, shape: Shape) -> PolarLaw:
    """The noise law of the polar factor, with its correction of relative order 1/r for real matrices.

    Args:
        s_base: (..., r), descending.
        change_norm: (...), ||D||_F of the change, in the unit of s_base.
        shape: (m, n) of the base.

    Returns:
        A `PolarLaw`; NaN where the base is zero or not finite. For a rank-deficient base, its numerical rank stands for
        r, and values beyond it have `kept` and `lost` of 0. O(80 r) a matrix.
    """
    s = jnp.asarray(s_base)
    norm = jnp.broadcast_to(jnp.asarray(change_norm, s.dtype), s.shape[:-1])
    longer = longer_side(shape)
    # Free of the unit. A base of zero or with NaN has rank 0, and NaN for its unit.
    unit = jnp.where(s[..., 0] > 0, s[..., 0], jnp.nan)
    sd = norm / unit / root(entry_count(shape))
    flat = (s / unit[..., None]).reshape(-1, s.shape[-1]), sd.reshape(-1), numerical_rank(s, *shape).reshape(-1)
    law = lax.map(lambda x: _law(x[0], x[1], x[2], jnp.asarray(longer, s.dtype)), flat)
    return PolarLaw(*(x.reshape(s.shape[:-1] + x.shape[1:]) for x in law))


class _Case(NamedTuple):
    """A spectrum and the noise."""

    s: jax.Array  # (r,), descending
    least: jax.Array  # of s that is not 0
    most: jax.Array  # the square of the largest value that is looked at, with noise
    variance: jax.Array  # sd^2


class _Sums(NamedTuple):
    """The law of a case."""

    turned: jax.Array  # 1 - p_i, (r,)
    lost: jax.Array  # (r,)
    lost_more: jax.Array  # the correction of the sum of `lost`
    grown: jax.Array  # mean of sum s_p - sum s_b
    residual: jax.Array


def _law(s, sd, rank, longer):
    """The law of one spectrum (r,) with s_1 = 1."""
    size = s.shape[-1]
    noisy = sd > 0
    inside = jnp.arange(size) < rank
    s = jnp.where(inside, s, 0)
    variance = jnp.where(noisy, sd, 1) ** 2
    free = longer - size
    base = _Case(s, jnp.min(jnp.where(inside, s, 1)), s[0] ** 2 + variance * size, variance)
    single, turned, lost, weight = _isolated(s, variance, free)
    of_single, sums = by_weight(lambda case: _sums(case, free), single, weight, base)
    # What a matrix of one column shows, exactly, takes the place of what the law says of that column.
    count = weight.size
    turned = sums.turned.at[-count:].add(weight * (turned - of_single.turned[:, -1]))
    lost = sums.lost.at[-count:].add(weight * (lost - of_single.lost[:, -1]))
    turned, lost = (jnp.where(inside, x, 0) for x in (turned, lost))
    lost_more = sums.lost_more - weight @ of_single.lost_more
    nf_squared = 2 * jnp.sum(turned) - jnp.sum(lost) - lost_more  # r times the mean square
    nf = jnp.sqrt(jnp.maximum(nf_squared + (size - rank), 0) / size)
    defined = (rank > 0) & jnp.isfinite(sd)

    def noised(value, still):
        return jnp.where(defined, jnp.where(noisy, value, still), jnp.nan)

    return (
        noised(nf, 0),
        noised(1 + sums.grown / jnp.sum(s), 1),
        noised(jnp.where(inside, 1 - turned, 0), inside.astype(s.dtype)),
        noised(lost, 0),
        noised(sums.residual, 0),
    )


def _isolated(s, variance, free):
    """Smallest values that rule by themselves: the cases of these alone, what each shows exactly, and their weights.

    All other values of such a case are far off, in units of the noise.
    """
    distance, weight = isolation(s, variance, _ALONE)
    last = jnp.arange(s.size) == s.size - 1
    ones = jnp.ones_like(distance)
    cases = _Case(jnp.where(last, distance[:, None], _FAR), distance, distance**2 + 1, ones)
    return cases, *jax.vmap(one_column, (0, None))(distance, free), weight


def _sums(case, free):
    """The law with its correction."""
    s, least, most, variance = case
    delta = variance * free
    squares = s**2
    start, x_start, residual = start_of_axis(squares, variance, delta)
    low = jnp.log(least**2 + start) - _BELOW
    high = jnp.log(most + delta) + _ABOVE
    step = (high - low) / (_NODES - 1)
    ahead = jnp.exp(low + step * jnp.arange(_NODES, dtype=s.dtype))  # t - t0
    width = step * ahead
    # Below the first node integrands in u fall by e^(-h/2) a step, or faster where they are negligible.
    below = width.at[0].multiply(1 + 1 / jnp.expm1(step / 2))
    above = width.at[-1].multiply(1 + 1 / jnp.expm1(step / 2))

    # Sums over the spectrum at each node: c and the derivatives of x = 1 - c, and f = t x - delta as (t - t0) times a
    # sum of positive terms.
    t = start + ahead
    inverse = 1 / (t[:, None] + squares)
    inverse_start = jnp.where(squares + start > 0, 1 / (squares + start), 0)
    trace = jnp.sum(inverse, axis=1)
    c = variance * trace
    slope = variance * jnp.sum(inverse**2, axis=1)
    curvature = 2 * jnp.sum(variance * inverse * inverse**2, axis=1)  # -x''
    f = ahead * (x_start + variance * t * (inverse @ inverse_start))
    x = (f + delta) / t
    y = jnp.sqrt(x) * jnp.sqrt(f)  # not the root of a product that may leave float32
    h = 2 * f + delta
    growth = x**2 + slope * h  # D = dq / dt

    # 1 - p_i: a part below t0 in closed form, then (2 / pi) times the integral of (sqrt t - y) s / (t + s^2)^2.
    apart = t * c * (1 + x) + delta * x  # t - y^2
    angle = jnp.arctan2(jnp.sqrt(start), s)
    turned = 2 / jnp.pi * _segment(angle)
    gain = 2 / jnp.pi * width * apart / (jnp.sqrt(t) + y)
    # Less the correction, (1 / 4 pi) times the integral of Q' D / y with Q = 2 sd^2 h B / D, B = s / (t + s^2)^2.
    v = jnp.sqrt(x) / jnp.sqrt(f)
    h_over_y = 2 / v + delta / x * v
    of_squares = 2 * x / growth * (x * v - slope / v) + curvature * (h / growth) * h_over_y
    correction = variance / (2 * jnp.pi) * below
    shares = s * inverse**2
    turned += (gain - correction * of_squares) @ shares + (2 * correction * h_over_y) @ (shares * inverse)

    # What is lost outside, and the correction of its sum.
    lost = delta * inverse_start
    slope_start = variance * jnp.sum(inverse_start**2)
    bend_start = variance * jnp.sum(squares * inverse_start**3)
    pull = x_start + start * slope_start
    lost_more = jnp.where(delta > 0, delta * x_start * bend_start / pull**2, 0)

    # The nuclear norm grows by (1 / pi) times the integral over y of a log-potential; here by parts.
    seen = jnp.where(squares > 0, (y**2)[:, None] / ((y**2)[:, None] + squares), 1)
    potential = apart * jnp.sum(seen * inverse, axis=1) - f * trace * c
    bend = 4 * x * variance * (inverse**3 @ squares) + 2 * t * slope**2 + delta * curvature
    grown = jnp.sum(above * (potential * growth / y - y * bend / growth / 2)) / jnp.pi

    return _Sums(turned, lost, lost_more, grown, residual)


def start_of_axis(squares: jax.Array, variance: jax.Array, delta: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """t0, the largest root of t x(t) = delta, or 0; x(t0); and the equation's residual.

    It is the root of F(t) = sd^2 sum 1 / (t + s^2) + delta / t = 1. 1 / F is concave and increases, so that Newton's
    iteration for it never passes the root from below.
    """
    position = jnp.arange(squares.shape[-1])
    # The trailing values alone, each of them taken for the largest among them.
    bound = jnp.max(variance * (squares.shape[-1] - position) - squares)
    first = jnp.maximum(delta + jnp.maximum(bound, 0), 0)

    def total(t):
        inverse = jnp.where(t + squares > 0, 1 / (t + squares), 0)
        outside = jnp.where(delta > 0, delta / jnp.where(delta > 0, t, 1), 0)
        return (
            variance * jnp.sum(inverse) + outside,
            variance * jnp.sum(inverse**2) + outside / jnp.where(t > 0, t, 1),
        )

    def newton(_, t):
        value, slope = total(t)
        return jnp.maximum(t + value * (value - 1) / slope, first)

    t = lax.fori_loop(0, _NEWTON_STEPS, newton, first)
    value, _ = total(t)
    x = jnp.where(delta > 0, delta / jnp.where(t > 0, t, 1), jnp.where(t > 0, 0, jnp.maximum(1 - value, 0)))
    return t, x, jnp.where(t > 0, jnp.abs(value - 1), 0)


def _segment(angle):
    """theta - sin(theta) cos(theta), without cancellation at small angles."""
    series = angle**3 * (2 / 3) * (1 - angle**2 / 5 * (1 - 2 * angle**2 / 21))
    return jnp.where(angle < 0.1, series, angle - jnp.sin(2 * angle) / 2)
