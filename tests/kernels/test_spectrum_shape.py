"""Stable rank, effective rank and the power law of the tail, against numpy and a fit written out here."""

import jax
import numpy as np
import pytest

from polarax import kernels
from tests.kernels import matrices

stable_rank = jax.jit(kernels.stable_rank)
effective_rank = jax.jit(kernels.effective_rank)
power_law = jax.jit(kernels.power_law)

KINDS = ("identity", "mild", "separated", "geometric", "one_large", "one_small", "rank_one", "llm_like")


def _spectrum(kind, size, dtype="float64", seed=0):
    return matrices.spectrum(kind, size, "float32", matrices.generator("shape", kind, size, seed)).astype(dtype)


# Ranks.


def _effective_rank(values):
    share = values[values > 0] / np.sum(values)
    return np.exp(-np.sum(share * np.log(share)))


@pytest.mark.pairwise("size", "dtype")
@pytest.mark.parametrize("dtype", matrices.WORKING_DTYPES)
@pytest.mark.parametrize("size", [1, 2, 50])
@pytest.mark.parametrize("kind", KINDS)
def test_ranks(kind, size, dtype):
    values = _spectrum(kind, size, dtype)
    wide = values.astype(np.float64)
    tolerance = 100 * np.finfo(dtype).eps
    with jax.enable_x64(dtype == "float64"):
        stable, effective = stable_rank(values), effective_rank(values)
    assert stable.dtype == effective.dtype == dtype
    np.testing.assert_allclose(stable, np.sum(wide**2) / wide[0] ** 2, rtol=tolerance)
    np.testing.assert_allclose(effective, _effective_rank(wide), rtol=tolerance)


def test_ranks_of_equal_values_are_their_number():
    values = np.where(np.arange(20) < 7, np.float32(0.3), np.float32(0))
    np.testing.assert_allclose([stable_rank(values), effective_rank(values)], 7, rtol=1e-6)


@pytest.mark.parametrize("exponent", [-100, 100])
@pytest.mark.parametrize("dtype", matrices.WORKING_DTYPES)
def test_the_unit_does_not_matter(dtype, exponent):
    """2^100 is about 1e30: squares are out of float32's range."""
    values = _spectrum("llm_like", 60, dtype)
    moved = np.ldexp(values, exponent)
    with jax.enable_x64(dtype == "float64"):
        tolerance = 1e-4 if dtype == "float32" else 1e-12
        np.testing.assert_allclose(stable_rank(moved), stable_rank(values), rtol=tolerance)
        np.testing.assert_allclose(effective_rank(moved), effective_rank(values), rtol=tolerance)
        plain, fit = power_law(values), power_law(moved)
        np.testing.assert_allclose(fit.exponent, plain.exponent, rtol=tolerance)
        np.testing.assert_allclose(fit.distance, plain.distance, rtol=tolerance)
        assert int(fit.tail) == int(plain.tail)
        if dtype == "float64":
            np.testing.assert_allclose(fit.start, plain.start * 4.0**exponent, rtol=1e-12)


@pytest.mark.parametrize("bad", [0.0, np.nan])
def test_no_spectrum(bad):
    values = np.stack([_spectrum("mild", 9, "float32"), np.full(9, bad, np.float32)])
    assert np.isnan(stable_rank(values)).tolist() == [False, True]
    assert np.isnan(effective_rank(values)).tolist() == [False, True]
    fit = power_law(values)
    for part in (fit.exponent, fit.start, fit.distance):
        assert np.isnan(part).tolist() == [False, True]
    assert fit.tail[1] == 0


# The power law.


def _clauset(values):
    """Clauset, Shalizi and Newman's fit of x = s^2, step by step: (exponent, x_min, tail, distance).

    For every distinct x but the largest as x_min: Hill's estimate of the tail x >= x_min, and the largest distance
    between the tail's empirical distribution (0, 1/n, ..., (n - 1)/n as in their plfit) and the fitted one.
    """
    x = np.sort(values.astype(np.float64)[values > 0]) ** 2
    best = (np.nan, np.nan, 0, np.inf)
    for start in np.unique(x)[:-1]:
        tail = x[x >= start]
        exponent = 1 + tail.size / np.sum(np.log(tail / start))
        model = 1 - (start / tail) ** (exponent - 1)
        distance = np.max(np.abs(model - np.arange(tail.size) / tail.size))
        if distance < best[3]:
            best = (exponent, start, tail.size, distance)
    return best


def _sampled(exponent, size, seed=0):
    """Singular values whose squares follow x^-exponent from 1 on."""
    uniform = matrices.generator("power law", exponent, size, seed).uniform(size=size)
    return np.sort(np.sqrt((1 - uniform) ** (-1 / (exponent - 1))))[::-1]


