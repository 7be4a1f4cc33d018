"""The cosine of two changes, and that chance gives it the standard deviation 1 / sqrt(m n) whatever their spectra."""

import jax
import numpy as np
import pytest

from polarax import kernels
from tests.engine.planted import haar


def test_against_numpy():
    rng = np.random.default_rng(0)
    first, second = rng.normal(size=(2, 3, 7, 4))
    with jax.enable_x64(True):
        found = kernels.change_cosine(first, second)
    for place in range(3):
        a, b = first[place].ravel(), second[place].ravel()
        np.testing.assert_allclose(found[place], a @ b / np.linalg.norm(a) / np.linalg.norm(b), rtol=1e-13)


@pytest.mark.parametrize("scale", [1e-200, 1.0, 1e200])
def test_sizes_do_not_matter(scale):
    change = np.random.default_rng(1).normal(size=(5, 3))
    with jax.enable_x64(True):
        assert kernels.change_cosine(scale * change, 3 * scale * change) == pytest.approx(1, abs=1e-15)
        assert np.isnan(kernels.change_cosine(change, 0 * change))


@pytest.mark.parametrize("rank", [1, 3, 16])
def test_the_control(rank):
    """Of a fixed change of low rank and one of this rank in random directions."""
    rng = np.random.default_rng(rank)
    rows, cols, draws = 24, 16, 4000
    fixed = np.outer(rng.normal(size=rows), rng.normal(size=cols))
    fixed /= np.linalg.norm(fixed)
    values = np.arange(1, rank + 1) ** -1.0
    values /= np.linalg.norm(values)
    drawn = [np.sum(fixed * ((haar(rng, rows, rank) * values) @ haar(rng, cols, rank).T)) for _ in range(draws)]
    variance = np.mean(np.square(drawn)) * rows * cols
    spread = np.std(np.square(drawn)) * rows * cols / np.sqrt(draws)
    assert abs(variance - 1) < 4 * spread and spread < 0.1
