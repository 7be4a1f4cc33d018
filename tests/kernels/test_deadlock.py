"""No program of the kernels can hang in jaxlib's CPU linear algebra (see polarax.kernels.sequential).

What jaxlib 0.10.0 to 0.11.0 hangs on is several LAPACK calls in flight that hold more than one matrix each. The first
tests read that off the compiled programs; the others run them for a while in processes that can be killed.
"""

import os
import pathlib
import re
import subprocess
import sys

import jax
import numpy as np
import pytest

from polarax import kernels
from polarax.kernels import sequential
from tests.kernels import matrices, stress

STRESS = pathlib.Path(stress.__file__)
# Seconds for one process; a run takes about fifteen, a hang lasts for ever.
TIMEOUT = 150

STACK = np.ones((2, 3, 7, 5), np.float32)
PAIR = (STACK, 2 * STACK)


def _lapack_calls(function, *arguments):
    """Shapes in every call of a LAPACK or BLAS routine of the program compiled for this CPU."""
    text = jax.jit(function).lower(*arguments).compile().as_text()
    calls = [line for line in text.splitlines() if re.search(r'custom_call_target="(lapack|blas)_', line)]
    return [
        [tuple(int(size) for size in shape.split(",") if size) for shape in re.findall(r"[fs]\d+\[([\d,]*)\]", call)]
        for call in calls
    ]


def _batched(shapes):
    return [shape for shape in shapes if np.prod(shape[:-2], dtype=int) > 1]


PROGRAMS = {
    **{("svd", m): lambda x, m=m: kernels.svd(x, method=m) for m in kernels.SVD_METHODS},
    **{("values", m): lambda x, m=m: kernels.singular_values(x, method=m) for m in kernels.SVD_METHODS},
    **{("polar", m): lambda x, m=m: kernels.polar(x, method=m).factor for m in kernels.POLAR_METHODS},
    **{("frames", m): lambda x, m=m: kernels.frames(x, 2 * x, method=m) for m in kernels.SVD_METHODS},
    ("align", ""): lambda x: kernels.align(x, 2 * x).nf,
    ("rotations", ""): lambda x: kernels.align(x, 2 * x, rotations=True),
    ("overlap", ""): lambda x: kernels.overlap(x, 2 * x),
    ("budget", ""): lambda x: kernels.drift_budget(x, 2 * x),
}


@pytest.mark.pairwise
@pytest.mark.parametrize("dtype", matrices.WORKING_DTYPES)
@pytest.mark.parametrize(("function", "method"), PROGRAMS)
def test_no_lapack_call_holds_more_than_one_matrix(function, method, dtype):
    """As it is, and mapped over both leading axes by the caller."""
    program = PROGRAMS[function, method]
    with jax.enable_x64(dtype == "float64"):
        calls = _lapack_calls(lambda x: (program(x), jax.vmap(jax.vmap(program))(x)), STACK.astype(dtype))
    assert calls
    assert [shapes for shapes in calls if _batched(shapes)] == []


def test_batched_calls_are_seen():
    calls = _lapack_calls(lambda x: jax.lax.linalg.svd(x, full_matrices=False), STACK[0])
    assert [len(_batched(shapes)) > 0 for shapes in calls] == [True]


@pytest.mark.stress
@pytest.mark.parametrize(
    "arguments, environment",
    [
        # With threads of its own OpenBLAS is another thing to wait for, and many times slower: fewer runs are made.
        ("stacks one_program vmapped", {"OPENBLAS_NUM_THREADS": "1"}),
        pytest.param("one_program threads", {"OPENBLAS_NUM_THREADS": "2"}, marks=pytest.mark.exhaustive),
        pytest.param("--one_cpu one_program", {}, marks=pytest.mark.exhaustive),
        ("devices", {"XLA_FLAGS": f"--xla_force_host_platform_device_count={stress.DEVICES}"}),
    ],
)
def test_runs_on_and_on(arguments, environment):
    if "--one_cpu" in arguments and not hasattr(os, "sched_setaffinity"):
        pytest.skip("this system has no sched_setaffinity")
    # XLA's pool has as many threads as there are processors: the fewer, the sooner all of them wait.
    usual = {**os.environ, "XLA_FLAGS": "", "NPROC": "2", "JAX_PLATFORMS": "cpu", "JAX_DISABLE_MOST_OPTIMIZATIONS": "0"}
    done = subprocess.run(
        [sys.executable, STRESS, *arguments.split()],
        env=usual | environment,
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    programs = [name for name in arguments.split() if name in stress.PROGRAMS]
    assert re.findall(r"(\w+): [1-9]\d* runs\n", done.stdout) == programs


# How the calls are kept apart.


def _sums(x):
    return {"sum": x.sum(), "rows": x.sum(axis=1)}


@pytest.mark.parametrize("shape", [(4, 3), (5, 4, 3), (2, 5, 4, 3), (0, 4, 3), (2, 0, 4, 3)], ids=str)
def test_one_at_a_time(shape):
    x = matrices.generator("sequential", shape).standard_normal(shape).astype(np.float32)
    for way in (sequential.one_at_a_time, jax.jit(sequential.one_at_a_time, static_argnums=0)):
        found = way(_sums, x)
        np.testing.assert_allclose(found["sum"], x.sum(axis=(-2, -1)), rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(found["rows"], x.sum(axis=-1), rtol=1e-5, atol=1e-5)


def test_the_function_sees_one_matrix_however_it_is_mapped():
    seen = []

    def look(x):
        seen.append(x.shape)
        return x.sum()

    def total(x):
        return sequential.one_at_a_time(look, x)

    x = np.ones((2, 3, 4, 5), np.float32)
    for way in (total, jax.vmap(total), jax.vmap(jax.vmap(total)), jax.vmap(total, in_axes=1, out_axes=1)):
        np.testing.assert_array_equal(way(x), np.full((2, 3), 20))
    assert set(seen) == {(4, 5)}


def test_by_leading_axes():
    """The function is called with the stack, in the scope that it sets up, whatever is mapped over what."""

    def product(x, y):
        with jax.enable_x64(True):
            return (x.astype("float64") @ y.astype("float64")).astype("float32")

    mapped = sequential.by_leading_axes(product)
    x = matrices.generator("x").standard_normal((2, 3, 4, 5)).astype(np.float32)
    y = matrices.generator("y").standard_normal((2, 3, 5, 6)).astype(np.float32)
    expected = (x.astype(np.float64) @ y.astype(np.float64)).astype(np.float32)
    for way in (mapped, jax.vmap(mapped), jax.jit(jax.vmap(jax.vmap(mapped)))):
        np.testing.assert_allclose(way(x, y), expected, rtol=2e-7)
    one_y = jax.vmap(jax.vmap(mapped, in_axes=(0, None)), in_axes=(0, None))(x, y[0, 0])
    np.testing.assert_allclose(one_y[0, 0], expected[0, 0], rtol=2e-7)
    np.testing.assert_allclose(one_y, x @ y[0, 0], rtol=1e-5, atol=1e-5)


def test_after_changes_nothing():
    x = np.ones((2, 3), np.float32)
    for earlier in (np.zeros((2, 2), np.float32), np.zeros((0, 2), np.float32), np.array(-1.0, np.float32)):
        np.testing.assert_array_equal(sequential.after(x, earlier), x)
