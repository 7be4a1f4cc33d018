"""The law of singular values under noise against numpy's decompositions of drawn matrices, and its exact limits."""

import functools
from math import erf, exp, pi, sqrt

import jax
import numpy as np
import pytest

from polarax import kernels
from polarax.kernels.noise_law import columns_of_law, values_law
from tests.kernels import matrices


@jax.jit
def _law(s, norm, longer):
    shape = longer, s.shape[-1]
    values = values_law(s, norm, shape=shape)
    return values, columns_of_law(s, norm, values, shape=shape)


def law(s, norm, shape, dtype="float64"):
    """One program for all shapes with the same number of values."""
    with jax.enable_x64(dtype == "float64"):
        return jax.device_get(_law(np.asarray(s, dtype), np.asarray(norm, dtype), np.asarray(max(shape), dtype)))


def drawn(s, norm, shape, count):
    """Singular values of base + noise, (count, r), and the diagonal of the noise in the base's frame."""
    m, n = shape
    noise = matrices.generator("values_law", shape, norm).standard_normal((count, m, n)) * norm / np.sqrt(m * n)
    diagonal = noise[:, np.arange(n), np.arange(n)].copy()
    noise[:, np.arange(n), np.arange(n)] += s
    return np.linalg.svd(noise, compute_uv=False), diagonal


SPECTRA = {
    "geometric": np.geomspace(1, 1e-3, 24),
    "steep": np.geomspace(1, 1e-6, 24),
    "clusters": np.repeat([1.0, 0.01], 12),
    "bulk and spikes": np.concatenate([[1, 0.6, 0.4], np.linspace(0.3, 0.02, 17), np.geomspace(0.01, 1e-4, 4)]),
}


@pytest.mark.parametrize("drift", [1e-3, 0.1, 1.0])
@pytest.mark.parametrize("rows", [24, 29, 96])
@pytest.mark.parametrize("spectrum", SPECTRA)
def test_columns(spectrum, rows, drift):
    s = SPECTRA[spectrum]
    norm = drift * np.linalg.norm(s)
    values, diagonal = drawn(s, norm, (rows, 24), 300)
    solution, columns = law(s, norm, (rows, 24))
    assert solution.residual < 1e-9
    # The first-order part of alpha has mean zero: what it happened to be is taken out.
    excess = np.mean((values - diagonal) @ s) / (s @ s) - 1
    np.testing.assert_allclose(columns.alpha - 1, excess, rtol=0.02)
    ratio = values / s
    squares = np.var(ratio, axis=-1) / np.mean(ratio, axis=-1) ** 2
    error = np.std(squares) / np.mean(squares) / np.sqrt(len(squares)) / 2
    np.testing.assert_allclose(columns.ratio_cv, np.sqrt(np.mean(squares)), rtol=0.05 + 3 * error)
    np.testing.assert_allclose(columns.nss, np.sqrt(np.mean(np.sum((values - s) ** 2, -1)) / (s @ s)), rtol=0.08)
    np.testing.assert_allclose(solution.values[0], np.mean(values[:, 0]), rtol=0.01)
    np.testing.assert_allclose(np.sum(solution.values), np.mean(np.sum(values - diagonal, axis=-1)), rtol=0.003)
    # The standard error is 0.06 of that of one draw.
    assert np.all(np.abs(solution.values - np.mean(values, axis=0)) < 0.3 * np.std(values, axis=0))


@pytest.mark.parametrize("rows", [6, 40])
def test_small_noise_joins_perturbation_theory(rows):
    """The second-order displacement of values far apart, but for terms of relative order 1 / r^2."""
    s, sd = np.array([3.0, 2.2, 1.7, 1.1, 0.6, 0.3]), 1e-4
    apart = s[:, None] ** 2 - s[None, :] ** 2
    repelled = np.divide(1, apart, where=apart != 0, out=np.zeros_like(apart)).sum(axis=1)
    second = sd**2 * (s * repelled + (rows - 6) / (2 * s))
    solution, _ = law(s, sd * np.sqrt(rows * 6), (rows, 6))
    np.testing.assert_allclose(solution.std, sd, rtol=1e-3)
    np.testing.assert_allclose(solution.shift, second, atol=0.1 * sd**2 / s[-1])


@pytest.mark.parametrize("size", [0.2, 1.0, 3.0])
def test_one_by_one(size):
    """|s + sd g|, whose mean and standard deviation are those of a folded normal variable."""
    mean = sqrt(2 / pi) * exp(-(size**2) / 2) + size * erf(size / sqrt(2))
    solution, _ = law([size], 1.0, (1, 1))
    np.testing.assert_allclose(solution.values[0], mean, rtol=0.02)
    np.testing.assert_allclose(solution.std[0], np.sqrt(size**2 + 1 - mean**2), rtol=0.04)


