"""The program of a first look: leading values and vectors of base, posts and changes, by products alone.

Each matrix is converted to float32 once, for all products; norms and inner products are summed from the entries as they
are stored. The base is iterated on once for all its posts, which start from its vectors. Nothing larger than a few
blocks of leading columns is decomposed.
"""

import dataclasses
import enum
import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from polarax import kernels
from polarax.kernels.leading_svd import OVERSAMPLING, TOLERANCE, leading_svd, restarted
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
from polarax.metrics import GROUPS, LeadingPair, LeadingPart, Readings, sampled_metrics
from polarax.metrics.certificate import certificate_of
from polarax.metrics.leading import FRAME_TOLERANCE
from polarax.planning.measurement import Measurement

# Error of the post's leading vectors, in radians: what is read of its subspaces errs by the square.
POST_TOLERANCE = 1e-3

# Random columns to start from are the same for every matrix, whatever JAX's settings.
_GENERATOR = "threefry2x32"


class Kind(enum.IntEnum):
    """What is looked at."""

    BASE = 0
    POST = 1
    CHANGE = 2


# At most so many cycles of block Lanczos, by kind: a few are the rule, and what needs more has no gaps to converge by.
CYCLES = (14, 8, 10)

Found = TypeVar("Found")


class Look(NamedTuple):
    """One matrix, looked at."""

    part: LeadingPart
    block: jax.Array  # right vectors of all columns that were iterated on, (n, b)
    certificate: Readings  # residual, angle, off
    in_frame: jax.Array  # of a change: U_b,k^T D V_b,k, (k, k)


def by_first_look(
    base: jax.Array,
    posts: tuple[jax.Array, ...],
    keys: jax.Array | None,
    pairs: Sequence[tuple[int, int]],
    measurement: Measurement,
) -> tuple[list[Readings], list[Readings]]:
    """Reads matrices and their posts at a first look.

    Args:
        base: (m, n) or (count, m, n), m >= n, in the stored dtype.
        posts: The same shape each, in their stored dtypes.
        keys: (2,) or (count, 2), as for `measure_stack`.
        pairs: Places of posts to be read against each other, the first as the base of the second.
        measurement: What is measured.

    Returns:
        For each post, and for each pair: column name -> () or (count,) for the quick metrics of the groups and what
        their status and certificate need; and the arrays `s_base` and `s_post`, with "overlap" also `cosines_left`,
        `cosines_right` and their controls, each (..., k).
    """
    measure = functools.partial(_measure, measurement=measurement, pairs=pairs)
    stacks = (base, posts) if keys is None else (base, posts, keys)
    return (jax.vmap(measure) if base.ndim > 2 else measure)(*stacks)


def _measure(
    base: jax.Array,
    posts: tuple[jax.Array, ...],
    keys: jax.Array | None = None,
    *,
    measurement: Measurement,
    pairs: Sequence[tuple[int, int]],
) -> tuple[list[Readings], list[Readings]]:
    """The readings of one matrix, (m, n), and its posts."""
    dtype = measurement.dtype
    before, *entries = (entries_of(x, dtype) for x in (base, *posts))
    sums_of_posts = _each(lambda post: entry_sums(before, entries_of(post, dtype)), posts)
    between = measurement.between_posts()
    norms = [sums_of_posts[0].base, *(sums.post for sums in sums_of_posts)]
    sides = [before, *entries]
    # A change is that of two sides, by their places: the base and each post, then posts that are related.
    compared = [(0, 1 + place) for place in range(len(posts))]
    compared += [(1 + first, 1 + second) for first, second in pairs]
    sums = [*sums_of_posts, *(entry_sums(*(entries[place] for place in places)) for places in pairs)]
    items = [
        Item(Kind.POST if place else Kind.BASE, functools.partial(working_matrix, side, norm), place, norm)
        for place, (side, norm) in enumerate(zip(sides, norms, strict=True))
    ]
    for (first, second), of_both in zip(compared, sums, strict=True):
        norm = jnp.where(jnp.isfinite(of_both.base) & jnp.isfinite(of_both.post), of_both.change, jnp.nan)
        items.append(
            Item(Kind.CHANGE, functools.partial(working_change, sides[first], sides[second], norm), first, norm)
        )
    looks = look_at_all(items, before.shape, measurement)
    found = []
    for number, ((first, second), of_both) in enumerate(zip(compared, sums, strict=True)):
        change = looks[len(sides) + number]
        groups = measurement if number < len(posts) else between
        found.append(_read(sides[first], sides[second], of_both, looks[first], looks[second], change, groups))
    of_posts, of_pairs = found[: len(posts)], found[len(posts) :]
    if measurement.draws:
        assert keys is not None
        for number, after in enumerate(entries):
            drawn = _drawn(
                before, after, sums[number], looks[0], looks[len(sides) + number], keys, of_posts[number], measurement
            )
            of_posts[number] = of_posts[number] | drawn
    for readings, places in zip(of_pairs, pairs, strict=True):
        changes = (working_change(before, entries[place], sums_of_posts[place].change).matrix for place in places)
        readings["change_cosine"] = kernels.change_cosine(*changes).astype(dtype)
    return of_posts, of_pairs


