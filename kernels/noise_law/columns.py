"""The columns of two spectra that noise alone would give, from the law of its singular values.

Means and mean squares over the noise, without draws (docs: definitions, "Singular values under noise").
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from polarax.kernels.noise_law.values_law import ValuesLaw
from polarax.kernels.sides import Shape
from polarax.kernels.spectrum_shape import effective_rank, power_law
from polarax.kernels.thin_svd import numerical_rank

# Nodes of the distribution of a single value, of which the largest two ratios are averaged over.
_NODES = 12
# A normal variable's standard deviation over its mean when it is folded at its own mean: sqrt(pi / 2 - 1).
_FOLDED = np.sqrt(np.pi / 2 - 1)


class SpectrumColumns(NamedTuple):
    """What an isotropic random change of norm ||D||_F gives; each (...)."""

    alpha: jax.Array  # mean
    alpha_geo: jax.Array  # geometric mean of the mean ratios
    ratio_mean: jax.Array  # mean
    ratio_cv: jax.Array  # root mean square
    ratio_cv_energy: jax.Array  # root mean square
    nss: jax.Array  # root mean square
    effective_rank: jax.Array  # of the post's mean values
    exponent: jax.Array  # of the power law fitted to the post's mean values


def columns_of_law(s_base: jax.Array, change_norm: jax.Array, law: ValuesLaw, *, shape: Shape) -> SpectrumColumns:
    """Columns of base and base + noise.

    Args:
        s_base: Singular values of the base, (..., r), descending.
        change_norm: ||D||_F, (...).
        law: `values_law` of these.
        shape: (m, n) of the matrix, m an operand or a number.

    Returns:
        `SpectrumColumns`; NaN for a base that is zero or not finite. O(r^2), for the power law.
    """
    s, norm = jnp.asarray(s_base), jnp.asarray(change_norm)
    unit = jnp.where(s[..., 0] > 0, s[..., 0], jnp.nan)
    base, shift, std = (x / unit[..., None] for x in (s, law.shift, law.std))
    energy, drift_squared = jnp.sum(base**2, axis=-1), (norm / unit) ** 2
    moved = jnp.sum(shift**2 + std**2, axis=-1)
    kept = jnp.arange(s.shape[-1]) < numerical_rank(s, *shape)[..., None]
    safe = jnp.where(kept, base, 1)
    change, spread = (jnp.where(kept, x / safe, 0) for x in (shift, std))
    count = jnp.where(jnp.any(kept, axis=-1), jnp.sum(kept, axis=-1), jnp.nan).astype(base.dtype)
    return SpectrumColumns(
        # 2 <s, z> = ||s||^2 + ||z||^2 - ||z - s||^2, and noise adds ||D||^2 to ||z||^2.
        alpha=1 + (drift_squared - moved) / (2 * energy),
        alpha_geo=jnp.exp(jnp.sum(jnp.log1p(change), axis=-1) / count),
        ratio_mean=1 + jnp.sum(change, axis=-1) / count,
        ratio_cv=_ratio_cv(change, spread, kept.astype(base.dtype)),
        ratio_cv_energy=_ratio_cv(change, spread, jnp.where(kept, base**2, 0)),
        nss=jnp.sqrt(moved / energy),
        effective_rank=effective_rank(law.values),
        exponent=power_law(law.values).exponent,
    )


def _ratio_cv(change, spread, weight):
    """The root mean square of the weighted coefficient of variation of ratios 1 + change with these spreads.

    The expectation of a quotient, var(ratios) / mean(ratios)^2: where one or two values far below the noise rule both,
    it is taken over what these can be, |a + b g| with g normal, and over the others in numerator and denominator.
    """
    total = jnp.sum(weight, axis=-1, keepdims=True)
    defined = total[..., 0] > 0
    weight = weight / jnp.where(total > 0, total, 1)
    index = jnp.argsort(weight * spread, axis=-1)[..., -2:]
    chosen = jnp.any(jnp.arange(weight.shape[-1]) == index[..., None], axis=-2)
    rest, noisy = jnp.where(chosen, 0, weight), spread**2
    first = jnp.sum(rest * change, axis=-1)[..., None, None]
    second = jnp.sum(rest * (change**2 + noisy), axis=-1)[..., None, None]
    mean_spread = jnp.sum(rest**2 * noisy, axis=-1)[..., None, None]
    g, share = np.polynomial.hermite_e.hermegauss(_NODES)
    share = share / share.sum()
    for axis in range(min(2, weight.shape[-1])):
        at, deviation, part = (jnp.take_along_axis(x, index, axis=-1)[..., axis] for x in (change, spread, weight))
        values = _folded(at, deviation, g)
        values = values[..., :, None] if axis == 0 else values[..., None, :]
        first = first + part[..., None, None] * values
        second = second + part[..., None, None] * values**2
    grid = share[:, None] * share[None, :]
    squares = (second - first**2 - mean_spread) / ((1 + first) ** 2 + mean_spread)
    return jnp.where(defined, jnp.sqrt(jnp.maximum(jnp.sum(grid * squares, axis=(-2, -1)), 0)), jnp.nan)


def _folded(change, spread, g):
    """Nodes of a ratio of mean 1 + change and this spread, less 1, (..., nodes): normal, or folded at zero."""
    relative = spread / (1 + change)
    open_part = jnp.maximum(1 / jnp.maximum(relative, 1e-3) ** 2 - 1 / _FOLDED**2, 0)
    centre = jnp.sqrt(open_part) * (1 + 0.6 / (1 + open_part))  # a / b within 3% of what the moments ask for
    scale = jnp.sqrt(((1 + change) ** 2 + spread**2) / (centre**2 + 1))
    folded = jnp.abs(scale[..., None] * (centre[..., None] + g)) - 1
    return jnp.where((relative < 0.25)[..., None], change[..., None] + spread[..., None] * g, folded)
