"""How a stack is measured: a stack of matrices with their posts in, every reading of every matrix out.

Base and posts are decomposed once, whatever they are compared with. The metrics themselves are in the catalogue.
"""

import functools
from collections.abc import Callable
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from jax import lax

from polarax.kernels.methods import Post
from polarax.measuring import parts
from polarax.measuring.parts import PARTS, Arrays, How, InFrames, StackReadings
from polarax.metrics import Readings, Spectra
from polarax.planning.measurement import Measurement

# Arguments of `measure_stack` that a program is compiled for.
STATIC = ("measurement", "pairs", "mesh", "batched")


class Run(Protocol):
    """How the parts of a measurement are carried out."""

    def __call__(
        self, part: Callable[..., Any], *stacks: Any, operands: dict[str, Any] | None = None, **static: Any
    ) -> Any:
        """part(*stacks, **operands, **static).

        Args:
            part: One of `polarax.measuring.parts`.
            *stacks: Pytrees of arrays with the stack's axes in front.
            operands: Numbers, the same for the whole stack, that no program need be made for.
            **static: What programs are made for.
        """

    def resolved(self, related: InFrames, fallback: Callable[[], Arrays]) -> Arrays:
        """The frames that a route gave, or the fallback's where it did not resolve all of the stack."""

    def repeat(self, count: int, step: Callable[[Any, Readings], Readings], first: Readings) -> Readings:
        """step(count - 1, ... step(0, first))."""


class Kept(Protocol):
    """Bases of a stack that are kept decomposed."""

    def load(self) -> Any | None:
        """What the route keeps of them; None if it is not there."""

    def store(self, begun: Any) -> None:
        """Keeps that for the next time."""


def measure_in_parts(
    run: Run,
    base: jax.Array,
    posts: tuple[jax.Array, ...],
    keys: jax.Array | None = None,
    *,
    measurement: Measurement,
    pairs: tuple[tuple[int, int], ...] = (),
    kept: Kept | None = None,
) -> StackReadings:
    """Reads a stack of matrices and their posts. Arguments and result as for `measure_stack`.

    Args:
        run: How parts are carried out.
        base: (count, m, n), m >= n.
        posts: As for `measure_stack`.
        keys: As for `measure_stack`.
        measurement: As for `measure_stack`.
        pairs: As for `measure_stack`.
        kept: The bases, if they are kept; with `Measurement.keeps_bases` alone.

    Raises:
        ValueError: The matrices are wide.
    """
    if measurement.quick or measurement.by_products:
        given = (base, posts) if keys is None else (base, posts, keys)
        return run(parts.measure_at_once, *given, measurement=measurement.of_any_seed(), pairs=pairs)
    if base.shape[-2] < base.shape[-1]:
        raise ValueError(f"Matrices must be tall. Got shape={base.shape}: give their transposes.")
    rows = {"rows": base.shape[-2]}
    begun, of_posts, of_pairs = _spectra_and_frames(run, base, posts, measurement, pairs, kept)

    def read(first, second, arrays, measurement):
        controls = parts.controls_for(run, arrays, rows=rows, measurement=measurement)
        readings = run(parts.read_frames, arrays, controls, operands=rows, measurement=measurement)
        spectra = {name: arrays[name] for name in Spectra._fields}
        return readings | run(parts.read_stored, first, second, spectra, measurement=measurement)

    of_a_pair, between = measurement.without_draws(), measurement.between_posts()
    posts_read = []
    for post, arrays_of in zip(posts, of_posts, strict=True):
        arrays = arrays_of()
        readings = read(base, post, arrays, of_a_pair)
        if measurement.draws:
            readings |= _sampled(run, begun, base, post, keys, arrays, readings, measurement.of_any_seed())
        posts_read.append(readings)
    pairs_read = []
    for (i, j), arrays_of in zip(pairs, of_pairs, strict=True):
        cosine = run(parts.cosine_of_changes, base, posts[i], posts[j], dtype=measurement.dtype)
        pairs_read.append(read(posts[i], posts[j], arrays_of(), between) | cosine)
    return StackReadings(tuple(posts_read), tuple(pairs_read))


