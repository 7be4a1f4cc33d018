"""The parts of a measurement as compiled programs: each made once, ahead of its stack where that is wanted."""

import threading
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from polarax.kernels.methods import METHODS
from polarax.measuring.parts import ONE_BY_ONE, Arrays, InFrames
from polarax.measuring.program import run_part
from polarax.measuring.program_cache import is_of_this_package, load_or_compile
from polarax.metrics import Readings
from polarax.metrics.catalogue import every_reader
from polarax.planning.devices import release_free_memory, takes_batches


class CompiledParts:
    """A `Run` by compiled programs, one for each part, set of shapes and dtypes, and what it is made for.

    May be called from several threads at once.

    Args:
        mesh: Devices that stacks are divided over; None for one.
        sharding: Of stacks over these.
    """

    def __init__(self, mesh: jax.sharding.Mesh | None, sharding: jax.sharding.Sharding | None):
        self.seconds = 0.0  # spent on making programs
        self._mesh, self._sharding = mesh, sharding
        self._own_metrics = is_of_this_package(every_reader())
        self._own = self._own_metrics and is_of_this_package(METHODS.values())
        self._programs: dict[Any, Callable[..., Any]] = {}
        self._making = threading.Lock()

    def __call__(
        self, part: Callable[..., Any], *stacks: Any, operands: dict[str, Any] | None = None, **static: Any
    ) -> Any:
        """As `Run`."""
        operands, static = self._divided(operands, static)
        if not self._one_by_one(part):
            return self._program(part, operands, stacks, static)(operands, *stacks)
        count = _count(stacks)
        each = [jax.tree.map(lambda x, i=i: x[i : i + 1], stacks) for i in range(count)] if count > 1 else [stacks]
        program = self._program(part, operands, each[0], static)
        found = [program(operands, *matrix) for matrix in each]
        return jax.tree.map(lambda *x: np.concatenate(x), *jax.device_get(found)) if count > 1 else found[0]

    def prepare(
        self, part: Callable[..., Any], *stacks: Any, operands: dict[str, Any] | None = None, **static: Any
    ) -> Any:
        """Has the program at hand; returns the shapes and dtypes of what it gives."""
        operands, static = self._divided(operands, static)
        if not self._one_by_one(part):
            return jax.tree.map(self._described, self._program(part, operands, stacks, static).out_info)
        first = jax.tree.map(lambda x: jax.ShapeDtypeStruct((1, *x.shape[1:]), x.dtype), stacks)
        found, count = self._program(part, operands, first, static).out_info, _count(stacks)
        return jax.tree.map(lambda x: self._described(jax.ShapeDtypeStruct((count, *x.shape[1:]), x.dtype)), found)

    def resolved(self, related: InFrames, fallback: Callable[[], Arrays]) -> Arrays:
        """As `Run`; the host looks, and the fallback's program is made when there first is need for it."""
        if related.resolved is None or np.all(jax.device_get(related.resolved)):
            return related.arrays
        return fallback()

    def repeat(self, count: int, step: Callable[[Any, Readings], Readings], first: Readings) -> Readings:
        """As `Run`."""
        for index in range(count):
            first = step(index, first)
        return first

    def _one_by_one(self, part):
        """Whether a stack's matrices are given to it one by one; over several devices each has its share at once."""
        return self._mesh is None and part.__name__ in ONE_BY_ONE

    def _divided(self, operands, static):
        """Operands and static arguments; of metrics that are not the package's own a shape is static."""
        operands = dict(operands or {})
        if not self._own_metrics and "rows" in operands:
            return operands, static | {"rows": operands.pop("rows")}
        # As a number of Python's, which takes the dtype of what it meets; a floating-point one has room for products.
        return operands | ({"rows": float(operands["rows"])} if "rows" in operands else {}), static

    def _program(self, part, operands, stacks, static):
        leaves, tree = jax.tree.flatten((operands, stacks))
        told = tuple(sorted(static.items()))
        key = (part, told, tree, *(_shape_and_dtype(leaf) for leaf in leaves))
        if key not in self._programs:
            with self._making:
                if key not in self._programs:
                    start = time.perf_counter()
                    self._programs[key] = load_or_compile(
                        run_part,
                        *jax.tree.map(self._described, (operands, *stacks)),
                        static={
                            "part": part.__name__,
                            "static": told,
                            "mesh": self._mesh,
                            "batched": takes_batches(),
                        },
                        keep=self._own,
                    )
                    release_free_memory()
                    self.seconds += time.perf_counter() - start
        return self._programs[key]

    def _described(self, leaf):
        shape, dtype = _shape_and_dtype(leaf)
        if isinstance(leaf, int | float):
            return jax.ShapeDtypeStruct(shape, dtype, weak_type=True)
        return jax.ShapeDtypeStruct(shape, dtype, sharding=self._sharding)


class PreparedParts:
    """A `Run` on shapes and dtypes alone, which has every program made that will be needed, the fallback's excepted."""

    def __init__(self, compiled: CompiledParts):
        self._compiled = compiled

    def __call__(self, part: Callable[..., Any], *stacks: Any, **given: Any) -> Any:
        """As `Run`."""
        return self._compiled.prepare(part, *stacks, **given)

    def resolved(self, related: InFrames, fallback: Callable[[], Arrays]) -> Arrays:
        """As `Run`."""
        return related.arrays

    def repeat(self, count: int, step: Callable[[Any, Readings], Readings], first: Readings) -> Readings:
        """As `Run`."""
        return step(0, first)


def _count(stacks):
    return jax.tree.leaves(stacks)[0].shape[0]


def _shape_and_dtype(leaf):
    if isinstance(leaf, int | float):
        return (), np.dtype(jax.dtypes.canonicalize_dtype(type(leaf)))
    return tuple(leaf.shape), np.dtype(leaf.dtype)
