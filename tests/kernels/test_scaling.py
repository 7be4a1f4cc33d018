"""Scaling of singular values against the formulas, written with numpy."""

import jax
import numpy as np
import pytest
import scipy.stats

from polarax import kernels
from tests.kernels import matrices

scaling = jax.jit(kernels.scaling)


def _expected(base, post, rank=None):
    """The formulas of docs/definitions, one by one, in float64; ratios over the leading `rank`."""
    base, post = base.astype(np.float64), post.astype(np.float64)
    kept = slice(None, rank)
    ratio = post[kept] / base[kept]
    weight = base[kept] ** 2 / np.sum(base[kept] ** 2)
    mean = np.sum(weight * ratio)
    return {
        "alpha": base @ post / (base @ base),
        "alpha_geo": scipy.stats.gmean(ratio),
        "ratio_mean": np.mean(ratio),
        "ratio_cv": np.std(ratio) / np.mean(ratio),
        "ratio_cv_energy": np.sqrt(np.sum(weight * (ratio - mean) ** 2)) / mean,
        "nss": np.linalg.norm(post - base) / np.linalg.norm(base),
    }


def _spectra(kind, size, dtype, seed=0):
    rng = matrices.generator("scaling", kind, size, seed)
    base = matrices.spectrum(kind, size, "float32", rng)
    post = np.sort(base * rng.uniform(0.7, 1.5, size))[::-1]
    return base.astype(dtype), post.astype(dtype)


@pytest.mark.pairwise("size", "dtype")
@pytest.mark.parametrize("dtype", matrices.WORKING_DTYPES)
@pytest.mark.parametrize("size", [1, 2, 17, 400])
@pytest.mark.parametrize("kind", ["identity", "mild", "separated", "geometric", "one_small", "llm_like"])
def test_formulas(kind, size, dtype):
    base, post = _spectra(kind, size, dtype)
    with jax.enable_x64(dtype == "float64"):
        found = scaling(base, post)._asdict()
    tolerance = 200 * np.finfo(dtype).eps
    for name, expected in _expected(base, post).items():
        assert found[name].dtype == dtype and found[name].shape == ()
        np.testing.assert_allclose(found[name], expected, rtol=tolerance, atol=tolerance, err_msg=name)


@pytest.mark.parametrize("rank", [1, 5, 12])
def test_ratios_over_the_leading_rank(rank):
    base, post = _spectra("mild", 12, "float64")
    base[rank:] = post[rank:] = 0
    with jax.enable_x64(True):
        found = scaling(base, post, rank=np.int32(rank))._asdict()
    for name, expected in _expected(base, post, rank).items():
        np.testing.assert_allclose(found[name], expected, rtol=1e-12, atol=1e-14, err_msg=name)


def test_values_beyond_the_rank_do_not_reach_the_ratios():
    """What an SVD leaves there is rounding: it may be zero on one side or both."""
    base, post = _spectra("mild", 12, "float32")
    base[8:] = post[8:] = 0
    expected = scaling(base, post, rank=np.int32(8))
    noisy_base, noisy_post = base.copy(), post.copy()
    noisy_base[8:], noisy_post[8:] = [1e-9, 0, 1e-12, 0], [0, 1e-8, 1e-30, 0]
    found = scaling(noisy_base, noisy_post, rank=np.int32(8))
    np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.parametrize("factor", [1e-3, 0.5, 1.0, 3.0])
def test_uniform_scaling(factor):
    base, _ = _spectra("llm_like", 64, "float32")
    found = scaling(base, np.float32(factor) * base)
    for name in ("alpha", "alpha_geo", "ratio_mean"):
        np.testing.assert_allclose(getattr(found, name), factor, rtol=1e-5)
    np.testing.assert_allclose(found.nss, abs(factor - 1), rtol=1e-5, atol=1e-7)
    assert found.ratio_cv < 1e-5 and found.ratio_cv_energy < 1e-5


def test_the_energy_weighted_cv_is_not_ruled_by_tiny_values():
    base = np.geomspace(1, 1e-6, 64)
    post = base.copy()
    post[-8:] *= np.linspace(1, 3, 8)
    with jax.enable_x64(True):
        found = jax.device_get(scaling(base, post))
    assert found.ratio_cv > 0.3
    assert found.ratio_cv_energy < 1e-4


@pytest.mark.parametrize("exponent", [-120, -100, 100, 110])
@pytest.mark.parametrize("dtype", matrices.WORKING_DTYPES)
def test_the_unit_does_not_matter(dtype, exponent):
    """2^100 is about 1e30: squares are out of float32's range."""
    base, post = _spectra("separated", 20, dtype)
    with jax.enable_x64(dtype == "float64"):
        expected = scaling(base, post)
        found = scaling(np.ldexp(base, exponent), np.ldexp(post, exponent))
    np.testing.assert_allclose(found, expected, rtol=1e-5 if dtype == "float32" else 1e-13)


def test_zero_and_nan():
    base, post = (np.tile(x, (4, 1)) for x in _spectra("mild", 6, "float32"))
    base[1], post[2], base[3] = 0, 0, np.nan
    rank = np.array([6, 0, 0, 0], np.int32)
    found = scaling(base, post, rank=rank)
    for name, value in found._asdict().items():
        assert np.isnan(value)[[1, 3]].all(), name
        assert np.isfinite(value[0]), name
    # Nothing is left of the base: that is a scale of zero, though no ratio.
    assert found.alpha[2] == 0
    np.testing.assert_allclose(found.nss[2], 1, rtol=1e-6)
    for name in ("alpha_geo", "ratio_mean", "ratio_cv", "ratio_cv_energy"):
        assert np.isnan(getattr(found, name)[2]), name


def test_leading_axes_and_vmap():
    pairs = [[_spectra("mild", 7, "float32", seed=3 * i + j) for j in range(3)] for i in range(2)]
    base, post = np.moveaxis(np.array(pairs), 2, 0)
    rank = np.array([[7, 6, 5], [4, 3, 2]], np.int32)
    for way in (scaling, jax.jit(jax.vmap(jax.vmap(kernels.scaling)))):
        found = way(base, post)
        for i, j in np.ndindex(2, 3):
            expected = _expected(base[i, j], post[i, j])
            for name, value in expected.items():
                np.testing.assert_allclose(getattr(found, name)[i, j], value, rtol=1e-5)
    found = scaling(base, post, rank=rank)
    for i, j in np.ndindex(2, 3):
        expected = _expected(base[i, j], post[i, j], rank[i, j])["ratio_cv"]
        np.testing.assert_allclose(found.ratio_cv[i, j], expected, rtol=1e-5)
    assert scaling(base[:0], post[:0]).alpha.shape == (0, 3)
