"""polarax's own contestants: the whole analysis of a stack of pairs, and each kernel alone.

Methods are asked of `polarax.kernels` when the suite runs, so that a new one is measured without a
change here.
"""

import concurrent.futures
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import numpy as np

from benchmarks import device, peers
from benchmarks.timing import Contestant
from polarax import kernels
from polarax.measuring.program import measure_stack
from polarax.metrics import GROUPS
from polarax.planning.devices import lone_cpu, most_lanes, shared_cores, takes_batches
from polarax.planning.measurement import Measurement
from polarax.planning.stacks import pair_operations

ALL_GROUPS = tuple(GROUPS)
# What the peers' script reads too: it leaves out the spectrum of the change, a third SVD.
SCRIPT_GROUPS = tuple(group for group in GROUPS if group != "shape")


class Kernel(NamedTuple):
    """A function of polarax.kernels and what the peers do for the same result."""

    methods: tuple[str, ...]
    ours: Callable[[jax.Array, jax.Array, str], object]  # (base, post, method)
    theirs: Callable[[peers.Library, object, object], object]  # (library, base, post)
    operations: Callable[[int, int], float]  # (m, n), m >= n: nominal, as polarax.planning.comparison_plan counts


def _with_vectors(m, n):
    return 6 * m * n**2 + 20 * n**3


KERNELS = {
    "svd": Kernel(
        kernels.SVD_METHODS,
        lambda base, post, method: kernels.svd(base, method=method),
        lambda library, base, post: library.svd(base),
        _with_vectors,
    ),
    "singular values": Kernel(
        kernels.SVD_METHODS,
        lambda base, post, method: kernels.singular_values(base, method=method),
        lambda library, base, post: library.singular_values(base),
        lambda m, n: 2 * m * n**2 + 2 * n**3,
    ),
    "polar factor": Kernel(
        kernels.POLAR_METHODS,
        lambda base, post, method: kernels.polar(base, method=method).factor,
        lambda library, base, post: peers.polar(library, base),
        lambda m, n: _with_vectors(m, n) + 2 * m * n**2,
    ),
    "nf": Kernel(
        kernels.POLAR_METHODS,
        lambda base, post, method: kernels.align(base, post, method=method).nf,
        peers.rotation_difference,
        lambda m, n: 2 * _with_vectors(m, n) + 2 * m * n**2 + 4 * n**3,
    ),
    "drift budget": Kernel(
        kernels.SVD_METHODS,
        lambda base, post, method: tuple(kernels.drift_budget(base, post, method=method)),
        peers.drift_budget,
        lambda m, n: _with_vectors(m, n) + 2 * m * n**2 + 2 * n**3,
    ),
}


def pair_analysis(
    name: str,
    base: jax.Array,
    post: jax.Array,
    *,
    dtype: str,
    groups: Sequence[str] = ALL_GROUPS,
    method: str = "auto",
) -> Contestant:
    """The whole analysis of a stack of pairs, (count, m, n) each, by one program; of wide ones as a run reads them."""
    base, post = map(_tall, (base, post))
    measurement = Measurement(tuple(groups), dtype=dtype, method=method)
    keywords = {"measurement": measurement, "batched": takes_batches()}
    return device.contestant(name, measure_stack, (base, (post,)), keywords, dtype=dtype, method=method)


def in_lanes(
    name: str, base: np.ndarray, post: np.ndarray, *, dtype: str, groups: Sequence[str] = ALL_GROUPS
) -> Contestant:
    """The same analysis as `polarax compare` runs it: on CPU pair by pair on each core, elsewhere in one program."""
    if not lone_cpu():
        return pair_analysis(name, device.put(base), device.put(post), dtype=dtype, groups=groups)
    pairs = _one_by_one(base, post)
    length = -(-len(pairs) // most_lanes())
    lanes = [pairs[start : start + length] for start in range(0, len(pairs), length)]
    single = pair_analysis(name, pairs[0][0], pairs[0][1][0], dtype=dtype, groups=groups)
    return Contestant(name, _SideBySide(single.call, lanes), single.prepare, single.about)


class _SideBySide:
    """One program on the pairs of several lanes at the same time, each with its share of the cores."""

    def __init__(self, program, lanes):
        self._program, self._lanes = program, lanes

    def __call__(self):
        count = len(self._lanes)
        with concurrent.futures.ThreadPoolExecutor(count) as pool, shared_cores(count):
            return list(pool.map(self._lane, self._lanes))

    def memory(self):
        """What all of them take together, as `device.Compiled.memory`."""
        return {name: len(self._lanes) * size for name, size in self._program.memory().items()}

    def _lane(self, pairs):
        return [self._program.on(pair) for pair in pairs]


def _one_by_one(base, post):
    """Each pair on the device, as the arguments for a stack of one."""
    base, post = map(_tall, (base, post))
    return [(device.put(base[i : i + 1]), (device.put(post[i : i + 1]),)) for i in range(len(base))]


def _tall(stack):
    return stack.swapaxes(1, 2) if stack.shape[1] < stack.shape[2] else stack


def one_at_a_time(name: str, base: np.ndarray, post: np.ndarray, *, dtype: str) -> Contestant:
    """The same analysis by one call for each pair, from one compiled program."""
    pairs = _one_by_one(base, post)
    single = pair_analysis(name, pairs[0][0], pairs[0][1][0], dtype=dtype)

    def call():
        for pair in pairs:
            single.call.on(pair)

    return Contestant(name, call, single.prepare, single.about)


def kernel_contestants(
    kernel: Kernel, base: jax.Array, post: jax.Array, *, dtype: str, methods: Sequence[str] = ()
) -> list[Contestant]:
    """One contestant for each method of a kernel, "auto" first.

    Args:
        kernel: One of `KERNELS`.
        base: (m, n).
        post: (m, n).
        dtype: Of both.
        methods: Only these; all for ().
    """
    return [
        device.contestant(
            f"polarax {method}",
            lambda base, post, method=method: kernel.ours(base, post, method),
            (base, post),
            dtype=dtype,
            method=method,
        )
        for method in kernel.methods
        if not methods or method in methods
    ]


def nominal_operations(rows: int, cols: int, count: int = 1) -> float:
    """Nominal floating-point operations of the analysis of `count` pairs."""
    return count * pair_operations(rows, cols)
