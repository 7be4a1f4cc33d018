"""Carrying out an edit: stacks are read, every matrix's maps found, its rows mapped, rounded and put into drafts."""

import concurrent.futures
import functools
import math
import os
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from polarax.editing.kinds import BASE, POST
from polarax.editing.program import Sums, decompose_base, draw_rows, find_maps, map_rows, measure_random
from polarax.editing.settings import RANDOM, EditSettings
from polarax.editing.targets import Targets
from polarax.kernels.methods import METHODS, method_named
from polarax.loaders import Checkpoint, Draft, Pair, rounded
from polarax.measuring.kept_bases import KeptBases, KeptStack, form_of, kept_structure
from polarax.measuring.parts import How
from polarax.measuring.program_cache import is_of_this_package, load_or_compile
from polarax.measuring.progress import Progress, SharedProgress
from polarax.measuring.sampled_controls import matrix_key
from polarax.measuring.stack_reads import StackReads
from polarax.planning.devices import most_lanes, shared_cores, working_dtype, working_method
from polarax.planning.measurement import Measurement
from polarax.planning.stacks import Member, Stack, make_stacks, stored_bytes

# Rows that are mapped at a time, in numbers: few enough that their float64 copies are small beside the matrix.
_BLOCK_NUMBERS = 1 << 20
# Numbers that are mixed and rounded at a time: their copies stay in the processor's cache.
_CHUNK = 1 << 16
# Edited matrices of several strengths that a lane holds before they are put, in bytes; one in any case.
_HELD_BYTES = 1 << 28
# (n, n) arrays of float64 that finding and measuring maps holds at once, beside those of a decomposition: counted in
# XLA's buffer assignment, and measured as peak resident memory.
_SQUARE_ARRAYS = 14
# The same of a base that is kept: its Gram matrix and vectors, as they are read and as a program takes them.
_KEPT_ARRAYS = 4


class Work(NamedTuple):
    """What is to be done."""

    base: Checkpoint
    post: Checkpoint
    targets: Targets
    settings: EditSettings
    memory_bytes: int
    keep_base: str | os.PathLike | None = None  # folder of decomposed bases


def plan_stacks(work: Work, finished: Iterable[str], lanes: int | None = None) -> list[Stack]:
    """The stacks of what is not finished, for as many lanes as pay here by default."""
    done = set(finished)
    found: list[Mapping[int, Pair]] = [{0: pair} for pair in work.targets.pairs if pair.name not in done]
    need = functools.partial(_work_bytes, work.settings, _SQUARE_ARRAYS + (_KEPT_ARRAYS if work.keep_base else 0))
    return list(make_stacks(found, work.memory_bytes, need, 1, lanes or most_lanes(), together=False))


def _work_bytes(settings: EditSettings, square_arrays: int, member: Member) -> int:
    """Memory that a matrix takes while it is edited, beside base and post."""
    rows, columns = max(member[0].shape), min(member[0].shape)
    found = method_named(settings.method).work_bytes(
        rows, columns, itemsize=8, stored_bytes=stored_bytes(member), posts=1, between=False
    )
    blocks = 8 * 4 * max(_BLOCK_NUMBERS, columns)
    edited = math.prod(member[0].shape) * member[0].dtype_post.itemsize
    return found + 8 * square_arrays * columns**2 + blocks + _at_once(edited, len(settings.strengths)) * edited


