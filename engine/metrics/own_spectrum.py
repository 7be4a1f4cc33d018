"""The control of a change with its own singular values in random directions, in closed form.

A trained change is far from isotropic noise: a few directions carry most of it, and what chance gives spreads more.
Means are those of isotropic noise where only second moments enter them: at any size for shares of the change, to first
order for the rest. Beyond, the polar factor and the nuclear norm have a law of their own; of alpha two means are known
that its own lies between, and what has no law is NaN.
"""

from collections.abc import Iterable

import jax.numpy as jnp

from polarax.metrics.catalogue import OWN_SPECTRUM, metric_of
from polarax.metrics.controlled import of_random_changes
from polarax.metrics.matrix_pair import MatrixPair, Readings
from polarax.metrics.scaling import alpha_null


def read_own_spectrum(pair: MatrixPair, readings: Readings, metrics: Iterable[str]) -> Readings:
    """Mean, standard deviation and distance of each metric.

    Args:
        pair: With the singular values of the change.
        readings: The metrics themselves, and their controls.
        metrics: Names.
    """
    law, spreads = pair.own_law, pair.own_spreads
    assert law is not None and spreads is not None
    own_means = {"nf": law.nf, "nuclear_norm_ratio": law.nuclear_norm_ratio}
    columns: Readings = {}
    for metric in metrics:
        value, std, null = readings[metric], getattr(spreads, metric), metric_of(metric).null
        isotropic = jnp.zeros_like(value) if null is None else readings[null]
        mean = jnp.where(jnp.isnan(std), jnp.nan, own_means.get(metric, isotropic))
        nearest = jnp.clip(value, mean, jnp.maximum(mean, alpha_null(pair.drift))) if metric == "alpha" else mean
        columns |= of_random_changes(metric, OWN_SPECTRUM, value - nearest, mean, std, pair.spectra.change_norm)
    return columns
