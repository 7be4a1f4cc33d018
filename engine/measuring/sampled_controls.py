"""Sampled controls: the base with random changes of the pair's size, read as the pair is."""

import hashlib
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from polarax import kernels
from polarax.kernels.sides import Side
from polarax.metrics import GROUPS, MatrixPair, Readings, sampled_metrics
from polarax.metrics.controlled import of_random_changes
from polarax.planning.measurement import Measurement

# Named, so that a draw does not depend on JAX's settings.
_GENERATOR = "threefry2x32"


class Sampled(NamedTuple):
    """A metric over the draws of one kind of random change, each (...)."""

    mean: jax.Array
    std: jax.Array  # population; NaN for a single draw


def matrix_key(seed: int, name: str) -> np.ndarray:
    """What the random changes of a matrix are drawn from, (2,), uint32: its own, wherever in a run it is measured."""
    digest = hashlib.sha256(f"{seed} {name}".encode(errors="surrogateescape")).digest()
    return np.frombuffer(digest[:8], "<u4").astype(np.uint32)


def columns_of_controls(
    controls: dict[str, dict[str, Sampled]], readings: Readings, change_norm: jax.Array
) -> Readings:
    """The columns of sampled controls.

    Args:
        controls: Metric -> kind -> what was drawn.
        readings: Of the pair.
        change_norm: ||D||_F, (...): where nothing changed there is no distance.
    """
    columns: Readings = {}
    for metric, control_of in controls.items():
        for kind, (mean, std) in control_of.items():
            columns |= of_random_changes(metric, kind, readings[metric] - mean, mean, std, change_norm)
    return columns


def drawn_post(
    base: jax.Array, post: jax.Array, s_change: jax.Array, keys: jax.Array, index: Side, measurement: Measurement
) -> jax.Array:
    """The base with a random change, (..., m, n) in the working dtype.

    Args:
        base: (..., m, n) in the stored dtype.
        post: (..., m, n) in its stored dtype.
        s_change: Singular values of the change, (..., r).
        keys: (..., 2), uint32, of `matrix_key`.
        index: Which one: all draws of a kind, then those of the next.
        measurement: How many are drawn of each kind.
    """
    kind, number = (jnp.asarray(x, jnp.int32) for x in (index // measurement.draws, index % measurement.draws))
    working = base.astype(measurement.dtype)
    change = post.astype(measurement.dtype) - working
    return working + draw_change(key_of_draw(keys, kind, number), kind, change, s_change)


def draws_of(measurement: Measurement) -> tuple[jax.Array, jax.Array]:
    """Kind and number of every draw, each (kinds * draws,)."""
    kinds, numbers = np.indices((len(kernels.RANDOM_CHANGES), measurement.draws), np.int32).reshape(2, -1)
    return jnp.asarray(kinds), jnp.asarray(numbers)


def key_of_draw(keys: jax.Array, kind: jax.Array, number: jax.Array) -> jax.Array:
    """The key of one draw of every matrix, (...), from theirs, (..., 2)."""
    of_matrix = jax.random.wrap_key_data(keys, impl=_GENERATOR)

    def fold_in(keys, number):
        fold = jax.random.fold_in
        for _ in range(keys.ndim):
            fold = jax.vmap(fold, in_axes=(0, None))
        return fold(keys, number)

    return fold_in(fold_in(of_matrix, kind), number)


def draw_change(key: jax.Array, kind: jax.Array, change: jax.Array, values: jax.Array) -> jax.Array:
    """`kernels.random_change` of a kind given by its place."""
    makers = [lambda *x, kind=kind: kernels.random_change(*x, kind=kind) for kind in kernels.RANDOM_CHANGES]
    return lax.switch(kind, makers, key, change, values)


def controls_of(drawn: Readings, measurement: Measurement) -> dict[str, dict[str, Sampled]]:
    """Mean and standard deviation of every metric, (kinds * draws, ...), over the draws of each kind."""
    kinds, draws = kernels.RANDOM_CHANGES, measurement.draws
    return {
        metric: {
            kind: Sampled(jnp.mean(x, axis=0), jnp.std(x, axis=0) if draws > 1 else jnp.full(x.shape[1:], jnp.nan))
            for kind, x in zip(kinds, values.reshape(len(kinds), draws, *values.shape[1:]), strict=True)
        }
        for metric, values in drawn.items()
    }


def read_sampled(pair: MatrixPair, measurement: Measurement) -> Readings:
    """The metrics of a random change whose control is sampled, by the same functions as those of the pair."""
    readings: Readings = {}
    for group in measurement.groups:
        if sampled_metrics([group]):
            for read in GROUPS[group].readers:
                readings |= read(pair)
    return {metric: readings[metric] for metric in measurement.sampled}