@pytest.mark.parametrize("size", [2, 3, 5, 64, 65, 200])
@pytest.mark.parametrize("kind", ["mild", "separated", "log_uniform", "llm_like", "sampled"])
def test_power_law_is_clausets_fit(kind, size):
    values = _sampled(2.5, size) if kind == "sampled" else _spectrum(kind, size)
    exponent, start, tail, distance = _clauset(values)
    with jax.enable_x64(True):
        found = power_law(values)
    assert int(found.tail) == tail and found.tail.dtype == np.int32
    np.testing.assert_allclose(found.exponent, exponent, rtol=1e-9)
    np.testing.assert_allclose(found.start, start, rtol=1e-12)
    np.testing.assert_allclose(found.distance, distance, rtol=1e-9, atol=1e-14)


def test_power_law_in_float32():
    """Two starts may fit nearly as well, so the fit is judged, not its start."""
    for seed in range(5):
        values = _sampled(3.0, 150, seed).astype(np.float32)
        found = power_law(values)
        exponent, _, _, distance = _clauset(values)
        np.testing.assert_allclose(found.distance, distance, rtol=1e-3)
        np.testing.assert_allclose(found.exponent, exponent, rtol=0.05)


def test_power_law_of_repeated_values():
    """A tail takes all values that are equal to its start, or none of them."""
    values = np.repeat(_sampled(2.5, 30), 3)
    values = np.concatenate([values, np.zeros(4)])
    exponent, start, tail, distance = _clauset(values)
    with jax.enable_x64(True):
        found = power_law(values)
    assert int(found.tail) == tail
    np.testing.assert_allclose([found.exponent, found.start, found.distance], [exponent, start, distance], rtol=1e-9)


@pytest.mark.parametrize("exponent", [1.8, 2.5, 4.0])
def test_a_known_exponent_is_recovered(exponent):
    """Within a few standard errors (exponent - 1) / sqrt(tail) of the maximum-likelihood estimate."""
    values = np.stack([_sampled(exponent, 1000, seed) for seed in range(8)])
    with jax.enable_x64(True):
        found = jax.device_get(power_law(values))
    standard_error = (exponent - 1) / np.sqrt(np.asarray(found.tail))
    assert np.all(np.abs(np.asarray(found.exponent) - exponent) < 5 * standard_error)
    assert np.median(found.tail) > 200
    assert abs(np.mean(found.exponent) - exponent) < 0.05 * exponent


def test_the_tail_is_found_above_a_bulk():
    """Half the values are a bulk that follows no power law; the tail starts where the power law does."""
    tail = _sampled(3.0, 400)
    bulk = np.sqrt(matrices.generator("bulk").uniform(0.3, 1, 400))
    values = np.sort(np.concatenate([tail, bulk]))[::-1]
    with jax.enable_x64(True):
        found = jax.device_get(power_law(values))
    assert 0.9 < found.start < 2
    assert abs(found.exponent - 3) < 5 * 2 / np.sqrt(float(found.tail))


@pytest.mark.parametrize(
    "values",
    [
        pytest.param(np.array([2.0]), id="one value"),
        pytest.param(np.full(5, 2.0), id="equal values"),
        pytest.param(np.array([2.0, 0.0, 0.0]), id="one positive"),
        pytest.param(np.array([2.0, 2.0, 0.0]), id="two equal"),
    ],
)
def test_fewer_than_two_distinct_values_have_no_power_law(values):
    with jax.enable_x64(True):
        found = power_law(values)
    assert np.isnan(found.exponent) and np.isnan(found.start) and np.isnan(found.distance)
    assert int(found.tail) == 0


def test_zeros_are_not_part_of_the_tail():
    values = _sampled(2.5, 40)
    with jax.enable_x64(True):
        expected = power_law(values)
        found = power_law(np.concatenate([values, np.zeros(25)]))
    assert [float(x) for x in found] == pytest.approx([float(x) for x in expected], rel=1e-12)


def test_leading_axes_and_vmap():
    values = np.array([[_sampled(2.5, 30, 3 * i + j) for j in range(3)] for i in range(2)])
    with jax.enable_x64(True):
        for way in (kernels.power_law, jax.jit(jax.vmap(jax.vmap(kernels.power_law)))):
            found = way(values)
            for i, j in np.ndindex(2, 3):
                np.testing.assert_allclose(found.exponent[i, j], _clauset(values[i, j])[0], rtol=1e-9)
        assert power_law(values[:0]).exponent.shape == (0, 3)
        assert stable_rank(values).shape == effective_rank(values).shape == (2, 3)
