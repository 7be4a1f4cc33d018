"""Matrices that are larger than a device: each device has some of the rows, and what is r x r is on the first one.

What is as large as a matrix is done where its rows are: Gram matrices, products with vectors and sums of entries, each
the sum of the devices' (`psum`), or the devices' triangular factors, one after another. Eigenproblems and all that
follows from the frames are r x r, and programs of one device, between which the host looks which is next. So devices
compute nothing twice, none waits within a branch that another one does not take, and LAPACK is called by one at a time.

Rows of zeros fill the last shares up to equal size: they change no sum and no triangle.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec, SingleDeviceSharding

from polarax import kernels
from polarax.kernels.methods import Route
from polarax.kernels.steps import Join, joined_norms
from polarax.measuring import parts
from polarax.measuring.compiled_parts import CompiledParts
from polarax.measuring.parts import Arrays, How, InFrames, StackReadings
from polarax.measuring.program import Kept, measure_in_parts
from polarax.measuring.program_cache import load_or_compile
from polarax.measuring.row_polar import read_sides, row_sides
from polarax.metrics import Readings, Spectra, StoredEntries
from polarax.planning.measurement import Measurement

AXIS = "rows"

# What decomposes and relates matrices: by the steps of a route.
_BY_STEPS = (parts.decompose_pair, parts.begin, parts.relate_post, parts.relate_posts, parts.pair_by_fallback)


@dataclasses.dataclass(frozen=True)
class Divided:
    """A matrix whose rows are divided over devices."""

    shares: jax.Array  # (1, m or more, n), as stored
    shape: tuple[int, int, int]  # (1, m, n)

    @property
    def dtype(self) -> np.dtype:
        """As it is stored."""
        return self.shares.dtype


class RowShards:
    """Measures matrices one after another, each over all devices that it is given.

    Args:
        devices: The devices of this process by default.
    """

    def __init__(self, devices: Sequence[jax.Device] | None = None):
        self._mesh = Mesh(np.array(jax.local_devices() if devices is None else devices), (AXIS,))
        self._run = _DividedRun(self._mesh)

    def measure(
        self,
        base: np.ndarray,
        posts: Sequence[np.ndarray],
        *,
        measurement: Measurement,
        pairs: tuple[tuple[int, int], ...] = (),
        kept: Kept | None = None,
    ) -> StackReadings:
        """Reads a matrix and its posts, in an enabled x64 scope.

        Args:
            base: (1, m, n), m >= n, on the host, as it is stored.
            posts: The same shape, each in its stored dtype.
            measurement: What is measured: see `Measurement.divides_rows`.
            pairs: As for `measure_stack`.
            kept: As for `measure_in_parts`.

        Returns:
            As `measure_stack`, on the host.
        """
        divided: list[Any] = [self.divide(x) for x in (base, *posts)]
        readings = measure_in_parts(
            self._run, divided[0], tuple(divided[1:]), measurement=measurement, pairs=pairs, kept=kept
        )
        return jax.device_get(readings)

    def divide(self, matrix: np.ndarray) -> Divided:
        """Gives each device its rows of a matrix, (1, m, n)."""
        devices = list(self._mesh.devices.flat)
        _, rows, columns = matrix.shape
        length = -(-rows // len(devices))
        shares = []
        for place, device in enumerate(devices):
            share = matrix[:, place * length : (place + 1) * length]
            missing = length - share.shape[1]
            if missing:
                share = np.concatenate([share, np.zeros((1, missing, columns), matrix.dtype)], axis=1)
            shares.append(jax.device_put(share, device))
        whole = (1, length * len(devices), columns)
        sharding = NamedSharding(self._mesh, PartitionSpec(None, AXIS))
        return Divided(jax.make_array_from_single_device_arrays(whole, sharding, shares), (1, rows, columns))


class RowSteps:
    """`Steps` on matrices that are `Divided`, each step a program."""

    def __init__(self, mesh: Mesh):
        self._mesh = mesh
        self._first = SingleDeviceSharding(mesh.devices.flat[0])
        self._everywhere = NamedSharding(mesh, PartitionSpec())
        self._programs: dict[Any, Callable[..., Any]] = {}

    def over_rows(
        self, step: Callable[..., Any], stored: Sequence[Divided], *small: Any, join: Join = lax.psum, **static: Any
    ) -> Any:
        """As `Steps.over_rows`; what it gives is on the first device."""

        def of_shares(shares, small):
            return join(step(*shares, *small, **static), AXIS)

        specs = (PartitionSpec(None, AXIS), PartitionSpec())
        everywhere = jax.shard_map(
            of_shares, mesh=self._mesh, in_specs=specs, out_specs=PartitionSpec(), check_vma=False
        )
        given = tuple(x.shares for x in stored), jax.device_put(small, self._everywhere)
        result = self._call(everywhere, (step, join, static), *given)
        return jax.tree.map(lambda x: self._shards(x)[0], result)

    def shares(self, step: Callable[..., Any], stored: Sequence[Divided], **static: Any) -> Iterator[Any]:
        """As `Steps.shares`, of steps that give arrays with rows; each is on the first device."""

        def of_shares(shares):
            return step(*shares, **static)

        along = PartitionSpec(None, AXIS)
        everywhere = jax.shard_map(of_shares, mesh=self._mesh, in_specs=along, out_specs=along, check_vma=False)
        result = self._call(everywhere, (step, static), tuple(x.shares for x in stored))
        leaves, tree = jax.tree.flatten(result)
        for of_device in zip(*map(self._shards, leaves), strict=True):
            yield jax.device_put(jax.tree.unflatten(tree, of_device), self._first)

    def mapped(self, step: Callable[..., Any], stored: Sequence[Divided], *small: Any, **static: Any) -> Divided:
        """As `Steps.mapped`."""

        def of_shares(shares, small):
            return step(*shares, *small, **static)

        along = PartitionSpec(None, AXIS)
        specs = along, PartitionSpec()
        everywhere = jax.shard_map(of_shares, mesh=self._mesh, in_specs=specs, out_specs=along, check_vma=False)
        given = tuple(x.shares for x in stored), jax.device_put(small, self._everywhere)
        return Divided(self._call(everywhere, (step, static), *given), stored[0].shape)

    def small(self, step: Callable[..., Any], *arrays: Any, **static: Any) -> Any:
        """As `Steps.small`, on the first device."""

        def of_arrays(*arrays):
            return step(*arrays, **static)

        return self._call(of_arrays, (step, static), *jax.device_put(arrays, self._first))

    def choose(self, which: jax.Array, branches: Sequence[Callable[[], Any]]) -> Any:
        """As `Steps.choose`; the host looks."""
        return branches[int(jax.device_get(which))]()

    def repeat_while(self, unfinished: Callable[[Any], jax.Array], advance: Callable[[Any], Any], state: Any) -> Any:
        """As `Steps.repeat_while`; the host looks."""
        while jax.device_get(unfinished(state)):
            state = advance(state)
        return state

    def _call(self, function, made_of, *arguments):
        """function(*arguments) by a program, which is made once for what it is made of, shapes and dtypes."""
        described = jax.tree.map(_described, arguments)
        leaves, tree = jax.tree.flatten(described)
        *steps, static = made_of
        key = (*steps, tuple(sorted(static.items())), tree, *((x.shape, x.dtype) for x in leaves))
        if key not in self._programs:
            self._programs[key] = load_or_compile(jax.jit(function), *described, static={}, keep=False)
        return self._programs[key](*arguments)

    def _shards(self, x):
        """What each device has of an array, in the order of the mesh."""
        by_device = {shard.device: shard.data for shard in x.addressable_shards}
        return [by_device[device] for device in self._mesh.devices.flat]


class _DividedRun:
    """A `Run` on matrices that are `Divided`; what follows from their frames are the usual programs of one device."""

    def __init__(self, mesh: Mesh):
        self._steps = RowSteps(mesh)
        self._devices = mesh.devices.size
        self._on_first = CompiledParts(None, SingleDeviceSharding(mesh.devices.flat[0]))
        self._hows: dict[How, _HowByRows] = {}

    def __call__(
        self, part: Callable[..., Any], *stacks: Any, operands: dict[str, Any] | None = None, **static: Any
    ) -> Any:
        """As `Run`."""
        if part in _BY_STEPS:
            return part(*stacks, **(static | {"how": self._by_rows(static["how"])}))
        divided: dict[Callable[..., Any], Callable[..., Any]] = {
            parts.values_alone: self._values_alone,
            parts.read_stored: self._read_stored,
            parts.cosine_of_changes: self._cosine_of_changes,
            parts.measure_at_once: self._headlines_by_products,
        }
        if part in divided:
            return divided[part](*stacks, **static)
        return self._on_first(part, *stacks, operands=operands, **static)

    def resolved(self, related: InFrames, fallback: Callable[[], Arrays]) -> Arrays:
        """As `Run`."""
        return self._on_first.resolved(related, fallback)

    def repeat(self, count: int, step: Callable[[Any, Readings], Readings], first: Readings) -> Readings:
        """As `Run`."""
        return self._on_first.repeat(count, step, first)

    def _by_rows(self, how):
        if how not in self._hows:
            self._hows[how] = _HowByRows(how, self._steps)
        return self._hows[how]

    def _values_alone(self, base, posts, *, how, pairs):
        """As `parts.values_alone`: of frames the spectra, one pair's at a time."""
        of_posts, of_pairs, decomposed = [], [], []
        begun, prepared = self(parts.begin, base, posts, how=how)
        for post, of_post in zip(posts, prepared, strict=True):
            related = self(parts.relate_post, begun, base, post, of_post, how=how)
            decomposed.append(parts.Post(post, of_post, related.decomposed))
            of_posts.append(self._spectra(related, base, post, how))
        for i, j in pairs:
            related = self(parts.relate_posts, begun, decomposed[i], decomposed[j], how=how)
            of_pairs.append(self._spectra(related, posts[i], posts[j], how._replace(change_values=False)))
        return of_posts, of_pairs

    def _spectra(self, related, first, second, how):
        arrays = self.resolved(related, lambda: self(parts.pair_by_fallback, first, second, how=how))
        spectra = {name: arrays[name] for name in Spectra._fields}
        if not _all_finite(spectra):  # then the frames of a pair are NaN, where one side may have its spectrum
            alone = how._replace(change_values=False)
            for name, side in (("s_base", first), ("s_post", second)):
                _, related = self(parts.decompose_pair, side, side, how=alone, keep=False)
                fallback = functools.partial(self, parts.pair_by_fallback, side, side, how=alone)
                spectra[name] = self.resolved(related, fallback)[name]
        return spectra

    def _read_stored(self, base, post, spectra, *, measurement):
        """As `parts.read_stored`, of sums over the entries."""
        stored, (rows, columns) = (base, post), base.shape[-2:]
        entries = self._steps.over_rows(StoredEntries.of, stored, join=_joined_entries)
        filled = base.shares.size - rows * columns
        entries = entries._replace(equal=entries.equal - filled)  # zeros are the same in both
        if _all_finite(spectra):
            nonfinite = self._steps.small(_none_nonfinite, spectra["change_norm"])
        else:
            nonfinite = self._steps.over_rows(_nonfinite_of_rows, stored, dtype=measurement.dtype)
        given = {"shape": (rows, columns), "measurement": measurement}
        return self._on_first(parts.read_entries, entries, nonfinite, spectra, **given)

    def _headlines_by_products(self, base, posts, *, measurement, pairs):
        """As `parts.measure_at_once`, of headlines by products."""
        stored = (base, *posts)
        sides = row_sides(self._steps, stored, measurement)

        def read(first, second):
            def by_frames():
                how = How(measurement.method, measurement.dtype)
                _, related = self(parts.decompose_pair, stored[first], stored[second], how=how, keep=False)
                fallback = functools.partial(self, parts.pair_by_fallback, stored[first], stored[second], how=how)
                rows = {"rows": base.shape[-2]}
                arrays = self.resolved(related, fallback)
                controls = parts.controls_for(self, arrays, rows=rows, measurement=measurement)
                readings = self(parts.read_frames, arrays, controls, operands=rows, measurement=measurement)
                return {name: values for name, values in readings.items() if name not in ("s_base", "s_post")}

            return read_sides(self._steps, sides[first], sides[second], by_frames)

        def cosine(i, j):
            return self._cosine_of_changes(base, posts[i], posts[j], dtype=measurement.dtype)

        return StackReadings(
            tuple(read(0, place) for place in range(1, len(stored))),
            tuple(read(1 + i, 1 + j) | cosine(i, j) for i, j in pairs),
        )

    def _cosine_of_changes(self, base, first, second, *, dtype):
        """As `parts.cosine_of_changes`."""
        stored = (base, first, second)
        norms = self._steps.over_rows(_change_norms, stored, dtype=dtype, join=joined_norms)
        cosine = self._steps.over_rows(_cosine_of_rows, stored, norms, dtype=dtype)
        return {"change_cosine": self._steps.small(jnp.clip, cosine, min=-1, max=1)}


