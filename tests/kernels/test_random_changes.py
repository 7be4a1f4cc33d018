"""Random changes: what each kind keeps of the change, and that a key is all that a draw depends on."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from polarax import kernels
from polarax.kernels import RANDOM_CHANGES
from tests.kernels import matrices

SHAPES = ((9, 9), (14, 5), (5, 14), (1, 6), (1, 1))


def drawn(seed, change, kind):
    with jax.enable_x64(change.dtype == np.float64):
        values = np.linalg.svd(change, compute_uv=False)
        return np.asarray(kernels.random_change(jax.random.key(seed), jnp.asarray(change), values, kind=kind))


def many(change, kind, count):
    """Draws from as many keys, (count, m, n), float32."""
    values = jnp.asarray(np.linalg.svd(change, compute_uv=False))
    keys = jax.random.split(jax.random.key(5), count)
    draw = jax.vmap(lambda key: kernels.random_change(key, jnp.asarray(change), values, kind=kind))
    return np.asarray(jax.jit(draw)(keys))


@pytest.mark.parametrize("dtype", matrices.WORKING_DTYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_spectrum_keeps_the_singular_values(shape, dtype):
    change = matrices.matrix("separated", shape, dtype)
    found = drawn(1, change, "spectrum")
    assert found.dtype == change.dtype and found.shape == shape
    np.testing.assert_allclose(
        np.linalg.svd(found, compute_uv=False),
        np.linalg.svd(change, compute_uv=False),
        atol=50 * np.finfo(dtype).eps,
    )


@pytest.mark.parametrize("dtype", matrices.WORKING_DTYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_shuffled_keeps_the_entries(shape, dtype):
    change = matrices.matrix("gaussian", shape, dtype)
    found = drawn(1, change, "shuffled")
    assert found.dtype == change.dtype and found.shape == shape
    np.testing.assert_array_equal(np.sort(found, axis=None), np.sort(change, axis=None))


def test_isotropic_keeps_the_size():
    change = matrices.matrix("rank_one", (14, 5), "float32")
    found = many(change, "isotropic", 2000).astype(np.float64)
    square = np.linalg.norm(change) ** 2
    np.testing.assert_allclose(np.mean(np.sum(found**2, axis=(1, 2))), square, rtol=0.02)
    np.testing.assert_allclose(np.mean(found**2, axis=0), square / change.size, rtol=0.2)  # every entry alike
    np.testing.assert_allclose(np.mean(found**4), 3 * (square / change.size) ** 2, rtol=0.05)  # and normal


@pytest.mark.parametrize("shape", [(3, 3), (6, 3), (3, 6)], ids=str)
def test_directions_are_uniform(shape):
    """Haar: every entry of U and V has mean 0 and variance 1 / its length; without the signs of R it has neither."""
    change = np.zeros(shape, np.float32)
    change[0, 0] = 1  # of rank one: the draw is u v^T
    found = many(change, "spectrum", 4000).astype(np.float64)
    np.testing.assert_allclose(np.mean(found, axis=0), 0, atol=5 / np.sqrt(4000 * found[0].size))
    np.testing.assert_allclose(np.mean(found**2, axis=0), 1 / found[0].size, rtol=0.15)


def test_several_directions_are_uniform():
    """The identity's draw is U V^T, itself Haar: its trace has mean 0 and variance 1 (Diaconis, Shahshahani 1994)."""
    traces = np.trace(many(np.eye(4, dtype=np.float32), "spectrum", 4000), axis1=1, axis2=2)
    assert abs(np.mean(traces)) < 5 / np.sqrt(4000)
    np.testing.assert_allclose(np.var(traces), 1, rtol=0.15)


def test_every_order_is_as_likely():
    places = many(np.arange(6, dtype=np.float32).reshape(2, 3), "shuffled", 3000).reshape(3000, 6)
    counts = np.stack([np.bincount(column.astype(int), minlength=6) for column in places.T])
    np.testing.assert_allclose(counts, 500, atol=5 * np.sqrt(500))


@pytest.mark.parametrize("kind", RANDOM_CHANGES)
def test_a_draw_depends_on_its_key_alone(kind):
    changes = np.stack([matrices.matrix("gaussian", (6, 4), "float32", seed) for seed in range(3)])
    values = np.linalg.svd(changes, compute_uv=False)
    keys = jax.random.split(jax.random.key(2), 3)

    def draw(*pair):
        return kernels.random_change(*pair, kind=kind)

    stacked, mapped = draw(keys, jnp.asarray(changes), values), jax.jit(jax.vmap(draw))(keys, changes, values)
    for place in range(3):
        alone = draw(keys[place], jnp.asarray(changes[place]), values[place])
        np.testing.assert_allclose(stacked[place], alone, atol=1e-6)
        np.testing.assert_allclose(mapped[place], alone, atol=1e-6)
        np.testing.assert_array_equal(alone, draw(keys[place], jnp.asarray(changes[place]), values[place]))
    assert not np.allclose(draw(keys[0], changes[0], values[0]), draw(keys[1], changes[0], values[0]))


def test_an_unknown_kind():
    with pytest.raises(ValueError, match="'sorted'. Expected one of isotropic, spectrum, shuffled"):
        kernels.random_change(jax.random.key(0), jnp.ones((2, 2)), jnp.ones(2), kind="sorted")


@pytest.mark.parametrize("shape", [(30, 20), (20, 30)], ids=str)
def test_spectrum_of_which_the_leading_values_are_known(shape):
    """They are there, and the rest of the size is spread over all directions."""
    change = matrices.matrix("llm_like", shape, "float32")
    values, count, known = np.linalg.svd(change.astype(np.float64), compute_uv=False), 200, 3
    keys = jax.random.split(jax.random.key(2), count)
    leading = jnp.asarray(values[:known], jnp.float32)
    draw = jax.vmap(lambda key: kernels.random_change(key, jnp.asarray(change), leading, kind="spectrum"))
    found = np.asarray(jax.jit(draw)(keys), np.float64)
    np.testing.assert_allclose(np.mean(np.sum(found**2, axis=(1, 2))), np.sum(values**2), rtol=0.01)
    spectra = np.linalg.svd(found, compute_uv=False)
    sd = np.sqrt(np.sum(values[known:] ** 2) / change.size)
    # Noise beside a value moves it by its own size at most, and up in the mean by sd^2 (m + n) / (2 s).
    grown = values[:known] + sd**2 * sum(shape) / (2 * values[:known])
    np.testing.assert_allclose(np.mean(spectra[:, :known], axis=0), grown, rtol=0.05)
    assert np.all(spectra[:, known] < sd * (np.sqrt(30) + np.sqrt(20)) * 1.2)