def _spectra_and_frames(run, base, posts, measurement, pairs, kept):
    """What the route keeps of the base, if anything needs it; and for each post and pair what gives its arrays.

    Those are given when they are asked for, in order, so that of frames only one pair's are there at a time.
    """
    how = How.of(measurement)
    draws_from_base = bool(measurement.draws) and how.route.takes_new_posts
    if not measurement.vectors:
        found = run(parts.values_alone, base, posts, how=how, pairs=pairs)
        of_posts, of_pairs = ([functools.partial(lambda x: x, arrays) for arrays in some] for some in found)
        begun = run(parts.begin, base, (), how=how).base if draws_from_base else None
        return begun, of_posts, of_pairs

    def in_frames(related, first, second, how):
        return run.resolved(related, lambda: run(parts.pair_by_fallback, first, second, how=how))

    begun, prepared = kept.load() if kept else None, (None,) * len(posts)
    found = begun is not None
    if len(posts) == 1 and not pairs and not found:
        begun, related = run(parts.decompose_pair, base, posts[0], how=how, keep=draws_from_base or bool(kept))
        if kept:
            kept.store(begun)
        return begun, [functools.partial(in_frames, related, base, posts[0], how)], []

    if not found:
        begun, prepared = run(parts.begin, base, posts, how=how)
        if kept:
            kept.store(begun)
    decomposed = {}

    def of_post(place):
        related = run(parts.relate_post, begun, base, posts[place], prepared[place], how=how)
        if pairs:
            decomposed[place] = Post(posts[place], prepared[place], related.decomposed)
        return in_frames(related, base, posts[place], how)

    def of_pair(i, j):
        related = run(parts.relate_posts, begun, decomposed[i], decomposed[j], how=between)
        return in_frames(related, posts[i], posts[j], between)

    between = how._replace(change_values=False)
    return (
        begun,
        [functools.partial(of_post, place) for place in range(len(posts))],
        [functools.partial(of_pair, i, j) for i, j in pairs],
    )


def _sampled(run, begun, base, post, keys, arrays, readings, measurement):
    """The columns of the sampled controls of a pair that has been read."""
    given = (base, post, arrays["s_change"], keys)

    def step(index, drawn):
        how = {"operands": {"index": index}, "measurement": measurement}
        related = run(parts.decompose_drawn, begun, *given, **how)
        frames = run.resolved(related, lambda: run(parts.drawn_by_fallback, *given, **how))
        operands = {"index": index, "rows": base.shape[-2]}
        return run(parts.read_drawn, frames, drawn, operands=operands, measurement=measurement)

    nothing = run(parts.nothing_drawn, keys, measurement=measurement)
    count = next(iter(nothing.values())).shape[-1]
    drawn = run.repeat(count, step, nothing)
    of_pair = {metric: readings[metric] for metric in measurement.sampled}
    return run(parts.sampled_columns, drawn, of_pair, readings["change_norm"], measurement=measurement)


@functools.partial(jax.jit, static_argnames=("part", "static", "mesh", "batched"))
def run_part(
    operands: dict[str, Any],
    *stacks: Any,
    part: str,
    static: tuple[tuple[str, Any], ...],
    mesh: jax.sharding.Mesh | None = None,
    batched: bool = True,
) -> Any:
    """One part as a program: of a stack, each device its share, as one batch or matrix by matrix.

    Args:
        operands: As for `Run`.
        *stacks: As for `Run`.
        part: Name of the part.
        static: Its other arguments.
        mesh: As for `measure_stack`.
        batched: As for `measure_stack`.
    """

    def share(operands, *stacks):
        call = functools.partial(PARTS[part], **operands, **dict(static))
        return call(*stacks) if batched else lax.map(lambda matrix: call(*matrix), stacks)

    return _over_devices(share, mesh, operands, *stacks)


def _over_devices(share, mesh, operands, *stacks):
    if mesh is None:
        return share(operands, *stacks)
    everywhere, along = jax.sharding.PartitionSpec(), jax.sharding.PartitionSpec(*mesh.axis_names)
    specs = (everywhere, *[along] * len(stacks))
    return jax.shard_map(share, mesh=mesh, in_specs=specs, out_specs=along, check_vma=False)(operands, *stacks)


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
    """Reads a stack of matrices and their posts, as one program made for one shape.

    Args:
        base: (count, m, n), m >= n, in the stored dtype.
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
        `s_base`, `s_post`, with "shape" also `s_change`, each (count, r), with "overlap" also `cosines_left`,
        `cosines_right` and their controls, each (count, k), with "rotation" also `rotation_left`, `rotation_right` and
        `rotation_difference`, each (count, k, k), k at most 64. Of a first look: see `by_first_look`.
    """
    measure = functools.partial(measure_in_parts, _Together(), measurement=measurement, pairs=pairs)

    def share(_, *stacks):
        return measure(*stacks) if batched else lax.map(lambda matrix: measure(*matrix), stacks)

    return _over_devices(share, mesh, {}, base, posts, *([] if keys is None else [keys]))


class _Together:
    """A `Run` that makes all parts one program."""

    def __call__(self, part, *stacks, operands=None, **static):
        return part(*stacks, **(operands or {}), **static)

    def resolved(self, related, fallback):
        if related.resolved is None:
            return related.arrays
        return lax.cond(jnp.all(related.resolved), lambda: related.arrays, fallback)

    def repeat(self, count, step, first):
        return lax.fori_loop(0, count, step, first)