class _HowByRows:
    """A `How` of matrices that are `Divided`."""

    def __init__(self, how: How, steps: RowSteps):
        self.chosen, self.route = how.chosen, how.route
        self.route.steps = steps
        fallback = self.chosen.fallback
        self._fallback: Route[Any, Any, Any] | None = None
        if fallback is not None:
            self._fallback = fallback.route(change_values=how.change_values, dtype=how.dtype)
            self._fallback.steps = steps

    def by_fallback(self, base: Any, post: Any) -> Arrays:
        """As `How.by_fallback`."""
        assert self._fallback is not None
        _, related = self._fallback.only_post(base, post)
        return parts.arrays_of(related.frames)


def _all_finite(spectra: Arrays) -> bool:
    return bool(np.all(np.isfinite(jax.device_get((spectra["s_base"][..., 0], spectra["s_post"][..., 0])))))


def _described(x: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding, weak_type=x.weak_type)


# Steps over rows.


def _joined_entries(entries, axis):
    sides = entries.rounding_base, entries.rounding_post
    base, post = (kernels.joined_rounding(side, joined_norms(side.noise, axis), axis) for side in sides)
    return StoredEntries(base, post, lax.psum(entries.equal, axis))


def _nonfinite_of_rows(base, post, *, dtype):
    return tuple(parts.nonfinite_entries(x, dtype) for x in (base, post))


def _none_nonfinite(like):
    return (jnp.zeros(like.shape, jnp.int32),) * 2


def _changes(base, first, second, dtype):
    return tuple(post.astype(dtype) - base.astype(dtype) for post in (first, second))


def _change_norms(base, first, second, *, dtype):
    return tuple(kernels.frobenius(change) for change in _changes(base, first, second, dtype))


def _cosine_of_rows(base, first, second, norms, *, dtype):
    """The part of some rows in the cosine of two changes, whose norms are given."""
    change_first, change_second = _changes(base, first, second, dtype)
    return kernels.inner_of_directions(change_first, change_second, norms)
