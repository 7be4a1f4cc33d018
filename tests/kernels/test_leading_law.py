"""The law of the leading subspaces against sampled noise, limits that are known exactly, and its own invariances.

The sampled numbers are means over draws of base + noise with NumPy: `np.linalg.svd` of `np.diag(s)` on zeros of (m, n)
plus sd times `default_rng(n).standard_normal`.
"""

import functools
import types

import jax
import numpy as np
import pytest

from polarax.kernels.noise_law import LeadingLaw, leading_law, values_law


def spectrum(kind, n):
    """Of order 1: dense, falling over three decades, or a bulk with spikes and a few tiny values."""
    if kind == "dense":
        return np.linspace(1, 0.95, n)
    if kind == "falling":
        return np.geomspace(1, 1e-3, n)
    bulk = 0.3 * np.sqrt(1 - np.linspace(0.0, 0.99, n - 7))
    return np.sort(np.concatenate([[1.0, 0.6, 0.4], bulk, np.geomspace(0.01, 1e-4, 4)]))[::-1]


SHARES = ("overlap_left", "overlap_right", "cos2_left", "cos2_right", "spectral_norm")  # which need no draws


@functools.cache
def compiled(cols, k, fields):
    def law(s, change, rows, tail):
        found = leading_law(s, change, shape=(rows, cols), k=k, tail=tail)
        return {name: getattr(found, name) for name in fields}

    return jax.jit(law)


def law_of(s, change, *, rows, k, cols=None, tail=0.0, dtype="float64", fields=LeadingLaw._fields):
    """The law of a tall matrix: one program for all numbers of rows."""
    operands = (np.asarray(x, dtype) for x in (s, change, rows, np.broadcast_to(tail, np.shape(change))))
    with jax.enable_x64(dtype == "float64"):
        found = jax.device_get(compiled(cols or np.shape(s)[-1], k, fields)(*operands))
    return types.SimpleNamespace(**found)


SAMPLED = [
    ("dense", 32, 32, 0.01, 4, 0.728, 0.728, 0.51, 0.6, 1.0036),  # 400 draws
    ("dense", 32, 32, 0.2, 4, 0.158, 0.158, 0.08, 9.0, 1.2422),  # 400 draws
    ("falling", 128, 32, 1.0, 4, 0.825, 0.930, 0.91, 2.1, 1.0533),  # 400 draws
    ("bulk", 128, 32, 0.2, 4, 0.885, 0.895, 0.73, 0.0, 1.0019),  # 400 draws
    ("bulk", 512, 128, 0.2, 4, 0.816, 0.821, 0.50, 1.3, 1.0017),  # 100 draws
    ("dense", 2560, 128, 0.2, 4, 0.099, 0.102, 0.06, 10.0, 1.0594),  # 100 draws
]


@pytest.mark.parametrize(
    ("kind", "rows", "cols", "drift", "k", "left", "right", "last", "intruders", "largest"), SAMPLED
)
def test_sampled_noise(kind, rows, cols, drift, k, left, right, last, intruders, largest):
    s = spectrum(kind, cols)
    law = law_of(s, drift * np.linalg.norm(s), rows=rows, k=k)
    for overlap, sampled in ((law.overlap_left, left), (law.overlap_right, right)):
        assert overlap == pytest.approx(sampled, abs=max(0.02, 0.05 * (1 - sampled)))
    assert law.cosines_right[-1] == pytest.approx(last, abs=0.1)
    assert law.intruders_right == pytest.approx(intruders, abs=1)
    assert law.spectral_norm == pytest.approx(largest, rel=0.01)


@pytest.mark.parametrize("rows", [32, 160])
def test_small_noise_turns_vectors_as_perturbation_theory_says(rows):
    s, k, variance = spectrum("falling", 32), 4, 1e-10
    law = law_of(s, np.sqrt(variance * rows * 32), rows=rows, k=k)
    inside, outside = s[:k, None] ** 2, s[k:] ** 2
    right = np.sum(variance * (inside + outside) / (inside - outside) ** 2) / k
    left = right + np.mean((rows - 32) * variance / inside)
    assert 1 - law.overlap_right == pytest.approx(right, rel=1e-3)
    assert 1 - law.overlap_left == pytest.approx(left, rel=1e-3)
    assert np.mean(1 - law.cosines_right**2) == pytest.approx(right, rel=0.1)
    assert law.spectral_norm == pytest.approx(1, abs=np.sqrt(variance) / 10)
    assert law.intruders_left == law.intruders_right == 0


