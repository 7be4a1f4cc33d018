"""Rounding noise against real rounding, and unchanged entries bit by bit."""

import functools

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import scipy.linalg

from polarax import kernels
from polarax.kernels.rounding import spare_digits
from tests.kernels import matrices

STORED = ("bfloat16", "float16", "float8_e4m3fn", "float8_e5m2")


def _draw(scale, dtype, name="rounding"):
    return (scale * matrices.generator(name, scale).standard_normal((300, 200))).astype(dtype)


def _noise(x, stored):
    """||x rounded to `stored` - x||_F, by ml_dtypes."""
    rounded = x.astype(ml_dtypes.finfo(stored).dtype).astype(np.float64)
    return np.linalg.norm(rounded - x.astype(np.float64))


@pytest.mark.pairwise
@pytest.mark.parametrize("dtype", matrices.WORKING_DTYPES)
@pytest.mark.parametrize("scale", [1.0, 0.02, 7.3])
@pytest.mark.parametrize("stored", STORED)
def test_noise_of_rounding(stored, scale, dtype):
    x = _draw(scale, dtype)
    with jax.enable_x64(dtype == "float64"):
        found = kernels.rounding_noise(x, stored)
    assert found.dtype == dtype and found.shape == ()
    np.testing.assert_allclose(found, _noise(x, stored), rtol=0.04)


@pytest.mark.parametrize("stored", ["float16", "float8_e4m3fn", "float8_e5m2"])
@pytest.mark.parametrize("below", [1, 3])
def test_noise_of_rounding_to_subnormal_numbers(stored, below):
    """Below the smallest normal number the spacing stays what it is there."""
    x = _draw(float(ml_dtypes.finfo(stored).smallest_normal) / 2**below, "float32")
    np.testing.assert_allclose(kernels.rounding_noise(x, stored), _noise(x, stored), rtol=0.04)


def test_noise_of_float32():
    x = _draw(1.0, "float64")
    with jax.enable_x64(True):
        found = kernels.rounding_noise(x, "float32")
    np.testing.assert_allclose(found, _noise(x, "float32"), rtol=0.04)


def test_noise_of_one_entry():
    """ulp / sqrt(12); 1 and 1.99 have one spacing, 2 has twice that; zero is exact."""
    ulp = 2.0**-7  # of bfloat16 at 1
    for entry, expected in ((1.0, ulp), (1.99, ulp), (-1.5, ulp), (2.0, 2 * ulp), (0.25, ulp / 4), (0.0, 0.0)):
        found = kernels.rounding_noise(np.full((1, 1), entry, np.float32), jnp.bfloat16)
        np.testing.assert_allclose(found, expected / np.sqrt(12), rtol=1e-6)


@pytest.mark.parametrize("exponent", [-80, 80])
def test_noise_scales_with_the_numbers(exponent):
    x = _draw(1.0, "float32")
    expected = np.ldexp(float(kernels.rounding_noise(x, "bfloat16")), exponent)
    np.testing.assert_allclose(kernels.rounding_noise(np.ldexp(x, exponent), "bfloat16"), expected, rtol=1e-5)


def test_noise_of_stacks():
    x = np.stack([_draw(1.0, "float32"), _draw(0.02, "float32")])[:, None]
    expected = [[kernels.rounding_noise(y[0], "bfloat16")] for y in x]
    for way in (kernels.rounding_noise, jax.jit(kernels.rounding_noise, static_argnums=1)):
        np.testing.assert_allclose(way(x, "bfloat16"), expected, rtol=1e-6)


# Numbers of a narrower type, stored in a wider one.


def _spare(x, dtype=None):
    return int(spare_digits(kernels.rounding_of(x, dtype or x.dtype)))


