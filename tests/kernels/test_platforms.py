"""Programs lowered for platforms that this machine does not have: what they would run there."""

import jax
import numpy as np
import pytest

from polarax import kernels

STACK = jax.ShapeDtypeStruct((3, 24, 16), np.float32)
PROGRAMS = {
    "svd": kernels.svd,
    "singular_values": kernels.singular_values,
    "polar": kernels.polar,
    "frames": lambda x: kernels.frames(x, 2 * x),
    "align": lambda x: kernels.align(x, 2 * x),
    "drift_budget": lambda x: kernels.drift_budget(x, 2 * x),
    "overlap": lambda x: kernels.overlap(x, 2 * x),
    "polar_pair": lambda x: kernels.polar_pair(x, 2 * x),
}


def _lowered(program, platform):
    return jax.jit(program).trace(STACK).lower(lowering_platforms=(platform,)).as_text()


@pytest.mark.parametrize("platform", ["cpu", "cuda", "tpu"])
@pytest.mark.parametrize("name", PROGRAMS)
def test_every_product_states_its_precision(name, platform):
    """Accelerators would take float32 products in TF32 or bfloat16 otherwise."""
    products = [line for line in _lowered(PROGRAMS[name], platform).splitlines() if "dot_general" in line]
    assert products
    assert [line for line in products if "HIGHEST" not in line] == []


@pytest.mark.parametrize("name", PROGRAMS)
def test_no_float64_on_tpu(name):
    assert "f64" not in _lowered(PROGRAMS[name], "tpu")


@pytest.mark.parametrize("mapped", [False, True])
@pytest.mark.parametrize("name", ["svd", "singular_values", "frames", "drift_budget", "overlap"])
def test_cuda_gets_the_batch(name, mapped):
    """No loop over matrices, where the CPU has one."""
    program = jax.vmap(PROGRAMS[name]) if mapped else PROGRAMS[name]
    assert "stablehlo.while" not in _lowered(program, "cuda")
    assert "stablehlo.while" in _lowered(program, "cpu")


@pytest.mark.parametrize("name", ["svd", "singular_values", "frames", "drift_budget", "overlap"])
def test_only_tpus_take_the_polar_route(name):
    def functions(platform):  # by name, from where each operation comes
        traced = jax.jit(PROGRAMS[name]).trace(STACK)
        return traced.lower(lowering_platforms=(platform,)).as_text(debug_info=True)

    assert "svd_by_polar" in functions("tpu")
    assert "svd_by_polar" not in functions("cuda")
    assert "svd_by_polar" not in functions("cpu")
