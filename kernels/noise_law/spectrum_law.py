"""The polar factor of a base plus a change with singular values of its own in random directions.

A change of few directions moves the polar factor less than isotropic noise of the same norm as soon as it isn't small.
For directions drawn by Haar measure the resolvent of the sum follows from those of the two spectra by subordination
(rectangular free convolution: Benaych-Georges 2009; Belinschi and Bercovici 2007): on the imaginary axis z = i y one
number t(y) a node stands for the base, and one, tau, for the change (docs: definitions, "The noise law").
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from polarax.kernels.sides import Shape, longer_side
from polarax.kernels.thin_svd import numerical_rank

# The trapezoidal rule in log y: poles lie at Im(log y) = pi / 2, so that it errs by exp(-pi^2 / h): 1e-7 at steps of
# 0.6, which condition numbers of 1e9 have with this many nodes.
_NODES = 64
# Where the nodes begin and end beyond the scales of the spectra: integrands fall by y below and by y^-3 above, and what
# is left out below is a geometric series, which is added.
_BELOW, _ABOVE = 11.0, 6.0
_CLOSE = 1.0
_STEPS = 60  # bracketed Newton steps at most; 6 to 12 are usual


def spectrum_law(s_base: jax.Array, s_change: jax.Array, *, shape: Shape) -> jax.Array:
    """Root mean square of nf for changes with the singular values `s_change` in random directions.

    Args:
        s_base: (..., r), descending.
        s_change: (..., r), of the change in any order; zeros are allowed.
        shape: (m, n) of the base.

    Returns:
        nf, (...), with the correction of relative order 1/r for real matrices; NaN where the base is zero or either is
        not finite. Values beyond the base's numerical rank count as zeros. O(64 r) a step of the iteration and matrix.
    """
    s, d = jnp.broadcast_arrays(jnp.asarray(s_base), jnp.asarray(s_change))
    longer = jnp.asarray(longer_side(shape), s.dtype)
    unit = jnp.where(s[..., :1] > 0, s[..., :1], jnp.nan)
    rank = numerical_rank(s, *shape)
    flat = (s / unit).reshape(-1, s.shape[-1]), (d / unit).reshape(-1, s.shape[-1]), rank.reshape(-1)
    return lax.map(lambda x: _law(*x, longer), flat).reshape(rank.shape)


class _Spectrum(NamedTuple):
    """Traces of a spectrum at t, each (nodes,)."""

    seen: jax.Array  # phi = sum t / (t + s^2)
    rest: jax.Array  # psi = r - phi = sum s^2 / (t + s^2)
    slope: jax.Array  # d phi / d log t = sum t s^2 / (t + s^2)^2


def _traces(t, squares):
    inverse = 1 / (t[:, None] + squares)
    seen = t * jnp.sum(inverse, axis=1)
    share = squares * inverse
    rest = jnp.sum(share, axis=1)
    return _Spectrum(seen, rest, t * jnp.sum(share * inverse, axis=1))


class Point(NamedTuple):
    """Where the two spectra meet at y for a guess of t, each (nodes,)."""

    base: _Spectrum
    change: _Spectrum
    across: jax.Array  # tau, the change's t
    joint: jax.Array  # G = g_n / y, of the trace g_n of the sum's resolvent over the n side
    residual: jax.Array  # phi_b + phi_D - n = y g_n, left minus right: 0 where t is right


def axis_nodes(s: jax.Array, inside: jax.Array, change_squares: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The nodes y of the imaginary axis, and their step in log y, for a base (r,) with s_1 = 1."""
    low = jnp.log(jnp.min(jnp.where(inside, s, 1))) - _BELOW
    high = jnp.log(1 + jnp.sqrt(jnp.sum(change_squares))) + _ABOVE
    step = (high - low) / (_NODES - 1)
    return jnp.exp(low + step * jnp.arange(_NODES, dtype=s.dtype)), step


def meet(
    log_t: jax.Array, base_squares: jax.Array, change_squares: jax.Array, y: jax.Array, free: jax.typing.ArrayLike
) -> Point:
    """What base and change are at y if t = exp(log_t)."""
    t, square = jnp.exp(log_t), y**2
    base = _traces(t, base_squares)
    gamma = base.seen * (base.seen + free) / t  # g_n g_m, and g_m = g_n + (m - n) / y
    joint = 2 * gamma / (free + jnp.sqrt(free**2 + 4 * square * gamma))
    across = (square + base.rest / joint) * (1 + base.rest / (free + square * joint))
    change = _traces(across, change_squares)
    return Point(base, change, across, joint, base.seen - change.rest - square * joint)


