"""`Tracker`: the spectra of a model's matrices, followed inside its training loop."""

import functools
import operator
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from polarax.errors import UsageError
from polarax.loaders.formats.parameter_tree import boxed_leaves, named_leaves, unboxed
from polarax.loaders.matrices import RoleMapSource, parse_role_map
from polarax.planning.selection import Selection
from polarax.tracking import readings
from polarax.tracking.adapters import Scale
from polarax.tracking.costs import TrackingPlan, plan_tracking
from polarax.tracking.layout import Layout, find_layout, matrix_reader
from polarax.tracking.tracked_metrics import Metrics, register_with_flax

_PRECISIONS = ("highest", "high", "default")

Kept = dict[str, readings.Arrays]  # shape -> name -> (matrices of that shape, ...)


class TrackerState(NamedTuple):
    """What a tracker keeps: arrays only, to be saved and restored with the training state."""

    base: tuple[Any, ...]  # the tracked parameters at init, copied; in Linen's boxes if they were
    reference: Kept  # what was found of them
    last: Kept  # what the last measurement found: where the next one starts
    metrics: Metrics  # of the last measurement


class Tracker:
    """Follows singular values and vectors of a model's matrices while it trains.

    `init` and `update` are pure functions of arrays, inside `jit` or outside. Every `every` steps all matrices are
    measured, against what they were at init and against the last measurement; in between `update` does nothing.

    Where parameters are divided over several processes, these call `init` and `update` together, as they do a training
    step; what `update` returns as metrics is whole on every device, for each process to read alone (docs/tracking.md).

    Example:
        >>> import jax.numpy as jnp
        >>> import polarax
        >>> tracker = polarax.Tracker(every=10)
        >>> params = {"layers_0": {"q_proj": {"kernel": jnp.eye(32)}}}
        >>> state = tracker.init(params)
        >>> state, metrics = tracker.update(state, params, step=0)
        >>> round(metrics.scalars()["spectra/q/layer_00/spectral_norm"], 4)
        1.0
    """

    def __init__(
        self,
        *,
        every: int = 100,
        metrics: str | Iterable[str] = readings.DEFAULT_METRICS,
        k: int | None = None,
        full_every: int | None = None,
        include: str | Sequence[str] | None = None,
        exclude: str | Sequence[str] | None = None,
        roles: str | Iterable[str] | None = None,
        layers: str | int | Iterable[int] | None = None,
        role_map: RoleMapSource = None,
        lora_scale: Scale = 1.0,
        precision: str = "highest",
    ):
        """Says what to follow.

        Args:
            every: Steps between measurements: at every step that is a multiple of it.
            metrics: Groups of readings, or one string with commas: change, scaling, shape, overlap and leading by
                default; budget and rotation (nf) cost more (docs/tracking.md).
            k: Leading singular values and vectors followed; by default 16, or all of a matrix that has fewer.
            full_every: Also take whole spectra at steps that are a multiple of it, itself one of `every`; None for
                never.
            include: Regular expressions, of which one must be found in a matrix's name.
            exclude: Regular expressions, of which none may be found in it.
            roles: Roles, as in `polarax.loaders.ROLES`. Embeddings and heads are left out unless `roles` or `include`
                are given.
            layers: Layer numbers: "0,3-5".
            role_map: The user's own table of names, as `polarax.compare` takes it.
            lora_scale: What the product of a low-rank adapter is multiplied by where it is added to its weight; or a
                function of the weight's name.
            precision: Of the products with whole matrices in block Lanczos on accelerators: "highest", "high" or
                "default", as JAX names them.

        Raises:
            UsageError: An argument cannot be used.
            CheckpointError: The role map cannot be read.
        """
        self.every = _positive_integer("every", every)
        self.full_every = None if full_every is None else _positive_integer("full_every", full_every)
        if self.full_every is not None and self.full_every % self.every:
            raise UsageError(f"full_every={full_every} must be a multiple of every={every}.")
        if precision not in _PRECISIONS:
            raise UsageError(f"Unknown precision {precision!r}. Expected one of {', '.join(_PRECISIONS)}.")
        self._options = readings.Options(
            _groups(metrics),
            None if k is None else _positive_integer("k", k),
            precision,
            self.full_every is not None,
        )
        self._selection = Selection.parse(include, exclude, roles, layers)
        self._role_map = parse_role_map(role_map)
        self._scale = lora_scale
        register_with_flax()
        self._layouts: dict[Any, Layout] = {}
        self._start = jax.jit(_automatic(self._reference))
        self._measure_now = jax.jit(_automatic(functools.partial(self._measure, full=False)))
        self._measure_all = jax.jit(_automatic(functools.partial(self._measure, full=True)))
        self._update_on_device = jax.jit(_automatic(self._update))

    def init(self, params: Any) -> TrackerState:
        """The state before training; what is kept of the parameters is copied.

        Parameters that are divided over processes stay so, and all processes must call it.

        Args:
            params: Nested dicts and lists of arrays, Flax Linen parameters, an `nnx.State` or `nnx.Module`, an Equinox
                module or another registered pytree. What is in Linen's boxes, with the names of its axes, is kept in
                such boxes.

        Raises:
            CheckpointError: It is no tree of parameters.
            UsageError: Nothing is selected, k is larger than a matrix, or an adapter does not fit its weight.
        """
        layout, leaves = self._look(params)
        boxes = boxed_leaves(params)
        base = tuple(_copied(boxes[name]) for name in layout.leaves)
        return TrackerState(base, *self._start(leaves))

    def update(self, state: TrackerState, params: Any, step: int | jax.Array) -> tuple[TrackerState, Metrics]:
        """Measures if it is time to.

        Parameters may be divided over processes: then all of these must call it with the same step. Only a Python
        integer outside `jit` that is no multiple of `every` computes nothing, and waits for nobody.

        Args:
            state: Of `init`, or of the last update.
            params: Arranged as at `init`.
            step: Number of the training step, also traced. A Python integer outside `jit` decides on the host: between
                measurements nothing is computed at all.

        Returns:
            The next state, and its metrics: those of the last measurement, whose step they name. The metrics are whole
            on every device, however the state is divided.

        Raises:
            UsageError: The parameters are arranged differently than at init, or are on other devices than the state.
        """
        layout, leaves = self._look(params)
        self._check(layout, leaves, state)
        if isinstance(step, (int, np.integer)):
            if step % self.every:
                return state, state.metrics
            full = self.full_every is not None and step % self.full_every == 0
            measure = self._measure_all if full else self._measure_now
            last, metrics = measure(state, leaves, step)
        else:
            last, metrics = self._update_on_device(state, leaves, step)
        return state._replace(last=last, metrics=metrics), metrics

    def plan(self, params: Any, *, step_seconds: float | None = None, tokens: int | None = None) -> TrackingPlan:
        """What tracking costs, from shapes alone; no value is looked at, `jax.ShapeDtypeStruct` will do.

        Any process may call it alone.

        Args:
            params: As for `init`.
            step_seconds: Duration of a training step, if it is known: the share of time is then by a measured rate.
            tokens: Tokens in a step: otherwise its operations are estimated from them, 6 for each parameter and token.
        """
        layout, leaves = self._look(params)
        parameters = sum(int(np.prod(leaf.shape)) for leaf in named_leaves(params).values() if hasattr(leaf, "shape"))
        shapes = {name: (tuple(leaf.shape), np.dtype(leaf.dtype)) for name, leaf in leaves.items()}
        return plan_tracking(
            layout, shapes, self._options, self.every, self.full_every, parameters, step_seconds, tokens
        )

    def _look(self, params: Any) -> tuple[Layout, dict[str, Any]]:
        """Where the matrices are in a tree, and the leaves that hold them."""
        leaves = named_leaves(params)
        key = _described(leaves)
        if key not in self._layouts:
            self._layouts[key] = find_layout(
                params, self._selection, k=self._options.k, role_map=self._role_map, scale=self._scale
            )
        layout = self._layouts[key]
        return layout, {name: leaves[name] for name in layout.leaves}

    def _check(self, layout: Layout, leaves: dict[str, Any], state: TrackerState) -> None:
        """Refuses parameters that are arranged differently than at init."""
        then, now = state.metrics.labels, layout.labels
        if then != now:
            gone = [label.name for label in then if label not in now]
            new = [label.name for label in now if label not in then]
            changes = [f"{len(names)} {what} ({names[0]!r})" for what, names in (("gone", gone), ("new", new)) if names]
            raise UsageError(
                "The parameters are arranged differently than at init: "
                + (" and ".join(changes) + " matrices" if changes else "the order of matrices changed")
                + ". Start anew with init."
            )
        for name, kept in zip(layout.leaves, state.base, strict=True):
            base = unboxed(kept)
            if base.shape != leaves[name].shape or base.dtype != leaves[name].dtype:
                raise UsageError(
                    f"Parameter {name!r} was {base.dtype}{list(base.shape)} at init and now is "
                    f"{leaves[name].dtype}{list(leaves[name].shape)}."
                )
            places = [_devices(array) for array in (base, leaves[name])]
            if None not in places and places[0] != places[1]:
                raise UsageError(
                    f"Parameter {name!r} is on other devices than the copy that the tracker keeps of it. Place the "
                    "state as the parameters are: restore it with the shardings of tracker.init(params)."
                )

    def _layout_of(self, leaves: dict[str, Any]) -> Layout:
        """Of the leaves alone that a layout reads."""
        wanted = set(_described(leaves))
        for key, layout in self._layouts.items():
            if set(layout.leaves) == set(leaves) and wanted <= set(key):
                return layout
        raise AssertionError("leaves of no known layout")

    def _reference(self, leaves):
        layout = self._layout_of(leaves)
        kept = {}
        for group in layout.groups:
            read = matrix_reader(group, leaves)
            kept[group.key] = lax.map(
                lambda place, read=read, group=group: readings.reference(read(*place), self._options, group.stored),
                (jnp.array(group.source_of), jnp.array(group.starts)),
            )
        last = {key: jax.tree.map(jnp.copy, readings.start_of(found)) for key, found in kept.items()}
        return kept, last, self._no_metrics(layout)

    def _update(self, state, leaves, step):
        step = jnp.asarray(step, jnp.int32)

        def measured(full):
            return lambda: self._measure(state, leaves, step, full=full)

        due = step % self.every == 0
        if self.full_every is None:
            return lax.cond(due, measured(False), lambda: (state.last, state.metrics))
        full = step % self.full_every == 0
        branch = jnp.where(due, jnp.where(full, 2, 1), 0)
        return lax.switch(branch, [lambda: (state.last, state.metrics), measured(False), measured(True)])

    def _measure(self, state, leaves, step, *, full):
        layout = self._layout_of(leaves)
        base_leaves = dict(zip(layout.leaves, map(unboxed, state.base), strict=True))
        last, columns, leading, finite, spectra = {}, [], [], [], {}
        for group in layout.groups:
            read, read_base = matrix_reader(group, leaves), matrix_reader(group, base_leaves)

            def one(inputs, read=read, read_base=read_base):
                place, kept, before = inputs
                matrix, base = read(*place), read_base(*place)
                found, now, fine = readings.measure(matrix, base, kept, before, self._options)
                whole: jax.Array | tuple[()] = ()
                if full:
                    values, more = readings.measure_spectrum(jnp.where(fine, matrix, base), kept)
                    whole = jnp.where(fine, values, jnp.nan)
                    found |= {name: jnp.where(fine, value, jnp.nan) for name, value in more.items()}
                return found, now, fine, whole

            places = (jnp.array(group.source_of), jnp.array(group.starts))
            found, last[group.key], fine, whole = lax.map(
                one, (places, state.reference[group.key], state.last[group.key])
            )
            values = found.pop("values", None)
            if values is not None:
                missing = self._options.width - values.shape[1]
                leading.append(jnp.pad(values.astype(jnp.float32), ((0, 0), (0, missing)), constant_values=jnp.nan))
            columns.append(_turned(found, group.turned))
            finite.append(fine)
            if full:
                spectra[group.key] = whole
        joined = {name: jnp.concatenate([x[name].astype(jnp.float32) for x in columns]) for name in columns[0]}
        step = jnp.asarray(step, jnp.int32)
        metrics = state.metrics
        if not full:  # what whole spectra say stays until they are taken again
            joined = metrics.readings | joined
        return last, Metrics(
            step,
            step if full else metrics.full_step,
            {name: joined[name] for name in sorted(joined)},
            jnp.concatenate(leading) if leading else None,
            spectra if full else metrics.spectra,
            jnp.concatenate(finite),
            metrics.labels,
            metrics.counts,
        )

    def _no_metrics(self, layout: Layout) -> Metrics:
        """Metrics before the first measurement."""
        count, options = len(layout.labels), self._options
        names = readings.names(options)
        undefined = jnp.full(count, jnp.nan, jnp.float32)
        return Metrics(
            jnp.int32(-1),
            jnp.int32(-1),
            {name: jnp.copy(undefined) for name in sorted(names)},
            jnp.full((count, options.width), jnp.nan, jnp.float32) if options.leading else None,
            {
                group.key: jnp.full((len(group.labels), group.shape[1]), jnp.nan, group.dtype)
                for group in layout.groups
                if options.spectrum
            },
            jnp.ones(count, bool),
            layout.labels,
            tuple((group.key, len(group.labels)) for group in layout.groups),
        )


