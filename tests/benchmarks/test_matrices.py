"""Prescribed spectra hold, and the reference finds them."""

import ml_dtypes
import numpy as np
import pytest

from benchmarks import reference
from benchmarks.matrices import (
    CLASSES,
    fine_tuned,
    language_model_weight,
    of_class,
    weight_pairs,
    with_spectrum,
)

SHAPES = [(24, 24), (40, 16), (16, 40), (1, 9), (9, 1)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.name)
def test_spectrum_of_a_class_is_as_prescribed(kind, shape):
    made = of_class(kind, *shape, condition=1e5, dtype="float64", seed=7)
    assert made.entries.shape == shape
    assert np.all(np.diff(made.values) <= 0)
    scale = made.values[0] or 1.0
    found = np.linalg.svd(made.entries / scale, compute_uv=False)
    np.testing.assert_allclose(found, made.values / scale, rtol=0, atol=1e-14)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.name)
def test_entries_of_a_class_fit_their_dtype(kind, dtype):
    entries = of_class(kind, 24, 16, condition=1e5, dtype=dtype, seed=1).entries.astype(dtype)
    assert np.isfinite(entries).all()
    assert kind.name == "zero" or np.any(entries != 0)


def test_classes_have_the_rank_they_say():
    for kind in CLASSES:
        values = of_class(kind, 20, 12, condition=1e3, dtype="float64", seed=2).values
        assert np.all(values > 0) == kind.full_rank, kind.name


def test_seeds_decide():
    one, same, other = (with_spectrum(np.arange(5.0), 8, 5, seed).entries for seed in (0, 0, 1))
    np.testing.assert_array_equal(one, same)
    assert not np.array_equal(one, other)


def test_number_of_values_must_fit():
    with pytest.raises(ValueError, match="Expected 5 values"):
        with_spectrum(np.ones(6), 8, 5, 0)


@pytest.mark.parametrize("shape", [(64, 64), (160, 48), (48, 160)], ids=str)
def test_language_model_weight_has_spikes_a_bulk_and_its_condition(shape):
    made = language_model_weight(*shape, condition=1e4, seed=0)
    found = np.linalg.svd(made.entries, compute_uv=False)
    np.testing.assert_allclose(found, made.values, rtol=1e-9)
    assert found[0] / found[-1] == pytest.approx(1e4, rel=1e-6)
    assert found[0] > 5 * np.median(found)
    assert np.sqrt(np.mean(made.entries**2)) == pytest.approx(0.02)


def test_fine_tuned_changes_by_the_drift_asked_for():
    base = language_model_weight(40, 24, condition=1e3, seed=0).entries
    for scale in (1.0, 1e-300, 1e300):
        change = fine_tuned(base * scale, drift=0.03, seed=1) / scale - base
        assert np.linalg.norm(change) / np.linalg.norm(base) == pytest.approx(0.03)


def test_weight_pairs_are_stacks_in_their_dtype():
    dtype = np.dtype(ml_dtypes.bfloat16)
    base, post = weight_pairs(24, 16, 3, dtype=dtype, seed=0)
    assert base.shape == post.shape == (3, 24, 16)
    assert base.dtype == post.dtype == dtype
    assert not np.array_equal(base[0], base[1])
    assert not np.array_equal(base, post)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.name)
def test_reference_finds_prescribed_values(kind, shape):
    made = of_class(kind, *shape, condition=1e6, dtype="float64", seed=3)
    left, values, right = reference.svd(made.entries)
    scale = made.values[0] or 1.0
    np.testing.assert_allclose(values / scale, made.values / scale, rtol=0, atol=1e-14)
    product = (left * (values / scale)) @ right.T
    np.testing.assert_allclose(product, made.entries / scale, rtol=0, atol=1e-15)


@pytest.mark.skipif(not reference.EXTENDED, reason="long double is float64 here")
def test_reference_is_more_accurate_than_float64():
    # Sums of a few powers of two: exact in float64, singular values 2^-k exactly by construction.
    hadamard = np.array([[1.0]])
    for _ in range(4):
        hadamard = np.block([[hadamard, hadamard], [hadamard, -hadamard]])
    values = 2.0 ** -np.arange(16.0)
    entries = (hadamard / 4 * values) @ (hadamard / 4)
    found = reference.svd(entries).values
    assert np.max(np.abs(found - values)) < 1e-18


def test_reference_nf_against_its_definition():
    rng = np.random.default_rng(0)
    base, post = rng.normal(size=(2, 12, 7))
    (u_b, _, vt_b), (u_p, _, vt_p) = (np.linalg.svd(x, full_matrices=False) for x in (base, post))
    difference = (u_b.T @ u_p).T @ (vt_b @ vt_p.T) - np.eye(7)
    wanted = np.linalg.norm(difference) / np.sqrt(7)
    for one, other in ((base, post), (base.T, post.T)):
        found = reference.rotation_difference(reference.svd(one), reference.svd(other))
        assert found == pytest.approx(wanted, rel=1e-12)


def test_reference_refuses_what_is_not_finite():
    with pytest.raises(ValueError, match="finite"):
        reference.svd(np.array([[1.0, np.nan]]))