def solve(base_squares: jax.Array, change_squares: jax.Array, y: jax.Array, free: jax.typing.ArrayLike) -> jax.Array:
    """log t at each y. The residual is negative below it and positive above."""
    size = base_squares.shape[-1]
    square, energy = y**2, jnp.sum(change_squares)
    sd2 = energy / (size * (size + free))
    longest = energy / square
    low = 2 * jnp.log(y)
    high = jnp.log((square + energy) * (1 + jnp.where(free > 0, jnp.minimum(longest, size / free), longest))) + 1
    near = 2 * sd2 * jnp.sum(square[:, None] / (square[:, None] + base_squares), axis=1) + sd2 * free
    first = jnp.clip(jnp.log(square + near), low, high)

    def residual(log_t):
        return meet(log_t, base_squares, change_squares, y, free).residual

    def unfinished(state):
        step, _, _, _, moved = state
        return (step < _STEPS) & jnp.any(moved > _CLOSE * jnp.finfo(y.dtype).eps ** 0.75)

    def newton(state):
        step, log_t, low, high, _ = state
        value, slope = jax.jvp(residual, (log_t,), (jnp.ones_like(log_t),))
        low, high = jnp.where(value < 0, log_t, low), jnp.where(value > 0, log_t, high)
        new = log_t - value / jnp.where(slope > 0, slope, jnp.inf)
        new = jnp.where((slope > 0) & (new >= low) & (new <= high), new, (low + high) / 2)
        return step + 1, new, low, high, jnp.abs(new - log_t)

    return lax.while_loop(unfinished, newton, (0, first, low, high, jnp.full_like(first, jnp.inf)))[1]


def _log_determinant(point, y, free):
    """log of (d y^2 / dt) / (d tau / dX), X = m n / (g_n g_m): twice the correction of E log det(z - H).

    With phi d log phi = beta and E = 1 / phi + 1 / (phi + m - n), for the base, the change and F = y g_n.
    """
    base, change, joint = point.base, point.change, point.joint
    size = base.seen + base.rest
    common = y**2 * joint  # F
    inverse_base, inverse_change, inverse = (1 / x + 1 / (x + free) for x in (base.seen, change.seen, common))
    # Small changes: everything by what is small.
    over_base = change.rest * (1 / (base.seen * common) + 1 / ((base.seen + free) * (common + free)))
    over_change = base.rest * (1 / (change.seen * common) + 1 / ((change.seen + free) * (common + free)))
    crossed = inverse * (inverse_base + inverse_change) - inverse_base * inverse_change
    small = jnp.log1p(-change.rest / base.seen) + jnp.log1p(-change.rest / (base.seen + free))
    small += jnp.log1p(base.slope * over_base + change.slope * over_change - base.slope * change.slope * crossed)
    held_base, held_change = 1 - base.slope * inverse_base, 1 - change.slope * inverse_change
    large = jnp.log(common / base.seen) + jnp.log((common + free) / (base.seen + free))
    large += jnp.log(held_base * held_change + inverse * (base.slope * held_change + change.slope * held_base))
    ends = jnp.log1p(-change.rest / size) + jnp.log1p(-change.rest / (size + free))
    return jnp.where(change.rest < base.seen / 2, small, large) - ends


def _law(s, d, rank, longer):
    """nf of one spectrum (r,) with s_1 = 1."""
    size = s.shape[-1]
    inside = jnp.arange(size) < rank
    s = jnp.where(inside, s, 0)
    energy = jnp.sum(d**2)
    changed = energy > 0
    change_squares = jnp.where(changed, d**2, 1)
    free = longer - size
    y, step = axis_nodes(s, inside, change_squares)
    width = (step * y).at[0].multiply(1 + 1 / jnp.expm1(step))

    log_t = solve(s**2, change_squares, y, free)
    point = meet(log_t, s**2, change_squares, y, free)
    # t - y^2, from the change's side: no difference of large numbers.
    square = y**2
    longest = point.change.rest / point.joint
    apart = longest + (square + longest) * point.change.rest / (free + square * point.joint)
    t = square + apart
    turned_trace = apart * jnp.sum(s / ((square[:, None] + s**2) * (t[:, None] + s**2)), axis=1)

    def at_y(log_t, s):
        point = meet(log_t, s**2, change_squares, y, free)
        return point.residual, _log_determinant(point, y, free)

    still, every = jnp.zeros_like(log_t), jnp.where(inside, jnp.ones_like(s), 0)
    _, (by_t, log_by_t) = jax.jvp(at_y, (log_t, s), (jnp.ones_like(log_t), 0 * s))
    _, (by_s, log_by_s) = jax.jvp(at_y, (log_t, s), (still, every))
    correction = log_by_s - log_by_t * by_s / by_t
    turned = jnp.sum(width * (2 * turned_trace - correction / 2)) / jnp.pi
    seen = point.base.seen[0]
    lost = jnp.where(free > 0, free * seen / (seen + free), 0)
    nf = jnp.sqrt(jnp.maximum(2 * turned - lost + size - rank, 0) / size)
    return jnp.where((rank > 0) & jnp.isfinite(energy), jnp.where(changed, nf, 0), jnp.nan)