@pytest.mark.parametrize("wide", ["float16", "float32", "float64"])
@pytest.mark.parametrize("narrow", ["bfloat16", "float16", "float8_e4m3fn", "float8_e5m2"])
def test_noise_of_a_narrower_type(narrow, wide):
    """The last places that no entry uses are those the narrower type lacks.

    Of p places, 1 in 2^(p + 1) numbers of a binade is rounded up to the next one, where the square of the spacing is
    four times as large.
    """
    lacking = ml_dtypes.finfo(wide).nmant - ml_dtypes.finfo(narrow).nmant
    x = _draw(1.0, "float64", narrow)
    stored = x.astype(ml_dtypes.finfo(narrow).dtype).astype(wide)
    with jax.enable_x64(wide == "float64"):
        assert _spare(stored) == lacking
        rtol = 0.04 + 1.5 / 2 ** (ml_dtypes.finfo(narrow).nmant + 1)
        np.testing.assert_allclose(kernels.rounding_noise(stored, wide), _noise(x, narrow), rtol=rtol)


def test_spare_digits_by_the_bits_of_every_entry():
    """Against the bits that numpy has: mantissas cut to different lengths."""
    x = _draw(1.0, "float32")
    for cut in (0, 1, 5, 12, 19):
        bits = x.view(np.uint32) & ~np.uint32((1 << cut) - 1)
        y = bits.view(np.float32)
        y[:5] = 0
        y[0, 0] = np.float32(1e-45)  # not normal: it says nothing
        assert _spare(y) == cut
    y[150, 150] = np.nextafter(np.float32(1), np.float32(2))
    assert _spare(y) == 0  # one entry that uses the last place is enough


def test_few_or_equal_entries_say_nothing():
    generator = matrices.generator("rounding", "few")
    few = {
        "zero": np.zeros((6, 6)),
        "ones": np.ones((6, 6)),
        "identity": np.eye(6),
        "ternary": 0.75 * generator.integers(-1, 2, (50, 50)),
        "two values": generator.choice([1.0, 1.5], (50, 50)),
        "powers of two": 2.0 ** generator.integers(-8, 8, (50, 50)),
        "a short row": _draw(1.0, ml_dtypes.bfloat16)[:1, :8],
    }
    for name, x in few.items():
        assert _spare(x.astype(np.float32)) == 0, name


def test_spare_digits_of_stacks():
    x = _draw(1.0, "float32")
    stack = np.stack([x, x.astype(ml_dtypes.bfloat16).astype(np.float32)])
    for way in (kernels.rounding_of, jax.jit(kernels.rounding_of, static_argnums=1)):
        np.testing.assert_array_equal(spare_digits(way(stack, "float32")), [0, 16])


def test_the_base_counts_only_where_its_rounding_is_the_change():
    x = _draw(1.0, "float32")
    rounded = x.astype(ml_dtypes.bfloat16).astype(np.float32)
    coarse, fine = kernels.rounding_of(rounded, "float32"), kernels.rounding_of(x, "float32")
    norm = _noise(x, "bfloat16")
    np.testing.assert_allclose(kernels.noise_between(fine, coarse, 3 * norm), norm, rtol=0.04)
    np.testing.assert_allclose(kernels.noise_between(coarse, fine, norm), norm, rtol=0.04)
    for size in (0.5, 2):  # trained on from rounded weights, in float32
        found = kernels.noise_between(coarse, fine, size * norm)
        np.testing.assert_allclose(found, norm / 2**16, rtol=0.04)


# What rounding alone would show.


@functools.partial(jax.jit, static_argnames="shape")
def controls_nf(values, norm, shape):
    return kernels.closed_form_controls(values, norm, shape=shape).nf


@pytest.mark.parametrize("shape", [(96, 96), (200, 64), (64, 200)], ids=str)
def test_spectrum_and_nf_of_rounding_alone(shape):
    """A post that is the base rounded to bfloat16, of several bases; nf by numpy's polar factors."""
    nf, spectral_norm, expected_nf, expected_norm = [], [], [], []
    for seed in range(8):
        base = matrices.with_spectrum(
            np.linspace(1, 0.2, min(shape)), *shape, matrices.generator("rounding", shape, seed)
        )
        change = base.astype(ml_dtypes.bfloat16).astype(np.float64) - base
        with jax.enable_x64(True):
            norm = kernels.rounding_noise(base, "bfloat16")
            values = np.linalg.svd(base, compute_uv=False)
            expected_nf.append(controls_nf(values, norm, shape))
            expected_norm.append(kernels.noise_spectral_norm(norm, shape))
        tall = (lambda x: x) if shape[0] >= shape[1] else np.transpose
        factors = [scipy.linalg.polar(tall(x))[0] for x in (base + change, base)]
        nf.append(np.linalg.norm(factors[0].T @ factors[1] - np.eye(min(shape))) / np.sqrt(min(shape)))
        spectral_norm.append(np.linalg.norm(change, 2))
    np.testing.assert_allclose(np.mean(expected_nf), np.sqrt(np.mean(np.square(nf))), rtol=0.03)
    np.testing.assert_allclose(np.mean(expected_norm), np.mean(spectral_norm), rtol=0.06)


