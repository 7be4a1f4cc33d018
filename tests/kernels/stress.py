"""Runs programs of many LAPACK calls again and again: `python stress.py [--one_cpu] PROGRAM...`.

test_deadlock.py starts it in a process of its own, for a program that hangs inside a native call can only be killed.
"""

import concurrent.futures
import os
import sys
import time

import jax
import numpy as np

from polarax import kernels

# Runs of a program at most, and seconds after which no further one is started: a slow machine makes fewer.
RUNS, SECONDS = 400, 5.0
DEVICES = 4


def _stack(count, rows, cols, seed):
    return np.random.default_rng(seed).standard_normal((count, rows, cols)).astype(np.float32)


def stacks():
    """One call after another, as a library user makes them."""
    functions = [jax.jit(function) for function in (kernels.frames, kernels.overlap, kernels.align)]
    pair = _stack(4, 64, 64, 1), _stack(4, 64, 64, 2)
    wide = _stack(6, 30, 80, 3), _stack(6, 30, 80, 4)
    return lambda: [function(*pair) for function in functions] + [functions[0](*wide)]


def one_program():
    """Independent calls inside one jit: XLA runs them concurrently."""
    a, b = _stack(4, 64, 64, 1), _stack(4, 64, 64, 2)

    @jax.jit
    def program(a, b):
        return (
            kernels.svd(a),
            kernels.svd(b, method="lapack"),
            kernels.singular_values(a + b),
            kernels.overlap(a, b, method="lapack"),
            kernels.polar(a - b).factor,
            kernels.polar(a, method="qdwh").factor,
            kernels.polar(b, method="polynomial").factor,
            kernels.drift_budget(a, b),
            kernels.align(b, a, rotations=True),
        )

    return lambda: program(a, b)


def vmapped():
    """The caller's own vmap: twelve batches at once, of which batched LAPACK calls would hang in the first run."""
    a, b = _stack(4, 64, 64, 1), _stack(4, 64, 64, 2)

    def svd(x):
        return kernels.svd(x, method="lapack")

    @jax.jit
    def program(a, b):
        return [jax.vmap(svd)(a * scale) for scale in range(1, 13)], jax.vmap(kernels.frames)(a, b)

    return lambda: program(a, b)


def threads():
    """Python threads that call at the same time."""
    run_one = vmapped()
    pool = concurrent.futures.ThreadPoolExecutor(4)
    return lambda: [job.result() for job in [pool.submit(run_one) for _ in range(4)]]


def devices():
    """A stack divided over simulated devices, which share one pool of threads."""
    mesh = jax.sharding.Mesh(jax.devices(), "stack")
    along = jax.sharding.PartitionSpec("stack")
    a, b = _stack(4 * DEVICES, 64, 64, 1), _stack(4 * DEVICES, 64, 64, 2)
    assert len(jax.devices()) == DEVICES

    @jax.jit
    @jax.shard_map(mesh=mesh, in_specs=(along, along), out_specs=along, check_vma=False)
    def program(a, b):
        return kernels.frames(a, b), jax.vmap(kernels.polar)(a).factor

    return lambda: program(a, b)


PROGRAMS = {program.__name__: program for program in (stacks, one_program, vmapped, threads, devices)}


def main(arguments):
    if "--one_cpu" in arguments:  # before the backend starts and makes its pool
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    for name in arguments:
        if name in PROGRAMS:
            run = PROGRAMS[name]()
            jax.block_until_ready(run())  # compiling does not count
            count, started = 1, time.monotonic()
            while count < RUNS and time.monotonic() - started < SECONDS:
                jax.block_until_ready(run())
                count += 1
            print(f"{name}: {count} runs", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
