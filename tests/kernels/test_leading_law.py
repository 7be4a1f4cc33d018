"""The law of the leading subspaces against sampled noise, limits that are known exactly, and its own invariances.

The sampled numbers are means over draws of base + noise with NumPy: `np.linalg.svd` of `np.diag(s)` on zeros of (m, n)
plus sd times `default_rng(n).standard_normal`.
"""

import functools

import jax
import numpy as np
import pytest

from polarax.kernels.noise_law import leading_law


def spectrum(kind, n):
    """Of order 1: dense, falling over three decades, or a bulk with spikes and a few tiny values."""
    if kind == "dense":
        return np.linspace(1, 0.95, n)
    if kind == "falling":
        return np.geomspace(1, 1e-3, n)
    bulk = 0.3 * np.sqrt(1 - np.linspace(0.0, 0.99, n - 7))
    return np.sort(np.concatenate([[1.0, 0.6, 0.4], bulk, np.geomspace(0.01, 1e-4, 4)]))[::-1]


@functools.cache
def compiled(n, k):
    return jax.jit(lambda s, change, rows: leading_law(s, change, shape=(rows, n), k=k))


def law_of(s, drift, *, rows, k, dtype=np.float64):
    change = drift * np.linalg.norm(s)
    return compiled(len(s), k)(np.asarray(s, dtype), np.asarray(change, dtype), np.asarray(rows, dtype))


SAMPLED = [
    ("dense", 32, 32, 0.01, 4, 0.728, 0.728, 0.51, 0.6, 1.0036),  # 400 draws
    ("dense", 32, 32, 0.2, 4, 0.158, 0.158, 0.08, 9.0, 1.2422),  # 400 draws
    ("bulk", 32, 32, 1.0, 1, 0.901, 0.901, 0.95, 6.1, 1.0854),  # 400 draws
    ("falling", 38, 32, 0.2, 16, 0.811, 0.832, 0.22, 0.0, 1.0031),  # 400 draws
    ("falling", 128, 32, 1.0, 4, 0.825, 0.930, 0.91, 2.1, 1.0533),  # 400 draws
    ("bulk", 128, 32, 0.2, 4, 0.885, 0.895, 0.73, 0.0, 1.0019),  # 400 draws
    ("bulk", 640, 32, 0.2, 16, 0.953, 0.992, 0.96, 0.0, 1.0016),  # 400 draws
    ("falling", 128, 128, 0.2, 16, 0.989, 0.989, 0.97, 0.0, 1.0038),  # 100 draws
    ("bulk", 512, 128, 0.2, 4, 0.816, 0.821, 0.50, 1.3, 1.0017),  # 100 draws
    ("dense", 2560, 128, 0.2, 4, 0.099, 0.102, 0.06, 10.0, 1.0594),  # 100 draws
    ("bulk", 384, 384, 0.1, 16, 0.683, 0.683, 0.13, 4.0, 1.0010),  # 25 draws
    ("dense", 1536, 384, 0.01, 4, 0.507, 0.507, 0.27, 3.4, 1.0014),  # 25 draws
]


@pytest.mark.parametrize(
    ("kind", "rows", "cols", "drift", "k", "left", "right", "last", "intruders", "largest"), SAMPLED
)
def test_sampled_noise(kind, rows, cols, drift, k, left, right, last, intruders, largest):
    law = law_of(spectrum(kind, cols), drift, rows=rows, k=k)
    for overlap, sampled in ((law.overlap_left, left), (law.overlap_right, right)):
        assert overlap == pytest.approx(sampled, abs=max(0.02, 0.05 * (1 - sampled)))
    assert law.cosines_right[-1] == pytest.approx(last, abs=0.1)
    assert law.intruders_right == pytest.approx(intruders, abs=1)
    assert law.spectral_norm == pytest.approx(largest, rel=0.01)


