"""The parts of a measurement as compiled programs: each made once, ahead of its stack where that is wanted."""

import concurrent.futures
import functools
import os
import threading
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from polarax.kernels.methods import METHODS
from polarax.measuring.parts import OF_SPECTRA, Arrays, InFrames
from polarax.measuring.program import run_part
from polarax.measuring.program_cache import is_of_this_package, load_or_compile, shapes_of_kept
from polarax.metrics import Readings
from polarax.metrics.catalogue import every_reader
from polarax.planning.devices import release_free_memory, takes_batches

# Programs that are made at the same time; each takes up to half a gigabyte meanwhile.
_AT_A_TIME = 4
# Singular values up to which what is read of spectra alone takes longer to compile than to run.
_SMALL = 128


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
        self._programs: dict[Any, concurrent.futures.Future[Callable[..., Any]]] = {}
        self._looking = threading.Lock()

    def __call__(
        self, part: Callable[..., Any], *stacks: Any, operands: dict[str, Any] | None = None, **static: Any
    ) -> Any:
        """As `Run`."""
        operands, static = self._divided(operands, static)
        return self._program(part, operands, stacks, static)(operands, *stacks)

    def prepare(
        self,
        pool: concurrent.futures.Executor,
        part: Callable[..., Any],
        *stacks: Any,
        operands: dict[str, Any] | None = None,
        **static: Any,
    ) -> tuple[Any, concurrent.futures.Future[Any]]:
        """Has the program made in a pool of threads; returns the shapes and dtypes of what it gives, and the future."""
        operands, static = self._divided(operands, static)
        arguments, told = self._told(part, operands, stacks, static)
        found = shapes_of_kept(run_part, *arguments, static=told, keep=self._own)
        if found is None:
            found = jax.eval_shape(functools.partial(run_part, **told), *arguments)
        x64 = jax.dtypes.canonicalize_dtype(np.float64) == np.float64

        def make():
            with jax.enable_x64(x64):  # a setting of each thread
                return self._program(part, operands, stacks, static)

        return jax.tree.map(self._described, found), pool.submit(make)

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

    def _divided(self, operands, static):
        """Operands and static arguments; of metrics that are not the package's own a shape is static."""
        operands = dict(operands or {})
        if not self._own_metrics and "rows" in operands:
            return operands, static | {"rows": operands.pop("rows")}
        # As a number of Python's, which takes the dtype of what it meets; a floating-point one has room for products.
        return operands | ({"rows": float(operands["rows"])} if "rows" in operands else {}), static

    def _told(self, part, operands, stacks, static):
        """Arguments of `run_part`, and those that a program is made for."""
        told = {"part": part.__name__, "static": tuple(sorted(static.items())), "mesh": self._mesh}
        return jax.tree.map(self._described, (operands, *stacks)), told | {"batched": takes_batches()}

    def _program(self, part, operands, stacks, static):
        leaves, tree = jax.tree.flatten((operands, stacks))
        key = (part, tuple(sorted(static.items())), tree, *(_shape_and_dtype(leaf) for leaf in leaves))
        with self._looking:
            first = key not in self._programs
            program = self._programs.setdefault(key, concurrent.futures.Future())
        if first:
            start = time.perf_counter()
            arguments, told = self._told(part, operands, stacks, static)
            try:
                quickly = part in OF_SPECTRA and stacks[0]["s_base"].shape[-1] <= _SMALL
                made = load_or_compile(run_part, *arguments, static=told, keep=self._own, quickly=quickly)
                program.set_result(made)
            except BaseException as error:  # whoever waits for it hears of it; whoever comes later tries again
                del self._programs[key]
                program.set_exception(error)
            release_free_memory()
            self.seconds += time.perf_counter() - start
        return program.result()

    def _described(self, leaf):
        shape, dtype = _shape_and_dtype(leaf)
        if isinstance(leaf, int | float):
            return jax.ShapeDtypeStruct(shape, dtype, weak_type=True)
        return jax.ShapeDtypeStruct(shape, dtype, sharding=self._sharding)


class PreparedParts:
    """A `Run` on shapes and dtypes alone, which has every program made that will be needed, the fallback's excepted.

    Several at a time: XLA makes a program on one core. They are there when the context ends.
    """

    def __init__(self, compiled: CompiledParts):
        self._compiled = compiled
        self._pool = concurrent.futures.ThreadPoolExecutor(min(_AT_A_TIME, os.cpu_count() or 1))
        self._made: list[concurrent.futures.Future[Any]] = []

    def __enter__(self) -> "PreparedParts":
        return self

    def __exit__(self, *error: object) -> None:
        with self._pool:
            for program in self._made if error[0] is None else ():
                program.result()

    def __call__(self, part: Callable[..., Any], *stacks: Any, **given: Any) -> Any:
        """As `Run`."""
        found, program = self._compiled.prepare(self._pool, part, *stacks, **given)
        self._made.append(program)
        return found

    def resolved(self, related: InFrames, fallback: Callable[[], Arrays]) -> Arrays:
        """As `Run`."""
        return related.arrays

    def repeat(self, count: int, step: Callable[[Any, Readings], Readings], first: Readings) -> Readings:
        """As `Run`."""
        return step(0, first)


def _shape_and_dtype(leaf):
    if isinstance(leaf, int | float):
        return (), np.dtype(jax.dtypes.canonicalize_dtype(type(leaf)))
    return tuple(leaf.shape), np.dtype(leaf.dtype)
