"""Carrying out a plan: every stack is read, measured and written, once for all the runs that it belongs to."""

import concurrent.futures
import contextlib
import itertools
import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import numpy as np

from polarax.kernels.methods import METHODS
from polarax.loaders import Checkpoint, Pair
from polarax.measuring.program import StackReadings, measure_stack
from polarax.measuring.program_cache import is_of_this_package, load_or_compile
from polarax.measuring.progress import Progress
from polarax.measuring.relations import relation_of
from polarax.measuring.rows import as_stored, make_row
from polarax.measuring.sampled_controls import matrix_key
from polarax.measuring.stack_reads import Operands, StackReads
from polarax.metrics.catalogue import every_reader
from polarax.planning.comparison_plan import Part, Plan
from polarax.planning.devices import (
    lone_cpu,
    release_free_memory,
    shared_cores,
    stack_mesh,
    stack_sharding,
    takes_batches,
)
from polarax.planning.measurement import Measurement
from polarax.planning.stacks import Stack
from polarax.results.run_directory import RunWriter


class Work(NamedTuple):
    """What is to be computed."""

    base: Checkpoint
    posts: tuple[Checkpoint, ...]
    plan: Plan
    measurement: Measurement


class Output:
    """A run that is written: of the base and a post, or of two posts.

    Args:
        writer: Its writer.
        posts: One place, or two of which the first stands as the base.
        part: What is compared, and what is not.
        plan: Of all runs.
        measurement: What its rows have.
    """

    def __init__(self, writer: RunWriter, posts: tuple[int, ...], part: Part, plan: Plan, measurement: Measurement):
        self.writer, self.posts, self.skipped, self._measurement = writer, posts, part.skipped, measurement
        self._place = {name: index for index, name in enumerate(part.names)}
        self._parts = [part for part in map(self._part_of, plan.stacks) if part is not None]
        self._waiting = {part.label: part for part in writer.unfinished(self._parts, self._place)}

    def waits_for(self, stack: Stack) -> bool:
        """Whether the stack has something that is not written yet."""
        return stack.label in self._waiting

    @property
    def pairs(self) -> list[Pair]:
        """All its matrices."""
        return [pair for part in self._parts for pair in part.pairs]

    def write(self, stack: Stack, readings: StackReadings, operands: Operands) -> None:
        """Writes what of a stack belongs to this run; the operands are those that the readings are of."""
        part, places = self._waiting[stack.label], tuple(stack.posts.index(place) for place in self.posts)
        alone = len(places) == 1
        mine = readings.posts[places[0]] if alone else readings.pairs[_pairs_of(stack).index(places)]
        mine = as_stored(mine, part)
        rows = [make_row(pair, mine, index, self._measurement) for index, pair in enumerate(part.pairs)]
        base, post = (operands[0], *(operands[1 + place] for place in places))[-2:]
        for index, row in enumerate(rows):
            matrices = (x[index].T if part.transposed[index] else x[index] for x in (base, post))
            spectra = (mine[name][index] for name in ("s_base", "s_post") if name in mine)
            row["relation"] = relation_of(row, *spectra, *matrices).value if "s_base" in mine else ""
        arrays = {name: values for name, values in mine.items() if values.ndim > 1}
        self.writer.write_stack(part, rows, arrays, [self._place[pair.name] for pair in part.pairs])

    def _part_of(self, stack):
        if not set(self.posts) <= set(stack.posts):
            return None
        return stack.of_post(*self.posts) if len(self.posts) == 1 else stack.between(*self.posts)


def run_stacks(work: Work, stacks: Sequence[Stack], outputs: Sequence[Output], progress: Progress) -> dict[str, float]:
    """Measures stacks and writes them to the outputs that wait for them.

    The next stack is read while this one is computed, and its program compiled if there is memory for both: of the
    compilation seconds only those before the first stack add to the others then.

    Returns:
        The seconds spent on reading (waiting), compiling and computing.

    Raises:
        RunError: A checkpoint can no longer be read, or a run cannot be written.
    """
    seconds = dict.fromkeys(("read", "compile", "compute"), 0.0)
    if not stacks:
        return seconds
    programs = _Programs(work, any(len(output.posts) > 1 for output in outputs), stack_mesh(), seconds)
    # Whatever the working precision: without it JAX would cut stored float64 weights to float32 on their way in.
    with (
        jax.enable_x64(True),
        concurrent.futures.ThreadPoolExecutor(max(s.lanes for s in stacks)) as pool,
        StackReads(work.base, work.posts, stacks) as reads,
    ):
        programs.of(stacks[0])
        read = iter(reads)
        for stack, following in zip(stacks, (*stacks[1:], None), strict=True):
            before = dict(seconds)
            with _timed(seconds, "read"):
                operands = next(read)
            programs.of(stack)
            with _timed(seconds, "compute"), shared_cores(max(stack.lanes, jax.local_device_count())):
                lanes = programs.start(pool, stack, operands)
                if following is not None and work.plan.compiles_ahead:
                    programs.of(following)
                readings = _joined([part for lane in lanes for part in lane.result()])
            for output in outputs:
                if output.waits_for(stack):
                    output.write(stack, readings, operands)
            del operands  # its memory is filled again
            progress.advance(stack, *(seconds[what] - before[what] for what in ("read", "compute")))
    return seconds


