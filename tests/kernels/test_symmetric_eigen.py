"""Symmetric eigenproblems of a stack, and the driver that each platform takes."""

import re

import jax
import numpy as np
import pytest

from polarax.kernels import symmetric_eigen


def _algorithms(platform, shape):
    """What jaxlib is asked for on a GPU: 0 its own choice, 2 Jacobi."""
    traced = jax.jit(lambda x: symmetric_eigen.eigh_ascending(x)).trace(jax.ShapeDtypeStruct(shape, np.float32))
    text = traced.lower(lowering_platforms=(platform,)).as_text()
    assert ("stablehlo.while" in text) == (platform == "cpu" and len(shape) > 2)
    return re.findall(r"algorithm = (\d)", text)


@pytest.mark.parametrize("stacked", [False, True])
def test_vectors_and_ascending_values(stacked):
    x = np.random.default_rng(0).normal(size=(4, 12, 12))
    x = x + x.swapaxes(1, 2)
    with jax.enable_x64(True):
        eigh = symmetric_eigen.eigh_ascending
        vectors, values = map(np.asarray, eigh(x) if stacked else jax.vmap(eigh)(x))
    np.testing.assert_allclose(values, np.linalg.eigvalsh(x), atol=1e-13)
    np.testing.assert_allclose(x @ vectors, vectors * values[:, None], atol=1e-12)


def test_a_stack_is_one_call_of_the_driver_that_the_table_names(monkeypatch):
    assert _algorithms("cuda", (5, 48, 48)) == ["0"]
    monkeypatch.setitem(symmetric_eigen.JACOBI_UP_TO, "cuda", 64)
    assert _algorithms("cuda", (5, 48, 48)) == ["2"]
    assert _algorithms("cuda", (5, 65, 65)) == ["0"]
    assert _algorithms("cuda", (48, 48)) == ["0"]
    assert _algorithms("tpu", (5, 48, 48)) == _algorithms("cpu", (5, 48, 48)) == []
