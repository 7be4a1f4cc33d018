"""The whole analysis of a pair beside its floor, and where the rest goes: one pair on each core, as a run has them.

The floor of a pair is what cannot be left out, each part measured in the same rounds, with the threads and the
neighbours that it has in a run: two eigendecompositions in float64, the eigenvalues of the change, and these products,
in units of one of n x n matrices (the pair is m x n, m >= n):

- float64: W_b^T W_b and D^T D, half of each by symmetry, and W_b^T D, m / n of them; two for E, one each for Q_V, Q_U,
  and half for the fit's Q S Q^T;
- float32: for the fit half of X^T X, and one for a step.
"""

import concurrent.futures
import functools
import statistics
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from jax import lax

from benchmarks import device
from benchmarks.cases import Case, Record, raced
from benchmarks.engine import ALL_GROUPS, nominal_operations
from benchmarks.matrices import weight_pairs
from benchmarks.options import Options
from benchmarks.shapes import CONFIGS, distinct_shapes, shrunk
from benchmarks.timing import Contestant
from polarax import kernels
from polarax.kernels.gram import eigenvalue_roots, pair_grams
from polarax.measuring.program import measure_stack
from polarax.planning.devices import lone_cpu, most_lanes, shared_cores
from polarax.planning.measurement import Measurement

_FLOAT32_PRODUCTS = 1.5
# Contestants that stand for parts of the floor.
_EIGH, _VALUES, _FLOAT64, _FLOAT32 = (
    "an eigendecomposition", "eigenvalues of the change", "a float64 product", "a float32 product",
)  # fmt: skip


def cases(options: Options) -> list[Case]:
    """Every shape of the models, as it is computed: m >= n. On a CPU alone, where a run is by lanes."""
    if not lone_cpu():
        return []
    shapes = {
        (shrunk(max(shape), options.shrink), shrunk(min(shape), options.shrink)): model
        for model in options.models
        for shape in distinct_shapes(CONFIGS[model])
    }
    return [
        Case(f"{model}, {rows} x {cols} and its floor", functools.partial(_race, options, model, rows, cols))
        for (rows, cols), model in sorted(shapes.items())
    ]


def _race(options, model, rows, cols) -> list[Record]:
    lanes = most_lanes()
    base, post = weight_pairs(rows, cols, lanes, dtype=np.dtype(ml_dtypes.bfloat16), seed=options.seed)
    pairs = [(device.put(base[lane]), device.put(post[lane])) for lane in range(lanes)]
    records = raced(
        _contestants(pairs),
        options,
        case=f"{model} floor of {rows}x{cols}",
        rows=rows,
        cols=cols,
        lanes=lanes,
    )
    records[0]["operations"] = nominal_operations(rows, cols, lanes)
    samples = {record["contestant"]: record["samples"] for record in records if record.get("samples")}
    if len(samples) == len(records):
        float64_products = 2 * rows / cols + 4.5
        floors = [
            2 * eigh + values + float64_products * float64 + _FLOAT32_PRODUCTS * float32
            for eigh, values, float64, float32 in zip(
                *(samples[name] for name in (_EIGH, _VALUES, _FLOAT64, _FLOAT32)), strict=True
            )
        ]
        whole = samples["polarax"]
        records[0]["floor_seconds"] = statistics.median(floors)
        records[0]["times_floor"] = statistics.median(
            seconds / floor for seconds, floor in zip(whole, floors, strict=True)
        )
    return records


def _contestants(pairs) -> list[Contestant]:
    measurement = Measurement(ALL_GROUPS)
    script = Measurement(("scaling", "rotation"))
    with device.scope("float64"):
        grams = [jax.jit(_grams)(*pair) for pair in pairs]
        changes = [jax.block_until_ready(of_pair[1].change) for of_pair in grams]
        frames = [(_frames(*pair),) for pair in pairs]
    bases = [(of_pair[0],) for of_pair in grams]
    stacks = [(base[None], (post[None],)) for base, post in pairs]
    narrow = [(gram.astype(np.float32),) * 2 for (gram,) in bases]
    whole = functools.partial(jax.jit, static_argnames=("measurement", "batched"))(measure_stack)
    return [
        _side_by_side("polarax", functools.partial(whole, measurement=measurement, batched=False), stacks),
        _side_by_side(
            "polarax, scaling and rotation", functools.partial(whole, measurement=script, batched=False), stacks
        ),
        _side_by_side("of it: Gram matrices", _grams, pairs),
        _side_by_side("of it: frames, with these and all eigenproblems", _frames, pairs),
        _side_by_side("of it: fit", kernels.fit_of_frames, frames),
        _side_by_side(_EIGH, _eigh, bases),
        _side_by_side(_VALUES, eigenvalue_roots, [(change,) for change in changes]),
        _side_by_side(_FLOAT64, jnp.matmul, [base * 2 for base in bases]),
        _side_by_side(_FLOAT32, jnp.matmul, narrow),
    ]


@jax.jit
def _frames(base, post):
    return kernels.frames(base, post, change_values=True, dtype="float64")


def _grams(base, post):
    return pair_grams(base, post, lambda x: x.astype(jnp.float64))


def _eigh(upper):
    return lax.linalg.eigh(upper.T, symmetrize_input=False)


def _side_by_side(name: str, function: Callable, arguments: Sequence[tuple[Any, ...]]) -> Contestant:
    """One program on the arguments of each lane at the same time, each lane with its share of the cores."""
    program = device.Compiled(jax.jit(function), arguments[0], {}, "float64")

    def call():
        with concurrent.futures.ThreadPoolExecutor(len(arguments)) as pool, shared_cores(len(arguments)):
            return list(pool.map(program.on, arguments))

    return Contestant(name, call, program.prepare, {"dtype": "float64"})