class _Programs:
    """The compiled programs of a run, one for each shape and set of dtypes, and how a stack runs through its own.

    A program takes all of a stack where that is one batch or divided over devices; on a lone CPU one matrix, since XLA
    would copy the operands of a loop over several.
    """

    def __init__(self, work, between, mesh, seconds):
        self._work, self._between, self._mesh, self._seconds = work, between, mesh, seconds
        self._sharding = stack_sharding(mesh)
        self._one_by_one = lone_cpu()
        self._compiled = {}

    def of(self, stack):
        """The program for the stack, compiled when it is first asked for."""
        first = stack.members[0]
        shape = (1 if self._one_by_one else stack.size, *stack.shape)
        key = (shape, first[0].dtype_base, *(pair.dtype_post for pair in first))
        if key not in self._compiled:
            with _timed(self._seconds, "compile"):
                dtypes = [first[0].dtype_base, *(pair.dtype_post for pair in first)]
                base, *posts = (jax.ShapeDtypeStruct(shape, dtype, sharding=self._sharding) for dtype in dtypes)
                keys = []
                if self._work.measurement.draws:
                    keys.append(jax.ShapeDtypeStruct((shape[0], 2), np.uint32, sharding=self._sharding))
                self._compiled[key] = load_or_compile(
                    measure_stack,
                    base,
                    tuple(posts),
                    *keys,
                    static={
                        "measurement": self._work.measurement,
                        "pairs": _pairs_of(stack) if self._between else (),
                        "mesh": self._mesh,
                        "batched": takes_batches(),
                    },
                    keep=is_of_this_package([*every_reader(), *METHODS.values()]),
                )
                release_free_memory()
        return self._compiled[key]

    def start(self, pool, stack, operands):
        """Starts the calls of every lane; returns the lanes' futures, of a list of `StackReadings` on the host."""
        program, posts, length = self.of(stack), len(stack.posts), stack.size // stack.lanes
        operands = (*operands, *self._keys(stack))
        parts = [slice(i, i + 1) for i in range(len(stack.pairs))] if self._one_by_one else [slice(None)]
        lanes = [parts[start : start + length] for start in range(0, len(parts), length)]
        return [pool.submit(self._run, program, posts, operands, lane) for lane in lanes]

    def _run(self, program, posts, operands, parts):
        with jax.enable_x64(True):  # a setting of each thread
            return [
                _call(program, posts, [_place(operand[part], self._sharding) for operand in operands]) for part in parts
            ]

    def _keys(self, stack):
        """One array, (size, 2): what each matrix's random changes are drawn from; nothing if there are none."""
        if not self._work.measurement.draws:
            return ()
        keys = np.zeros((stack.size, 2), np.uint32)
        keys[: len(stack.pairs)] = [matrix_key(self._work.measurement.seed, pair.name) for pair in stack.pairs]
        return (keys,)


def _call(program, posts, operands):
    """The readings of a program's matrices, on the host."""
    base, *others = operands
    return jax.device_get(program(base, tuple(others[:posts]), *others[posts:]))


def _pairs_of(stack):
    """Places within the stack of all posts that are compared with each other."""
    return tuple(itertools.combinations(range(len(stack.posts)), 2))


def _joined(parts):
    """The readings of a stack from those of its parts."""
    return jax.tree.map(lambda *arrays: np.concatenate(arrays), *parts)


def _place(operand, sharding):
    """The stack on its devices, each its share; on a single one the program takes it as it is."""
    return operand if sharding is None else jax.device_put(operand, sharding)


@contextlib.contextmanager
def _timed(seconds: dict[str, float], what: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    seconds[what] += time.perf_counter() - start