class Item(NamedTuple):
    """A matrix to be looked at."""

    kind: Kind
    working: Callable[[], Working]
    frame: int  # of a change: place among the items of that in whose frame it is read
    norm: jax.Array  # ||W||_F, ()


def look_at_all(items: Sequence[Item], shape: tuple[int, int], measurement: Measurement) -> list[Look]:
    """The leading parts of matrices, one after another by one loop: the base first, from which the posts start.

    Args:
        items: The base, and others.
        shape: (m, n) of each.
        measurement: How many leading values are wanted; of a change the first, and only where a group needs it.
    """
    k, columns, dtype = min(measurement.top_k, *shape), min(measurement.top_k + OVERSAMPLING, *shape), measurement.dtype
    kinds = np.array([item.kind for item in items])
    wanted = np.array([k, k, int(measurement.change_values)])[kinds]
    tolerances = np.where(np.arange(k) < wanted[:, None], TOLERANCE, np.inf).astype(WORKING)
    vector_tolerances = np.array([FRAME_TOLERANCE, POST_TOLERANCE, np.inf], WORKING)[kinds]
    cycles, frames = np.array(CYCLES)[kinds], np.array([item.frame for item in items])

    def look(known, place):
        lefts, rights = known
        kind, frame = jnp.asarray(kinds)[place], jnp.asarray(frames)[place]
        working = lax.switch(place, [item.working for item in items])
        key = jax.random.key(kind, impl=_GENERATOR)
        start = jnp.where(
            kind == Kind.POST,
            restarted(rights[0], key),
            jax.random.normal(key, (shape[1], columns), WORKING),
        )
        found = leading_svd(
            working.matrix,
            start,
            k=k,
            cycles=jnp.asarray(cycles)[place],
            tolerance=jnp.asarray(tolerances)[place],
            vector_tolerance=jnp.asarray(vector_tolerances)[place],
            in_range=True,
        )
        in_frame = lax.cond(
            kind == Kind.CHANGE,
            lambda: _in_frame(working, lefts[frame], rights[frame, :, :k]),
            lambda: jnp.zeros((k, k), WORKING),
        )
        known = lefts.at[place].set(found.left[:, :k]), rights.at[place].set(found.right)
        return known, (working.unit, found.values, found.residuals, in_frame)

    nothing = tuple(jnp.zeros((len(items), *sizes), WORKING) for sizes in ((shape[0], k), (shape[1], columns)))
    (lefts, rights), found = lax.scan(look, nothing, jnp.arange(len(items)))
    looks = []
    for place, item in enumerate(items):
        unit, values, residuals, in_frame = (x[place] for x in found)
        needed = max(int(wanted[place]), 1)
        part = _part(item.norm, unit, values, needed, lefts[place], rights[place, :, :k])
        certificate = certificate_of(values.astype(dtype), residuals[:needed].astype(dtype), part.rank, shape=shape)
        looks.append(Look(part, rights[place], certificate, unit * in_frame.astype(dtype)))
    return looks


