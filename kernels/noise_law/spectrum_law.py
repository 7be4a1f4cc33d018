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

from polarax.kernels.noise_law.moments import moments_of_concentration
from polarax.kernels.noise_law.one_column import by_weight, isolation, mixed_column
from polarax.kernels.products import at_full_precision
from polarax.kernels.sides import Shape, longer_side
from polarax.kernels.thin_svd import numerical_rank

# The trapezoidal rule in log y: poles lie at Im(log y) = pi / 2, so that it errs by exp(-pi^2 / h): 1e-7 at steps of
# 0.6, which condition numbers of 1e9 have with this many nodes.
_NODES = 64
# Where the nodes begin and end beyond the scales of the spectra: integrands fall by y below and by y^-3 above, and what
# is left out below is a geometric series, which is added.
_BELOW, _ABOVE = 9.0, 6.0
_ALONE = 24.0  # beyond so many standard deviations a sign doesn't flip, not even if one direction is all of the change
_LEAST_SPREAD = 1e-3  # of the variance of an entry of the change, below which it is taken for a normal one
_INFINITE = 1e5  # times the largest value of the change
_STEPS = 60  # bracketed Newton steps at most; 6 to 12 are usual


class SpectrumLaw(NamedTuple):
    """What a change with singular values of its own in random directions does."""

    nf: jax.Array  # root mean square of nf, (...)
    nuclear_norm_ratio: jax.Array  # mean of sum s_p / sum s_b, (...)
    log_t: jax.Array  # where base and change meet at each of `axis_nodes`, in the unit s_1 = 1, (..., nodes)


@at_full_precision
def spectrum_law(s_base: jax.Array, s_change: jax.Array, *, shape: Shape) -> SpectrumLaw:
    """The noise law for changes with the singular values `s_change` in random directions.

    In 415 of 417 drawn cases (r of 32 to 128, m / n of 1 to 4, condition numbers to 1e4, drifts of 1e-3 to 1) it was
    within 2% and three standard errors of the draws. float32 can't resolve nf below about 3e-5.

    Args:
        s_base: (..., r), descending.
        s_change: (..., r), of the change in any order; zeros are allowed.
        shape: (m, n) of the base.

    Returns:
        A `SpectrumLaw`, with the correction of relative order 1/r for real matrices; NaN where the base is zero or
        either is not finite. Values beyond the base's numerical rank count as zeros. O(64 r) a step of the iteration
        and matrix.
    """
    s, d = jnp.broadcast_arrays(jnp.asarray(s_base), jnp.asarray(s_change))
    longer = jnp.asarray(longer_side(shape), s.dtype)
    unit = jnp.where(s[..., :1] > 0, s[..., :1], jnp.nan)
    rank = numerical_rank(s, *shape)
    flat = (s / unit).reshape(-1, s.shape[-1]), (d / unit).reshape(-1, s.shape[-1]), rank.reshape(-1)
    law = lax.map(lambda x: _law(x[0], x[1], x[2], longer), flat)
    return SpectrumLaw(*(x.reshape(rank.shape + x.shape[1:]) for x in law))


class Spectrum(NamedTuple):
    """Singular values, each of them counted so many times."""

    squares: jax.Array  # (k,)
    counts: jax.Array  # (k,), not necessarily whole numbers


class _Traces(NamedTuple):
    """Traces of a spectrum at t, each (nodes,)."""

    seen: jax.Array  # phi = sum t / (t + s^2)
    rest: jax.Array  # psi = r - phi = sum s^2 / (t + s^2)
    slope: jax.Array  # d phi / d log t = sum t s^2 / (t + s^2)^2


def _traces(t, spectrum):
    # In forms whose derivatives don't cancel either.
    seen = 1 / (1 + spectrum.squares / t[:, None]) @ spectrum.counts
    inverse = 1 / (t[:, None] + spectrum.squares)
    share = spectrum.squares * inverse
    return _Traces(seen, share @ spectrum.counts, t * ((share * inverse) @ spectrum.counts))