def _at_once(nbytes: int, strengths: int) -> int:
    return max(1, min(strengths, _HELD_BYTES // max(1, nbytes)))


def run_stacks(
    work: Work,
    stacks: Iterable[Stack],
    drafts: Sequence[Draft],
    finish: Callable[[Stack, list[dict[str, Any]]], None],
    progress: Progress | SharedProgress,
) -> None:
    """Edits stacks, one draft for each strength.

    Args:
        work: What is to be done.
        stacks: Of `plan_stacks`, or pieces of them; each is asked for when its turn to be read has come.
        drafts: One for each strength.
        finish: Takes the rows of every stack when its weights are on the disk.
        progress: Is told of each.

    Raises:
        RunError: A checkpoint can no longer be read.
        OSError: A draft cannot be written.
    """
    edit = _Editor(work, drafts)
    with (
        jax.enable_x64(True),
        concurrent.futures.ThreadPoolExecutor(most_lanes()) as pool,
        StackReads(work.base, work.post, stacks) as reads,
    ):
        while True:
            begun = time.perf_counter()
            read = reads.take()
            if read is None:
                return
            stack, (base, post) = read
            reads.begin()
            waited = time.perf_counter() - begun
            edit.prepare(stack)
            begun = time.perf_counter()
            with shared_cores(stack.lanes):
                edits = [
                    pool.submit(edit, pair, base[index], post[index], stack.transposed[index])
                    for index, pair in enumerate(stack.pairs)
                ]
                rows = [row for future in edits for row in future.result()]
            taken = time.perf_counter() - begun
            for draft in drafts:
                draft.sync()
            finish(stack, rows)
            progress.advance(stack, waited, taken)


def measurement_of(settings: EditSettings) -> Measurement:
    """A comparison that decomposes bases as the edit does, and keeps them if it can."""
    return Measurement(method=working_method(settings.method), dtype=working_dtype("auto"))


class _Editor:
    """Edits one matrix after another, in any thread.

    Args:
        work: What is to be done.
        drafts: One for each strength.
    """

    def __init__(self, work: Work, drafts: Sequence[Draft]):
        self._work, self._settings, self._drafts = work, work.settings, drafts
        self._putting = threading.Lock()  # parts of a fused tensor lie between each other's bytes
        self._compiling = threading.Lock()
        self._programs: dict[Any, Callable[..., Any]] = {}
        self._dtype = working_dtype("auto")
        self._strengths = np.asarray(work.settings.strengths, self._dtype)
        # Without a pair there is nothing to find: W' = c W.
        self._alone = work.base is work.post and work.settings.kind.alone
        self._how = How.of(measurement_of(work.settings))
        form = form_of(measurement_of(work.settings)) if work.keep_base else None
        self._kept = KeptBases(work.keep_base, form) if work.keep_base and form else None

    def prepare(self, stack: Stack) -> None:
        """Compiles what the stack needs, once for its shape."""
        if self._alone:
            return
        for transposed in set(stack.transposed):
            self._finder(stack.shape, stack.pairs[0], transposed)

    def __call__(self, pair: Pair, base: np.ndarray, post: np.ndarray, transposed: bool) -> list[dict[str, Any]]:
        """Edits a matrix and puts it into every draft; a row for each strength."""
        with jax.enable_x64(True):  # a setting of each thread
            edited = self._edit(pair, base, post, transposed)
        named = {
            "name": pair.name,
            "role": pair.role,
            "layer": pair.layer,
            "expert": pair.expert,
            "rows": pair.shape[0],
            "cols": pair.shape[1],
        }
        strengths = self._settings.strengths
        return [{**named, "strength": strength, **row} for strength, row in zip(strengths, edited, strict=True)]

    def _edit(self, pair, base, post, transposed):
        strengths = self._settings.strengths
        key = matrix_key(self._settings.seed, pair.name)
        found = None if self._alone else self._find(pair, base, post, key, transposed)
        finite = bool(np.isfinite(post).all()) if found is None else bool(found.finite)
        start = base if self._settings.kind.start == BASE else post
        status = "" if finite else "NaN or Inf: left as it is"
        kind = self._settings.kind
        if finite and found is not None and kind.start == POST and not kind.alone and bool(found.no_base):
            status = "the base is zero: left as it is"
        if status:
            self._put(pair, range(len(strengths)), [start] * len(strengths), transposed)
            return [{"status": status}] * len(strengths)
        blocks = functools.partial(self._blocks, pair, base, post, key, found)
        step = _at_once(math.prod(pair.shape) * pair.dtype_post.itemsize, len(strengths))
        totals, measures = [], None
        for first in range(0, len(strengths), step):
            places = range(first, min(first + step, len(strengths)))
            stored = [np.empty(base.shape, self._drafts[place].dtype(pair.post.tensor)) for place in places]
            sums = [_Totals() for _ in places]
            for rows, target, found_now in blocks(measured=first + step >= len(strengths)):
                measures = found_now or measures
                for place, out, total in zip(places, stored, sums, strict=True):
                    _mix(start[rows], target, strengths[place], base[rows], post[rows], out[rows], total)
            self._put(pair, places, stored, transposed)
            totals += sums
        rows = [total.row() for total in totals]
        if found is not None and found.measures is not None:
            measures = found.measures
        if measures is not None:
            for name, values in measures._asdict().items():
                for row, value in zip(rows, np.asarray(values), strict=True):
                    row[name] = float(value)
        elif self._alone and self._settings.measure:
            for row, factor in zip(rows, (1 + t * (self._factor(pair) - 1) for t in strengths), strict=True):
                distance = 1 - math.copysign(1, factor) if factor else math.nan  # from -W, 2
                row |= dict.fromkeys(("alpha_base", "alpha_post"), abs(factor))
                row |= dict.fromkeys(("nf_base", "nf_post"), distance)
        return [{"status": "", **row} for row in rows]

    def _blocks(self, pair, base, post, key, found, *, measured):
        """(rows, the edit of them at full strength, measures so far or None) of a matrix, one block after another."""
        height, kind = _block_rows(base.shape), self._settings.kind
        if found is None:
            factor = self._factor(pair)
            for start in range(0, len(base), height):
                rows = slice(start, start + height)
                yield rows, factor * post[rows].astype(np.float64), None
            return
        if kind.plan is not None:
            for rows, count, (first, second) in _row_blocks((base, post), height):
                yield rows, np.asarray(map_rows(first, second, found.maps))[:count], None
            return
        deviation = self._settings.sd
        if deviation is None:
            deviation = _change_norm(base, post) / math.sqrt(base.size)
        measure = measured and found.pair is not None
        zeros = jnp.zeros((base.shape[1],) * 2, self._dtype)
        sums = Sums(zeros, zeros, zeros) if measure else None
        for number, (rows, count, (first, second)) in enumerate(_row_blocks((base, post), height)):
            drawn, sums = draw_rows(
                first, second, key, np.int32(number), sums, np.int32(count), measure=measure, dtype=self._dtype
            )
            target = base[rows].astype(np.float64) + deviation * np.asarray(drawn)[:count]
            measures = None
            if measure and rows.stop >= len(base):
                size = np.asarray(deviation, self._dtype)
                measures = measure_random(found.pair, sums, size, self._strengths)
            yield rows, target, measures

    def _find(self, pair, base, post, key, transposed):
        factor = np.asarray(self._factor(pair), self._dtype)
        operands = (base, post, key, factor, self._strengths, self._begun(pair, base))
        return self._finder(base.shape, pair, transposed)(*operands)

    def _begun(self, pair, base):
        """The base as it is kept, or decomposed now and kept; None where that is not asked for."""
        folder = self._kept_of(pair)
        if folder is None:
            return None
        kept = KeptStack(folder, base[None])
        begun = kept.load()
        if begun is None:
            argument = jax.ShapeDtypeStruct((1, *base.shape), base.dtype)
            program = self._compiled(decompose_base, (argument,), {"how": self._how})
            begun = jax.device_get(program(base[None]))
            kept.store(begun)
        return begun

    def _kept_of(self, pair):
        """Where the base of a pair is kept; None where it is not."""
        return None if np.float64 in (pair.dtype_base, pair.dtype_post) else self._kept

    def _factor(self, pair):
        factor = self._settings.factor_of(pair.role)
        return 1.0 if factor is None else factor

    def _finder(self, shape, pair, transposed):
        settings = self._settings
        static = {
            "kind": settings.kind.name,
            "random_signs": settings.signs == RANDOM,
            "transposed": transposed and settings.kind.sided,
            "measure": settings.measure,
            "whole": settings.strengths == (1.0,),
            "method": working_method(settings.method),
            "dtype": self._dtype,
        }
        arguments = (
            jax.ShapeDtypeStruct(shape, pair.dtype_base),
            jax.ShapeDtypeStruct(shape, pair.dtype_post),
            jax.ShapeDtypeStruct((2,), np.uint32),
            jax.ShapeDtypeStruct((), self._dtype),
            jax.ShapeDtypeStruct(self._strengths.shape, self._dtype),
            None if self._kept_of(pair) is None else kept_structure(1, shape[1]),
        )
        return self._compiled(find_maps, arguments, static)

    def _compiled(self, function, arguments, static):
        shapes = tuple((x.shape, str(x.dtype)) for x in jax.tree.leaves(arguments))
        key = function, shapes, tuple(static.items())
        with self._compiling:
            if key not in self._programs:
                keep = is_of_this_package(METHODS.values())
                self._programs[key] = load_or_compile(function, *arguments, static=static, keep=keep)
            return self._programs[key]

    def _put(self, pair, places, matrices, transposed):
        """Puts a matrix for each of some strengths, and into tensors that repeat its own."""
        names = (pair.post.tensor, *self._work.targets.copies.get(pair.post.tensor, ()))
        for place, matrix in zip(places, matrices, strict=True):
            draft = self._drafts[place]
            stored = matrix.T if transposed else matrix
            with self._putting:
                for name in names:
                    draft.put(pair.post._replace(tensor=name), rounded(stored, draft.dtype(name)))


class _Totals:
    """Sums of squares over the numbers of a matrix: changes, as asked for and as stored."""

    def __init__(self):
        self._base = self._post = self._stored = self._from_base = self._from_post = 0.0
        self._asked_base = self._asked_post = 0.0

    def add(self, base, post, asked, stored):
        """Adds numbers, one-dimensional float64 each."""
        self._base += base @ base
        self._post += post @ post
        for name, change in (
            ("_asked_base", asked - base),
            ("_asked_post", asked - post),
            ("_from_base", stored - base),
            ("_from_post", stored - post),
        ):
            setattr(self, name, getattr(self, name) + change @ change)

    def row(self):
        """Drifts, NaN from a zero matrix."""
        return {
            name: math.sqrt(change / norm) if norm > 0 else math.nan
            for name, change, norm in (
                ("asked_drift_base", self._asked_base, self._base),
                ("asked_drift_post", self._asked_post, self._post),
                ("drift_base", self._from_base, self._base),
                ("drift_post", self._from_post, self._post),
            )
        }


def _mix(start, target, strength, base, post, out, totals):
    """start + strength (target - start), rounded once into `out`; start itself, bit by bit, at strength 0."""
    height = max(1, _CHUNK // max(1, base.shape[1]))
    for first in range(0, len(base), height):
        rows = slice(first, first + height)
        of_base, of_post = (x[rows].astype(np.float64).reshape(-1) for x in (base, post))
        begin = start[rows].astype(np.float64).reshape(-1)
        goal = target[rows].reshape(-1)
        mixed = goal if strength == 1 else begin + strength * (goal - begin) if strength else begin
        stored = rounded(mixed, out.dtype)
        out[rows] = stored.reshape(out[rows].shape)
        if strength == 0 and start.dtype == out.dtype:
            out[rows] = start[rows]
        totals.add(of_base, of_post, mixed, stored.astype(np.float64))


def _change_norm(base, post):
    total, height = 0.0, max(1, _CHUNK // max(1, base.shape[1]))
    for first in range(0, len(base), height):
        rows = slice(first, first + height)
        change = (post[rows].astype(np.float64) - base[rows].astype(np.float64)).reshape(-1)
        total += change @ change
    return math.sqrt(total)


def _block_rows(shape):
    return min(shape[0], max(1, _BLOCK_NUMBERS // shape[1]))


def _row_blocks(matrices, height):
    """(rows, how many, the rows of each matrix) in blocks of one height, the last one filled with zeros."""
    length = len(matrices[0])
    for start in range(0, length, height):
        rows = slice(start, min(start + height, length))
        count = rows.stop - rows.start
        blocks = [matrix[rows] for matrix in matrices]
        if count < height:
            blocks = [np.concatenate([x, np.zeros((height - count, x.shape[1]), x.dtype)]) for x in blocks]
        yield rows, count, blocks
