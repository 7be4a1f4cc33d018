"""The controls of `polarax.kernels.controls` where no singular value is known, by products alone.

They are sums over pairs of singular values, and of H = P^T W = V S V^T all powers of 1 / (s_i + s_j) summed over pairs
come from traces of exponentials alone: with g(t) = tr exp(-t H) = sum_i exp(-t s_i),

    sum_ij (s_i + s_j)^(-p) = 1 / (p - 1)! * integral of t^(p-1) g(t)^2 dt,

and with g(2t) in place of g(t)^2 the diagonal alone. In log t the integrand is smooth: the trapezoidal rule on t = 2^k
errs by |Gamma(p + 2 pi i / log 2)| / Gamma(p), 5e-6 for p = 1, 5e-5 for 2, 6e-4 for 4 (Trefethen and Weideman 2014, The
Exponentially Convergent Trapezoidal Rule, SIAM Review 56). And from one t to the next it takes one product, a square:

    F = I - exp(-t H),   F(2t) = 2 F - F^2,   g(2t) = ||I - F||_F^2.

The small singular values, which decide the sums, are small in F, so that the rounding of its square, which is relative
to the large ones, hardly reaches them. Squares of exp(-t H) itself, in which they stand as 1 - t s, lose them: the null
of nf was off by 3% for 4096 x 4096 of condition 1e5 in float32 on a GPU.

They also know the spectrum well enough for the noise law: values that have the same g, by which sums over the spectrum
that vary no faster than the law's are known to a percent or two.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from polarax.kernels.controls import Controls
from polarax.kernels.gram import gram
from polarax.kernels.noise_law import Spreads, SpreadSource, polar_law, spreads_at_any_size
from polarax.kernels.noise_law.moments import isotropic_moments, moments_of_shares, variance_of_block
from polarax.kernels.noise_law.spreads import first_order
from polarax.kernels.noise_law.units import in_units
from polarax.kernels.products import frobenius, matmul, transpose

# (1 - exp(-x)) / x on [0, 1] by a polynomial of this degree, within 1e-12.
_DEGREE = 8
# Squares go on until g is no more than this for each row (rounding leaves about eps^2), or down to singular values that
# are zero to the working dtype.
_NOTHING_LEFT = 1e-12
# Of a base of lower rank, what is no more than this of g is a rounding error of the directions that are left.
_ROUNDING = 1e-3
# Powers of two below 1 at which g is taken from traces of powers: down to where it is the number of directions.
_SMALL_TIMES = 24
# Traces of one value alone, g(2t) = g(t)^2, agree to so many units of rounding: ten times what was seen.
_ONE_LEFT = 1e3
# Nodes of the spectrum with the same g: this many an octave, how often they are weighed again, and to which power (1 is
# the plain iteration; below 2 it converges, as much faster). Twice as many weighings bring nf 0.3% nearer.
_NODES_AN_OCTAVE, _WEIGHINGS, _POWER = 8, 1000, 1.9
# Columns and powers from which the largest singular value is taken.
_COLUMNS, _POWERS = 8, 40


class Traces(NamedTuple):
    """Of a positive semidefinite stack: traces of its exponentials."""

    times: np.ndarray  # (k,): t = 2^..., ascending, for singular values over `unit`; static
    traces: jax.Array  # g(t), (..., k); 0 where nothing is left
    total: jax.Array  # (...): the sum of all singular values, over `unit`
    largest: jax.Array  # (...): the largest one, over `unit`, to a few per cent
    unit: jax.Array  # (...): at least the largest one
    floor: float  # static: what is no more than this of g is a rounding error


def exponential_traces(hermitian: jax.Array) -> Traces:
    """Traces of exponentials of H, (..., r, r), symmetric and positive semidefinite up to rounding."""
    size, dtype = hermitian.shape[-1], hermitian.dtype
    square = matmul(hermitian, hermitian)
    # ||H^2||_F >= s_1^2 is at most sqrt(r) too large.
    unit = jnp.sqrt(frobenius(square))
    divisor = jnp.where(unit > 0, unit, 1)[..., None, None]
    one, two = hermitian / divisor, square / divisor**2
    three = matmul(two, one)
    identity = jnp.eye(size, dtype=dtype)
    # F = H p(H), by its third power.
    coefficients = _quotient_coefficients()
    blocks = [
        coefficients[start] * identity + coefficients[start + 1] * one + coefficients[start + 2] * two
        for start in range(0, _DEGREE + 1, 3)
    ]
    quotient = blocks[-1]
    for block in blocks[-2::-1]:
        quotient = matmul(three, quotient) + block
    complement = matmul(one, quotient)
    complement = (complement + transpose(complement)) / 2  # what is skew would double with every step

    powers = [_trace(identity * jnp.ones_like(one)), _trace(one), _trace(two), _trace(three)]
    powers += [jnp.sum(x * y, axis=(-2, -1)) for x, y in ((two, two), (two, three), (three, three))]
    small = 2.0 ** -np.arange(_SMALL_TIMES, 0, -1)
    at_small = sum(
        trace[..., None] * jnp.asarray((-small) ** order / math.factorial(order), dtype)
        for order, trace in enumerate(powers)
    )

    floor = size * _NOTHING_LEFT
    squares = math.ceil(math.log2(1 / float(jnp.finfo(dtype).eps)))
    first = powers[0] - _trace(complement)
    traces = jnp.zeros((squares + 1, *first.shape), dtype).at[0].set(first)

    def unfinished(state):
        _, traces, step = state
        return (step < squares) & jnp.any(traces[step] > floor)

    def advance(state):
        complement, traces, step = state
        # Rounding can leave an eigenvalue of H below 0, and g must not grow with it.
        trace = jnp.clip(jnp.sum((identity - complement) ** 2, axis=(-2, -1)), 0, traces[step])
        complement = 2 * complement - gram(complement)
        return complement, traces.at[step + 1].set(trace), step + 1

    _, traces, _ = lax.while_loop(unfinished, advance, (complement, traces, jnp.int32(0)))
    traces = jnp.concatenate([at_small, jnp.moveaxis(traces, 0, -1)], axis=-1)
    times = np.concatenate([small, 2.0 ** np.arange(squares + 1)])
    return Traces(times, traces, powers[1], _largest(one), unit, floor)


def controls_by_products(
    traces: Traces, base_norm: jax.Array, change_norm: jax.Array, rank: jax.Array, *, shape: tuple[int, int]
) -> Controls:
    """`closed_form_controls`, from traces of exponentials of H = P^T W over ||W||.

    Args:
        traces: Of P_b^T W_b / ||W_b||_F.
        base_norm: ||W_b||_F, (...).
        change_norm: ||D||_F, (...).
        rank: Of the base, (...).
        shape: (m, n) of the matrix.

    Returns:
        `Controls`. NaN are those that need single values: fit_error, and the standard deviations of what is not a
        headline; and all of a zero base.
    """
    longer, shorter = max(shape), min(shape)
    entries = longer * shorter
    zeros = (shorter - rank)[..., None]
    # Directions that the base leaves undetermined stay in g for ever.
    g = jnp.where(zeros > 0, jnp.where(traces.traces - zeros > _ROUNDING, traces.traces - zeros, 0), traces.traces)
    traces = traces._replace(traces=g.astype(traces.traces.dtype))
    rank = jnp.where(rank > 0, rank, jnp.nan).astype(base_norm.dtype)
    drift = change_norm / jnp.where(base_norm > 0, base_norm, jnp.nan)
    unit = jnp.where(traces.unit > 0, traces.unit, jnp.nan)
    sd, total = drift / unit / math.sqrt(entries), traces.total
    rotations, free = rank * (rank - 1) / 2, longer - rank
    values = _spectrum_like(traces, rank, shape)
    noise = drift / unit
    law = polar_law(values, noise, shape=shape)
    ((spreads, source),) = spreads_at_any_size(values, noise, None, shape=shape, nf=law.nf)
    # To first order the sums over pairs are exact. They count where first order holds.
    turn = shorter * law.nf**2 - (shorter - rank)  # r nf^2
    moments = isotropic_moments(shape)
    expected = first_order(in_units(values, noise, shape), [moments], shape=shape, top_k=1).turn
    holds = jnp.clip(turn / jnp.where(expected > 0, expected, 1), 0, 1) ** 2
    alike = traces._replace(traces=_exponentials(traces.times, values))
    exact, near = ([_over_pairs(x, power) if shorter > 1 else 0.0 for power in (1, 2, 4)] for x in (traces, alike))
    more_grown, more_turned = (holds * sd**2 * (e - n) for e, n in zip(exact[:2], near[:2], strict=True))
    sound = (source == SpreadSource.FIRST_ORDER) & (exact[2] > 0) & (near[2] > 0)
    wider = jnp.sqrt(jnp.where(sound, exact[2], 1) / jnp.where(sound, near[2], 1))
    sum_of_values = jnp.sum(values, axis=-1)
    grown = (law.nuclear_norm_ratio - 1) * sum_of_values + more_grown / 2
    missing, shares = jnp.full_like(drift, jnp.nan), moments_of_shares(moments)
    reach = drift * traces.largest / jnp.where(drift > 0, _smallest(traces), 1)
    return Controls(
        nf=jnp.sqrt(jnp.maximum(shorter * law.nf**2 + 2 * more_turned, 0) / shorter),
        budget_scaling=rank / entries,
        budget_coordinated=rotations / entries,
        budget_discordant=rotations / entries,
        budget_outside=(shorter * free + rank * (shorter - rank)) / entries,
        symmetry=1 / rank,
        nuclear_norm_ratio=1 + grown / total,
        fit_error=missing,
        reach=jnp.where((rank < shorter) & (drift > 0), jnp.inf, reach),
        std=Spreads(**dict.fromkeys(Spreads._fields, missing))._replace(
            nf=spreads.nf * wider,
            budget_outside=jnp.sqrt(variance_of_block(shares, rank, shape=shape)) / entries,
            symmetry=jnp.sqrt(2 * (rank**2 - 1) / (rank**2 + 2)) / rank,
            nuclear_norm_ratio=spreads.nuclear_norm_ratio * sum_of_values / total,
        ),
    )


def _over_pairs(traces, power):
    """Sum over i != j of (s_i + s_j)^-power, in the unit of the traces."""
    g = traces.traces
    doubled = jnp.concatenate([g[..., 1:], jnp.zeros_like(g[..., :1])], axis=-1)
    # Where one value is left the two are the same, but for rounding of I - F; below the floor g(2t) was not computed.
    rounding = _ONE_LEFT * jnp.finfo(g.dtype).eps * g * jnp.sqrt(jnp.maximum(g, g**2))
    known = (g > traces.floor) & (g**2 - doubled > rounding)
    weights = math.log(2) / math.factorial(power - 1) * traces.times**power
    return jnp.sum(jnp.asarray(weights, g.dtype) * jnp.where(known, g**2 - doubled, 0), axis=-1)


def _exponentials(times, values):
    """The traces at these times of the singular values (..., r) that are not 0, (..., times)."""
    terms = jnp.exp(-jnp.asarray(times, values.dtype)[:, None] * values[..., None, :])
    return jnp.sum(jnp.where(values[..., None, :] > 0, terms, 0), axis=-1)


def _spectrum_like(traces, rank, shape):
    """Singular values that have these traces, (..., r), descending, 0 beyond the rank.

    Nodes are weighed again by how far their traces at each time are off (Richardson 1972, Lucy 1974). Value k is where
    there are k - 1/2 above; no value is so small that it would count as 0.
    """
    dtype, first = traces.traces.dtype, _SMALL_TIMES - 2  # before, g is the number of directions
    times, g = traces.times[first:], traces.traces[..., first:]
    places = np.arange(_NODES_AN_OCTAVE * (len(times) - first + _SMALL_TIMES), dtype=float) / -_NODES_AN_OCTAVE
    places = places[::-1]  # log2 of the nodes, ascending
    kernel = jnp.asarray(np.exp(-np.outer(times, 2.0**places)), dtype)
    counted = g > traces.floor
    relative = jnp.where(counted, 1 / jnp.where(counted, g, 1), 0)
    back = matmul(relative[..., None, :], kernel)[..., 0, :]

    def weigh(_, weights):
        there = jnp.where(counted, matmul(weights[..., None, :], transpose(kernel))[..., 0, :] * relative, 1)
        wanted = jnp.where(counted, relative / there, 0)
        return weights * (matmul(wanted[..., None, :], kernel)[..., 0, :] / jnp.where(back > 0, back, 1)) ** _POWER

    even = jnp.broadcast_to(g[..., :1] / len(places), (*g.shape[:-1], len(places)))
    weights = lax.fori_loop(0, _WEIGHINGS, weigh, even)
    below = jnp.pad(jnp.cumsum(weights, axis=-1), [(0, 0)] * (g.ndim - 1) + [(1, 0)])
    half = 0.5 / _NODES_AN_OCTAVE
    edges = jnp.asarray(np.append(places - half, places[-1] + half), dtype)
    position = rank[..., None] - 0.5 - jnp.arange(min(shape), dtype=dtype)
    values = 2 ** jnp.vectorize(jnp.interp, signature="(r),(k),(k)->(r)")(position, below, edges)
    least = 1.01 * math.sqrt(max(shape)) * float(jnp.finfo(dtype).eps) * values[..., :1]
    return jnp.where(position > 0, jnp.maximum(values, least), 0)


def _smallest(traces):
    """The smallest singular value, from how fast the last of the exponentials decay: their mean, weighed by these."""
    times, g = traces.times, traces.traces
    last = jnp.maximum(jnp.sum(g > traces.floor, axis=-1) - 1, 1)
    before, after = (jnp.take_along_axis(g, (last - back)[..., None], axis=-1)[..., 0] for back in (1, 0))
    return jnp.log(before / after) / (jnp.asarray(times, g.dtype)[last] / 2)


def _largest(hermitian):
    """The largest eigenvalue, by powers of a positive semidefinite stack of norm 1 at most; a per cent too small."""
    size = hermitian.shape[-1]
    start = jnp.asarray(np.random.default_rng(0).standard_normal((size, _COLUMNS)), hermitian.dtype)
    block = jnp.broadcast_to(start, (*hermitian.shape[:-1], _COLUMNS))

    def lengths(x):
        return jnp.sqrt(jnp.sum(x**2, axis=-2, keepdims=True))

    def advance(_, block):
        block = matmul(hermitian, block)
        return block / jnp.maximum(lengths(block), jnp.finfo(block.dtype).tiny)

    block = lax.fori_loop(0, _POWERS, advance, block)
    return jnp.max(lengths(matmul(hermitian, block)), axis=(-2, -1))


def _trace(x):
    return jnp.trace(x, axis1=-2, axis2=-1)


def _quotient_coefficients():
    """Of (1 - exp(-x)) / x on [0, 1] as powers of x, ascending."""
    fitted = np.polynomial.Chebyshev.interpolate(lambda x: -np.expm1(-x) / x, _DEGREE, domain=[0, 1])
    return [float(c) for c in fitted.convert(kind=np.polynomial.Polynomial).coef]