@pytest.mark.parametrize("rows", [40, 160])
def test_small_noise_turns_vectors_as_perturbation_theory_says(rows):
    s, k, drift = spectrum("falling", 40), 5, 1e-5
    law = law_of(s, drift, rows=rows, k=k)
    variance = (drift * np.linalg.norm(s)) ** 2 / (rows * 40)
    inside, outside = s[:k, None] ** 2, s[k:] ** 2
    right = np.sum(variance * (inside + outside) / (inside - outside) ** 2) / k
    left = right + np.mean((rows - 40) * variance / inside)
    # The contour through single values errs by the square of what is lost beside the gaps.
    assert 1 - law.overlap_right == pytest.approx(right, rel=1e-3)
    assert 1 - law.overlap_left == pytest.approx(left, rel=1e-3)
    # Largest value, to second order.
    pushed = np.sum(1 / (1 - s[1:] ** 2)) + (rows - 40) / 2
    assert law.spectral_norm - 1 == pytest.approx(variance * pushed, rel=0.1)
    assert law.intruders_left == law.intruders_right == 0


def test_squared_cosines_have_the_overlap_for_mean():
    for k, drift in ((1, 0.3), (4, 0.3), (16, 1.0)):
        law = law_of(spectrum("bulk", 48), drift, rows=96, k=k)
        for cosines, overlap in ((law.cosines_left, law.overlap_left), (law.cosines_right, law.overlap_right)):
            assert np.all(np.diff(cosines) <= 0) and np.all(cosines >= 0) and np.all(cosines <= 1)
            assert np.mean(np.square(cosines)) <= overlap + 1e-9  # of the means, at most the mean of the squares


def test_noise_alone_leaves_what_chance_gives():
    n, rows, k = 64, 128, 8
    law = law_of(spectrum("falling", n), 1e4, rows=rows, k=k)
    assert law.overlap_right == pytest.approx(k / n, rel=0.05)
    assert law.overlap_left == pytest.approx(k / rows, rel=0.05)
    sd = 1e4 * np.linalg.norm(spectrum("falling", n)) / np.sqrt(rows * n)
    assert law.spectral_norm == pytest.approx(sd * (np.sqrt(rows) + np.sqrt(n)), rel=0.06)  # Tracy and Widom's shift


def test_two_equal_values_share_their_vectors_alike():
    """Of two equal values a random turn remains: cos^2 is spread as that of a uniform angle."""
    law = leading_law(np.array([1.0, 1.0]), np.array(1e-6), shape=(2, 2), k=1)
    assert law.overlap_left == pytest.approx(0.5, abs=1e-3)
    assert law.cosines_left[0] == pytest.approx(2 / np.pi, abs=0.03)
    both = leading_law(np.array([1.0, 1.0, 0.5]), np.array(1e-6), shape=(3, 3), k=2)
    np.testing.assert_allclose(both.cosines_left, 1, atol=1e-9)


def test_nothing_changed():
    law = leading_law(spectrum("bulk", 24), np.array(0.0), shape=(30, 24), k=4)
    assert law.overlap_left == law.overlap_right == law.spectral_norm == 1
    np.testing.assert_array_equal(law.cosines_left, 1)
    assert law.intruders_left == law.intruders_right == 0


@pytest.mark.parametrize("value", [0.0, np.nan, np.inf])
def test_a_base_that_is_zero_or_not_finite(value):
    law = leading_law(np.full(5, value), np.array(1.0), shape=(6, 5), k=2)
    assert all(np.isnan(x).all() for x in law)


def test_one_value():
    law = leading_law(np.array([2.0]), np.array(0.5), shape=(9, 1), k=16)
    assert law.overlap_right == law.cosines_right[0] == 1
    # u = (s + g_1, g_2, ..) / norm: to first order what is lost is the norm of the rest.
    sampled = np.array([2.0] + [0.0] * 8) + 0.5 / 3 * np.random.default_rng(0).normal(size=(4000, 9))
    cosines = sampled[:, 0] / np.linalg.norm(sampled, axis=1)
    assert law.overlap_left == pytest.approx(np.mean(cosines**2), abs=0.005)