def _automatic(function: Callable) -> Callable:
    """The function with its arrays laid out by the compiler, where the caller's mesh leaves that to nobody.

    On a mesh of explicit axes every product has to say how its result is divided. What comes out is whole on every
    device, but for stacks of matrices, which are divided along their rows where that is possible. The metrics, which
    come last, are whole on every device of any mesh: each process can read them, whoever divides the rest of the state.
    """

    def readable(*arguments):
        *kept, metrics = function(*arguments)
        meshes = [jax.typeof(x).sharding.mesh for x in jax.tree.leaves(arguments)]
        mesh = next((mesh for mesh in meshes if not mesh.empty and AxisType.Manual not in mesh.axis_types), None)
        if mesh is not None:
            metrics = lax.with_sharding_constraint(metrics, NamedSharding(mesh, PartitionSpec()))
        return *kept, metrics

    def laid_out(*arguments):
        meshes = [jax.typeof(x).sharding.mesh for x in jax.tree.leaves(arguments)]
        mesh = next((mesh for mesh in meshes if AxisType.Explicit in mesh.axis_types), None)
        if mesh is None:
            return readable(*arguments)
        whole = NamedSharding(mesh, PartitionSpec())

        def sharding(x):
            divided = x.ndim == 3 and x.shape[1] % mesh.size == 0
            return NamedSharding(mesh, PartitionSpec(None, mesh.axis_names)) if divided else whole

        results = jax.eval_shape(jax.sharding.auto_axes(readable, out_sharding=whole), *arguments)
        return jax.sharding.auto_axes(readable, out_sharding=jax.tree.map(sharding, results))(*arguments)

    return laid_out


