"""The compiled program for platforms that are not at hand, read from its lowered text."""

import functools
import re
from collections import Counter

import jax
import jax.numpy as jnp
import pytest
from jax import export

from polarax.measuring.program import measure_stack
from polarax.metrics import quick_groups
from polarax.planning.measurement import Measurement


def lowered(platform, dtype, shape, **what):
    """StableHLO text of the analysis of four bfloat16 pairs; the whole one unless something else is asked for."""
    program = jax.jit(functools.partial(measure_stack, measurement=Measurement(dtype=dtype, **what)))
    stack = jax.ShapeDtypeStruct((4, *shape), jnp.bfloat16)
    # The custom calls of the linear algebra are what is looked at, not a promise that they stay the same for years.
    checks = [export.DisabledSafetyCheck.custom_call("cusolver_gesvdj_ffi")]
    with jax.enable_x64(dtype == "float64"):
        return export.export(program, platforms=[platform], disabled_checks=checks)(stack, (stack,)).mlir_module()


def custom_calls(text):
    return Counter(re.findall(r"stablehlo\.custom_call @(\w+)", text))


@pytest.mark.parametrize("shape", [(96, 64), (64, 96), (64, 64)])
def test_tpu_gets_no_float64_and_its_own_solvers(shape):
    text = lowered("tpu", "float32", shape)
    assert not re.search(r"tensor<(\d+x)*f64>", text)
    assert not any(name.startswith(("lapack", "cusolver")) for name in custom_calls(text))


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_cuda_takes_the_gram_route(dtype):
    calls = custom_calls(lowered("cuda", dtype, (96, 64)))
    assert any("syevd" in name for name in calls)
    assert not any(name.startswith("lapack") for name in calls)


def test_cpu_takes_the_gram_route():
    calls = custom_calls(lowered("cpu", "float64", (96, 64)))
    assert calls["lapack_dsyevd_ffi"]
    assert not any(name.startswith("cusolver") for name in calls)


@pytest.mark.parametrize(("platform", "dtype"), [("cuda", "float64"), ("cuda", "float32"), ("cpu", "float64")])
def test_every_product_is_at_full_precision(platform, dtype):
    products = re.findall(r"stablehlo\.dot_general.*", lowered(platform, dtype, (96, 64)))
    assert products
    assert not [line for line in products if "precision = [HIGHEST, HIGHEST]" not in line]


HEADLINES = {"groups": ("polar",), "by_products": True}


@pytest.mark.parametrize("shape", [(96, 64), (64, 64)])
@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_headlines_by_products(platform, shape):
    """No float64, every product at full precision, nothing from the host; an SVD for each matrix that needs one."""
    text = lowered(platform, "float32", shape, **HEADLINES)
    assert not re.search(r"tensor<(\d+x)*f64>", text)
    products = re.findall(r"stablehlo\.dot_general.*", text)
    assert len(products) > 20
    assert not [line for line in products if "precision = [HIGHEST, HIGHEST]" not in line]
    calls = custom_calls(text)
    assert not [name for name in calls if "callback" in name or name.startswith("lapack") or "syev" in name]
    if platform == "cuda":
        single = f"tensor<{shape[0]}x{shape[1]}xf32>"
        decomposed = re.findall(r"@cusolver_gesvdj_ffi\(.*", text)
        assert len(decomposed) == 2 and all(single in line for line in decomposed)


def test_headlines_by_products_in_float64_on_cuda():
    text = lowered("cuda", "float64", (64, 64), **HEADLINES)
    assert re.search(r"tensor<4x64x64xf64>", text)
    assert not [name for name in custom_calls(text) if "callback" in name or name.startswith("lapack")]


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_eigenproblems_of_a_stack_are_one_call(platform):
    """No loop over matrices anywhere in the whole analysis: all four are given at once."""
    text = lowered(platform, "float32" if platform == "tpu" else "float64", (64, 64))
    solved = re.findall(r"@(?:cusolver_syevd_ffi|Eigh)\(.*", text)
    assert solved and all(re.search(r"\(tensor<\d+x\d+x\d+xf\d\d>\) ->", line) for line in solved)
    assert not [name for name in custom_calls(text) if "callback" in name]


@pytest.mark.parametrize("shape", [(96, 64), (64, 64)])
@pytest.mark.parametrize(("platform", "dtype"), [("cuda", "float64"), ("cuda", "float32"), ("tpu", "float32")])
def test_a_first_look(platform, dtype, shape):
    """Products with the matrices in float32 at full precision; eigenproblems are of a few blocks, nothing larger."""
    quick = {"quick": True, "groups": quick_groups()}
    text = lowered(platform, dtype, shape, **quick)
    if platform == "tpu":
        assert not re.search(r"tensor<(\d+x)*f64>", text)
    products = re.findall(r"stablehlo\.dot_general.*", text)
    with_matrices = [line for line in products if re.search(rf"tensor<(4x)?{shape[0]}x{shape[1]}x", line)]
    assert with_matrices and not [line for line in with_matrices if "f64" in line]
    assert not [line for line in products if "precision = [HIGHEST, HIGHEST]" not in line]
    assert not [name for name in custom_calls(text) if "callback" in name or name.startswith("lapack")]
