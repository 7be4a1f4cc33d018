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


def sums(values, drift, shape):
    """The closed forms of docs/definitions.md, entry by entry."""
    rank, free = len(values), max(shape) - len(values)
    sd = drift * np.linalg.norm(values) / math.sqrt(math.prod(shape))
    off = ~np.eye(rank, dtype=bool)
    added = (values[:, None] + values)[off]
    pairs = 2 * sd**2 / added**2
    grown = np.sqrt(values**2 + free * sd**2)
    shortened = 1 - values / grown
    nf_squared = (pairs.sum() + np.sum(shortened**2)) / rank
    slope = 2 * shortened * values / (2 * grown**3) * math.sqrt(2 * free) * sd**2
    deviation = math.sqrt(4 * np.sum(pairs**2) + np.sum(slope**2)) / rank
    return {
        "nf": math.sqrt(nf_squared),
        "nf_std": deviation / (2 * math.sqrt(nf_squared)),
        "reach": drift * values[0] / values[-1],
        "nuclear_norm_ratio": 1 + (np.sum(sd**2 / added) / 2 + np.sum(grown - values)) / values.sum(),
        "nuclear_norm_ratio_std": sd * math.sqrt(rank) / values.sum(),
    }


def control_of(found, name):
    """A mean, or with "_std" a standard deviation."""
    return getattr(found.std, name.removesuffix("_std")) if name.endswith("_std") else getattr(found, name)


# The trapezoidal rule's own errors are 5e-6 to 6e-4 (the module's docstring); float32 knows singular values to eps s_1,
# so that its smallest, 1e-5 s_1, is off by up to 1% (`nf` sums over many); the space outside is read off a spectrum
# that is not unique.
@pytest.mark.parametrize(
    ("dtype", "shape", "tolerance"),
    [
        ("float64", (48, 48), 1e-3),
        ("float32", (48, 48), 2e-3),
        ("float64", (96, 48), 0.03),
        ("float32", (96, 48), 0.03),
    ],
)
@pytest.mark.parametrize("condition", [1e2, 1e5])
@pytest.mark.parametrize("drift", [1e-3, 0.1])
def test_sums_over_pairs(dtype, shape, tolerance, condition, drift):
    values = np.linalg.svd(weight(shape, condition), compute_uv=False)
    found, expected = controls(values, drift, shape, dtype), sums(values, drift, shape)
    for name, value in expected.items():
        allowed = {"nf": tolerance, "nf_std": 3 * tolerance, "reach": 0.05}.get(name, tolerance)
        if name == "nuclear_norm_ratio":
            assert float(found.nuclear_norm_ratio) - 1 == pytest.approx(value - 1, rel=allowed, abs=4e-7)
        else:
            assert float(control_of(found, name)) == pytest.approx(value, rel=allowed), name


@pytest.mark.parametrize("shape", [(48, 48), (96, 48)], ids=str)
def test_what_needs_no_singular_value_is_what_the_closed_forms_give(shape):
    values = np.linalg.svd(weight(shape, 1e3), compute_uv=False)
    found = controls(values, 0.01, shape, "float64")
    with jax.enable_x64(True):
        closed = kernels.closed_form_controls(values, np.float64(0.01 * np.linalg.norm(values)), shape=shape)
    for name in (
        *("budget_scaling", "budget_coordinated", "budget_discordant", "budget_outside", "budget_outside_std"),
        *("symmetry", "symmetry_std"),
    ):
        assert float(control_of(found, name)) == pytest.approx(float(control_of(closed, name)), rel=1e-9), name
    for name in ("fit_error", "fit_error_std", "ratio_cv_std", "overlap_left_std"):
        assert np.isnan(control_of(found, name))


def test_undetermined_directions_are_left_out():
    values = np.linalg.svd(weight((48, 32), 1e2), compute_uv=False)
    expected = sums(values, 0.01, (48, 32))
    found = controls(np.append(values, np.zeros(0)), 0.01, (48, 32), "float64")
    deficient = controls(np.append(values, np.zeros(8)), 0.01, (48, 40), "float64")
    assert np.isinf(deficient.reach) and np.isfinite(found.reach)
    # The same pairs: what differs is the number of entries that the change has.
    pairs = float(deficient.nf) / math.sqrt(32 / 40)
    assert pairs == pytest.approx(expected["nf"], rel=0.05)


@pytest.mark.parametrize("shape", [(40, 40), (90, 30)], ids=str)
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
    with jax.enable_x64(True):
        control = kernels.closed_form_controls(s, np.float64(drift * np.linalg.norm(base)), shape=shape)
    for name, sample, left_out in (
        ("symmetry", symmetries, 0.0),
        ("nuclear_norm_ratio", ratios, 0.05 * float(control.nuclear_norm_ratio - 1)),
    ):
        mean, std = float(getattr(control, name)), float(getattr(control.std, name))
        assert abs(np.mean(sample) - mean) < 4 * std / math.sqrt(draws) + left_out, name
        assert np.std(sample) == pytest.approx(std, rel=0.15), name


def test_float32_keeps_the_smallest_singular_values():
    """Of 512 values, the smallest 1e-5 of the largest: squares of exp(-t H) would be off by 2e-3."""
    values = np.linalg.svd(weight((512, 512), 1e5), compute_uv=False)
    found, expected = controls(values, 0.01, (512, 512), "float32"), sums(values, 0.01, (512, 512))
    assert float(found.nf) == pytest.approx(expected["nf"], rel=3e-4)
