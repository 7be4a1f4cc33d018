"""Controls by products alone: against sums over singular values, and against random changes, in NumPy."""

import math

import jax
import numpy as np
import pytest

from polarax import kernels
from polarax.kernels.controls_by_products import controls_by_products, exponential_traces
from tests.kernels import matrices
from tests.kernels.test_polar_headlines import weight


@jax.jit
def _controls(hermitian, base_norm, change_norm, rank, shape_of):
    return controls_by_products(exponential_traces(hermitian), base_norm, change_norm, rank, shape=shape_of.shape)


def controls(values, drift, shape, dtype):
    """By products, of a matrix with these singular values."""
    v = matrices.orthonormal(len(values), len(values), np.random.default_rng(0))
    norm = np.linalg.norm(values)
    hermitian = ((v * values / norm) @ v.T).astype(dtype)
    with jax.enable_x64(dtype == "float64"):
        numbers = np.array([norm, drift * norm], dtype)
        return _controls(hermitian, *numbers, np.int32(np.count_nonzero(values)), jax.numpy.zeros(shape, "int8"))


def law(values, drift, shape):
    """What the noise law gives of the singular values themselves, in float64."""
    with jax.enable_x64(True):
        return jax.device_get(_law(values, drift * np.linalg.norm(values), shape=shape))


_law = jax.jit(kernels.closed_form_controls, static_argnames="shape")


def spectrum(kind, size, condition):
    tail = min(4, size // 8)
    return {
        "bulk and tail": np.concatenate(
            [np.geomspace(12, 2, 4), np.linspace(1.5, 0.3, size - 4 - tail), np.geomspace(0.2, 12 / condition, tail)]
        ),
        "geometric": np.geomspace(1, 1 / condition, size),
        "one small": np.append(np.linspace(1, 0.3, size - 1), 1 / condition),
    }[kind]


def control_of(found, name):
    """A mean, or with "_std" a standard deviation."""
    return getattr(found.std, name.removesuffix("_std")) if name.endswith("_std") else getattr(found, name)


# A spectrum with the same traces is not the same spectrum: single values are known to 20%, sums over many to a percent.
@pytest.mark.parametrize(("shape", "dtype"), [((48, 48), "float32"), ((192, 48), "float64")], ids=str)
@pytest.mark.parametrize("kind", ["bulk and tail", "geometric", "one small"])
@pytest.mark.parametrize("condition", [1e3, 1e5])
def test_the_law_of_a_spectrum_with_the_same_traces(kind, condition, shape, dtype):
    values = spectrum(kind, 48, condition)
    for drift in (1e-3, 1e-2, 0.05, 0.3):
        found, expected = controls(values, drift, shape, dtype), law(values, drift, shape)
        assert float(found.nf) == pytest.approx(float(expected.nf), rel=0.04), drift
        assert float(found.std.nf) == pytest.approx(float(expected.std.nf), rel=0.25), drift
        spread = float(expected.std.nuclear_norm_ratio)
        assert float(found.std.nuclear_norm_ratio) == pytest.approx(spread, rel=0.01), drift
        assert float(found.nuclear_norm_ratio) == pytest.approx(float(expected.nuclear_norm_ratio), abs=0.25 * spread)
        assert float(found.reach) == pytest.approx(float(expected.reach), rel=0.1), drift


def test_nf_of_drawn_changes_far_beyond_first_order():
    """A condition number of 1000 at a drift of 0.1, where first order has long ended."""
    rng, size, drift, draws = np.random.default_rng(2), 48, 0.1, 100
    values = spectrum("bulk and tail", size, 1e3)
    noise = rng.normal(size=(draws, size, size)) * drift * np.linalg.norm(values) / size
    u, _, vt = np.linalg.svd(np.diag(values) + noise)
    squares = np.sum((u @ vt - np.eye(size)) ** 2, axis=(1, 2)) / size
    error = np.std(squares) / np.sqrt(draws) / np.mean(squares) / 2
    found = float(controls(values, drift, (size, size), "float32").nf)
    assert found == pytest.approx(np.sqrt(np.mean(squares)), rel=0.02 + 3 * error)


# The trapezoidal rule's own error is 5e-5 of the sum over pairs, and the law's correction of it 1e-4 at this reach.
def test_for_small_noise_sums_over_pairs_are_exact():
    """Of 512 values in float32."""
    size, drift = 512, 1e-4
    values = spectrum("bulk and tail", size, 1e2)
    added = (values[:, None] + values)[~np.eye(size, dtype=bool)]
    pairs = 2 * (drift * np.linalg.norm(values) / size / added) ** 2
    nf, found = np.sqrt(np.sum(pairs) / size), controls(values, drift, (size, size), "float32")
    assert float(found.nf) == pytest.approx(nf, rel=3e-4)
    assert float(found.std.nf) == pytest.approx(np.sqrt(np.sum(pairs**2)) / size / nf, rel=0.03)


@pytest.mark.parametrize(("shape", "dtype"), [((48, 48), "float32"), ((192, 48), "float64")], ids=str)
def test_what_needs_no_singular_value_is_what_the_closed_forms_give(shape, dtype):
    values = spectrum("bulk and tail", 48, 1e3)
    found, closed = controls(values, 0.01, shape, dtype), law(values, 0.01, shape)
    for name in (
        *("budget_scaling", "budget_coordinated", "budget_discordant", "budget_outside", "budget_outside_std"),
        *("symmetry", "symmetry_std"),
    ):
        expected = float(control_of(closed, name))
        assert float(control_of(found, name)) == pytest.approx(expected, rel=100 * float(np.finfo(dtype).eps))
    for name in ("fit_error", "fit_error_std", "ratio_cv_std", "overlap_left_std"):
        assert np.isnan(control_of(found, name))


def test_undetermined_directions_count_as_zeros():
    values = np.append(spectrum("bulk and tail", 40, 1e2), np.zeros(8))
    found, expected = controls(values, 0.01, (192, 48), "float64"), law(values, 0.01, (192, 48))
    assert np.isinf(found.reach)
    assert float(found.nf) == pytest.approx(float(expected.nf), rel=0.01)


@pytest.mark.parametrize("shape", [(48, 48), (192, 48)], ids=str)
def test_controls_of_symmetry_and_of_nuclear_norms_are_what_random_changes_give(shape):
    """Means within four standard errors, and what the second order leaves out; deviations within 15%."""
    rng, draws, drift = np.random.default_rng(5), 600, 0.03
    base = weight(shape, 30)
    u, s, vt = np.linalg.svd(base, full_matrices=False)
    sd = drift * np.linalg.norm(base) / math.sqrt(base.size)
    symmetries, ratios = [], []
    for _ in range(draws):
        change = sd * rng.normal(size=shape)
        in_frame = u.T @ change @ vt.T
        symmetries.append(np.sum(in_frame * in_frame.T) / np.sum(in_frame**2))
        ratios.append(np.linalg.svd(base + change, compute_uv=False).sum() / s.sum())
    control = law(s, drift, shape)
    for name, sample, left_out in (
        ("symmetry", symmetries, 0.0),
        ("nuclear_norm_ratio", ratios, 0.05 * float(control.nuclear_norm_ratio - 1)),
    ):
        mean, std = float(getattr(control, name)), float(getattr(control.std, name))
        assert abs(np.mean(sample) - mean) < 4 * std / math.sqrt(draws) + left_out, name
        assert np.std(sample) == pytest.approx(std, rel=0.15), name
