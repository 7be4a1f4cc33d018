"""The noise law of the polar factor: its exact limits, and pinned Monte Carlo by numpy."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from polarax.kernels.noise_law import polar_law, spectrum_law


@functools.partial(jax.jit, static_argnames="cols")
def _polar(s, norm, rows, cols):
    return polar_law(s, norm, shape=(rows, cols))


@functools.partial(jax.jit, static_argnames="cols")
def _spectrum(s, d, rows, cols):
    return spectrum_law(s, d, shape=(rows, cols))


def law(s, norm, rows, dtype="float64"):
    with jax.enable_x64(dtype == "float64"):
        s = np.asarray(s, dtype)
        return jax.device_get(_polar(s, jnp.asarray(norm, dtype), jnp.asarray(rows, dtype), s.shape[-1]))


def haar_law(s, d, rows, dtype="float64"):
    with jax.enable_x64(dtype == "float64"):
        s = np.asarray(s, dtype)
        return jax.device_get(_spectrum(s, np.asarray(d, dtype), jnp.asarray(rows, dtype), s.shape[-1]))


def bulk(size, condition):
    """Spikes, a bulk and a tail that ends at 1 / condition."""
    tail = np.geomspace(0.01, 1 / condition, 4)
    return np.concatenate([[1, 0.6, 0.4], np.linspace(0.3, 0.02, size - 7), tail])


SPECTRA = {
    "flat": np.linspace(1, 0.95, 32),
    "geometric": np.geomspace(1, 1e-3, 32),
    "bulk": bulk(32, 1e4),
    "clustered": np.repeat([1, 0.01], 16),
}


def drawn_nf(s, change):
    """Root mean square of nf over changes in the base's frame, (draws, m, n), and its relative standard error."""
    post = change.copy()
    diagonal = np.arange(len(s))
    post[:, diagonal, diagonal] += s
    u, _, vt = np.linalg.svd(post, full_matrices=False)
    squares = np.sum(((u @ vt)[:, : len(s)] - np.eye(len(s))) ** 2, axis=(1, 2)) / len(s)
    return math.sqrt(squares.mean()), squares.std() / math.sqrt(len(squares)) / 2 / squares.mean()


def haar_changes(d, rows, cols, count, seed):
    """Changes with singular values d in random directions."""
    rng = np.random.default_rng(seed)
    left, right = (np.linalg.qr(rng.standard_normal((count, side, len(d))))[0] for side in (rows, cols))
    # Signs of R's diagonal don't matter: left and right are independent, and columns in any orthogonal frame are Haar.
    signs = rng.choice([-1.0, 1.0], (count, 1, len(d)))
    return (left * (d * signs)) @ np.swapaxes(right, 1, 2)


@pytest.mark.parametrize("rows", [32, 38, 640])
@pytest.mark.parametrize("name", ["flat", "geometric"])
def test_small_noise_is_the_first_order_form(name, rows):
    s = SPECTRA[name]
    sd = 1e-7
    pairs = 2 * sd**2 / (s[:, None] + s) ** 2
    shortened = 1 - s / np.sqrt(s**2 + sd**2 * (rows - len(s)))
    first = math.sqrt((pairs.sum() - np.trace(pairs) + np.sum(shortened**2)) / len(s))
    found = law(s, sd * math.sqrt(rows * len(s)), rows)
    np.testing.assert_allclose(found.nf, first, rtol=1e-5)
    second = sd**2 * (np.sum(1 / (s[:, None] + s)) / 2 - np.sum(1 / (4 * s)) + (rows - len(s)) * np.sum(1 / (2 * s)))
    # The ratio is 1 and little more: it is good to a few units of rounding.
    np.testing.assert_allclose(found.nuclear_norm_ratio - 1, second / s.sum(), rtol=1e-4, atol=1e-15)


@pytest.mark.parametrize("distance", [0.1, 0.5, 1, 1.5, 2, 3])
def test_one_entry_is_exact(distance):
    """A number and normal noise: the sign flips, or not."""
    found = law([distance], 1, 1)
    kept = math.erf(distance / math.sqrt(2))
    np.testing.assert_allclose(found.kept[0], kept, atol=1e-9)
    np.testing.assert_allclose(found.nf, math.sqrt(2 * (1 - kept)), rtol=1e-7)


