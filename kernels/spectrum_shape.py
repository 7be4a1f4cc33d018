"""The shape of a spectrum: stable rank, effective rank, and the power law of its tail."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

# Candidates for the tail's start are scored this many at a time: memory r x 64 instead of r x r.
_CANDIDATES_AT_ONCE = 64


class PowerLaw(NamedTuple):
    """Power law p(x) ~ x^-exponent fitted to the eigenvalues x = s^2 >= start."""

    exponent: jax.Array  # (...), maximum likelihood; NaN where fewer than two distinct eigenvalues are positive
    start: jax.Array  # x_min, (...), unit of s^2
    tail: jax.Array  # (...), int32: eigenvalues >= x_min
    distance: jax.Array  # Kolmogorov-Smirnov distance of the fit, (...)


def stable_rank(values: jax.Array) -> jax.Array:
    """||W||_F^2 / s_1^2 of a spectrum (..., r); NaN for a zero matrix."""
    return jnp.sum((values / _largest(values)) ** 2, axis=-1)


def effective_rank(values: jax.Array) -> jax.Array:
    """exp(entropy(s / sum s)) of a spectrum (..., r); NaN for a zero matrix (Roy and Vetterli 2007)."""
    share = values / jnp.sum(values / _largest(values), axis=-1, keepdims=True) / _largest(values)
    entropy = -jnp.sum(jnp.where(share > 0, share * jnp.log(jnp.where(share > 0, share, 1)), 0), axis=-1)
    return jnp.where(values[..., 0] > 0, jnp.exp(entropy), jnp.nan)


def power_law(values: jax.Array) -> PowerLaw:
    """Fits the tail of the eigenvalue distribution, x = s^2, as users of weightwatcher know it.

    For every candidate start x_min the exponent is the maximum-likelihood (Hill) estimate
    1 + n / sum log(x_i / x_min); the start kept is the one whose fit has the smallest Kolmogorov-Smirnov distance
    (Clauset, Shalizi and Newman 2009, section 3).

    Args:
        values: Singular values, (..., r), descending.

    Returns:
        A `PowerLaw`. O(r^2) work.
    """
    flat = values.reshape((-1, values.shape[-1]))
    fits = lax.map(_fit_tail, flat)
    return PowerLaw(*(fit.reshape(values.shape[:-1]) for fit in fits))


def _fit_tail(values):
    size = values.shape[-1]
    largest = jnp.where(values[0] > 0, values[0], jnp.nan)
    logs = 2 * jnp.log(values / largest)  # descending, <= 0; -inf for zeros
    position = jnp.arange(size)
    sums = jnp.cumsum(jnp.where(jnp.isfinite(logs), logs, 0))
    whole = jnp.append(values[1:] < values[:-1], True)  # tails that leave out no value equal to their start

    def score(last):  # the tail is values[0..last], and x_min = values[last]^2
        count = last + 1
        exponent = 1 + count / (sums[last] - count * logs[last])
        # Ascending rank i of the tail: its model CDF 1 - (x / x_min)^(1 - exponent) against i / n.
        model = 1 - jnp.exp((1 - exponent) * (logs - logs[last]))
        empirical = (last - position) / count
        gap = jnp.where(position <= last, jnp.abs(model - empirical), 0)
        distance = jnp.max(gap)
        usable = whole[last] & jnp.isfinite(logs[last]) & (logs[last] < 0) & jnp.isfinite(exponent) & (last >= 1)
        return jnp.where(usable, distance, jnp.inf), exponent

    distances, exponents = lax.map(score, position, batch_size=min(size, _CANDIDATES_AT_ONCE))
    best = jnp.argmin(distances)
    fitted = jnp.isfinite(distances[best])

    def or_nan(x):
        return jnp.where(fitted, x, jnp.nan)

    return (
        or_nan(exponents[best]),
        or_nan(values[best] ** 2),
        jnp.where(fitted, best + 1, 0).astype(jnp.int32),
        or_nan(distances[best]),
    )


def _largest(values):
    return jnp.where(values[..., :1] > 0, values[..., :1], jnp.nan)