def test_squared_cosines_have_the_overlap_for_mean():
    for drift in (0.05, 0.3, 1.0):
        law = law_of(spectrum("bulk", 32), drift, rows=96, k=4)
        for cosines, overlap in ((law.cosines_left, law.overlap_left), (law.cosines_right, law.overlap_right)):
            assert np.all(np.diff(cosines) <= 0) and np.all(cosines >= 0) and np.all(cosines <= 1)
            assert overlap - 0.05 < np.mean(cosines**2) <= overlap + 1e-9  # squares of means, and means of squares


def test_noise_alone_leaves_what_chance_gives():
    rows, k, sd = 96, 4, 1e4
    law = law_of(spectrum("falling", 32), sd * np.sqrt(rows * 32), rows=rows, k=k)
    assert law.overlap_right == pytest.approx(k / 32, rel=0.02)
    assert law.overlap_left == pytest.approx(k / rows, rel=0.02)
    sampled = np.linalg.svd(np.random.default_rng(0).normal(size=(400, rows, 32)), compute_uv=False)[:, 0]
    assert law.spectral_norm / sd == pytest.approx(sampled.mean(), rel=0.01)


def test_equal_values():
    """Of two, a random turn remains, uniform in its angle; of all that are equal together, nothing is lost."""
    law = law_of([1.0, 1.0], 1e-6, rows=2, k=1)
    assert law.overlap_left == pytest.approx(0.5, abs=1e-3)
    assert law.cosines_left[0] == pytest.approx(2 / np.pi, abs=0.03)
    s = spectrum("falling", 32)
    s[:4] = 1.0
    four = law_of(s, 1e-7, rows=32, k=4)
    np.testing.assert_allclose(four.cosines_left, 1, atol=1e-9)
    assert four.overlap_left == pytest.approx(1, abs=1e-9)


def test_nothing_changed():
    law = law_of(spectrum("bulk", 32), 0.0, rows=40, k=4)
    assert law.overlap_left == law.overlap_right == law.spectral_norm == 1
    np.testing.assert_array_equal(law.cosines_left, 1)
    assert law.intruders_left == law.intruders_right == 0


@pytest.mark.parametrize("value", [0.0, np.nan, np.inf])
def test_a_base_that_is_zero_or_not_finite(value):
    law = law_of(np.full(32, value), 1.0, rows=40, k=4)
    assert all(np.isnan(x).all() for x in vars(law).values())


def test_one_value():
    law = law_of([2.0], 0.5, rows=9, k=16)
    assert law.overlap_right == law.cosines_right[0] == 1
    # The vector is (2 + g_1, g_2, ..., g_9) over its length.
    sampled = np.eye(9)[0] * 2 + 0.5 / 3 * np.random.default_rng(0).normal(size=(4000, 9))
    cosines = sampled[:, 0] / np.linalg.norm(sampled, axis=1)
    assert law.overlap_left == pytest.approx(np.mean(cosines**2), abs=0.005)
    assert law.cosines_left[0] == pytest.approx(np.mean(cosines), abs=0.005)


def test_a_base_of_lower_rank_has_nothing_to_keep_beyond():
    s = np.zeros(32)
    s[:3] = [3.0, 2.0, 1.0]
    law = law_of(s, 0.01, rows=40, k=4)
    assert law.overlap_left == pytest.approx(0.75, abs=0.01)
    assert law.overlap_right == pytest.approx(0.75, abs=0.01)
    assert law.intruders_left == law.intruders_right == 7  # 10 post vectors, of which 3 are the base's


def test_a_wide_matrix_has_the_sides_of_its_transpose():
    @functools.partial(jax.jit, static_argnames="shape")
    def shares(s, change, shape):
        law = leading_law(s, change, shape=shape, k=4)
        return {name: getattr(law, name) for name in SHARES}

    tall, wide = (shares(np.float32([3, 2, 1]), np.float32(0.4), shape) for shape in ((9, 3), (3, 9)))
    for left, right in (("overlap_left", "overlap_right"), ("cos2_left", "cos2_right")):
        np.testing.assert_array_equal(tall[left], wide[right])
        np.testing.assert_array_equal(tall[right], wide[left])
    assert tall["cos2_left"][0] < tall["cos2_right"][0]  # the longer side loses more


