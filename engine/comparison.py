"""polarax.compare: reads two checkpoints stack by stack, measures, and writes a run directory."""

import concurrent.futures
import contextlib
import gc
import math
import os
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from polarax import kernels
from polarax.devices import (
    most_lanes,
    release_free_memory,
    shared_cores,
    stack_mesh,
    stack_sharding,
    takes_batches,
    working_dtype,
    working_method,
)
from polarax.environment import describe_environment
from polarax.errors import UsageError
from polarax.loaders import Checkpoint, RoleMap, open_checkpoint, parse_role_map
from polarax.loaders.store import local_path
from polarax.measure import measure_stack
from polarax.metrics import CONTROL_REACH_LIMIT, columns, parse_metrics, sampled_metrics, status_kind
from polarax.plan import Plan, plan_comparison
from polarax.progress import Progress
from polarax.run import Run
from polarax.run_directory import RunWriter, claim_directory
from polarax.sampled_controls import matrix_key
from polarax.selection import Selection
from polarax.stack_reads import StackReads

DTYPES = ("auto", "float64", "float32")
DEFAULT_TOP_K = 16  # leading singular vectors compared, as in docs/definitions.md
DEFAULT_MEMORY_GIB = 4.0
DEFAULT_CONTROL_DRAWS = 0  # the closed forms are free
DEFAULT_SEED = 0

# Readings of a matrix that are arrays, written beside matrices.csv.
_ARRAYS = (
    *("s_base", "s_post", "s_change", "cosines_left", "cosines_right"),
    *("rotation_left", "rotation_right", "rotation_difference"),
)


# Columns about the rounding of the stored dtypes.
_OF_STORED_DTYPE = {"rounding_share", "nf_rounding", "spectral_norm_rounding"}


class Request(NamedTuple):
    """A checked request: what to compare and how."""

    base: Checkpoint
    post: Checkpoint
    plan: Plan
    selection: Selection
    groups: tuple[str, ...]
    top_k: int
    dtype: str
    method: str
    memory_gib: float
    role_map: RoleMap | None
    common_rows: bool
    control_draws: int
    seed: int

    @property
    def sampled(self) -> bool:
        """Whether random changes are drawn: they are asked for, and a metric has use for them."""
        return self.control_draws > 0 and bool(sampled_metrics(self.groups))


def compare(
    base: Any,
    post: Any,
    out: str | os.PathLike | None = None,
    *,
    include: str | Sequence[str] | None = None,
    exclude: str | Sequence[str] | None = None,
    roles: str | Iterable[str] | None = None,
    layers: str | int | Iterable[int] | None = None,
    metrics: str | Iterable[str] | None = None,
    dtype: str = "auto",
    top_k: int = DEFAULT_TOP_K,
    method: str = "auto",
    memory_gib: float = DEFAULT_MEMORY_GIB,
    role_map: str | os.PathLike | Mapping[str, Any] | None = None,
    common_rows: bool = False,
    control_draws: int = DEFAULT_CONTROL_DRAWS,
    seed: int = DEFAULT_SEED,
    overwrite: bool = False,
    progress: bool = True,
) -> Run:
    """Compares every 2-D weight of two checkpoints.

    Args:
        base: Path or URL of a checkpoint, or a parameter tree: the weights before training.
        post: The same for the weights after it.
        out: Folder for the run; None keeps it in a temporary folder for as long as the result lives. A run of the
            same inputs and arguments that is there already, interrupted or finished, is gone on with.
        include: Regular expressions; a matrix is compared if one is found in its name.
        exclude: Regular expressions; a matrix is left out if one is found in its name.
        roles: Roles to compare, such as "q,o"; all by default.
        layers: Layers to compare, such as "0,3-5"; all by default.
        metrics: Groups of metrics: change, scaling, rotation, budget, fit, overlap, shape; all by default.
        dtype: Working precision, "float64" or "float32"; "auto" is float64 where that is fast.
        top_k: Leading singular vectors whose subspaces are compared.
        method: How to decompose, one of `polarax.kernels.SVD_METHODS`.
        memory_gib: Memory that a run may take on the host, over that of an idle process; a matrix that needs more is
            named on standard error before any work, and computed alone.
        role_map: A table of names of your own, or the JSON file it is in: see `polarax.loaders.parse_role_map`.
        common_rows: Compare embeddings and heads of different vocabularies on the rows that both have.
        control_draws: Random changes of each kind to draw for every matrix, as sampled controls beside the closed
            forms; each takes about half the time of the comparison itself.
        seed: What they are drawn from, at least 0.
        overwrite: Replace a run that is already at `out`.
        progress: Show progress on standard error.

    Returns:
        The finished `Run`.

    Raises:
        CheckpointError: A checkpoint cannot be read, or the two have nothing in common.
        UsageError: An argument cannot be met, or `out` holds a run of other inputs or arguments.
        RunError: The run failed part-way; finished stacks are kept in `out`.
    """
    request = check_request(
        base,
        post,
        Selection.parse(include, exclude, roles, layers),
        metrics=metrics,
        dtype=dtype,
        top_k=top_k,
        method=method,
        memory_gib=memory_gib,
        role_map=role_map,
        common_rows=common_rows,
        control_draws=control_draws,
        seed=seed,
    )
    return run_request(request, out, overwrite=overwrite, progress=progress)


