"""How far the singular values were scaled, and how uniformly (docs: definitions, "Scaling of singular values")."""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Scaling(NamedTuple):
    """Post against base spectrum."""

    alpha: jax.Array  # least-squares scale <s_b, s_p> / <s_b, s_b>, (...)
    alpha_geo: jax.Array  # geometric mean of the ratios, (...)
    ratio_mean: jax.Array  # mean of s_p,i / s_b,i, (...)
    ratio_cv: jax.Array  # population std of the ratios / their mean, (...): dominated by tiny singular values
    ratio_cv_energy: jax.Array  # the same with weights s_b,i^2, (...)
    nss: jax.Array  # ||s_p - s_b|| / ||s_b||, (...)


def scaling(s_base: jax.Array, s_post: jax.Array, *, rank: jax.Array | None = None) -> Scaling:
    """Compares two spectra.

    Args:
        s_base: (..., r), descending.
        s_post: (..., r), descending.
        rank: (...), ratios are taken over this many leading values; all of them by default. Give the smaller of the
            two numerical ranks: a ratio of two zeros says nothing.

    Returns:
        A `Scaling`; NaN where the base (or for the ratios, either) is zero.
    """
    index = jnp.arange(s_base.shape[-1])
    kept = jnp.ones_like(s_base, bool) if rank is None else index < rank[..., None]
    # Every number here is free of the unit of the spectra: dividing by the base's largest value keeps squares in range.
    unit = jnp.where(s_base[..., :1] > 0, s_base[..., :1], jnp.nan)
    base, post = s_base / unit, s_post / unit
    energy = jnp.sum(base**2, axis=-1)
    ratio = jnp.where(kept, post / jnp.where(kept, base, 1), 0)
    mean, cv = _mean_and_cv(ratio, kept.astype(base.dtype))
    _, cv_energy = _mean_and_cv(ratio, jnp.where(kept, base**2, 0))
    logs = jnp.sum(jnp.where(kept, jnp.log(jnp.where(kept, ratio, 1)), 0), axis=-1)
    return Scaling(
        alpha=jnp.sum(base * post, axis=-1) / energy,
        alpha_geo=jnp.exp(logs / jnp.sum(kept, axis=-1)),
        ratio_mean=mean,
        ratio_cv=cv,
        ratio_cv_energy=cv_energy,
        nss=jnp.sqrt(jnp.sum((post - base) ** 2, axis=-1) / energy),
    )


def _mean_and_cv(ratio, weight):
    total = jnp.sum(weight, axis=-1, keepdims=True)
    weight = weight / total
    mean = jnp.sum(weight * ratio, axis=-1)
    variance = jnp.sum(weight * (ratio - mean[..., None]) ** 2, axis=-1)
    # XLA may simplify a sum of 0 / 0 times 0 to 0, so NaN is put in by hand.
    defined = total[..., 0] > 0
    return jnp.where(defined, mean, jnp.nan), jnp.where(defined, jnp.sqrt(variance) / mean, jnp.nan)
