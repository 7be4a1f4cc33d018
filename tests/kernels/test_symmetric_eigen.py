"""Symmetric eigenproblems of a stack, and the driver that each platform takes."""

import re

import jax
import numpy as np
import pytest

from polarax.kernels import symmetric_eigen


@pytest.mark.parametrize("stacked", [False, True])
def test_vectors_and_ascending_values(stacked):
    x = np.random.default_rng(0).normal(size=(4, 12, 12))
    x = x + x.swapaxes(1, 2)
    with jax.enable_x64(True):
        eigh = symmetric_eigen.eigh_ascending
        vectors, values = map(np.asarray, eigh(x) if stacked else jax.vmap(eigh)(x))
    np.testing.assert_allclose(values, np.linalg.eigvalsh(x), atol=1e-13)
    np.testing.assert_allclose(x @ vectors, vectors * values[:, None], atol=1e-12)


@pytest.mark.parametrize(("platform", "rows", "dimensions"), [("cpu", 48, 0), ("cuda", 48, 1), ("cuda", 1024, 0)])
def test_which_platforms_take_a_stack_at_once(platform, rows, dimensions):
    """CUDA's batched driver is made for small matrices; jaxlib on CPU may wait for itself in a batch."""
    traced = jax.jit(symmetric_eigen.eigh_ascending).trace(jax.ShapeDtypeStruct((5, rows, rows), np.float32))
    text = traced.lower(lowering_platforms=(platform,)).as_text()
    assert re.findall(r'syevd\w*\(.*num_batch_dims = "(\d)"', text) == [str(dimensions)]
    assert ("stablehlo.while" in text) == (dimensions == 0)
