"""The control of a change with its own singular values in random directions, in closed form.

A trained change is far from isotropic noise: a few directions carry most of it, and what chance gives spreads more.
Means are those of isotropic noise as long as only second moments enter them; the polar factor's differ beyond first
order.
"""

from collections.abc import Iterable

import jax.numpy as jnp

from polarax.metrics.catalogue import OWN_SPECTRUM, metric_of
from polarax.metrics.controlled import of_random_changes
from polarax.metrics.matrix_pair import MatrixPair, Readings


def read_own_spectrum(pair: MatrixPair, readings: Readings, metrics: Iterable[str]) -> Readings:
    """Mean, standard deviation and distance of each metric.

    Args:
        pair: With the singular values of the change.
        readings: The metrics themselves, and their controls.
        metrics: Names.
    """
    law, spreads = pair.own_law, pair.own_spreads
    assert law is not None and spreads is not None
    own_means = {"nf": law.nf}
    columns: Readings = {}
    for metric in metrics:
        value, std, null = readings[metric], getattr(spreads, metric), metric_of(metric).null
        isotropic = jnp.zeros_like(value) if null is None else readings[null]
        mean = own_means.get(metric, isotropic)
        columns |= of_random_changes(metric, OWN_SPECTRUM, value, mean, std, pair.spectra.change_norm)
    return columns
