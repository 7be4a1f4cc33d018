"""Carrying out a plan: every stack is read, measured and written, once for all the runs that it belongs to."""

import concurrent.futures
import contextlib
import itertools
import os
import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import numpy as np

from polarax.loaders import Checkpoint, Pair
from polarax.measuring.compiled_parts import CompiledParts, PreparedParts
from polarax.measuring.kept_bases import KeptBases, KeptShapes, KeptStack, form_of
from polarax.measuring.parts import StackReadings
from polarax.measuring.program import measure_in_parts
from polarax.measuring.progress import Progress
from polarax.measuring.relations import relation_of
from polarax.measuring.row_shards import RowShards
from polarax.measuring.rows import as_stored, make_row
from polarax.measuring.sampled_controls import matrix_key
from polarax.measuring.stack_reads import Operands, StackReads
from polarax.planning.comparison_plan import Part, Plan
from polarax.planning.devices import (
    lone_cpu,
    shared_cores,
    stack_mesh,
    stack_sharding,
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
    keep_base: str | os.PathLike | None = None  # folder of decomposed bases


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
    programs = _Programs(work, any(len(output.posts) > 1 for output in outputs), seconds)
    # Whatever the working precision: without it JAX would cut stored float64 weights to float32 on their way in.
    with (
        jax.enable_x64(True),
        concurrent.futures.ThreadPoolExecutor(max(s.lanes for s in stacks)) as pool,
        StackReads(work.base, work.posts, stacks) as reads,
    ):
        programs.prepare(stacks[0])
        read = iter(reads)
        for stack, following in zip(stacks, (*stacks[1:], None), strict=True):
            before = dict(seconds)
            with _timed(seconds, "read"):
                operands = next(read)
            programs.prepare(stack)
            with _timed(seconds, "compute"), shared_cores(max(stack.lanes, jax.local_device_count())):
                lanes = programs.start(pool, stack, operands)
                if following is not None and work.plan.compiles_ahead:
                    programs.prepare(following)
                readings = _joined([part for lane in lanes for part in lane.result()])
            for output in outputs:
                if output.waits_for(stack):
                    output.write(stack, readings, operands)
            del operands  # its memory is filled again
            progress.advance(stack, *(seconds[what] - before[what] for what in ("read", "compute")))
    return seconds


class _Programs:
    """How stacks run through their programs.

    These take all of a stack where that is one batch or divided over devices; on a lone CPU one matrix, since XLA would
    copy the operands of a loop over several.
    """

    def __init__(self, work, between, seconds):
        mesh = stack_mesh()
        self._work, self._between, self._seconds = work, between, seconds
        self._sharding = stack_sharding(mesh)
        self._compiled = CompiledParts(mesh, self._sharding)
        self._one_by_one = lone_cpu()
        form = form_of(work.measurement) if work.keep_base else None
        self._kept = KeptBases(work.keep_base, form) if form else None
        self._prepared = set()
        self._row_shards = RowShards()

    def prepare(self, stack):
        """Has the programs for the stack at hand, those that are hardly ever needed excepted."""
        if stack.row_devices > 1:
            return  # its programs are made as it is measured
        first = stack.members[0]
        count = 1 if self._one_by_one else stack.size
        dtypes = (first[0].dtype_base, *(pair.dtype_post for pair in first))
        key = (count, stack.shape, dtypes)
        if key in self._prepared:
            return
        with _timed(self._seconds, "compile"):
            operands = [jax.ShapeDtypeStruct((count, *stack.shape), dtype) for dtype in dtypes]
            if self._work.measurement.draws:
                operands.append(jax.ShapeDtypeStruct((count, 2), np.uint32))
            self._measure(PreparedParts(self._compiled), stack, operands)
        self._prepared.add(key)

    def start(self, pool, stack, operands):
        """Starts the calls of every lane; returns the lanes' futures, of a list of `StackReadings` on the host."""
        if stack.row_devices > 1:
            return [pool.submit(self._run_by_rows, stack, operands)]
        length = stack.size // stack.lanes
        operands = (*operands, *self._keys(stack))
        parts = [slice(i, i + 1) for i in range(len(stack.pairs))] if self._one_by_one else [slice(None)]
        lanes = [parts[start : start + length] for start in range(0, len(parts), length)]
        return [pool.submit(self._run, stack, operands, lane) for lane in lanes]

    def _run(self, stack, operands, parts):
        with jax.enable_x64(True):  # a setting of each thread
            return [
                jax.device_get(
                    self._measure(
                        self._compiled, stack, [_place(operand[part], self._sharding) for operand in operands]
                    )
                )
                for part in parts
            ]

    def _run_by_rows(self, stack, operands):
        """One matrix after another, each over all devices."""
        with jax.enable_x64(True):
            readings = []
            for index in range(len(stack.pairs)):
                base, *posts = (operand[index : index + 1] for operand in operands)
                given = {"measurement": self._work.measurement, "pairs": self._pairs(stack)}
                readings.append(self._row_shards.measure(base, posts, kept=self._kept_of(base, posts), **given))
            return readings

    def _measure(self, run, stack, operands):
        base, *others = operands
        posts = len(stack.posts)
        return measure_in_parts(
            run,
            base,
            tuple(others[:posts]),
            *others[posts:],
            measurement=self._work.measurement,
            pairs=self._pairs(stack),
            kept=self._kept_of(base, others),
        )

    def _kept_of(self, base, others):
        if not self._kept or np.float64 in [operand.dtype for operand in (base, *others)]:
            return None
        of_stack = KeptShapes if isinstance(base, jax.ShapeDtypeStruct) else KeptStack
        return of_stack(self._kept, base)

    def _pairs(self, stack):
        return _pairs_of(stack) if self._between else ()

    def _keys(self, stack):
        """One array, (size, 2): what each matrix's random changes are drawn from; nothing if there are none."""
        if not self._work.measurement.draws:
            return ()
        keys = np.zeros((stack.size, 2), np.uint32)
        keys[: len(stack.pairs)] = [matrix_key(self._work.measurement.seed, pair.name) for pair in stack.pairs]
        return (keys,)


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
