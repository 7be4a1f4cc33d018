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
from polarax.kernels.leading_svd import OVERSAMPLING, leading_svd, restarted
from polarax.kernels.products import matmul
from polarax.measuring.entry_sums import (
    WORKING,
    Entries,
    EntrySums,
    Working,
    drawn_sums,
    entries_of,
    entry_sums,
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
    dtype = measurement.dtype
    before = entries_of(base, dtype)
    sums_of_posts = _each(lambda post: entry_sums(before, entries_of(post, dtype)), posts)
    norm = sums_of_posts[0].base
    matrix = working_matrix(before, norm)
    columns = min(measurement.top_k + OVERSAMPLING, *base.shape)
    look = look_at(matrix, norm, _random_start(_BASE, base, columns), measurement, tolerance=FRAME_TOLERANCE)
    start = restarted(look.block, jax.random.key(_POST, impl=_GENERATOR))

    def of_post(post, sums):
        after = entries_of(post, dtype)
        look_post = look_at(working_matrix(after, sums.post), sums.post, _later(start, look), measurement)
        readings, change, values = _read(before, after, sums, look, look_post, measurement)
        if measurement.draws:
            assert keys is not None and values is not None

            def look_drawn(post, change):
                of_drawn = drawn_sums(before, norm, change)
                drawn = look_at(post, jnp.hypot(norm, of_drawn[0]), start, measurement)
                pair = _pair(before.shape, look, drawn, of_drawn, change)
                return read_groups(
                    pair, [group for group in measurement.groups if sampled_metrics([group], quick=True)]
                )

            readings |= sampled_looks(matrix, change, values, keys, readings, measurement, look=look_drawn)
        return readings, look_post

    found = _each(of_post, posts, sums_of_posts)
    of_posts, looks = ([one[place] for one in found] for place in (0, 1))
    between, of_pairs = measurement.between_posts(), []
    for places in pairs:
        first, second = (entries_of(posts[place], dtype) for place in places)
        before_look, after_look = (looks[place] for place in places)
        readings, *_ = _read(first, second, entry_sums(first, second), before_look, after_look, between)
        changes = (
            working_change(before, entries, sums_of_posts[place].change).matrix
            for place, entries in zip(places, (first, second), strict=True)
        )
        of_pairs.append(readings | {"change_cosine": kernels.change_cosine(*changes).astype(dtype)})
    return StackReadings(tuple(of_posts), tuple(of_pairs))


def look_at(
    working: Working, norm: jax.Array, start: jax.Array, measurement: Measurement, *, tolerance: float | None = None
) -> Look:
    """The leading part of one matrix.

    Args:
        working: The matrix.
        norm: ||W||_F, ().
        start: Right vectors to start from, (n, b).
        measurement: How many leading values are wanted.
        tolerance: Error of the vectors, in radians; None where values and subspaces are enough.
    """
    shape, dtype = working.shape, measurement.dtype
    k = min(measurement.top_k, *shape)
    found = leading_svd(working.matrix, start, k=k, cycles=CYCLES, vector_tolerance=tolerance, in_range=True)
    rank = kernels.numerical_rank(found.values[:k], *shape)
    part = LeadingPart(norm, working.unit * found.values.astype(dtype), rank, found.left[:, :k], found.right[:, :k])
    certificate = certificate_of(found.values.astype(dtype), found.residuals.astype(dtype), rank, shape=shape)
    return Look(part, found.right, certificate)


def change_in_frame(change: Working, base: LeadingPart) -> jax.Array:
    """U_b,k^T D V_b,k, (k, k)."""
    in_frame = matmul(base.left.T, matmul(change.matrix, base.right))
    return change.unit * in_frame.astype(change.unit.dtype)


def read_groups(pair: LeadingPair, groups: Sequence[str]) -> Readings:
    """What the quick readers of the groups give."""
    readings: Readings = {}
    for group in groups:
        for read in GROUPS[group].quick_readers:
            readings |= read(pair)
    return readings


def _read(
    before: Entries, after: Entries, sums: EntrySums, look: Look, look_post: Look, measurement: Measurement
) -> tuple[Readings, Working, jax.Array | None]:
    """The readings of a base and a post; the change and, if they are asked for, its leading values over its unit."""
    dtype, shape = measurement.dtype, before.shape
    finite, undefined = jnp.isfinite(sums.base) & jnp.isfinite(sums.post), jnp.full((), jnp.nan, dtype)
    change = working_change(before, after, jnp.where(finite, sums.change, jnp.nan))
    certificates, values = [look.certificate, look_post.certificate], None
    if measurement.change_values:
        start = _random_start(_CHANGE, before.stored, min(CHANGE_COLUMNS, *shape))
        found = leading_svd(change.matrix, _later(start, look_post), k=1, cycles=CYCLES, in_range=True)
        rank = kernels.numerical_rank(found.values[:1], *shape)
        values = found.values
        certificates.append(certificate_of(values.astype(dtype), found.residuals.astype(dtype), rank, shape=shape))
    pair = dataclasses.replace(
        _pair(shape, look, look_post, (sums.change, sums.along), change),
        change_values=None if values is None else change.unit * values.astype(dtype),
        unchanged=sums.unchanged,
        noise=sums.noise,
        stored_base=before.stored,
        stored_post=after.stored,
    )
    readings = {
        **read_groups(pair, measurement.groups),
        "s_base": look.part.values[: pair.top_k],
        "s_post": look_post.part.values[: pair.top_k],
        "norm_base": sums.base,
        "norm_post": sums.post,
        "change_norm": sums.change,
        "residual_base": look.certificate["residual"],
        "residual_post": look_post.certificate["residual"],
        "residual_change": undefined if values is None else certificates[-1]["residual"],
        "angle_base": look.certificate["angle"],
        "angle_post": look_post.certificate["angle"],
        "values_off": jnp.max(jnp.stack([certificate["off"] for certificate in certificates])),
        "control_reach": undefined,
    }
    readings = {name: jnp.where(finite, value, jnp.nan) for name, value in readings.items()}
    counts = {
        "nonfinite_base": nonfinite_entries(before, sums.base),
        "nonfinite_post": nonfinite_entries(after, sums.post),
    }
    return readings | counts, change, values


def _pair(
    shape: tuple[int, int], look: Look, look_post: Look, sums: tuple[jax.Array, jax.Array], change: Working
) -> LeadingPair:
    """Base and post, of which only the leading parts and the change are at hand; sums are as `drawn_sums` has them."""
    return LeadingPair(
        shape=shape,
        base=look.part,
        post=look_post.part,
        change_norm=sums[0],
        along=sums[1],
        in_frame=change_in_frame(change, look.part),
        change_values=None,
        unchanged=None,
        noise=None,
        stored_base=None,
        stored_post=None,
    )


def _each(function: Callable[..., Item], posts: Sequence[jax.Array], more: Sequence[Any] | None = None) -> list[Item]:
    """function(post, ...) of every post: one after another in one loop, unless their dtypes differ."""
    others: list[tuple] = [() for _ in posts] if more is None else [(one,) for one in more]
    if len(posts) == 1 or len({post.dtype for post in posts}) > 1:
        return [function(post, *other) for post, other in zip(posts, others, strict=True)]
    kind, stacked = posts[0].dtype, jnp.stack(posts)
    if kind.itemsize < 4:  # XLA on CPU would carry a float32 copy of small floats through the loop
        stacked = stacked.view(f"uint{8 * kind.itemsize}")
    beside = jax.tree.map(lambda *x: jnp.stack(x), *others)
    found = lax.map(lambda x: function(x[0] if x[0].dtype == kind else x[0].view(kind), *x[1]), (stacked, beside))
    return [jax.tree.map(lambda x, place=place: x[place], found) for place in range(len(posts))]


def _random_start(number: int, matrix: jax.Array, columns: int) -> jax.Array:
    return jax.random.normal(jax.random.key(number, impl=_GENERATOR), (matrix.shape[1], columns), WORKING)


def _later(start: jax.Array, look: Look) -> jax.Array:
    """The start, but not before the look was taken: small decompositions side by side contend for the cores."""
    return kernels.after(start, look.certificate["residual"])