def run_request(
    request: Request,
    out: str | os.PathLike | None,
    *,
    overwrite: bool = False,
    progress: bool = True,
) -> Run:
    """Runs a checked request. Arguments, result and errors as for `compare`."""
    temporary = None
    if out is None:
        temporary = tempfile.TemporaryDirectory(prefix="polarax-")
        out = temporary.name
    description = _describe(request)
    path = claim_directory(out, description, overwrite=overwrite)
    header = columns(request.groups, sampled=request.sampled)
    with contextlib.closing(RunWriter(path, description, header, request.plan.skipped)) as writer:
        place = {name: index for index, name in enumerate(request.plan.names)}
        stacks = writer.unfinished(request.plan.stacks, place)
        if progress and request.plan.warning:
            print(request.plan.warning, file=sys.stderr, flush=True)
        with Progress(stacks, sys.stderr if progress else None) as shown:
            seconds = _run_stacks(request, stacks, place, writer, shown)
        writer.finish(seconds, Run(path, temporary).summary())
    return Run(path, temporary)


def check_request(
    base: Any,
    post: Any,
    selection: Selection,
    *,
    metrics: str | Iterable[str] | None,
    dtype: str,
    top_k: int,
    method: str,
    memory_gib: float,
    role_map: str | os.PathLike | Mapping[str, Any] | None = None,
    common_rows: bool = False,
    control_draws: int = DEFAULT_CONTROL_DRAWS,
    seed: int = DEFAULT_SEED,
) -> Request:
    """Opens both checkpoints and plans the comparison; reads headers alone and writes nothing.

    Raises:
        CheckpointError: A checkpoint cannot be read, or the two have nothing in common.
        UsageError: An argument cannot be met, or no matrix is left to compare.
    """
    groups = parse_metrics(metrics)
    if dtype not in DTYPES:
        raise UsageError(f"Unknown dtype {dtype!r}. Expected one of {', '.join(DTYPES)}.")
    if top_k < 1:
        raise UsageError(f"top_k must be at least 1. Got {top_k}.")
    if method not in kernels.SVD_METHODS:
        raise UsageError(f"Unknown method {method!r}. Expected one of {', '.join(kernels.SVD_METHODS)}.")
    if not 0 < memory_gib < math.inf:
        raise UsageError(f"memory_gib must be positive and finite. Got {memory_gib}.")
    for name, number in (("control_draws", control_draws), ("seed", seed)):
        if number < 0:
            raise UsageError(f"{name} must be at least 0. Got {number}.")
    dtype, method = working_dtype(dtype), working_method(method)
    table = parse_role_map(role_map)
    with without_garbage_collection():
        opened = _open_both(base, post)
        plan = plan_comparison(
            *opened,
            selection,
            memory_bytes=int(memory_gib * 2**30),
            dtype=dtype,
            method=method,
            devices=jax.local_device_count(),
            lanes=most_lanes(),
            role_map=table,
            common_rows=common_rows,
            draws=control_draws if sampled_metrics(groups) else 0,
        )
    if not plan.stacks:
        reasons = "; ".join(f"{row.name}: {row.reason}" for row in plan.skipped[:3])
        raise UsageError(f"No matrix can be compared. All {len(plan.skipped)} tensors are skipped: {reasons}.")
    return Request(
        *opened,
        plan,
        selection,
        groups,
        top_k,
        dtype,
        method,
        memory_gib,
        table,
        common_rows,
        control_draws,
        seed,
    )


def _open_both(base: Any, post: Any) -> tuple[Checkpoint, Checkpoint]:
    """Opens base and post; only once if they are one."""
    opened = open_checkpoint(base)
    same = base is post or _location(base) == _location(post) is not None
    return opened, opened if same else open_checkpoint(post)


def _location(source: Any) -> str | None:
    """What tells two paths or URLs apart; None for parameters in memory."""
    if not isinstance(source, (str, bytes, os.PathLike)):
        return None
    text = os.fsdecode(source)
    path = local_path(text) if text else None
    return text if path is None else os.path.realpath(path)


