"""How fast a device computes, measured in a moment or from its maker's data sheet, and how long stacks take by it.

The work of a pair is of two kinds that run at very different rates: matrix products, and the decompositions of n x n
matrices, which move more memory than they compute. Each method counts its own (`polarax.kernels.methods`). The rate is
measured with the same count, so that only its scaling matters.
"""

import concurrent.futures
import time
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from polarax.errors import UsageError
from polarax.kernels import RANDOM_CHANGES
from polarax.kernels.methods import eigen_operations, method_named
from polarax.planning.devices import most_lanes, shared_cores, takes_batches, working_dtype
from polarax.planning.stacks import Stack

# Matrices to measure by: large enough for a rate near that of a model's, small enough for a second in all.
_SIZE_CPU, _SIZE_ACCELERATOR = 512, 2048
_REPEATS = 2  # the faster one counts: the other was disturbed

# Parts of a data sheet's peak that are assumed to be reached. In eigenproblems: cuSOLVER stays below 3% on an H100 (H.
# Wang et al., Extracting the Potential of Emerging Hardware Accelerators for Symmetric Eigenvalue Decomposition, 2024).
# In products: large square ones get more, those of small or narrow matrices less. Not measured with polarax.
PRODUCTS_SHARE = 0.5
DECOMPOSITIONS_SHARE = 0.02

# Products with a few columns, which a first look is made of, run at a part of the rate of square ones: they read the
# whole matrix for each. Measured on two cores.
NARROW_SHARE = 0.25

# Float32 products on TPUs take six passes in bfloat16 (jax.lax.Precision.HIGHEST), whose rate alone the makers give.
_TPU_PASSES = 6


# Seconds until a process works and until it has ended, beside compiling: importing, joining the others, leaving.
START_SECONDS = 5.0

# Seconds that compiling a program takes where none is kept from a run before: 2 on two cores, 6 to 9 on an H200.
_COMPILING_CPU, _COMPILING_ACCELERATOR = 2.0, 7.5


class Rates(NamedTuple):
    """Floating-point operations a second, and what does not depend on them."""

    products: float  # of matrix products
    decompositions: float  # of symmetric eigenproblems
    start: float = 0.0  # seconds that each eigenproblem takes besides, however small
    compiling: float = 0.0  # seconds that a program takes to compile

    def times(self, factor: float) -> "Rates":
        """Those of several such devices together, each with matrices of its own."""
        return Rates(self.products * factor, self.decompositions * factor, self.start / factor, self.compiling)

    def starting_seconds(self, stacks: Iterable[Stack]) -> float:
        """Expected time of starting, compiling and ending where no compiled program is kept from a run before.

        One program for each shape and dtypes makes the frames, one for each smaller side reads them.
        """
        programs = {stack.program for stack in stacks}
        return START_SECONDS + self.compiling * (len(programs) + len({shape[1] for shape, *_ in programs}))

    def seconds(self, stacks: Iterable[Stack], method: str = "auto") -> float:
        """Expected computing time of stacks, in seconds, with every metric and without compilation."""
        return sum(self.seconds_of_a_matrix(stack, method) * stack.size for stack in stacks)

    def seconds_of_a_matrix(self, stack: Stack, method: str = "auto") -> float:
        """Expected computing time of each matrix of a stack with all its posts, padding the same."""
        if stack.columns:
            return stack.operations / len(stack.pairs) / (self.products * NARROW_SHARE)
        drawn = len(RANDOM_CHANGES) * stack.draws
        count = method_named(method).operations
        products, decompositions = count(*stack.shape, posts=len(stack.posts), random_changes=drawn)
        problems = decompositions / eigen_operations(min(stack.shape))
        return products / self.products + decompositions / self.decompositions + problems * self.start