# Unchanged entries.

unchanged_share = jax.jit(kernels.unchanged_share)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2"])
def test_unchanged(dtype):
    stored = ml_dtypes.finfo(dtype).dtype
    base = matrices.matrix("gaussian", (10, 8), dtype)
    post = base.copy()
    post[:3] = (post[:3].astype(np.float32) * 2).astype(stored)
    bits = np.dtype(f"u{stored.itemsize}")
    expected = np.mean(base.view(bits) == post.view(bits))
    assert 0.6 < expected < 0.8
    for way in (unchanged_share, kernels.unchanged_share):
        found = way(jnp.asarray(base), jnp.asarray(post))
        np.testing.assert_allclose(found, expected, rtol=1e-6)
        assert found.dtype == np.float32
    assert unchanged_share(base, base) == 1


def test_unchanged_is_bitwise_in_one_dtype():
    nan, other_nan = np.array([0x7FC00000, 0x7FC00001], np.uint32).view(np.float32)
    base = np.array([[0.0, nan, nan, 1.0]], np.float32)
    post = np.array([[-0.0, nan, other_nan, 1.0]], np.float32)
    assert unchanged_share(base, post) == 0.5  # the first NaN and 1.0


def test_unchanged_sees_one_bit():
    base = np.ones((4, 4), np.float32)
    post = base.copy()
    post[0, 0] = np.nextafter(np.float32(1), np.float32(2))
    assert unchanged_share(base, post) == 15 / 16
    subnormal = np.zeros((2, 2), np.float32)
    subnormal[0, 0] = np.float32(1e-45)
    assert unchanged_share(np.zeros((2, 2), np.float32), subnormal) == 3 / 4


def test_unchanged_is_by_value_in_two_dtypes():
    base = np.array([[1.0, 0.1, 0.0, np.nan]]).astype(ml_dtypes.bfloat16)
    post = np.array([[1.0, 0.1, -0.0, np.nan]], np.float32)
    assert unchanged_share(base, post) == 0.5  # 0.1 differs in its digits; NaN is not equal to itself
    assert unchanged_share(post, base) == 0.5


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float8_e5m2"])
def test_unchanged_of_eight_bits_and_others(dtype):
    base = np.array([[1.0, 0.1, 0.0, 2.0]], ml_dtypes.float8_e4m3fn)
    post = np.array([[1.0, 0.1, 0.0, 3.0]], ml_dtypes.finfo(dtype).dtype)
    expected = np.mean(base.astype(np.float64) == post.astype(np.float64))
    assert unchanged_share(base, post) == unchanged_share(post, base) == expected


def test_unchanged_in_float64():
    with jax.enable_x64(True):
        base = jnp.ones((2, 3))
        post = base.at[0, 0].add(np.finfo(np.float64).eps)
        np.testing.assert_allclose(unchanged_share(base, post), 5 / 6, rtol=1e-6)


def test_unchanged_of_stacks():
    base = np.ones((2, 3, 4, 5), ml_dtypes.bfloat16)
    post = base.copy()
    post[1, 2, 0, 0] = 2
    expected = np.ones((2, 3))
    expected[1, 2] = 19 / 20
    for way in (unchanged_share, jax.jit(jax.vmap(kernels.unchanged_share))):
        np.testing.assert_allclose(way(base, post), expected, rtol=1e-6)
