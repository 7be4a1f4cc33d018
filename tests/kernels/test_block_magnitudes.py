"""Pictures of large square arrays: root mean squares of blocks, against loops in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from polarax.kernels import block_magnitudes


def by_loops(x, limit):
    block = int(np.ceil(len(x) / limit))
    starts = range(0, len(x), block)
    return np.array(
        [[np.sqrt(np.mean(x[i : i + block, j : j + block] ** 2)) for j in starts] for i in starts],
    )


@pytest.mark.parametrize("size", [1, 5, 64, 65, 127, 128, 130, 200])
def test_every_block_is_a_root_mean_square(size):
    x = np.random.default_rng(size).normal(size=(size, size)).astype(np.float32)
    found = block_magnitudes(jnp.asarray(x))
    assert found.shape[-1] <= 64
    np.testing.assert_allclose(found, by_loops(x.astype(np.float64), 64), rtol=1e-5)


def test_a_small_array_is_its_own_picture():
    x = np.random.default_rng(0).normal(size=(2, 3, 8, 8)).astype(np.float32)
    np.testing.assert_allclose(block_magnitudes(x), np.abs(x), rtol=1e-6)


@pytest.mark.parametrize("size", [96, 150])
def test_nothing_of_the_weight_is_lost(size):
    x = np.random.default_rng(size).normal(size=(size, size)).astype(np.float32)
    limit = 7
    block = -(-size // limit)
    lengths = np.array([min(block, size - start) for start in range(0, size, block)])
    squares = np.asarray(block_magnitudes(x, limit=limit), np.float64) ** 2 * np.outer(lengths, lengths)
    assert squares.sum() == pytest.approx(np.sum(x.astype(np.float64) ** 2), rel=1e-5)


def test_jit_and_leading_axes():
    x = np.random.default_rng(1).normal(size=(3, 70, 70)).astype(np.float32)
    found = jax.jit(block_magnitudes)(x)
    np.testing.assert_allclose(found, [by_loops(one, 64) for one in x], rtol=1e-5)


@pytest.mark.parametrize(
    ("shape", "limit", "message"),
    [((3, 4), 8, r"shape \(..., r, r\)\. Got shape=\(3, 4\)"), ((4,), 8, "Got shape"), ((4, 4), 0, "Got limit=0")],
)
def test_what_is_refused(shape, limit, message):
    with pytest.raises(ValueError, match=message):
        block_magnitudes(jnp.zeros(shape), limit=limit)