def test_more_values_than_are_solved_for():
    """A long spectrum with clusters, by interpolation: against 12 draws of 384 x 384."""
    s = np.concatenate([np.full(150, 1.0), np.full(150, 0.5), np.geomspace(0.4, 1e-3, 84)])
    norm = 0.02 * np.linalg.norm(s)
    values, diagonal = drawn(s, norm, (384, 384), 12)
    solution, columns = law(s, norm, (384, 384))
    assert solution.residual < 1e-9
    assert np.all(np.diff(solution.values) <= 0)
    excess = np.mean((values - diagonal) @ s) / (s @ s) - 1
    np.testing.assert_allclose(columns.alpha - 1, excess, rtol=0.02)
    np.testing.assert_allclose(solution.values, np.mean(values, axis=0), rtol=0, atol=1.5 * norm / 384)


@pytest.mark.parametrize(("size", "leading", "known"), [(24, 4, 24), (160, 40, 40)])
def test_points_of_the_leading_values(size, leading, known):
    """z^2 is real at each point, the count above the i-th value is i - 1/2, and no more v does that."""
    s, rows, norm = np.geomspace(1, 1e-3, size), size + 20, 0.5
    with jax.enable_x64(True):
        solve = jax.jit(functools.partial(values_law, shape=(rows, size), leading=leading))
        solution = jax.device_get(solve(1e3 * s, np.asarray(1e3 * norm)))
    assert solution.residual < 1e-9
    assert solution.v.shape == solution.offset.shape == (known,)
    u, v, variance = s[:known] + solution.offset / 1e3, solution.v / 1e3, norm**2 / (rows * size)

    def above(factor):
        """T - s^2, X and q at v times a factor."""
        t = (u + 1j * factor * v) ** 2
        x = 1 + variance * np.sum(1 / (t[:, None] - s**2), axis=1)
        return t, x, t * x**2 + variance * (rows - size) * x

    t, x, q = above(1)
    np.testing.assert_allclose(q.imag / t.imag, 0, atol=1e-9)
    assert all(np.all(above(factor)[2].imag > 0) for factor in (1.01, 1.5, 3, 10))
    inverse = np.sum(1 / (t[:, None] - s**2), axis=1)
    slope = x**2 - variance * (2 * t * x + variance * (rows - size)) * np.sum(1 / (t[:, None] - s**2) ** 2, axis=1)
    phases = np.sum(np.angle(t[:, None] - s**2), axis=1) + (rows - size) * np.angle(np.sqrt(q) / x)
    phases += variance * np.imag(inverse * (t * inverse + rows - size)) + np.angle(slope) / 2
    np.testing.assert_allclose(phases / np.pi, np.arange(known) + 0.5, atol=1e-8)


def test_float32():
    s = SPECTRA["bulk and spikes"]
    exact, columns = law(s, 0.3, (29, 24))
    single, columns32 = law(s, 0.3, (29, 24), "float32")
    np.testing.assert_allclose(single.values, exact.values, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(single.std, exact.std, rtol=5e-3)
    np.testing.assert_allclose(columns32.ratio_cv, columns.ratio_cv, rtol=5e-3)


def test_what_is_not_noise():
    still, columns = law([2.0, 1.0], 0.0, (3, 2))
    np.testing.assert_array_equal(still.values, [2, 1])
    np.testing.assert_array_equal(still.std, 0)
    assert columns.alpha == 1 and columns.ratio_cv == 0 and columns.nss == 0
    for s, norm in (([0.0, 0.0], 1.0), ([np.nan, np.nan], 1.0), ([2.0, 1.0], np.inf)):
        values, columns = law(s, norm, (3, 2))
        assert np.all(np.isnan(values.values)) and np.isnan(columns.alpha) and np.isnan(columns.ratio_cv)


def test_zeros_of_a_rank_deficient_base_fill_with_noise():
    s, norm = np.array([2.0, 1.0, 0.0, 0.0]), 0.1
    values, _ = drawn(s, norm, (6, 4), 2000)
    solution, columns = law(s, norm, (6, 4))
    np.testing.assert_allclose(solution.values, np.mean(values, axis=0), rtol=0.06)
    ratio = values[:, :2] / s[:2]
    cv = np.std(ratio, axis=-1) / np.mean(ratio, axis=-1)
    np.testing.assert_allclose(columns.ratio_cv, np.sqrt(np.mean(cv**2)), rtol=0.05)


def test_wide_matrices():
    s, norm = SPECTRA["geometric"], np.asarray(0.1)
    with jax.enable_x64(True):
        wide = values_law(s, norm, shape=(24, 96))
    np.testing.assert_allclose(wide.values, law(s, norm, (96, 24))[0].values, rtol=1e-9)


def test_stacks_and_units():
    s = np.stack([SPECTRA["geometric"], SPECTRA["clusters"]])
    norm = np.array([0.1, 0.2])
    stack, columns = law(1e3 * s, 1e3 * norm, (96, 24))
    for i in range(2):
        single, column = law(s[i], norm[i], (96, 24))
        np.testing.assert_allclose(stack.values[i], 1e3 * single.values, rtol=1e-9)
        np.testing.assert_allclose(columns.ratio_cv[i], column.ratio_cv, rtol=1e-9)


def test_exponent_is_that_of_the_mean_values():
    s = SPECTRA["bulk and spikes"]
    with jax.enable_x64(True):
        solution, columns = law(s, 0.1, (24, 24))
        np.testing.assert_allclose(columns.exponent, kernels.power_law(solution.values).exponent)