def test_a_base_of_lower_rank_has_nothing_to_keep_beyond():
    s = np.zeros(20)
    s[:3] = [3.0, 2.0, 1.0]
    law = leading_law(s, np.array(0.01), shape=(24, 20), k=6)
    assert law.overlap_left == pytest.approx(0.5, abs=0.01)
    assert law.overlap_right == pytest.approx(0.5, abs=0.01)
    assert law.intruders_left == law.intruders_right == 7  # 10 post vectors, of which 3 are the base's


def test_a_wide_matrix_has_the_sides_of_its_transpose():
    s, change = spectrum("bulk", 24), np.array(0.4)
    tall, wide = (leading_law(s, change, shape=shape, k=4) for shape in ((60, 24), (24, 60)))
    for left, right in (
        ("overlap_left", "overlap_right"),
        ("cosines_left", "cosines_right"),
        ("cos2_left", "cos2_right"),
        ("intruders_left", "intruders_right"),
    ):
        np.testing.assert_array_equal(getattr(tall, left), getattr(wide, right))
        np.testing.assert_array_equal(getattr(tall, right), getattr(wide, left))


def test_stacks_units_and_float32():
    stack = np.stack([spectrum(kind, 32) for kind in ("dense", "falling", "bulk")])
    changes = 0.1 * np.linalg.norm(stack, axis=-1)
    together = leading_law(stack[None], changes[None], shape=(40, 32), k=4)
    for place in range(3):
        alone = leading_law(stack[place], changes[place], shape=(40, 32), k=4)
        for x, y in zip(together, alone, strict=True):
            np.testing.assert_allclose(x[0, place], y, rtol=1e-9, atol=1e-12)
    scaled = leading_law(1e12 * stack, 1e12 * changes, shape=(40, 32), k=4)
    np.testing.assert_allclose(scaled.overlap_left, together.overlap_left[0], rtol=1e-9)
    np.testing.assert_allclose(scaled.spectral_norm, 1e12 * together.spectral_norm[0], rtol=1e-9)
    single = leading_law(stack.astype(np.float32), changes.astype(np.float32), shape=(40, 32), k=4)
    assert single.overlap_left.dtype == np.float32
    np.testing.assert_allclose(single.overlap_left, together.overlap_left[0], atol=2e-3)
    np.testing.assert_allclose(single.spectral_norm, together.spectral_norm[0], rtol=1e-5)
    assert leading_law(stack[:0], changes[:0], shape=(40, 32), k=4).cosines_left.shape == (0, 4)


def test_a_tail_that_stands_for_many():
    """Values of one size, given one by one and as one with their number."""
    s = np.concatenate([[1.0, 0.8, 0.6, 0.5], np.full(60, 0.2)])
    change = np.array(0.3)
    whole = leading_law(s, change, shape=(80, 64), k=3)
    front = leading_law(s[:8], change, shape=(80, 64), k=3, tail=np.array(0.2))
    for name in ("overlap_left", "overlap_right", "spectral_norm"):
        assert getattr(front, name) == pytest.approx(float(getattr(whole, name)), rel=1e-9)
    np.testing.assert_allclose(front.cosines_left, whole.cosines_left, atol=0.02)


def test_groups_of_the_rest_stand_for_it():
    """600 values, of which the law sums 60 groups, against all of them: what is lost to the first order."""
    s, k, drift = np.linspace(1, 0.1, 600), 4, 1e-4
    law = law_of(s, drift, rows=600, k=k)
    inside, outside = s[:k, None] ** 2, s[k:] ** 2
    lost = np.sum((drift * np.linalg.norm(s)) ** 2 / 600**2 * (inside + outside) / (inside - outside) ** 2) / k
    assert 1 - law.overlap_right == pytest.approx(lost, rel=0.02)


def test_k_must_be_positive():
    with pytest.raises(ValueError, match="k must be at least 1"):
        leading_law(np.ones(3), np.array(0.1), shape=(3, 3), k=0)