def test_stacks_units_and_float32():
    stack = np.stack([spectrum(kind, 32) for kind in ("dense", "falling", "bulk")])
    changes = 0.1 * np.linalg.norm(stack, axis=-1)
    together = law_of(stack[None], changes[None], rows=40, k=4)
    for place in range(3):
        alone = law_of(stack[place], changes[place], rows=40, k=4)
        for name in LeadingLaw._fields:
            np.testing.assert_allclose(getattr(together, name)[0, place], getattr(alone, name), rtol=1e-7, atol=1e-9)
    scaled = law_of(1e12 * stack[0], 1e12 * changes[0], rows=40, k=4)
    np.testing.assert_allclose(scaled.overlap_left, together.overlap_left[0, 0], rtol=1e-7)
    np.testing.assert_allclose(scaled.spectral_norm, 1e12 * together.spectral_norm[0, 0], rtol=1e-9)
    single = law_of(stack[2], changes[2], rows=40, k=4, dtype="float32")
    assert single.overlap_left.dtype == np.float32
    np.testing.assert_allclose(single.overlap_left, together.overlap_left[0, 2], atol=2e-3)
    np.testing.assert_allclose(single.spectral_norm, together.spectral_norm[0, 2], rtol=1e-5)


def test_a_tail_that_stands_for_many():
    """Values of one size, given one by one and as one with their number."""
    s = np.concatenate([[1.0, 0.8, 0.6, 0.5], np.full(28, 0.2)])
    whole = law_of(s, 0.3, rows=40, k=4)
    front = law_of(s[:8], 0.3, rows=40, k=4, cols=32, tail=0.2, fields=SHARES)
    for name in ("overlap_left", "overlap_right", "spectral_norm"):
        np.testing.assert_allclose(getattr(front, name), getattr(whole, name), rtol=1e-9)


def test_what_a_long_spectrum_loses_to_the_first_order():
    s, k, variance = np.linspace(1, 0.1, 600), 4, 1e-14
    law = law_of(s, np.sqrt(variance) * 600, rows=600, k=k, fields=SHARES)
    inside, outside = s[:k, None] ** 2, s[k:] ** 2
    lost = variance * np.sum((inside + outside) / (inside - outside) ** 2) / k
    assert 1 - law.overlap_right == pytest.approx(lost, rel=1e-3)


@pytest.mark.parametrize(("drift", "rows"), [(0.0, 40), (0.1, 32), (0.3, 96)])
def test_from_the_points_that_the_law_of_all_values_found(drift, rows):
    """The shares are imaginary parts of the resolvent's diagonal there; and they are those without these points."""
    s, k = spectrum("bulk", 32), 4
    norm = drift * np.linalg.norm(s)
    values, law = jax.device_get(from_values(s, norm, float(rows)))
    alone = law_of(s, norm, rows=rows, k=k)
    for name in LeadingLaw._fields:
        np.testing.assert_allclose(getattr(law, name), getattr(alone, name), rtol=1e-8, atol=1e-10, err_msg=name)
    if not drift:
        return
    variance = norm**2 / (rows * 32)
    t = (s[:10] + values.offset[:10] + 1j * values.v[:10])[:, None] ** 2
    x = 1 + variance * np.sum(1 / (t - s**2), axis=1, keepdims=True)
    z = np.sqrt(t * x**2 + variance * (rows - 32) * x)
    right, left = (-np.imag(w / (t - s**2)) for w in (z / x, t * x / z))
    outside = -np.imag(x / z) * (rows - 32)
    np.testing.assert_allclose(law.cos2_right, np.diagonal(right / np.sum(right, 1, keepdims=True)), rtol=1e-7)
    np.testing.assert_allclose(law.cos2_left, np.diagonal(left / (np.sum(left, 1, keepdims=True) + outside)), rtol=1e-7)
    np.testing.assert_allclose(law.spectral_norm, z[0, 0].real, rtol=1e-9)


def from_values(s, norm, rows):
    @jax.jit
    def both(s, norm, rows):
        values = values_law(s, norm, shape=(rows, s.shape[-1]))
        return values, leading_law(s, norm, shape=(rows, s.shape[-1]), k=4, values=values)

    with jax.enable_x64(True):
        return both(s, norm, rows)


def test_k_must_be_positive():
    with pytest.raises(ValueError, match="k must be at least 1"):
        leading_law(np.ones(3), np.array(0.1), shape=(3, 3), k=0)
