"""Carrying out a plan: every stack is read, measured and written, once for all the runs that it belongs to."""

import concurrent.futures
import contextlib
import itertools
import math
import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import numpy as np

from polarax.loaders import Checkpoint
from polarax.measuring.posts_program import PostReadings, measure_posts
from polarax.measuring.program import measure_stack
from polarax.measuring.progress import Progress
from polarax.measuring.sampled_controls import matrix_key
from polarax.measuring.stack_reads import StackReads
from polarax.metrics import CONTROL_REACH_LIMIT, status_kind
from polarax.planning.comparison_plan import Plan
from polarax.planning.devices import (
    lone_cpu,
    release_free_memory,
    shared_cores,
    stack_mesh,
    stack_sharding,
    takes_batches,
)
from polarax.planning.stacks import Stack
from polarax.results.run_directory import RunWriter

# Readings of a matrix that are arrays, written beside matrices.csv.
_ARRAYS = (
    *("s_base", "s_post", "s_change", "cosines_left", "cosines_right"),
    *("rotation_left", "rotation_right", "rotation_difference"),
)

# Columns about the rounding of the stored dtypes.
_OF_STORED_DTYPE = {"rounding_share", "nf_rounding", "spectral_norm_rounding"}


class Work(NamedTuple):
    """What is to be computed."""

    base: Checkpoint
    posts: tuple[Checkpoint, ...]
    plan: Plan
    groups: tuple[str, ...]
    top_k: int
    dtype: str
    method: str
    draws: int  # random changes of each kind; 0 where no metric has use for them
    seed: int
    pictures: bool = True  # keep those of the rotations


class Output:
    """A run that is written: of the base and a post, or of two posts.

    Args:
        writer: Its writer.
        posts: One place, or two of which the first stands as the base.
        names: Of its matrices, in model order.
        plan: Of all runs.
        sampled: Whether its rows have sampled controls.
    """

    def __init__(self, writer: RunWriter, posts: tuple[int, ...], names: Sequence[str], plan: Plan, sampled: bool):
        self.writer, self.posts = writer, posts
        self._sampled = sampled
        self._place = {name: index for index, name in enumerate(names)}
        parts = [part for part in map(self._part_of, plan.stacks) if part is not None]
        self._waiting = {part.label: part for part in writer.unfinished(parts, self._place)}

    def waits_for(self, stack: Stack) -> bool:
        """Whether the stack has something that is not written yet."""
        return stack.label in self._waiting

    def write(self, stack: Stack, readings: PostReadings) -> None:
        """Writes what of a stack belongs to this run."""
        part, places = self._waiting[stack.label], [stack.posts.index(place) for place in self.posts]
        own = readings.posts[places[0]] if len(places) == 1 else readings.pairs[_pairs_of(stack).index(tuple(places))]
        own = _as_stored(own, part)
        rows = [_row(pair, own, index, self._sampled) for index, pair in enumerate(part.pairs)]
        arrays = {name: own[name] for name in _ARRAYS if name in own}
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
            del operands  # its memory is filled again
            for output in outputs:
                if output.waits_for(stack):
                    output.write(stack, readings)
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
                if self._work.draws:
                    keys.append(jax.ShapeDtypeStruct((shape[0], 2), np.uint32, sharding=self._sharding))
                how = {
                    "groups": self._work.groups,
                    "top_k": self._work.top_k,
                    "dtype": self._work.dtype,
                    "method": self._work.method,
                    "draws": self._work.draws,
                    "pictures": self._work.pictures,
                    "mesh": self._mesh,
                    "batched": takes_batches(),
                }
                if len(posts) == 1:
                    lowered = measure_stack.lower(base, *posts, *keys, **how)
                else:
                    pairs = _pairs_of(stack) if self._between else ()
                    lowered = measure_posts.lower(base, tuple(posts), *keys, pairs=pairs, **how)
                self._compiled[key] = lowered.compile()
                release_free_memory()
        return self._compiled[key]

    def start(self, pool, stack, operands):
        """Starts the calls of every lane; returns the lanes' futures, of a list of `PostReadings` on the host."""
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
        if not self._work.draws:
            return ()
        keys = np.zeros((stack.size, 2), np.uint32)
        keys[: len(stack.pairs)] = [matrix_key(self._work.seed, pair.name) for pair in stack.pairs]
        return (keys,)


