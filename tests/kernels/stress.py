"""Runs one program of many LAPACK calls again and again: `python stress.py PROGRAM [--one_cpu]`.

test_deadlock.py starts it in a process of its own, for a program that hangs inside a native call can only be killed.
"""

import concurrent.futures
import os
import sys
import time

import jax
import numpy as np

from polarax import kernels

# Runs at most, and seconds after which no further one is started: a slow machine makes fewer.
RUNS, SECONDS = 400, 8.0
DEVICES = 4


def _stack(count, rows, cols, seed=0):
    return np.random.default_rng(seed).standard_normal((count, rows, cols)).astype(np.float32)


def stacks(method):
    """One call at a time on stacks of several shapes, as a library user makes them."""
    frames = jax.jit(kernels.frames, static_argnames="method")
    overlap = jax.jit(kernels.overlap, static_argnames="method")
    align = jax.jit(kernels.align)
    pairs = [(_stack(4, 64, 64, 1), _stack(4, 64, 64, 2)), (_stack(6, 30, 80, 3), _stack(6, 30, 80, 4))]

    def run():
        return [(frames(*pair, method=method), overlap(*pair, method=method), align(*pair).nf) for pair in pairs]

    return run


def one_program(method):
    """Independent calls inside one jit: XLA runs them concurrently."""
    a, b = _stack(4, 64, 64, 1), _stack(4, 64, 64, 2)

    @jax.jit
    def program(a, b):
        return (
            kernels.svd(a, method=method),
            kernels.svd(b, method=method),
            kernels.singular_values(a + b, method=method),
            kernels.overlap(a, b, method=method),
            kernels.polar(a - b).factor,
            kernels.polar(a, method="qdwh").factor,
            kernels.polar(b, method="polynomial").factor,
            kernels.drift_budget(a, b, method=method),
            kernels.align(a, b, rotations=True, method=method),
        )

    return lambda: program(a, b)


def vmapped(method):
    """The same under the caller's own vmap: twelve batches at once, which as batched LAPACK calls hang at once."""
    a, b = _stack(4, 64, 64, 1), _stack(4, 64, 64, 2)

    def svd(x):
        return kernels.svd(x, method=method)

    def frames(x, y):
        return kernels.frames(x, y, method=method)

    @jax.jit
    def program(a, b):
        return [jax.vmap(svd)(a * scale) for scale in range(1, 13)], jax.vmap(frames)(a, b)

    return lambda: program(a, b)


def devices(method):
    """A stack divided over simulated devices, which share one pool of threads."""
    mesh = jax.sharding.Mesh(jax.devices(), "stack")
    along = jax.sharding.PartitionSpec("stack")
    a, b = _stack(2 * DEVICES, 64, 64, 1), _stack(2 * DEVICES, 64, 64, 2)
    assert len(jax.devices()) == DEVICES

    @jax.jit
    @jax.shard_map(mesh=mesh, in_specs=(along, along), out_specs=along, check_vma=False)
    def program(a, b):
        return kernels.frames(a, b, method=method), jax.vmap(kernels.polar)(a).factor

    return lambda: program(a, b)


def threads(method):
    """Python threads that call at the same time."""
    run_one = one_program(method)
    pool = concurrent.futures.ThreadPoolExecutor(4)
    return lambda: [job.result() for job in [pool.submit(run_one) for _ in range(4)]]


PROGRAMS = {run.__name__: run for run in (stacks, one_program, vmapped, devices, threads)}


def main(name, one_cpu):
    if one_cpu:  # before the backend starts and makes its pool
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    runs = {method: PROGRAMS[name](method) for method in ("auto", "lapack")}
    count, started = 0, None
    while count < RUNS and (started is None or time.monotonic() - started < SECONDS):
        for run in runs.values():
            jax.block_until_ready(run())
        count += 1
        started = started or time.monotonic()  # compiling does not count
    print(f"{count} runs of {name}")


if __name__ == "__main__":
    main(sys.argv[1], "--one_cpu" in sys.argv)
