"""The compiled program of a run: a stack of matrices with their posts in, every reading of every matrix out.

Base and posts are decomposed once, whatever they are compared with. The metrics themselves are in the catalogue.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jax import lax

from polarax import kernels
from polarax.measuring.first_look import by_first_look
from polarax.measuring.polar_program import by_polar_factors
from polarax.measuring.sampled_controls import sampled_readings
from polarax.metrics import GROUPS, MatrixPair, Readings, Spectra
from polarax.planning.measurement import Measurement

Item = TypeVar("Item")

# Arguments of `measure_stack` that a program is compiled for.
STATIC = ("measurement", "pairs", "mesh", "batched")


class StackReadings(NamedTuple):
    """Readings of a stack, each column or array name -> (count, ...)."""

    posts: tuple[dict[str, Any], ...]  # of the base and each post
    pairs: tuple[dict[str, Any], ...]  # of posts against each other


@functools.partial(jax.jit, static_argnames=STATIC)
def measure_stack(
    base: jax.Array,
    posts: tuple[jax.Array, ...],
    keys: jax.Array | None = None,
    *,
    measurement: Measurement,
    pairs: tuple[tuple[int, int], ...] = (),
    mesh: jax.sharding.Mesh | None = None,
    batched: bool = True,
) -> StackReadings:
    """Reads a stack of matrices and their posts.

    Args:
        base: (count, m, n) in the stored dtype.
        posts: (count, m, n) each, in their stored dtypes.
        keys: (count, 2), uint32: what each matrix's random changes are drawn from (`matrix_key`), the same for all
            posts; only with draws.
        measurement: What is measured; float64 needs an enabled x64 scope.
        pairs: Places of posts to be read against each other, the first as the base of the second, in the groups of
            `Measurement.between_posts`; they also have `change_cosine`, of the changes of both from the base.
        mesh: Devices to divide the stack over, along its one axis; count must be a multiple of their number. Each
            works on its share alone.
        batched: Take the stack as one batch, as accelerators want it; otherwise matrix by matrix, which on CPU keeps
            memory at one matrix's.

    Returns:
        Column name -> (count,) for the metrics of the groups and what their controls and status need; and the arrays
        `s_base`, `s_post`, with "shape" also `s_change`, each (count, r), with "overlap" also `cosines_left` and
        `cosines_right`, each (count, k), with "rotation" also `rotation_left`, `rotation_right` and
        `rotation_difference`, each (count, k, k), k at most 64. Of a first look: see `by_first_look`.
    """
    measure = functools.partial(_measure, measurement=measurement, pairs=pairs)
    return _over_stack(measure, (base, posts) if keys is None else (base, posts, keys), mesh, batched)


def _over_stack(measure: Callable[..., Item], stacks: tuple, mesh: jax.sharding.Mesh | None, batched: bool) -> Item:
    """measure(*stacks), each device its share, as one batch or matrix by matrix."""

    def measure_share(*stacks):
        return measure(*stacks) if batched else lax.map(lambda matrix: measure(*matrix), stacks)

    if mesh is None:
        return measure_share(*stacks)
    along_stack = jax.sharding.PartitionSpec(*mesh.axis_names)
    sharded = jax.shard_map(measure_share, mesh=mesh, in_specs=along_stack, out_specs=along_stack, check_vma=False)
    return sharded(*stacks)


def _measure(
    base: jax.Array,
    posts: tuple[jax.Array, ...],
    keys: jax.Array | None = None,
    *,
    measurement: Measurement,
    pairs: tuple[tuple[int, int], ...],
) -> StackReadings:
    dtype, between = measurement.dtype, measurement.between_posts()
    if measurement.quick:
        return StackReadings(*map(tuple, by_first_look(base, posts, keys, pairs, measurement)))
    if measurement.by_products:
        return StackReadings(*by_polar_factors(base, posts, pairs, measurement))
    together = jnp.stack([post.astype(_common_dtype(posts)) for post in posts])

    def of_post(frames, spectra, post):
        readings = _read(base, post, frames, spectra, measurement)
        if measurement.draws:
            readings |= sampled_readings(base, post, keys, readings, spectra, measurement)
        return readings

    def of_pair(frames, spectra, first, second):
        changes = (post.astype(dtype) - base.astype(dtype) for post in (first, second))
        return _read(first, second, frames, spectra, between) | {"change_cosine": kernels.change_cosine(*changes)}

    if measurement.vectors:
        of_posts, of_pairs = kernels.map_posts(
            lambda frames, post: of_post(frames, _spectra_of(frames), post),
            base,
            together,
            pairs=pairs,
            read_pair=lambda frames, *both: of_pair(frames, _spectra_of(frames), *both),
            change_values=measurement.change_values,
            dtype=dtype,
            method=measurement.method,
        )
        of_posts, of_pairs = (
            [jax.tree.map(lambda x, place=place: x[place], stacked) for place in range(count)]
            for stacked, count in ((of_posts, len(posts)), (of_pairs, len(pairs)))
        )
    else:
        of_posts, of_pairs = _by_values_alone(base, together, pairs, of_post, of_pair, measurement)
    of_posts = [
        readings | _read_stored(base, post, readings, measurement)
        for readings, post in zip(of_posts, posts, strict=True)
    ]
    of_pairs = [
        readings | _read_stored(posts[first], posts[second], readings, between)
        for readings, (first, second) in zip(of_pairs, pairs, strict=True)
    ]
    return StackReadings(tuple(of_posts), tuple(of_pairs))


def _spectra_of(frames: kernels.Frames) -> Spectra:
    return Spectra(frames.s_base, frames.s_post, frames.s_change, frames.change_norm)


def _by_values_alone(base, together, pairs, of_post, of_pair, measurement):
    """Readings that need no singular vectors."""
    base, posts, method = base.astype(measurement.dtype), together.astype(measurement.dtype), measurement.method
    changes = posts - base
    s_base, *s_posts = kernels.singular_values(jnp.stack([base, *posts]), method=method)
    s_changes = kernels.singular_values(changes, method=method) if measurement.change_values else [None] * len(posts)
    of_posts = [
        of_post(None, Spectra(s_base, s_post, s_change, kernels.frobenius(change)), post)
        for s_post, s_change, change, post in zip(s_posts, s_changes, changes, together, strict=True)
    ]
    of_pairs = []
    for first, second in pairs:
        spectra = Spectra(s_posts[first], s_posts[second], None, kernels.frobenius(posts[second] - posts[first]))
        of_pairs.append(of_pair(None, spectra, together[first], together[second]))
    return of_posts, of_pairs


def _read(
    base: jax.Array, post: jax.Array, frames: kernels.Frames | None, spectra: Spectra, measurement: Measurement
) -> Readings:
    """Everything but the sampled controls, and what depends on the stored dtypes."""
    shape = (base.shape[-2], base.shape[-1])
    pair = MatrixPair(shape, spectra, frames, base, post, measurement.top_k, measurement.pictures)
    readings = {
        "nonfinite_base": _nonfinite(base, measurement.dtype, spectra),
        "nonfinite_post": _nonfinite(post, measurement.dtype, spectra),
        "change_norm": spectra.change_norm,
        "s_base": spectra.s_base,
        "s_post": spectra.s_post,
        "rank_base": kernels.numerical_rank(spectra.s_base, *shape),
        "rank_post": kernels.numerical_rank(spectra.s_post, *shape),
        "control_reach": pair.control.reach,
    }
    for group in measurement.groups:
        if not GROUPS[group].stored:
            for read in GROUPS[group].readers:
                readings |= read(pair)
    return readings


def _read_stored(base: jax.Array, post: jax.Array, readings: Readings, measurement: Measurement) -> Readings:
    """The groups that depend on the stored dtypes."""
    shape = (base.shape[-2], base.shape[-1])
    spectra = Spectra(readings["s_base"], readings["s_post"], readings.get("s_change"), readings["change_norm"])
    pair = MatrixPair(shape, spectra, None, base, post, measurement.top_k, measurement.pictures)
    stored: Readings = {}
    for group in measurement.groups:
        if GROUPS[group].stored:
            for read in GROUPS[group].readers:
                stored |= read(pair)
    return stored


def _nonfinite(x: jax.Array, dtype: str, spectra: Spectra) -> jax.Array:
    """Entries of x that are not finite in the working dtype; counted only where the largest singular values are not."""
    return lax.cond(
        jnp.all(jnp.isfinite(spectra.s_base[..., 0]) & jnp.isfinite(spectra.s_post[..., 0])),
        lambda: jnp.zeros(x.shape[:-2], jnp.int32),
        lambda: jnp.sum(~jnp.isfinite(x.astype(dtype)), axis=(-2, -1), dtype=jnp.int32),
    )


def _common_dtype(posts: Sequence[jax.Array]) -> jnp.dtype:
    """One that holds the values of all: their own, or float32 unless there is float64."""
    dtypes = {post.dtype for post in posts}
    if len(dtypes) == 1:
        return dtypes.pop()
    return jnp.dtype(jnp.float64 if jnp.dtype(jnp.float64) in dtypes else jnp.float32)