@pytest.mark.parametrize("rows", [2, 5])
def test_one_column_is_exact(rows):
    """1 - cos of the angle between a vector and itself plus noise, by two hundred thousand draws."""
    rng = np.random.default_rng(rows)
    along = 1.5 + rng.standard_normal(200_000)
    cosine = along / np.sqrt(along**2 + rng.chisquare(rows - 1, along.size))
    found = law([1.5], math.sqrt(rows), rows)
    np.testing.assert_allclose(found.kept[0], cosine.mean(), atol=4 * cosine.std() / math.sqrt(cosine.size))
    np.testing.assert_allclose(found.nf, math.sqrt(np.mean((1 - cosine) ** 2)), rtol=0.01)


@pytest.mark.parametrize("rows", [32, 128])
def test_pure_noise(rows):
    """Noise far above the base keeps nothing of it: nf is sqrt(1 + r / m)."""
    found = law(SPECTRA["geometric"], 1e6, rows)
    np.testing.assert_allclose(found.kept, 0, atol=1e-4)
    np.testing.assert_allclose(found.lost, 1 - 32 / rows, atol=1e-4)
    np.testing.assert_allclose(found.nf, math.sqrt(1 + 32 / rows), rtol=1e-3)
    assert found.residual < 1e-12


@pytest.mark.parametrize(
    "rows, name, drift",
    [
        (32, "geometric", 0.02),
        (32, "bulk", 1e-3),
        (38, "bulk", 0.1),
        (128, "clustered", 0.1),
        (32, "flat", 1),
    ],
)
def test_isotropic_noise_drawn(rows, name, drift):
    s = SPECTRA[name]
    norm = drift * np.linalg.norm(s)
    change = np.random.default_rng(7).standard_normal((400, rows, 32)) * (norm / math.sqrt(32 * rows))
    nf, error = drawn_nf(s, change)
    np.testing.assert_allclose(law(s, norm, rows).nf, nf, rtol=0.02 + 3 * error)


@pytest.mark.parametrize("rows", [32, 128])
@pytest.mark.parametrize("drift", [1e-4, 1e-2, 1])
@pytest.mark.parametrize("condition", [1, 1e3, 3e5])
def test_float32(rows, condition, drift):
    s = np.geomspace(1, 1 / condition, 32)
    norm = drift * np.linalg.norm(s)
    single, double = (law(s, norm, rows, dtype) for dtype in ("float32", "float64"))
    np.testing.assert_allclose(single.nf, double.nf, rtol=1e-4)
    np.testing.assert_allclose(single.nuclear_norm_ratio, double.nuclear_norm_ratio, rtol=1e-5)
    values = norm * np.geomspace(1, 1e-3, 32) / np.linalg.norm(np.geomspace(1, 1e-3, 32))
    single, double = haar_law(s, values, rows, "float32"), haar_law(s, values, rows)
    np.testing.assert_allclose(single.nf, double.nf, rtol=3e-4)
    np.testing.assert_allclose(single.nuclear_norm_ratio, double.nuclear_norm_ratio, rtol=1e-5)


def test_unit_and_batch():
    """Free of the unit; a stack is its matrices one by one; a wide shape is its transpose."""
    s = np.stack([SPECTRA["geometric"], SPECTRA["flat"], np.zeros(32), np.full(32, np.nan)])
    norm = np.array([0.1, 0.0, 0.1, 0.1])
    stack, scaled = law(s, norm, 40), law(s * 1e5, norm * 1e5, 40)
    np.testing.assert_allclose(stack.nf, scaled.nf, rtol=1e-12)
    np.testing.assert_allclose(stack.nf[0], law(s[0], 0.1, 40).nf, rtol=1e-12)
    assert stack.nf[1] == 0 and stack.nuclear_norm_ratio[1] == 1 and np.all(stack.kept[1] == 1)
    assert np.isnan(stack.nf[2:]).all() and np.isnan(stack.nuclear_norm_ratio[2:]).all()
    with jax.enable_x64(True):
        wide = polar_law(jnp.asarray(s[0]), 0.1, shape=(32, 40))
    np.testing.assert_allclose(wide.nf, stack.nf[0], rtol=1e-12)