class Point(NamedTuple):
    """Where the two spectra meet at y for a guess of t, each (nodes,)."""

    base: _Traces
    change: _Traces
    joint: jax.Array  # G = g_n / y, of the trace g_n of the sum's resolvent over the n side
    residual: jax.Array  # phi_b + phi_D - n = y g_n, left minus right: 0 where t is right
    log_tau: jax.Array  # of tau, the change's t


def axis_nodes(s: jax.Array, inside: jax.Array, change_squares: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The nodes y of the imaginary axis, and their step in log y, for a base (r,) with s_1 = 1."""
    low = jnp.log(jnp.min(jnp.where(inside, s, 1))) - _BELOW
    high = jnp.log(1 + jnp.sqrt(jnp.sum(change_squares))) + _ABOVE
    step = (high - low) / (_NODES - 1)
    return jnp.exp(low + step * jnp.arange(_NODES, dtype=s.dtype)), step


def meet(log_t: jax.Array, base: Spectrum, change: Spectrum, y: jax.Array, free: jax.Array) -> Point:
    """What base and change are at y if t = exp(log_t); `free` is m - n."""
    t, square = jnp.exp(log_t), y**2
    of_base = _traces(t, base)
    gamma = of_base.seen * (of_base.seen + free) / t  # g_n g_m, and g_m = g_n + (m - n) / y
    joint = 2 * gamma / (free + jnp.sqrt(free**2 + 4 * square * gamma))
    tau = (square + of_base.rest / joint) * (1 + of_base.rest / (free + square * joint))
    of_change = _traces(tau, change)
    most = of_change.rest > of_change.seen
    residual = (
        jnp.where(most, of_change.seen, of_base.seen) - jnp.where(most, of_base.rest, of_change.rest) - square * joint
    )
    return Point(of_base, of_change, joint, residual, jnp.log(tau))


def solve(base: Spectrum, change: Spectrum, y: jax.Array, free: jax.Array) -> jax.Array:
    """log t at each y. The residual is negative below it and positive above."""
    size = jnp.sum(base.counts)
    square, energy = y**2, change.squares @ change.counts
    sd2 = energy / (size * (size + free))
    longest = energy / square
    low = 2 * jnp.log(y)
    high = jnp.log((square + energy) * (1 + jnp.where(free > 0, jnp.minimum(longest, size / free), longest))) + 1
    near = 2 * sd2 * square * (1 / (square[:, None] + base.squares) @ base.counts) + sd2 * free
    first = jnp.clip(jnp.log(square + near), low, high)

    def residual(log_t):
        return meet(log_t, base, change, y, free).residual

    def unfinished(state):
        step, _, _, _, moved = state
        return (step < _STEPS) & jnp.any(moved > jnp.finfo(y.dtype).eps ** 0.75)

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
    over_base = change.rest * (1 / base.seen / common + 1 / (base.seen + free) / (common + free))
    over_change = base.rest * (1 / change.seen / common + 1 / (change.seen + free) / (common + free))
    crossed = inverse * (inverse_base + inverse_change) - inverse_base * inverse_change
    small = jnp.log1p(-change.rest / base.seen) + jnp.log1p(-change.rest / (base.seen + free))
    small += jnp.log1p(base.slope * over_base + change.slope * over_change - base.slope * change.slope * crossed)
    held_base, held_change = 1 - base.slope * inverse_base, 1 - change.slope * inverse_change
    large = jnp.log(common / base.seen) + jnp.log((common + free) / (base.seen + free))
    large += jnp.log(held_base * held_change + inverse * (base.slope * held_change + change.slope * held_base))
    small -= jnp.log1p(-change.rest / size) + jnp.log1p(-change.rest / (size + free))
    large -= jnp.log(change.seen / size) + jnp.log((change.seen + free) / (size + free))
    return jnp.where(change.rest < base.seen / 2, small, large)


def _lost_more(base, change, log_t, log_tau, free):
    """The correction of the sum of what is lost outside, from t and tau at y = 0, (1,) each.

    That sum is the derivative of E log det(z - H) where z grows by the factor 1 + kappa on the base's own rows alone,
    so that omega_1 grows there by 1 + e kappa, e = (m - n) / (phi_b + m - n). The correction of E log det is half the
    logarithm of det(B + (1 - B / O) A) / det O, of the traces A, B and O of pairs of resolvents of the base, of the
    change and of their product, in units of the joint traces.
    """
    size = jnp.sum(base.counts)

    def log_determinant(log_t, log_tau, grown):
        own, other = _traces(jnp.exp(log_t), base), _traces(jnp.exp(log_tau), change)
        a11 = ((own.seen - own.slope) / grown**2 + free) / (own.seen / grown + free) ** 2
        a22 = (own.seen - own.slope) / own.seen / own.seen
        a12 = own.slope / own.seen / (own.seen + grown * free)
        long = other.seen + free
        b11, b22 = (long - other.slope) / long**2, (other.seen - other.slope) / other.seen**2
        b12 = other.slope / (other.seen * long)
        # 1 - m b11 and 1 - n b22, which are of second order in a small change.
        fourth = (change.squares / (jnp.exp(log_tau)[:, None] + change.squares)) ** 2 @ change.counts
        c11 = (other.rest**2 - (size + free) * fourth) / long**2
        c22 = (other.rest**2 - size * fourth) / other.seen**2
        first = -b11 - c11 * a11 + size * b12 * a12
        second = -b22 - c22 * a22 + (size + free) * b12 * a12
        mixed = b12 + c11 * a12 - size * b12 * a22, b12 + c22 * a12 - (size + free) * b12 * a11
        return jnp.log(first * second - mixed[0] * mixed[1])

    own, other = _traces(jnp.exp(log_t), base), _traces(jnp.exp(log_tau), change)
    share = free / (own.seen + free)
    # phi_b + phi_D = n and phi_b (phi_b + (1 + e kappa) (m - n)) / t = phi_D (phi_D + m - n) / tau.
    stiff_own = 1 - own.slope * (1 / own.seen + 1 / (own.seen + free))
    stiff_other = 1 - other.slope * (1 / other.seen + 1 / (other.seen + free))
    rate = share / (other.slope * stiff_own + own.slope * stiff_other)
    one = jnp.ones_like(log_t)
    tangents = rate * other.slope, -rate * own.slope, one
    return jnp.sum(share / 2 * jax.jvp(log_determinant, (log_t, log_tau, one), tangents)[1])


class _Case(NamedTuple):
    """A base and a change that the law is asked about."""

    s: jax.Array  # singular values of the base, (r,)
    moved: jax.Array  # 1 for the values that count, 0 for the others, (r,)
    change: Spectrum
    low: jax.Array  # logarithms of the least and of the largest y
    high: jax.Array


class _Sums(NamedTuple):
    """The law of a case, with its correction."""

    turned: jax.Array  # sum of 1 - p_i over the values that count
    lost: jax.Array  # sum of what is lost outside over these
    grown: jax.Array  # mean of sum s_p - sum s_b
    log_t: jax.Array  # at each y


def _sums(case, free):
    """The law of a case."""
    s, moved, change, low, high = case
    step = (high - low) / (_NODES - 1)
    y = jnp.exp(low + step * jnp.arange(_NODES, dtype=s.dtype))
    width = (step * y).at[0].multiply(1 + 1 / jnp.expm1(step))
    base = Spectrum(s**2, jnp.ones_like(s))
    # One more y stands for 0, for what is lost: it is far below the noise, too.
    variance = change.squares @ change.counts / (s.size * (s.size + free))
    least = y[:1] * jnp.minimum(1, jnp.sqrt(variance * jnp.maximum(free, 1)) * jnp.exp(-low - _BELOW))
    all_y = jnp.append(y, least)
    log_t = solve(base, change, all_y, free)

    def at_y(log_t, s):
        point = meet(log_t, Spectrum(s**2, base.counts), change, all_y, free)
        return (point.residual, _log_determinant(point, all_y, free)), point

    (_, log_determinant), along, point = jax.linearize(at_y, log_t, s, has_aux=True)
    one = jnp.ones_like(log_t)
    tangents = jnp.stack([one, 0 * one]), jnp.stack([0 * moved, moved])
    (by_t, by_s), (log_by_t, log_by_s) = jax.vmap(along)(*tangents)
    correction = (log_by_s - log_by_t * by_s / by_t)[:-1]
    # t - y^2, from the change's side: no difference of large numbers.
    square = y**2
    rest, joint = point.change.rest[:-1], point.joint[:-1]
    longest = rest / joint
    apart = longest + (square + longest) * rest / (free + square * joint)
    t = square + apart
    shares = 1 / ((square[:, None] + s**2) * (t[:, None] + s**2))
    turned_trace = apart * ((shares * s) @ moved)
    turned = jnp.sum(width * (2 * turned_trace - correction / 2)) / jnp.pi
    seen = point.base.seen[-1]
    lost = free * seen / (seen + free) + _lost_more(base, change, log_t[-1:], point.log_tau[-1:], free)
    # The nuclear norm is 2 / pi times the integral of sum s^2 / (y^2 + s^2), which the law gives as psi_b + psi_D.
    above = width.at[-1].multiply(1 + 1 / jnp.expm1(step))
    grown = jnp.sum(above * (2 * (rest - apart * (shares @ s**2)) + log_determinant[:-1] / 2)) / jnp.pi
    return _Sums(turned, jnp.where(free > 0, lost, 0), grown, log_t[:-1])


def _law(s, d, rank, longer):
    """The fields of `SpectrumLaw` of one spectrum (r,) with s_1 = 1."""
    size = s.shape[-1]
    free = longer - size
    inside = jnp.arange(size) < rank
    s = jnp.where(inside, s, 0)
    energy = jnp.sum(d**2)
    changed = energy > 0
    d = jnp.where(changed, d, 1)
    change = Spectrum(d**2, jnp.ones_like(d))
    y, _ = axis_nodes(s, inside, change.squares)
    case = _Case(s, inside.astype(s.dtype), change, jnp.log(y[0]), jnp.log(y[-1]))
    single, exact, weight = _isolated(s, d, longer)
    weight = jnp.where(rank < size, 0, weight)
    of_single, sums = by_weight(lambda case: _sums(case, free), single, weight, case)
    nf_squared = 2 * sums.turned - sums.lost + weight @ (exact - (2 * of_single.turned - of_single.lost))
    nf = jnp.sqrt(jnp.maximum(nf_squared + (size - rank), 0) / size)
    defined = (rank > 0) & jnp.isfinite(energy)
    nf, growth = (jnp.where(defined, jnp.where(changed, x, 0), jnp.nan) for x in (nf, sums.grown / jnp.sum(s)))
    return nf, 1 + growth, sums.log_t


def _isolated(s, d, longer):
    """The rare sign flip of a single smallest value, as in `polar_law`: cases, what each makes of r nf^2, and weights.

    The column of the change that its direction feels is normal for given entries of the change's right vectors. So the
    square of its size is a Gamma variable with as many degrees of freedom as the change has directions, or as give the
    fourth moment of its entries. What the law says of that column alone is what it says of a base with all other values
    infinite.
    """
    size = s.shape[-1]
    free = longer - size
    entries = size * longer
    square = d**2 / jnp.max(d) ** 2
    concentration = jnp.sum(square**2) / jnp.sum(square) ** 2
    moments = moments_of_concentration(concentration, (longer, size))
    spread = jnp.clip((moments.excess + 2 * moments.crossed) / 2, _LEAST_SPREAD, 1)
    distance, weight = isolation(s, jnp.sum(d**2) / entries, _ALONE)
    last = jnp.arange(size) == size - 1
    # As many equal directions as give the change's fourth moment, and none.
    first = jnp.arange(size) == 0
    counts = jnp.where(first, 1 / concentration, (size - 1 / concentration) / max(size - 1, 1))
    change = jnp.where(first, entries * concentration, 0), counts
    shared = jnp.stack([last.astype(s.dtype), *change])
    moved, squares, counts = (jnp.broadcast_to(x, (distance.size, size)) for x in shared)
    cases = _Case(
        jnp.where(last, distance[:, None], _INFINITE * jnp.sqrt(entries * concentration)),
        moved,
        Spectrum(squares, counts),
        jnp.log(distance) - _BELOW,
        jnp.log(distance + jnp.sqrt(1 + free)) + _ABOVE,
    )
    turned, lost = jax.vmap(mixed_column, (0, None, None))(distance, free, spread)
    return cases, 2 * turned - lost, weight
