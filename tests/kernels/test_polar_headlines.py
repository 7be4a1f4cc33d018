"""Headlines from polar factors alone, against the definitions by NumPy's SVD in float64."""

import math

import jax
import numpy as np
import pytest

from polarax import kernels
from tests.kernels import matrices

pair_of = jax.jit(kernels.polar_pair)
SHAPES = ((48, 48), (80, 32), (32, 80))


def weight(shape, condition, seed=0):
    """A bulk, spikes and a tail, with this condition number."""
    rng, size = np.random.default_rng([seed, *shape]), min(shape)
    values = np.sort(np.concatenate([np.geomspace(12, 2, 4), np.linspace(1.5, 0.3, size - 8), np.full(4, 0.2)]))[::-1]
    values[-4:] = np.geomspace(0.2, 12 / condition, 4)
    return matrices.orthonormal(shape[0], size, rng) * values @ matrices.orthonormal(shape[1], size, rng).T


def changed(base, drift, seed=1):
    """Half of the change in two directions, half noise."""
    rng = np.random.default_rng(seed)
    few = rng.normal(size=(base.shape[0], 2)) @ rng.normal(size=(2, base.shape[1]))
    noise = rng.normal(size=base.shape)
    change = few / np.linalg.norm(few) + noise / np.linalg.norm(noise)
    return base + drift * np.linalg.norm(base) / np.linalg.norm(change) * change


def reference(base, post):
    """The headlines from the definitions, over the directions of singular values above eps s_1 sqrt(max(m, n))."""
    base, post = base.astype(np.float64), post.astype(np.float64)

    def frame(x):
        u, s, vt = np.linalg.svd(x, full_matrices=False)
        kept = s > s[0] * math.sqrt(max(x.shape)) * np.finfo(np.float32).eps
        return u[:, kept], s, vt[kept].T

    (u, s, v), (u_post, s_post, v_post) = frame(base), frame(post)
    change = post - base
    in_frame = u.T @ change @ v
    if base.shape[0] < base.shape[1]:
        u, v, u_post, v_post = v, u, v_post, u_post
    difference = v_post @ u_post.T @ u @ v.T @ v_post @ v_post.T - v_post @ v_post.T
    return {
        "nf": np.linalg.norm(difference) / math.sqrt(u_post.shape[1]),
        "symmetry": np.sum(in_frame * in_frame.T) / np.sum(in_frame**2),
        "outside": 1 - np.sum(in_frame**2) / np.sum(change**2),
        "nuclear_norm_ratio": s_post.sum() / s.sum(),
    }


# Rounding of float32 turns a polar factor by eps s_1 / (s_i + s_j) for each two directions (Higham 2008, theorem 8.9),
# of which the smallest make most: nf adds both factors' to its own in squares, where they are as large.
@pytest.mark.parametrize("drift", [1e-3, 3e-2])
@pytest.mark.parametrize("condition", [1e3, 1e5])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_of_realistic_weights(shape, condition, drift, dtype):
    base = weight(shape, condition).astype(dtype)
    post = changed(base, drift).astype(dtype)
    expected = reference(base, post)
    with jax.enable_x64(dtype == "float64"):
        found = pair_of(base, post)
    unit = float(np.finfo(dtype).eps)
    for name, tolerance in {
        "nf": 200 * unit * (1 + 1e-3 * condition),
        "symmetry": 400 * unit * (1 + 1e-3 * condition),
        "outside": 400 * unit * (1 + 1e-3 * condition),
        "nuclear_norm_ratio": 20 * unit,
    }.items():
        assert abs(float(getattr(found.headlines, name)) - expected[name]) < tolerance, name
    assert int(found.steps) > 0 and float(found.residual) < 100 * unit
    assert (int(found.rank_base), int(found.rank_post)) == (min(shape),) * 2
    assert float(found.change_norm) == pytest.approx(np.linalg.norm(post.astype(float) - base), rel=20 * unit)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_frames_give_the_same(shape):
    base = weight(shape, 1e4)
    post = changed(base, 0.02)
    with jax.enable_x64(True):
        frames = kernels.frames(base, post)
        by_frames, by_products = kernels.headlines_of_frames(frames), pair_of(base, post).headlines
    for name, value in reference(base, post).items():
        assert float(getattr(by_frames, name)) == pytest.approx(value, abs=1e-10)
        assert float(getattr(by_products, name)) == pytest.approx(value, abs=1e-10)


