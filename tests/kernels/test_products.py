"""The norm that neither over- nor underflows, and the precision of products."""

import jax
import numpy as np
import pytest

from polarax import kernels
from polarax.kernels import products
from tests.kernels import matrices

frobenius = jax.jit(kernels.frobenius)


@pytest.mark.parametrize("dtype", matrices.WORKING_DTYPES)
@pytest.mark.parametrize("shape", [(7, 5), (1, 1), (40, 3)], ids=str)
def test_frobenius(shape, dtype):
    x = matrices.matrix("gaussian", shape, dtype)
    with jax.enable_x64(dtype == "float64"):
        found = frobenius(x)
    assert found.dtype == dtype
    np.testing.assert_allclose(found, np.linalg.norm(x.astype(np.float64)), rtol=20 * np.finfo(dtype).eps)


@pytest.mark.parametrize("dtype", matrices.WORKING_DTYPES)
@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_frobenius_of_tiny_and_huge_entries(scale, dtype):
    x = matrices.matrix("gaussian", (7, 5), "float64")
    with jax.enable_x64(dtype == "float64"):
        found = frobenius((x * scale).astype(dtype))
    np.testing.assert_allclose(found, np.linalg.norm(x) * scale, rtol=20 * np.finfo(dtype).eps)


def test_frobenius_of_zero_nan_inf_and_of_nothing():
    x = np.ones((4, 3, 2), np.float32)
    x[1], x[2, 0, 0], x[3, 0, 0] = 0, np.nan, -np.inf
    found = np.asarray(frobenius(x))
    np.testing.assert_allclose(found[0], np.sqrt(6), rtol=1e-6)
    assert found[1] == 0 and np.isnan(found[2]) and not np.isfinite(found[3])
    assert frobenius(np.ones((0, 3, 2), np.float32)).shape == (0,)


def test_the_precision_of_products_is_stated():
    """Accelerators would take float32 products in TF32 or bfloat16 otherwise."""
    x = np.ones((4, 4), np.float32)
    assert "HIGHEST" in jax.jit(products.matmul).lower(x, x).as_text()


@pytest.mark.parametrize(
    "function",
    [
        kernels.svd,
        kernels.polar,
        lambda x: kernels.frames(x, 2 * x),
        lambda x: kernels.drift_budget(x, 2 * x),
        lambda x: kernels.overlap(x, 2 * x),
    ],
    ids=["svd", "polar", "frames", "drift_budget", "overlap"],
)
def test_every_product_of_the_kernels_states_it(function):
    text = jax.jit(function).lower(np.ones((5, 4), np.float32)).as_text()
    products_found = [line for line in text.splitlines() if "dot_general" in line]
    assert products_found
    assert [line for line in products_found if "HIGHEST" not in line] == []
