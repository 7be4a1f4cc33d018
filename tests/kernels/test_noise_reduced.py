"""Spreads where a change covers the smallest singular values, against Monte Carlo by numpy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from polarax.kernels import noise_law
from tests.kernels.test_noise_spreads import CHANGES, computed, padded, sampled

DRAWN = ("nf", "alpha", "ratio_cv", "ratio_cv_energy", "nss", "nuclear_norm_ratio")


@functools.cache
def at_any_size(shape, k):
    return jax.jit(lambda *operands: noise_law.spreads_at_any_size(*operands, shape=shape, top_k=k))


def computed_at_any_size(s, norm, values, shape, dtype="float64", k=4):
    with jax.enable_x64(dtype == "float64"):
        s, norm = jnp.asarray(s, dtype), jnp.asarray(norm, dtype)
        values = None if values is None else jnp.asarray(values, dtype)
        return jax.device_get(at_any_size(shape, k)(s, norm, values))


# Spectra whose smallest values the change covers, and by how much the small problem may be off where it holds them all
# (32 or 96 draws against 400) or stands for more of them than it has.
@pytest.mark.parametrize(
    ("rows", "size", "smallest", "drift", "kind"),
    [
        (32, 32, 1e-3, 0.03, "power law"),
        (48, 24, 1e-3, 0.1, "three"),
        (48, 24, 1e-2, 0.3, "one direction"),
        (80, 80, 1e-2, 0.2, "isotropic"),
    ],
)
def test_spreads_where_the_smallest_values_are_covered(rows, size, smallest, drift, kind):
    s, values = np.geomspace(1, smallest, size), CHANGES[kind]
    norm = drift * np.linalg.norm(s)
    found = sampled(s, rows, norm, values, 4, 400, seed=2)
    result, source = computed_at_any_size(s, norm, values if values is None else padded(values, size), (rows, size))
    assert source == noise_law.SpreadSource.DRAWS
    count = 96 if rows == size else 32
    for name in ("nf", "alpha", "ratio_cv", "nuclear_norm_ratio"):
        std, error = found[name]
        allowed = 0.25 + 3 * np.hypot(error, 1 / np.sqrt(2 * count))
        assert abs(np.log(getattr(result, name) / std)) <= allowed, (name, getattr(result, name) / std)


def test_each_matrix_of_a_stack_is_drawn_where_it_has_to_be():
    s = np.stack([np.linspace(1, 0.4, 10), np.geomspace(5, 5e-4, 10)])
    norm, values = np.array([0.01, 0.3]), np.stack([padded([1.0], 10), padded([2.0, 1.0], 10)])
    stack, source = computed_at_any_size(s, norm, values, (25, 10))
    assert source.tolist() == [noise_law.SpreadSource.FIRST_ORDER, noise_law.SpreadSource.DRAWS]
    first, second = ([x[index] for x in stack] for index in range(2))
    assert np.allclose(first, computed(s[0], norm[0], values[0], (25, 10), 4), rtol=1e-10)
    with jax.enable_x64(True):  # alone, with an operand for the longer side
        by_side = jax.jit(lambda *x: noise_law.spreads_at_any_size(*x[:3], shape=(x[3], 10), top_k=4)[0])
        assert np.allclose(by_side(s[1], norm[1], values[1], 25.0), second, rtol=1e-10)


def test_float32_gives_the_same_whatever_the_unit():
    s, values = np.geomspace(1, 1e-3, 16), padded([2.0, 1.0, 1.0], 16)
    for norm in (1e-4, 0.1):
        expected, source = computed_at_any_size(s, norm, values, (24, 16))
        for unit in (1e-12, 1e12):
            single, single_source = computed_at_any_size(s * unit, norm * unit, values * 1e-20, (24, 16), "float32")
            assert source == single_source
            drawn = source == noise_law.SpreadSource.DRAWS  # other numbers are drawn in float32
            for name, x, y in zip(expected._fields, single, expected, strict=True):
                assert np.isclose(x, y, rtol=0.9 if drawn and name in DRAWN else 1e-3), name


def test_what_is_not_determined_has_defined_results():
    nothing, _ = computed_at_any_size(np.zeros(4), 1.0, np.ones(4), (6, 4))
    assert np.isnan(nothing).all()
    broken, _ = computed_at_any_size(np.full(4, np.nan), 1.0, np.ones(4), (6, 4))
    assert np.isnan(broken).all()
    still, source = computed_at_any_size(np.linspace(1, 0.5, 4), 0.0, np.zeros(4), (6, 4))
    assert source == noise_law.SpreadSource.FIRST_ORDER
    assert still.nf == still.alpha == still.ratio_cv == still.nss == still.fit_error == still.overlap_left == 0
    for norm in (1e-3, 1.0):
        deficient, _ = computed_at_any_size(np.array([1.0, 1.0, 0.5, 0.0]), norm, np.ones(4), (6, 4))
        assert np.isfinite(deficient).all()
        assert deficient.budget_outside > 0
        number, _ = computed_at_any_size(np.array([2.0]), norm, np.array([1.0]), (1, 1))
        assert np.isfinite(number).all()
        assert number.ratio_cv == 0