def _call(program, posts, operands):
    """The readings of a program's matrices, on the host."""
    base, *others = operands
    if posts == 1:
        return PostReadings((jax.device_get(program(base, *others)),), ())
    return jax.device_get(program(base, tuple(others[:posts]), *others[posts:]))


def _pairs_of(stack):
    """Places within the stack of all posts that are compared with each other."""
    return tuple(itertools.combinations(range(len(stack.posts)), 2))


def _joined(parts):
    """The readings of a stack from those of its parts."""
    return jax.tree.map(lambda *arrays: np.concatenate(arrays), *parts)


def _as_stored(readings, stack):
    """The readings of a stack without padding, left and right named for each matrix as it is stored."""
    readings = {name: values[: len(stack.pairs)] for name, values in readings.items()}
    transposed = np.array(stack.transposed)
    for left in [name for name in readings if name.endswith("_left")]:
        right = left.removesuffix("left") + "right"
        both = readings[left], readings[right]
        swap = transposed.reshape(-1, *[1] * (both[0].ndim - 1))
        readings[left], readings[right] = (np.where(swap, *sides) for sides in (both[::-1], both))
    return readings


def _place(operand, sharding):
    """The stack on its devices, each its share; on a single one the program takes it as it is."""
    return operand if sharding is None else jax.device_put(operand, sharding)


def _row(pair, readings, index, sampled):
    """One row of matrices.csv: plain Python values."""
    own = {name: values[index].item() for name, values in readings.items() if values.ndim == 1}
    status = _status(own, min(pair.shape))
    if status_kind(status) in ("not finite", "zero"):  # what was computed means nothing
        own = dict.fromkeys(own, math.nan)
    if (pair.stored_base, pair.stored_post) != (pair.dtype_base.name, pair.dtype_post.name):
        # They are of the dtype that was read, not of the quantised type it was stored in.
        own |= {column: math.nan for column in _OF_STORED_DTYPE & own.keys()}
    if "change_cosine" in own:
        std = 1 / math.sqrt(math.prod(pair.shape))
        own |= {"change_cosine_null_std": std, "change_cosine_z": own["change_cosine"] / std}
    return {
        "name": pair.name,
        "layer": pair.layer,
        "role": pair.role,
        "expert": pair.expert,
        "rows": pair.shape[0],
        "cols": pair.shape[1],
        "dtype_base": pair.stored_base,
        "dtype_post": pair.stored_post,
        "status": status,
        **own,
        "control": _control(own["control_reach"], sampled),
    }


def _control(reach, sampled):
    """Which control a row is judged by; "" where there is none."""
    if math.isnan(reach):
        return ""
    if sampled:
        return "sampled"
    return "closed form" if reach <= CONTROL_REACH_LIMIT else "out of range"


def _status(readings, full_rank):
    """In one or two words, whether the numbers of a row mean what they say."""
    for side in ("base", "post"):
        if readings[f"nonfinite_{side}"]:
            return f"not finite: {readings[f'nonfinite_{side}']} in {side}"
    for side in ("base", "post"):
        if not readings[f"rank_{side}"]:
            return f"zero {side}"
    if not readings["change_norm"]:
        return "unchanged"
    for side in ("base", "post"):
        if readings[f"rank_{side}"] < full_rank:
            return f"rank {readings[f'rank_{side}']} of {full_rank} in {side}"
    return "ok"


@contextlib.contextmanager
def _timed(seconds: dict[str, float], what: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    seconds[what] += time.perf_counter() - start
