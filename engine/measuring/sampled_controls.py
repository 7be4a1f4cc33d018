"""Sampled controls: the base with random changes of the pair's size, read as the pair is."""

import hashlib
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from polarax import kernels
from polarax.metrics import GROUPS, MatrixPair, Readings, Spectra, ratio_to, sampled_metrics
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


def sampled_readings(
    base: jax.Array,
    post: jax.Array,
    keys: jax.Array | None,
    readings: Readings,
    spectra: Spectra,
    measurement: Measurement,
) -> Readings:
    """The columns of the sampled controls of a pair that has been read.

    Args:
        base: (..., m, n) in the stored dtype.
        post: (..., m, n) in its stored dtype.
        keys: (..., 2), uint32, of `matrix_key`.
        readings: Of the pair.
        spectra: Of the pair, with the singular values of the change.
        measurement: Its draws are what is drawn of each kind.
    """
    assert keys is not None and spectra.s_change is not None
    columns: Readings = {}
    for metric, control_of in sampled_controls(base, post, spectra.s_change, keys, measurement).items():
        for kind, (mean, std) in control_of.items():
            columns |= {
                f"{metric}_{kind}": mean,
                f"{metric}_{kind}_std": std,
                f"{metric}_{kind}_z": _z(readings[metric], mean, std, spectra.change_norm),
            }
    return columns


def sampled_controls(
    base: jax.Array, post: jax.Array, s_change: jax.Array, keys: jax.Array, measurement: Measurement
) -> dict[str, dict[str, Sampled]]:
    """Draws random changes of each kind, one after another in the memory of one, and reads each.

    Args:
        base: (..., m, n) in the stored dtype.
        post: (..., m, n) in its stored dtype.
        s_change: Singular values of the change, (..., r).
        keys: (..., 2), uint32, of `matrix_key`.
        measurement: What is read, how, and how many are drawn of each kind.

    Returns:
        Metric -> kind -> mean and standard deviation.
    """
    kinds, draws, dtype = kernels.RANDOM_CHANGES, measurement.draws, measurement.dtype
    of_matrix = jax.random.wrap_key_data(keys, impl=_GENERATOR)

    def fold_in(keys, number):
        fold = jax.random.fold_in
        for _ in range(keys.ndim):
            fold = jax.vmap(fold, in_axes=(0, None))
        return fold(keys, number)

    def make_post(item):
        kind, draw = item
        key = fold_in(fold_in(of_matrix, kind), draw)
        working = base.astype(dtype)
        makers = [lambda *x, kind=kind: kernels.random_change(*x, kind=kind) for kind in kinds]
        return working + lax.switch(kind, makers, key, post.astype(dtype) - working, s_change)

    items = tuple(np.indices((len(kinds), draws), np.int32).reshape(2, -1))
    drawn = kernels.map_frames(
        lambda frames: _read_sampled(frames, measurement),
        base,
        make_post,
        jax.tree.map(jnp.asarray, items),
        dtype=dtype,
        method=measurement.method,
    )
    return {
        metric: {
            kind: Sampled(jnp.mean(x, axis=0), jnp.std(x, axis=0) if draws > 1 else jnp.full(x.shape[1:], jnp.nan))
            for kind, x in zip(kinds, values.reshape(len(kinds), draws, *values.shape[1:]), strict=True)
        }
        for metric, values in drawn.items()
    }


def _read_sampled(frames: kernels.Frames, measurement: Measurement) -> Readings:
    """The metrics of a random change whose control is sampled, by the same functions as those of the pair."""
    spectra = Spectra(frames.s_base, frames.s_post, None, frames.change_norm)
    pair = MatrixPair(frames.shape, spectra, frames, None, None, measurement.top_k, pictures=False)
    readings: Readings = {}
    for group in measurement.groups:
        if sampled_metrics([group]):
            for read in GROUPS[group].readers:
                readings |= read(pair)
    return {metric: readings[metric] for metric in measurement.sampled}


def _z(value: jax.Array, mean: jax.Array, std: jax.Array, change: jax.Array) -> jax.Array:
    """Distance from the mean of draws in their standard deviations; NaN where these are rounding errors.

    What is sampled has no unit and is of the size of 1, or its deviation far from eps.
    """
    return ratio_to(value - mean, jnp.where(std > 4 * jnp.finfo(std.dtype).eps, std, 0), change)