def _part(norm, unit, values, needed, left, right):
    """The leading part of a matrix of this norm, its values over the unit; vectors (m, k) and (n, k)."""
    rank = kernels.numerical_rank(values[:needed], left.shape[0], right.shape[0])
    return LeadingPart(norm, unit * values.astype(unit.dtype), rank, left, right)


def _in_frame(change, left, right):
    """U^T D V over the unit of the change, (k, k)."""
    return matmul(left.T, matmul(change.matrix, right))


def _drawn(before, after, sums, look, change, keys, readings, measurement):
    """The columns of the sampled controls of a base and a post."""
    start = restarted(look.block, jax.random.key(Kind.POST, impl=_GENERATOR))
    groups = [group for group in measurement.groups if sampled_metrics([group], quick=True)]
    k, norm = min(measurement.top_k, *before.shape), sums.base

    def look_drawn(post, drawn):
        size, along = drawn_sums(before, norm, drawn)
        found = leading_svd(
            post.matrix, start, k=k, cycles=CYCLES[Kind.POST], vector_tolerance=POST_TOLERANCE, in_range=True
        )
        part = _part(jnp.hypot(norm, size), post.unit, found.values, k, found.left[:, :k], found.right[:, :k])
        in_frame = _in_frame(drawn, look.part.left, look.part.right)
        pair = _pair(before.shape, look.part, part, size, along, drawn.unit * in_frame.astype(drawn.unit.dtype))
        return read_groups(pair, groups)

    matrix, working = working_matrix(before, norm), working_change(before, after, change.part.norm)
    values = (change.part.values / working.unit).astype(WORKING)
    return sampled_looks(matrix, working, values, keys, readings, measurement, look=look_drawn)


def read_groups(pair: LeadingPair, groups: Sequence[str]) -> Readings:
    """What the quick readers of the groups give."""
    readings: Readings = {}
    for group in groups:
        for read in GROUPS[group].quick_readers:
            readings |= read(pair)
    return readings


def _read(
    before: Entries,
    after: Entries,
    sums: EntrySums,
    look: Look,
    look_post: Look,
    change: Look,
    measurement: Measurement,
) -> Readings:
    """The readings of a base and a post."""
    dtype = measurement.dtype
    finite, undefined = jnp.isfinite(sums.base) & jnp.isfinite(sums.post), jnp.full((), jnp.nan, dtype)
    certificates = [
        look.certificate,
        look_post.certificate,
        *([change.certificate] if measurement.change_values else []),
    ]
    pair = dataclasses.replace(
        _pair(before.shape, look.part, look_post.part, sums.change, sums.along, change.in_frame),
        change_values=change.part.values if measurement.change_values else None,
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
        "residual_change": change.certificate["residual"] if measurement.change_values else undefined,
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
    return readings | counts


def _pair(
    shape: tuple[int, int],
    base: LeadingPart,
    post: LeadingPart,
    change_norm: jax.Array,
    along: jax.Array,
    in_frame: jax.Array,
) -> LeadingPair:
    """Base and post, of which only the leading parts are at hand."""
    return LeadingPair(
        shape=shape,
        base=base,
        post=post,
        change_norm=change_norm,
        along=along,
        in_frame=in_frame,
        change_values=None,
        unchanged=None,
        noise=None,
        stored_base=None,
        stored_post=None,
    )


def _each(function: Callable[[jax.Array], Found], posts: Sequence[jax.Array]) -> list[Found]:
    """function(post) of every post: one after another in one loop, unless their dtypes differ."""
    if len(posts) == 1 or len({post.dtype for post in posts}) > 1:
        return [function(post) for post in posts]
    kind, stacked = posts[0].dtype, jnp.stack(posts)
    if kind.itemsize < 4:  # XLA on CPU would carry a float32 copy of small floats through the loop
        stacked = stacked.view(f"uint{8 * kind.itemsize}")
    found = lax.map(lambda x: function(x if x.dtype == kind else x.view(kind)), stacked)
    return [jax.tree.map(lambda x, place=place: x[place], found) for place in range(len(posts))]