def test_a_matrix_of_lower_rank_is_decomposed_and_its_neighbours_are_not():
    base = np.stack([weight((40, 24), 1e3, seed) for seed in range(3)]).astype(np.float32)
    u, s, vt = np.linalg.svd(base[1], full_matrices=False)
    base[1] = (u * np.where(np.arange(24) < 15, s, 0)) @ vt
    post = np.stack([changed(x, 0.01) for x in base]).astype(np.float32)
    found = pair_of(base, post)
    assert np.asarray(found.rank_base).tolist() == [24, 15, 24]
    assert [bool(x) for x in np.asarray(found.steps) > 0] == [True, False, True]
    assert np.isinf(found.control.reach[1]) and np.isfinite(np.asarray(found.control.reach)[[0, 2]]).all()
    for index in range(3):
        expected = reference(base[index], post[index])
        alone = pair_of(base[index], post[index])
        for name, value in expected.items():
            assert float(getattr(found.headlines, name)[index]) == pytest.approx(value, abs=1e-4)
            assert float(getattr(alone.headlines, name)) == pytest.approx(value, abs=1e-4)
    assert float(found.control.budget_outside[1]) == pytest.approx(1 - 15**2 / (40 * 24))
    assert float(found.control.symmetry[1]) == pytest.approx(1 / 15)


def test_bad_matrices_stay_among_themselves():
    good = weight((32, 32), 1e3).astype(np.float32)
    post = changed(good, 0.01).astype(np.float32)
    not_a_number, infinite = (np.where(np.eye(32) == 1, value, good) for value in (np.nan, np.inf))
    zero, subnormal = np.zeros_like(good), good * np.float32(1e-41)
    bases = np.stack([good, not_a_number, good, zero, good, subnormal, good * np.float32(1e30), good])
    posts = np.stack([post, post, infinite, post, zero, subnormal, post * np.float32(1e30), good]).astype(np.float32)
    found = pair_of(bases.astype(np.float32), posts)
    expected = reference(good, post)
    for name, value in expected.items():
        values = np.asarray(getattr(found.headlines, name))
        assert values[0] == pytest.approx(value, abs=1e-5) and values[6] == pytest.approx(value, abs=1e-5)
        assert np.isnan(values[1:6]).all()
    assert np.asarray(found.rank_base).tolist() == [32, 0, 32, 0, 32, 0, 32, 32]
    assert np.isnan(np.asarray(found.change_norm)[[1, 2]]).all()
    assert np.isfinite(np.asarray(found.control.nf)[[0, 6, 7]]).all()
    # Identical: nothing turned, nothing changed, and there is nothing to take shares of.
    assert abs(float(found.headlines.nf[7])) < 1e-5 and float(found.headlines.nuclear_norm_ratio[7]) == 1
    assert np.isnan(found.headlines.outside[7]) and np.isnan(found.headlines.symmetry[7])


@pytest.mark.parametrize("shape", [(1, 9), (9, 1), (1, 1)], ids=str)
def test_of_one_singular_value(shape):
    rng = np.random.default_rng(3)
    base = rng.normal(size=shape)
    post = base + 0.1 * rng.normal(size=shape)
    with jax.enable_x64(True):
        found = pair_of(base, post)
    cosine = np.sum(base * post) / (np.linalg.norm(base) * np.linalg.norm(post))
    assert float(found.headlines.nf) == pytest.approx(1 - cosine, abs=1e-12)
    assert float(found.headlines.symmetry) == pytest.approx(1)
    ratio = np.linalg.norm(post) / np.linalg.norm(base)
    assert float(found.headlines.nuclear_norm_ratio) == pytest.approx(ratio)
    assert float(found.control.symmetry) == 1 and float(found.control.std.symmetry) == 0


def test_shapes_must_be_the_same():
    with pytest.raises(ValueError, match=r"base and post must have one shape. Got \(3, 2\) and \(2, 3\)"):
        kernels.polar_pair(np.ones((3, 2)), np.ones((2, 3)))
