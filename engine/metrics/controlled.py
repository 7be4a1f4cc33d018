"""A metric and the columns of its control, as its record has them: of checkpoints and inside a training loop alike."""

import jax
import jax.numpy as jnp

from polarax.metrics.catalogue import metric_of
from polarax.metrics.matrix_pair import Readings, ratio_to


def controlled(
    name: str, value: jax.Array, change_norm: jax.Array, *, null: jax.Array | None = None, std: jax.Array | None = None
) -> Readings:
    """The metric and what its record says of its control.

    Args:
        name: Of a metric in the catalogue.
        value: (...).
        change_norm: ||D||_F, (...): where nothing changed there is no excess and no distance.
        null: Mean of its control, (...); None for one that is 0 by symmetry.
        std: Standard deviation of its control, (...).
    """
    control = metric_of(name).control
    assert control is not None and control.zero == (null is None)
    columns = {name: value}
    if null is not None:
        columns[f"{name}_null"] = null
    if control.std:
        assert std is not None
        columns[f"{name}_null_std"] = std
        if control.z:
            columns[f"{name}_z"] = ratio_to(value if null is None else value - null, std, change_norm)
    if control.excess:
        assert null is not None
        columns[f"{name}_excess"] = ratio_to(value, null, change_norm)
    return columns


def of_random_changes(
    name: str, kind: str, apart: jax.Array, mean: jax.Array, std: jax.Array, change_norm: jax.Array
) -> Readings:
    """The columns that a kind of random change adds to a metric.

    Args:
        name: Of the metric.
        kind: One of `RANDOM_CHANGES`.
        apart: The metric less its mean over changes of the kind, (...).
        mean: That mean, (...).
        std: Its standard deviation, (...).
        change_norm: ||D||_F, (...).
    """
    # What has such a control has no unit and is of the size of 1, or its deviation far from eps: others are rounding.
    distinct = jnp.where(std > 4 * jnp.finfo(std.dtype).eps, std, 0)
    column = f"{name}_{kind}"
    return {column: mean, f"{column}_std": std, f"{column}_z": ratio_to(apart, distinct, change_norm)}
