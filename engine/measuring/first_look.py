"""The compiled program of a first look: leading values and vectors of base, posts and changes, by products alone.

A stack of matrices with their posts goes in, as into `measure_stack`, and every reading comes out. Each matrix is
converted to float32 once, for all products; norms and inner products are summed from the entries as they are stored.
The base is iterated on once for all its posts, which start from its vectors. Nothing larger than a few blocks of
leading columns is decomposed.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jax import lax

from polarax import kernels
from polarax.kernels.products import matmul
from polarax.kernels.subspace_iteration import OVERSAMPLING, leading_svd, restarted
from polarax.measuring.entry_sums import (
    WORKING,
    ChangeSums,
    Entries,
    change_sums,
    change_unit,
    entries_of,
    nonfinite_entries,
    working_change,
    working_matrix,
)
from polarax.measuring.first_look_draws import sampled_looks
from polarax.measuring.program import STATIC, StackReadings, over_stack
from polarax.metrics import GROUPS, LeadingPair, LeadingPart, Readings, sampled_metrics
from polarax.metrics.certificate import certificate_of
from polarax.metrics.leading import FRAME_TOLERANCE
from polarax.planning.measurement import Measurement

# At most so many cycles of subspace iteration: a few are the rule, and what needs more has no gaps to converge by.
CYCLES = 40

# Columns that find the largest singular value of a change: nothing is read of its vectors.
CHANGE_COLUMNS = 16

# Random columns to start from are the same for every matrix, whatever JAX's settings.
_GENERATOR = "threefry2x32"
_BASE, _POST, _CHANGE = range(3)

Item = TypeVar("Item")


class Look(NamedTuple):
    """One matrix, looked at."""

    part: LeadingPart
    block: jax.Array  # right vectors of all columns that were iterated on, (n, b)
    certificate: Readings  # residual, angle, off


@functools.partial(jax.jit, static_argnames=STATIC)
def take_first_look(
    base: jax.Array,
    posts: tuple[jax.Array, ...],
    keys: jax.Array | None = None,
    *,
    measurement: Measurement,
    pairs: tuple[tuple[int, int], ...] = (),
    mesh: jax.sharding.Mesh | None = None,
    batched: bool = True,
) -> StackReadings:
    """Reads a stack of matrices and their posts at a first look. Arguments as for `measure_stack`, with m >= n.

    Returns:
        Column name -> (count,) for the quick metrics of the groups and what their status and certificate need; and the
        arrays `s_base` and `s_post`, with "overlap" also `cosines_left` and `cosines_right`, each (count, k).
    """
    measure = functools.partial(_measure, measurement=measurement, pairs=pairs)
    stacks = (base, posts) if keys is None else (base, posts, keys)
    return over_stack(jax.vmap(measure) if batched else measure, stacks, mesh, batched)


def _measure(
    base: jax.Array,
    posts: tuple[jax.Array, ...],
    keys: jax.Array | None = None,
    *,
    measurement: Measurement,
    pairs: tuple[tuple[int, int], ...],
) -> StackReadings:
    """The readings of one matrix, (m, n), and its posts."""
    before = entries_of(base, measurement.dtype)
    matrix = working_matrix(before)
    columns = min(measurement.top_k + OVERSAMPLING, *base.shape)
    look = look_at(matrix, before, _random_start(_BASE, base, columns), measurement, tolerance=FRAME_TOLERANCE)
    start = restarted(look.block, jax.random.key(_POST, impl=_GENERATOR))

    def of_post(post):
        after = entries_of(post, measurement.dtype)
        look_post = look_at(working_matrix(after), after, _later(start, look), measurement)
        readings, change, values = _read(before, after, look, look_post, measurement)
        if measurement.draws:
            assert keys is not None and values is not None
            unit = change_unit(before, after)

            def look_drawn(post, change, sums):
                drawn = look_at(post, Entries(post, unit, sums.norm), start, measurement)
                pair = _pair(before, look, drawn, unit, sums, change)
                return read_groups(
                    pair, [group for group in measurement.groups if sampled_metrics([group], quick=True)]
                )

            readings |= sampled_looks(
                before, matrix, change, values, keys, readings, measurement, unit=unit, look=look_drawn
            )
        return readings, look_post

    of_posts, looks = _each(of_post, posts)
    if not pairs:
        return StackReadings(tuple(of_posts), ())
    between, of_pairs = measurement.between_posts(), []
    for places in pairs:
        first, second = (entries_of(posts[place], measurement.dtype) for place in places)
        readings, *_ = _read(first, second, *(looks[place] for place in places), between)
        changes = (working_change(before, entries) for entries in (first, second))
        of_pairs.append(readings | {"change_cosine": kernels.change_cosine(*changes).astype(measurement.dtype)})
    return StackReadings(tuple(of_posts), tuple(of_pairs))


def look_at(
    matrix: jax.Array, entries: Entries, start: jax.Array, measurement: Measurement, *, tolerance: float | None = None
) -> Look:
    """The leading part of one matrix.

    Args:
        matrix: (m, n), float32, over the unit of the entries.
        entries: Of the matrix.
        start: Right vectors to start from, (n, b).
        measurement: How many leading values are wanted.
        tolerance: Error of the vectors, in radians; None where values and subspaces are enough.
    """
    k, dtype = min(measurement.top_k, *matrix.shape), measurement.dtype
    found = leading_svd(matrix, start, k=k, cycles=CYCLES, vector_tolerance=tolerance)
    rank = kernels.numerical_rank(found.values[:k], *matrix.shape)
    part = LeadingPart(
        entries.unit * entries.norm,
        entries.unit * found.values.astype(dtype),
        rank,
        found.left[:, :k],
        found.right[:, :k],
    )
    certificate = certificate_of(found.values.astype(dtype), found.residuals.astype(dtype), rank, shape=matrix.shape)
    return Look(part, found.right, certificate)


def change_in_frame(change: jax.Array, unit: jax.Array, base: LeadingPart) -> jax.Array:
    """U_b,k^T D V_b,k, (k, k), of a change (m, n) over its unit."""
    in_frame = matmul(base.left.T, matmul(change, base.right))
    return unit * in_frame.astype(unit.dtype)


def read_groups(pair: LeadingPair, groups: Sequence[str]) -> Readings:
    """What the quick readers of the groups give."""
    readings: Readings = {}
    for group in groups:
        for read in GROUPS[group].quick_readers:
            readings |= read(pair)
    return readings


def _read(
    before: Entries, after: Entries, look: Look, look_post: Look, measurement: Measurement
) -> tuple[Readings, jax.Array, jax.Array | None]:
    """The readings of a base and a post; the change and, if they are asked for, its leading values, over its unit."""
    dtype, shape = measurement.dtype, before.stored.shape
    unit, sums = change_unit(before, after), change_sums(before, after)
    change = working_change(before, after)
    certificates, values = [look.certificate, look_post.certificate], None
    if measurement.change_values:
        start = _random_start(_CHANGE, before.stored, min(CHANGE_COLUMNS, *shape))
        found = leading_svd(change, _later(start, look_post), k=1, cycles=CYCLES)
        rank = kernels.numerical_rank(found.values[:1], *shape)
        values = found.values
        certificates.append(certificate_of(values.astype(dtype), found.residuals.astype(dtype), rank, shape=shape))
    noise = jnp.maximum(*(kernels.rounding_noise(x.stored, x.stored.dtype).astype(dtype) for x in (before, after)))
    pair = dataclasses.replace(
        _pair(before, look, look_post, unit, sums, change),
        change_values=None if values is None else unit * values.astype(dtype),
        unchanged=kernels.unchanged_share(before.stored, after.stored).astype(dtype),
        noise=noise,
        stored_base=before.stored,
        stored_post=after.stored,
    )
    finite, undefined = jnp.isfinite(before.norm) & jnp.isfinite(after.norm), jnp.full((), jnp.nan, dtype)
    readings = {
        **read_groups(pair, measurement.groups),
        "s_base": look.part.values[: pair.top_k],
        "s_post": look_post.part.values[: pair.top_k],
        "norm_base": look.part.norm,
        "norm_post": look_post.part.norm,
        "change_norm": pair.change_norm,
        "residual_base": look.certificate["residual"],
        "residual_post": look_post.certificate["residual"],
        "residual_change": undefined if values is None else certificates[-1]["residual"],
        "angle_base": look.certificate["angle"],
        "angle_post": look_post.certificate["angle"],
        "values_off": jnp.max(jnp.stack([certificate["off"] for certificate in certificates])),
        "control_reach": undefined,
    }
    readings = {name: jnp.where(finite, value, jnp.nan) for name, value in readings.items()}
    counts = {"nonfinite_base": nonfinite_entries(before), "nonfinite_post": nonfinite_entries(after)}
    return readings | counts, change, values


def _pair(
    before: Entries, look: Look, look_post: Look, unit: jax.Array, sums: ChangeSums, change: jax.Array
) -> LeadingPair:
    """Base and post, of which only the leading parts and the change are at hand."""
    size = jnp.where(before.norm > 0, before.norm, jnp.nan)
    return LeadingPair(
        shape=before.stored.shape,
        base=look.part,
        post=look_post.part,
        change_norm=unit * sums.norm,
        along=(unit / before.unit) * (sums.along / size) / size,
        in_frame=change_in_frame(change, unit, look.part),
        change_values=None,
        unchanged=None,
        noise=None,
        stored_base=None,
        stored_post=None,
    )


def _each(of_post: Callable[[jax.Array], Item], posts: Sequence[jax.Array]) -> tuple[list[Any], list[Look]]:
    """of_post of every post: one after another in one loop, unless their dtypes differ."""
    if len(posts) == 1 or len({post.dtype for post in posts}) > 1:
        found = [of_post(post) for post in posts]
        return [readings for readings, _ in found], [look for _, look in found]
    kind, stacked = posts[0].dtype, jnp.stack(posts)
    if kind.itemsize < 4:  # XLA on CPU would carry a float32 copy of small floats through the loop
        stacked = stacked.view(f"uint{8 * kind.itemsize}")
    readings, looks = lax.map(lambda post: of_post(post if post.dtype == kind else post.view(kind)), stacked)
    return tuple(
        [jax.tree.map(lambda x, place=place: x[place], found) for place in range(len(posts))]
        for found in (readings, looks)
    )


def _random_start(number: int, matrix: jax.Array, columns: int) -> jax.Array:
    return jax.random.normal(jax.random.key(number, impl=_GENERATOR), (matrix.shape[1], columns), WORKING)


def _later(start: jax.Array, look: Look) -> jax.Array:
    """The start, but not before the look was taken: small decompositions side by side contend for the cores."""
    return kernels.after(start, look.certificate["residual"])
