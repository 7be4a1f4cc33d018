"""Carrying out a plan: every stack is read, measured and written, once for all the runs that it belongs to."""

import concurrent.futures
import contextlib
import os
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import jax
import numpy as np

from polarax.errors import RunError
from polarax.hosts import LANES
from polarax.loaders import Checkpoint
from polarax.measuring.compiled_parts import CompiledParts, PreparedParts
from polarax.measuring.kept_bases import KeptBases, KeptShapes, KeptStack, form_of
from polarax.measuring.outputs import Writer, pairs_of
from polarax.measuring.parts import StackReadings
from polarax.measuring.program import measure_in_parts
from polarax.measuring.progress import Progress, SharedProgress
from polarax.measuring.row_shards import RowShards
from polarax.measuring.sampled_controls import matrix_key
from polarax.measuring.stack_reads import Operands, StackReads
from polarax.planning.comparison_plan import Plan
from polarax.planning.devices import (
    lone_cpu,
    shared_cores,
    stack_mesh,
    stack_sharding,
)
from polarax.planning.measurement import Measurement
from polarax.planning.stacks import Stack

# While a stack is computed, how often it is asked whether that is still wanted; and how long the next one may take to
# be known before its program is left for later.
_LOOK_SECONDS = 0.2


class Work(NamedTuple):
    """What is to be computed."""

    base: Checkpoint
    posts: tuple[Checkpoint, ...]
    plan: Plan
    measurement: Measurement
    keep_base: str | os.PathLike | None = None  # folder of decomposed bases


class _NotWanted(Exception):
    """What is being computed is not needed any longer: other processes have done it."""


def run_stacks(
    work: Work,
    stacks: Iterable[Stack],
    outputs: Sequence[Writer],
    progress: Progress | SharedProgress,
    finished: threading.Event | None = None,
) -> dict[str, float]:
    """Measures stacks and writes them to the outputs that wait for them.

    While a stack is computed the next one is read, and its program compiled if there is memory for both: of the
    compilation seconds only those before the first stack add to the others then. Where both fill all lanes, the next
    one begins before this one is written, so that no lane waits.

    Args:
        work: What is to be computed.
        stacks: Of the plan, or pieces of them; each is asked for when its turn to be read has come.
        outputs: What takes the readings.
        progress: Is told of each that is written.
        finished: Ends the work at once when it is set: what is then being computed is not needed any longer.

    Returns:
        The seconds spent on reading (waiting), compiling and computing.

    Raises:
        RunError: A checkpoint can no longer be read, or a run cannot be written.
    """
    seconds = dict.fromkeys(("read", "compile", "compute"), 0.0)
    # Whatever the working precision: without it JAX would cut stored float64 weights to float32 on their way in.
    with (
        jax.enable_x64(True),
        StackReads(work.base, work.posts, stacks) as reads,
        contextlib.closing(_Execution(work, reads, outputs, progress, finished, seconds)) as execution,
    ):
        execution.run()
    return seconds


class _Measured(NamedTuple):
    """What one lane computed of a stack."""

    readings: list[StackReadings]
    ended: float  # when it had them


class _AtWork(NamedTuple):
    """A stack that is being computed."""

    stack: Stack
    operands: Operands
    lanes: list[concurrent.futures.Future[_Measured]]
    begun: float