def test_lower_rank_drawn():
    """Directions that the post has and the base lacks count in full."""
    s = np.concatenate([np.geomspace(1, 0.1, 20), np.zeros(4)])
    change = np.random.default_rng(3).standard_normal((400, 30, 24)) * 0.02
    post = change.copy()
    post[:, np.arange(24), np.arange(24)] += s
    u, _, vt = np.linalg.svd(post, full_matrices=False)
    # ||P_p^T P_b - I||^2: P_p^T P_b is the first 20 columns of P_p^T, and zeros.
    across = np.swapaxes((u @ vt)[:, :20], 1, 2) - np.eye(24)[:, :20]
    nf = math.sqrt(np.mean(np.sum(across**2, axis=(1, 2)) + 4) / 24)
    norm = 0.02 * math.sqrt(30 * 24)
    np.testing.assert_allclose(law(s, norm, 30).nf, nf, rtol=0.02)


@pytest.mark.parametrize(
    "rows, rank, drift",
    [
        (32, 1, 0.5),
        (32, 4, 0.05),
        (32, 32, 1),
        (40, 8, 0.2),
        (128, 4, 0.5),
        (128, 32, 0.02),
    ],
)
def test_random_directions_drawn(rows, rank, drift):
    s = SPECTRA["geometric"]
    d = np.linspace(1, 0.5, rank) * drift * np.linalg.norm(s) / np.linalg.norm(np.linspace(1, 0.5, rank))
    changes = haar_changes(d, rows, 32, 400, 11)
    nf, error = drawn_nf(s, changes)
    padded = np.concatenate([d, np.zeros(32 - rank)])
    found = haar_law(s, padded, rows)
    np.testing.assert_allclose(found.nf, nf, rtol=0.02 + 3 * error)
    np.testing.assert_allclose(haar_law(s, padded[::-1], rows).nf, found.nf, rtol=1e-10)
    # Isotropic noise of this norm lets the nuclear norm grow by up to 8 times as much.
    norms = np.sum(np.linalg.svd(np.eye(rows, 32) * s + changes, compute_uv=False), axis=1) / np.sum(s)
    tolerance = 3 * norms.std() / math.sqrt(len(norms)) + 0.02 * (norms.mean() - 1)
    np.testing.assert_allclose(found.nuclear_norm_ratio, norms.mean(), rtol=0, atol=tolerance)


@pytest.mark.parametrize("rows", [96, 200])
@pytest.mark.parametrize("drift", [0.01, 0.3])
def test_a_gaussian_spectrum_in_random_directions_is_isotropic_noise(rows, drift):
    s = np.geomspace(1, 0.01, 96)
    norm = drift * np.linalg.norm(s)
    d = np.linalg.svd(np.random.default_rng(5).standard_normal((rows, 96)), compute_uv=False)
    found, expected = haar_law(s, d * norm / np.linalg.norm(d), rows), law(s, norm, rows)
    np.testing.assert_allclose(found.nf, expected.nf, rtol=0.01)
    np.testing.assert_allclose(found.nuclear_norm_ratio - 1, expected.nuclear_norm_ratio - 1, rtol=0.01)


def test_few_directions_in_float32_and_any_unit():
    s, d = SPECTRA["bulk"], np.concatenate([[1, 0.5], np.zeros(30)])
    for size in (1e-3, 0.1, 1):
        expected = haar_law(s, size * d, 48)
        for unit in (1e-12, 1e12):
            found = haar_law(s * unit, size * d * unit, 48, "float32")
            np.testing.assert_allclose(found.nf, expected.nf, rtol=5e-3)
            np.testing.assert_allclose(found.nuclear_norm_ratio, expected.nuclear_norm_ratio, rtol=2e-5)


def test_random_directions_without_base_or_change():
    s = np.stack([SPECTRA["flat"], np.zeros(32), SPECTRA["flat"]])
    d = np.stack([np.zeros(32), SPECTRA["flat"], np.full(32, np.nan)])
    with jax.enable_x64(True):
        found = spectrum_law(jnp.asarray(s), jnp.asarray(d), shape=(32, 32))
    assert found.nf[0] == 0 and found.nuclear_norm_ratio[0] == 1
    assert np.isnan(found.nf[1:]).all() and np.isnan(found.nuclear_norm_ratio[1:]).all()
