"""Spreads at any size of the change: to first order where it holds, by the noise law where it doesn't.

Where the change is small beside the smallest singular values, the first-order forms know what changes of few directions
do exactly. Beyond, the law's second order says how far nf and the nuclear norm spread, and its single values, which
spread nearly independently, how far ratio_cv does under isotropic noise. Readings that are weighted by energy don't
rest on small values. There is no law there of ratio_cv under changes of few directions, of the framework's fit, or of
how far overlaps spread (docs: definitions, "What has no law").
"""

import enum

import jax
import jax.numpy as jnp

from polarax.kernels.noise_law.moments import change_moments, isotropic_moments
from polarax.kernels.noise_law.polar_law import polar_law
from polarax.kernels.noise_law.second_order import second_order
from polarax.kernels.noise_law.spectrum_law import SpectrumLaw, spectrum_law
from polarax.kernels.noise_law.spreads import Spreads, first_order
from polarax.kernels.noise_law.units import in_units, std_of_root, total_over
from polarax.kernels.noise_law.values_law import ValuesLaw, values_law
from polarax.kernels.sides import Shape

# First order holds where it gives the law's nf^2 to a few percent and where sd^2 sum 1 / s^2 is small: the two cross
# where neither is. In between both count, so that no spread jumps.
_AGREES, _DEPARTS = 0.03, 0.1
_APART, _CROWDED = 0.1, 0.3


class SpreadSource(enum.IntEnum):
    """Where a matrix's spreads come from."""

    FIRST_ORDER = 0
    LAW = 1


def spreads_at_any_size(
    s_base: jax.Array,
    change_norm: jax.Array,
    s_change: jax.Array | None,
    *,
    shape: Shape,
    top_k: int = 16,
    nf: jax.Array | None = None,
    own: SpectrumLaw | None = None,
    values: ValuesLaw | None = None,
) -> tuple[tuple[Spreads, jax.Array], ...]:
    """`spreads`, but the noise law's of nf, nuclear_norm_ratio and ratio_cv where smallest values are not far above it.

    Args:
        s_base: Singular values of the base, (..., r), descending.
        change_norm: ||D||_F, (...).
        s_change: Singular values of the change, (..., r), in any unit and of which the directions are random; None for
            isotropic noise alone.
        shape: (m, n) of the matrix, m an operand or a number.
        top_k: As for `spreads`.
        nf: What `polar_law` gives for these, if it is known.
        own: What `spectrum_law` gives, if it is known.
        values: What `values_law` gives, if it is known.

    Returns:
        For isotropic noise, and for changes with the singular values s_change if they are given: `Spreads`, and of each
        matrix (...) a `SpreadSource`, int32. Where first order ends there is NaN for fit_error and overlaps, and for
        the ratio_cv of changes with s_change.
    """
    s_base = jnp.asarray(s_base)
    change_norm = jnp.broadcast_to(jnp.asarray(change_norm, s_base.dtype), s_base.shape[:-1])
    nf = polar_law(s_base, change_norm, shape=shape).nf if nf is None else nf
    values = values_law(s_base, change_norm, shape=shape) if values is None else values
    moments, means = [isotropic_moments(shape)], [nf]
    seconds = [second_order(s_base, change_norm, None, shape=shape)]
    if s_change is not None:
        if own is None:
            length = jnp.linalg.norm(s_change, axis=-1)
            scale = change_norm / jnp.where(length > 0, length, 1)
            own = spectrum_law(s_base, scale[..., None] * s_change, shape=shape)
        moments.append(change_moments(s_change, shape))
        means.append(own.nf)
        seconds.append(second_order(s_base, change_norm, s_change, shape=shape, log_t=own.log_t))

    base = in_units(s_base, change_norm, shape)
    small = first_order(base, moments, shape=shape, top_k=top_k)
    crowding = base.sd**2 * total_over(base, 1 / base.values**2)
    crowded = _ramp(crowding, _APART, _CROWDED)
    unknown = jnp.full_like(nf, jnp.nan)
    ratio_cv = [_of_ratio_cv(base, *(x / s_base for x in (values.shift, values.std))), unknown][: len(means)]

    def of_kind(first, nf, second, ratio_cv):
        turn = jnp.maximum(s_base.shape[-1] * nf**2 - (s_base.shape[-1] - base.rank), 0)  # r nf^2
        departure = jnp.abs(turn / jnp.where(small.turn > 0, small.turn, 1) - 1)
        weight = jnp.maximum(_ramp(departure, _AGREES, _DEPARTS), crowded)
        weight = jnp.where(small.turn > 0, weight, 0)
        law = {
            "nf": std_of_root(turn, second.turn) / jnp.sqrt(base.rank),
            "nuclear_norm_ratio": jnp.sqrt(second.nuclear),
            "ratio_cv": ratio_cv,
            **dict.fromkeys(("fit_error", "overlap_left", "overlap_right"), unknown),
        }
        mixed = {
            name: jnp.sqrt((1 - weight) * getattr(first, name) ** 2 + jnp.where(weight > 0, weight * large**2, 0))
            for name, large in law.items()
        }
        return first._replace(**mixed), (weight > 0).astype(jnp.int32)

    return tuple(map(of_kind, small.spreads, means, seconds, ratio_cv))


def _ramp(x, low, high):
    return jnp.clip((x - low) / (high - low), 0, 1)


def _of_ratio_cv(base, growth, deviation):
    """The standard deviation of ratio_cv if ratios 1 + growth_i spread independently, to second order.

    cv^2 = (sum rho^2 / r) / (sum rho / r)^2 - 1: one ratio that outweighs all others moves both, and cv no further.
    """
    growth, deviation = (jnp.where(base.inside, x, 0) for x in (growth, deviation))
    count = base.rank[..., None]
    mean = 1 + jnp.sum(growth, axis=-1, keepdims=True) / count
    apart = jnp.where(base.inside, 1 + growth - mean, 0) / mean
    deviation = deviation / mean
    square = jnp.sum(apart**2 + (1 - 1 / count) * deviation**2, axis=-1, keepdims=True) / count
    slope = 2 * (apart - square) / count
    bend = (1 - (4 * (1 + apart) - 3 * (1 + square)) / count) / count
    variance = jnp.sum((slope * deviation) ** 2 + 2 * (bend * deviation**2) ** 2, axis=-1)
    return std_of_root(square[..., 0], variance)