@contextlib.contextmanager
def without_garbage_collection() -> Iterator[None]:
    """For making very many objects that stay: looking for garbage among them takes a third of the time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _describe(request):
    return {
        "base": {"location": request.base.location, "fingerprint": request.base.fingerprint()},
        "post": {"location": request.post.location, "fingerprint": request.post.fingerprint()},
        "flags": {
            **request.selection.describe(),
            "metrics": request.groups,
            "top_k": request.top_k,
            "dtype": request.dtype,
            "method": request.method,
            "memory_gib": request.memory_gib,
            "role_map": request.role_map.describe() if request.role_map else None,
            "common_rows": request.common_rows,
            "control_draws": request.control_draws,
            "seed": request.seed,
        },
        "matrices": request.plan.matrices,
        "environment": describe_environment(),
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def _run_stacks(request, stacks, place, writer, progress):
    """Measures and writes every stack; returns the seconds spent on reading (waiting), compiling and computing.

    The next stack is read while this one is computed, and its program compiled if there is memory for both: of the
    compilation seconds only those before the first stack add to the others then.
    """
    seconds = dict.fromkeys(("read", "compile", "compute"), 0.0)
    if not stacks:
        return seconds
    programs = _Programs(request, stack_mesh(), seconds)
    # Whatever the working precision: without it JAX would cut stored float64 weights to float32 on their way in.
    with (
        jax.enable_x64(True),
        concurrent.futures.ThreadPoolExecutor(max(s.lanes for s in stacks)) as pool,
        StackReads(request.base, request.post, stacks) as reads,
    ):
        programs.of(stacks[0])
        read = iter(reads)
        for stack, following in zip(stacks, (*stacks[1:], None), strict=True):
            before = dict(seconds)
            with _timed(seconds, "read"):
                operands = (*next(read), *_keys(request, stack))
            programs.of(stack)
            with _timed(seconds, "compute"), shared_cores(max(stack.lanes, jax.local_device_count())):
                lanes = programs.start(pool, stack, operands)
                if following is not None and request.plan.compiles_ahead:
                    programs.of(following)
                readings = _as_stored(_joined([lane.result() for lane in lanes]), stack)
            del operands  # its memory is filled again
            rows = [_row(pair, readings, index, request.sampled) for index, pair in enumerate(stack.pairs)]
            arrays = {name: readings[name] for name in _ARRAYS if name in readings}
            writer.write_stack(stack, rows, arrays, [place[pair.name] for pair in stack.pairs])
            progress.advance(stack, *(seconds[what] - before[what] for what in ("read", "compute")))
    return seconds


class _Programs:
    """The compiled programs of a run, one for each shape and pair of dtypes, and how a stack runs through its own."""

    def __init__(self, request, mesh, seconds):
        self._request, self._mesh, self._seconds = request, mesh, seconds
        self._sharding = stack_sharding(mesh)
        self._compiled = {}

    def of(self, stack):
        """The program for one lane of the stack, compiled when it is first asked for."""
        pair = stack.pairs[0]
        shape = (stack.size // stack.lanes, *stack.shape)
        key = (shape, pair.dtype_base, pair.dtype_post)
        if key not in self._compiled:
            with _timed(self._seconds, "compile"):
                operands = [
                    jax.ShapeDtypeStruct(shape, dtype, sharding=self._sharding)
                    for dtype in (pair.dtype_base, pair.dtype_post)
                ]
                if self._request.sampled:
                    operands.append(jax.ShapeDtypeStruct((shape[0], 2), np.uint32, sharding=self._sharding))
                lowered = measure_stack.lower(
                    *operands,
                    groups=self._request.groups,
                    top_k=self._request.top_k,
                    dtype=self._request.dtype,
                    method=self._request.method,
                    draws=self._request.control_draws,
                    mesh=self._mesh,
                    batched=takes_batches(),
                )
                self._compiled[key] = lowered.compile()
                release_free_memory()
        return self._compiled[key]

    def start(self, pool, stack, operands):
        """Starts every lane that holds a matrix; returns their futures, of readings on the host."""
        program, length = self.of(stack), stack.size // stack.lanes
        starts = range(0, len(stack.pairs), length)
        return [
            pool.submit(self._run, program, [operand[start : start + length] for operand in operands])
            for start in starts
        ]

    def _run(self, program, operands):
        with jax.enable_x64(True):  # a setting of each thread
            return jax.device_get(program(*(_place(operand, self._sharding) for operand in operands)))


def _keys(request, stack):
    """One array, (size, 2): what each pair's random changes are drawn from; nothing if there are none."""
    if not request.sampled:
        return ()
    keys = np.zeros((stack.size, 2), np.uint32)
    keys[: len(stack.pairs)] = [matrix_key(request.seed, pair.name) for pair in stack.pairs]
    return (keys,)


def _joined(lanes):
    """The readings of a stack from those of its lanes."""
    return {name: np.concatenate([readings[name] for readings in lanes]) for name in lanes[0]}


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