class _Execution:
    """Stacks on their way from the reads to the outputs. Arguments as for `run_stacks`."""

    def __init__(self, work, reads, outputs, progress, finished, seconds):
        self._work, self._reads, self._outputs = work, reads, outputs
        self._progress, self._seconds, self._before = progress, seconds, dict(seconds)
        self._finished = threading.Event() if finished is None else finished
        self._last_ended = 0.0
        self._programs = _Programs(work, any(len(output.posts) > 1 for output in outputs), seconds)
        self._most = max((stack.lanes for stack in work.plan.stacks), default=1)
        self._pool = concurrent.futures.ThreadPoolExecutor(self._most, thread_name_prefix=LANES)
        self._sharing = contextlib.ExitStack()
        self._shared = 0

    def close(self) -> None:
        """Waits for what is at work, unless nobody wants it."""
        self._pool.shutdown(wait=not self._finished.is_set(), cancel_futures=True)
        self._sharing.close()

    def run(self) -> None:
        """Carries out all stacks."""
        at_work: _AtWork | None = None
        try:
            while True:
                if at_work is not None and not self._read_comes_first(at_work):
                    self._finish(at_work)
                    at_work = None
                try:
                    with self._timed("read"):
                        read = self._reads.take()
                except RunError:
                    if at_work is not None:  # is read already
                        self._finish(at_work)
                    raise
                if at_work is not None and not (read and self._fills_lanes(at_work.stack, read[0])):
                    self._finish(at_work)
                    at_work = None
                if read is None:
                    return
                begun = self._begin(*read)
                if at_work is not None:
                    self._finish(at_work)
                at_work = begun
                self._reads.begin()  # into the buffers of the stack before
                if self._work.plan.compiles_ahead:
                    following = self._reads.following(_LOOK_SECONDS)
                    if following is not None:
                        self._programs.prepare(following)
        except _NotWanted:
            return

    def _begin(self, stack, operands):
        self._programs.prepare(stack)
        share = max(stack.lanes, jax.local_device_count())
        if share != self._shared:  # nothing is at work then
            self._sharing.close()
            self._sharing.enter_context(shared_cores(share))
            self._shared = share
        begun = time.perf_counter()
        return _AtWork(stack, operands, self._programs.start(self._pool, stack, operands), begun)

    def _fills_lanes(self, *stacks):
        """Whether all lanes are in use by each: so many at once take no more memory than the larger one alone."""
        return all(stack.lanes == self._most for stack in stacks)

    def _read_comes_first(self, at_work):
        """Waits for the next stack, or for the one at work."""
        lanes = set(at_work.lanes)
        while lanes and not self._reads.ready and not self._finished.is_set():
            done, lanes = concurrent.futures.wait(
                {*lanes, self._reads.reading}, _LOOK_SECONDS, concurrent.futures.FIRST_COMPLETED
            )
            lanes -= {self._reads.reading}
        return self._reads.ready

    def _finish(self, at_work):
        """Writes a stack when it is computed."""
        with self._timed("compute"):
            lanes = set(at_work.lanes)
            while lanes:
                _, lanes = concurrent.futures.wait(lanes, _LOOK_SECONDS)
                if lanes and self._finished.is_set():
                    raise _NotWanted
            measured = [lane.result() for lane in at_work.lanes]
        readings = _joined([part for lane in measured for part in lane.readings])
        for output in self._outputs:
            if output.waits_for(at_work.stack):
                output.write(at_work.stack, readings, at_work.operands)
        taken = {what: self._seconds[what] - self._before[what] for what in ("read", "compute")}
        self._before = dict(self._seconds)
        ended = max(lane.ended for lane in measured)
        busy = max(ended - max(at_work.begun, self._last_ended), 0.0)  # two that overlap count once
        self._last_ended = max(ended, self._last_ended)
        self._progress.advance(at_work.stack, taken["read"], taken["compute"], busy)

    def _timed(self, what):
        return _timed(self._seconds, what)


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
            with PreparedParts(self._compiled) as prepared:
                self._measure(prepared, stack, operands)
        self._prepared.add(key)

    def start(self, pool, stack, operands):
        """Starts the calls of every lane; returns the lanes' futures, of readings on the host."""
        if stack.row_devices > 1:
            return [pool.submit(self._run_by_rows, stack, operands)]
        length = stack.size // stack.lanes
        operands = (*operands, *self._keys(stack))
        parts = [slice(i, i + 1) for i in range(len(stack.pairs))] if self._one_by_one else [slice(None)]
        lanes = [parts[start : start + length] for start in range(0, len(parts), length)]
        return [pool.submit(self._run, stack, operands, lane) for lane in lanes]

    def _run(self, stack, operands, parts):
        with jax.enable_x64(True):  # a setting of each thread
            readings = [
                jax.device_get(
                    self._measure(
                        self._compiled, stack, [_place(operand[part], self._sharding) for operand in operands]
                    )
                )
                for part in parts
            ]
        return _Measured(readings, time.perf_counter())

    def _run_by_rows(self, stack, operands):
        """One matrix after another, each over all devices."""
        with jax.enable_x64(True):
            readings = []
            for index in range(len(stack.pairs)):
                base, *posts = (operand[index : index + 1] for operand in operands)
                given = {"measurement": self._work.measurement, "pairs": self._pairs(stack)}
                readings.append(self._row_shards.measure(base, posts, kept=self._kept_of(base, posts), **given))
        return _Measured(readings, time.perf_counter())

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
        return pairs_of(stack) if self._between else ()

    def _keys(self, stack):
        """One array, (size, 2): what each matrix's random changes are drawn from; nothing if there are none."""
        if not self._work.measurement.draws:
            return ()
        keys = np.zeros((stack.size, 2), np.uint32)
        keys[: len(stack.pairs)] = [matrix_key(self._work.measurement.seed, pair.name) for pair in stack.pairs]
        return (keys,)


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