def _copied(leaf: Any) -> Any:
    """A copy of a parameter: in its box where that is Linen's, from which partition specs are derived."""
    copied = jnp.copy(unboxed(leaf))
    return leaf.replace_boxed(copied) if hasattr(leaf, "replace_boxed") else copied


def _devices(array: Any) -> set[jax.Device] | None:
    """Where an array must stay; None of one that may move, and of tracers."""
    if not isinstance(array, jax.Array) or isinstance(array, jax.core.Tracer) or not array.committed:
        return None
    return array.sharding.device_set


def _described(leaves: dict[str, Any]) -> tuple[tuple[str, tuple[int, ...], str], ...]:
    """Name, shape and dtype of every leaf."""
    return tuple(
        (name, tuple(getattr(leaf, "shape", ())), str(getattr(leaf, "dtype", ""))) for name, leaf in leaves.items()
    )


def _turned(found: readings.Arrays, turned: np.ndarray) -> readings.Arrays:
    """Readings with left and right as of the weight: wide matrices are measured as their transposes."""
    if not turned.any():
        return found
    result = dict(found)
    for name in found:
        if "_left" in name:
            other = name.replace("_left", "_right")
            result[name] = jnp.where(turned, found[other], found[name])
            result[other] = jnp.where(turned, found[name], found[other])
    return result


def _groups(given: str | Iterable[str]) -> tuple[str, ...]:
    words = given.split(",") if isinstance(given, str) else list(given)
    words = [word.strip() for word in words if word.strip()]
    for word in words:
        if word not in readings.METRICS:
            raise UsageError(f"Unknown metric {word!r}. Expected one of {', '.join(readings.METRICS)}.")
    if not words:
        raise UsageError(f"metrics is empty. Expected some of {', '.join(readings.METRICS)}.")
    return tuple(group for group in readings.METRICS if group in words)


def _positive_integer(name: str, given: Any) -> int:
    try:
        number = operator.index(given)
    except TypeError:
        number = 0
    if number < 1 or isinstance(given, bool):
        raise UsageError(f"{name} must be a whole number of at least 1. Got {name}={given!r}.")
    return number