class Device(NamedTuple):
    """A device as its maker's data sheet describes it."""

    float64: float | None  # peak of matrix products, TFLOP/s; None where it is too slow to be used
    float32: float
    memory: int  # GB
    measured: Rates | None = None  # in float64, where it was

    def rates(self, dtype: str) -> Rates:
        """Rates in "float64", "float32" or "auto", which is float64 where there is any.

        Raises:
            UsageError: There is no fast float64.
        """
        if dtype == "float64" and self.float64 is None:
            raise UsageError("--dtype=float64 was asked for, of which the device has none that is fast.")
        if self.measured is not None and dtype != "float32":
            return self.measured
        peak = self.float32 if dtype == "float32" else self.float64 or self.float32
        return Rates(peak * 1e12 * PRODUCTS_SHARE, peak * 1e12 * DECOMPOSITIONS_SHARE, compiling=_COMPILING_ACCELERATOR)


# Of whole pairs of 1536, 2048 and 4096 rows, which take 0.064, 0.090 and 0.380 s (docs/benchmarks.md), and of products.
# These fit to 3%.
_H200 = Rates(51e12, 6e12, start=0.016, compiling=_COMPILING_ACCELERATOR)

# Data sheets of NVIDIA (SXM where there is a choice) and AMD; for TPUs Google's "TPU versions", bfloat16 by passes.
DEVICES = {
    "a100": Device(19.5, 19.5, 80),
    "h100": Device(67, 67, 80),
    "h200": Device(67, 67, 141, _H200),
    "l4": Device(None, 30.3, 24),
    "mi300x": Device(163.4, 163.4, 192),
    "tpu-v4": Device(None, 275 / _TPU_PASSES, 32),
    "tpu-v5e": Device(None, 197 / _TPU_PASSES, 16),
    "tpu-v5p": Device(None, 459 / _TPU_PASSES, 95),
    "tpu-v6e": Device(None, 918 / _TPU_PASSES, 32),
}


# A core with AVX-512, by the benchmarks' 1536 x 1536: what one operation takes beside another.
_CPU = Rates(83e9, 64e9, compiling=_COMPILING_CPU)


def typical_rates(*, accelerator: bool | None = None) -> Rates:
    """Rates by which shares are compared where nothing may be measured, since all hosts have to come to the same.

    Args:
        accelerator: What they are for; whether this process's devices are some by default.
    """
    return _H200 if (takes_batches() if accelerator is None else accelerator) else _CPU


def measure_rates() -> Rates:
    """Rates of this process's devices together, measured now: two small programs, run as a comparison would run them.

    On CPU as many at a time as there are lanes; of several accelerators one stands for all.
    """
    size, at_once = (_SIZE_ACCELERATOR, 1) if takes_batches() else (_SIZE_CPU, most_lanes())
    alike = jax.local_device_count() if takes_batches() else at_once
    entries = np.random.default_rng(0).standard_normal((size, size))
    with jax.enable_x64(True):
        matrix = jnp.asarray(entries + entries.T, working_dtype("auto"))
        product = _seconds(lambda x: jnp.matmul(x, x, precision=lax.Precision.HIGHEST), matrix, at_once)
        eigen = _seconds(lax.linalg.eigh, matrix, at_once)
    compiling = _COMPILING_ACCELERATOR if takes_batches() else _COMPILING_CPU
    return Rates(alike * 2 * size**3 / product, alike * eigen_operations(size) / eigen, compiling=compiling)


def _seconds(function: Callable[[jax.Array], Any], matrix: jax.Array, at_once: int) -> float:
    """Shortest time in which a function is computed `at_once` times side by side, compiled before."""
    program = jax.jit(function).lower(matrix).compile()

    def run(_: int) -> None:
        with jax.enable_x64(True):  # a setting of each thread
            jax.block_until_ready(program(matrix))

    taken = []
    with concurrent.futures.ThreadPoolExecutor(at_once) as pool, shared_cores(at_once):
        for _ in range(1 + _REPEATS):
            start = time.perf_counter()
            list(pool.map(run, range(at_once)))
            taken.append(time.perf_counter() - start)
    return min(taken[1:])  # the first one loads libraries and starts threads
