"""Subspace overlaps and principal angles against scipy, and intruder vectors that were planted."""

import functools

import jax
import numpy as np
import pytest
import scipy.linalg

from polarax import kernels
from tests.kernels import matrices, singular_frames

overlap = jax.jit(kernels.overlap, static_argnames=("k", "method"))


@functools.partial(jax.jit, static_argnames="k")
def overlap_of_frames(base, post, k):
    return kernels.overlap_of_frames(kernels.frames(base, post), k=k)


SHAPES = ((24, 24), (60, 17), (17, 60))
METHODS = ("auto", "lapack")


def _cosines(base_vectors, post_vectors, k):
    """By scipy, which gives angles, the largest first; a small angle has its own accurate formula there."""
    angles = scipy.linalg.subspace_angles(base_vectors[:, :k], post_vectors[:, :k])
    return np.cos(angles)[::-1]


@pytest.mark.pairwise("shape", "dtype", "method")
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", matrices.WORKING_DTYPES)
@pytest.mark.parametrize("drift", [1e-3, 0.1, 3.0])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_principal_angles(shape, drift, dtype, method):
    base = matrices.matrix("separated", shape, dtype)
    post = matrices.drifted(base, drift)
    pair = singular_frames.reference(base, post)
    tolerance = 1e-4 if dtype == "float32" else 1e-9
    for k in (1, 5):
        with jax.enable_x64(dtype == "float64"):
            found = overlap(base, post, k=k, method=method)
        for side, u, v in (
            ("left", pair.u_base, pair.u_post),
            ("right", pair.v_base, pair.v_post),
        ):
            expected = _cosines(u, v, k)
            cosines = np.asarray(getattr(found, f"cosines_{side}"))
            assert cosines.shape == (k,) and cosines.dtype == dtype
            assert np.all(np.diff(cosines) <= 0)
            assert np.all((cosines >= 0) & (cosines <= 1))
            np.testing.assert_allclose(cosines, expected, atol=tolerance)
            np.testing.assert_allclose(getattr(found, side), np.mean(expected**2), atol=tolerance)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_subspace_counts_not_the_vectors_in_it(shape):
    """Leading vectors mixed among themselves: index by index they differ, the subspace is the same."""
    rng = matrices.generator("mixed", shape)
    size, k = min(shape), 4
    u, v = (matrices.orthonormal(length, size, rng) for length in shape)
    values = np.where(np.arange(size) < k, 2.0, 0.5) + np.linspace(0.1, 0, size)
    mixing = np.eye(size)
    mixing[:k, :k] = singular_frames.rotation(k, 2.0)
    base, post = (u * values) @ v.T, (u @ mixing * values) @ (v @ mixing).T
    found = overlap(base.astype(np.float32), post.astype(np.float32), k=k)
    for side in (found.left, found.right):
        np.testing.assert_allclose(side, 1, atol=1e-5)
    pair = singular_frames.reference(base, post)
    assert np.min(np.abs(np.diag(pair.left)[:k])) < 0.7


@pytest.mark.parametrize("shape", [(80, 80), (160, 60), (60, 160)], ids=str)
def test_independent_subspaces(shape):
    """The mean of ||Q_k||_F^2 / k for random subspaces of dimension k is k over the dimension."""
    k, draws = 8, 16
    base, post = (
        matrices.generator("independent", shape, i).standard_normal((draws, *shape)).astype(np.float32)
        for i in range(2)
    )
    found = overlap(base, post, k=k)
    np.testing.assert_allclose(np.mean(found.left), k / shape[0], rtol=0.1)
    np.testing.assert_allclose(np.mean(found.right), k / shape[1], rtol=0.1)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_whole_space(shape):
    """k beyond the rank is the rank: of two square matrices that is everything."""
    base, post = (matrices.matrix("gaussian", shape, seed=seed) for seed in (1, 2))
    size = min(shape)
    for k in (size, size + 1, 1000):
        found = overlap(base, post, k=k)
        assert found.cosines_left.shape == found.cosines_right.shape == (size,)
    pair = singular_frames.reference(base, post)
    np.testing.assert_allclose(found.left, np.linalg.norm(pair.left) ** 2 / size, atol=1e-4)
    np.testing.assert_allclose(found.right, np.linalg.norm(pair.right) ** 2 / size, atol=1e-4)
    if shape[0] == shape[1]:
        np.testing.assert_allclose([found.left, found.right], 1, atol=1e-5)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("shape", [(96, 96), (160, 80), (80, 160)], ids=str)
class TestIntruders:
    @staticmethod
    def _planted(shape, count):
        """A small change of rank `count` in random directions, larger than anything in the base."""
        base = matrices.matrix("separated", shape)
        rng = matrices.generator("intruders", shape, count)
        u, v = (matrices.orthonormal(length, max(count, 1), rng) for length in shape)
        strength = np.linspace(3, 2, max(count, 1)) * (count > 0)
        return base, (base + (u * strength) @ v.T).astype(np.float32)

    @pytest.mark.parametrize("count", [0, 1, 3])
    def test_planted(self, shape, count, method):
        found = overlap(*self._planted(shape, count), method=method)
        assert (int(found.intruders_left), int(found.intruders_right)) == (count, count)
        assert found.intruders_left.dtype == np.int32

    def test_on_one_side_only(self, shape, method):
        """New directions on the left, the base's leading one on the right."""
        base = matrices.matrix("separated", shape).astype(np.float64)
        _, _, vt = np.linalg.svd(base)
        u = matrices.orthonormal(shape[0], 1, matrices.generator("one side", shape))
        post = base + 3 * u @ vt[:1]
        found = overlap(base.astype(np.float32), post.astype(np.float32), method=method)
        assert (int(found.intruders_left), int(found.intruders_right)) == (1, 0)

    def test_a_small_change_brings_none(self, shape, method):
        base = matrices.matrix("separated", shape)
        found = overlap(base, matrices.drifted(base, 1e-3), method=method)
        assert (int(found.intruders_left), int(found.intruders_right)) == (0, 0)

    def test_only_the_leading_ten_count(self, shape, method):
        """Twelve planted; independent matrices have at most ten."""
        found = overlap(*self._planted(shape, 12), method=method)
        assert (int(found.intruders_left), int(found.intruders_right)) == (10, 10)


def test_intruders_by_the_definition():
    """Leading ten post vectors whose best |cosine| with any base vector is below 0.5, counted by numpy."""
    counted = []
    for seed in range(6):
        base = matrices.matrix("separated", (40, 30), seed=seed)
        post = matrices.drifted(base, 0.4 + 0.1 * seed, seed)
        pair = singular_frames.reference(base, post)
        found = overlap(base, post)
        for cosines, count in ((pair.left, found.intruders_left), (pair.right, found.intruders_right)):
            best = np.max(np.abs(cosines[:, :10]), axis=0)
            assert np.min(np.abs(best - 0.5)) > 1e-3  # none is a matter of rounding
            assert int(count) == np.sum(best < 0.5)
            counted.append(int(count))
    assert 0 < np.mean(counted) < 10


def test_undetermined_vectors_are_no_intruders():
    """The post has rank 2: its other leading vectors are nobody's."""
    base = matrices.matrix("separated", (20, 12))
    u, s, vt = np.linalg.svd(base.astype(np.float64), full_matrices=False)
    post = ((u[:, :2] * s[:2]) @ vt[:2]).astype(np.float32)
    found = overlap(base, post, k=4)
    assert (int(found.intruders_left), int(found.intruders_right)) == (0, 0)
    for cosines in (found.cosines_left, found.cosines_right):
        np.testing.assert_allclose(cosines, [1, 1, 0, 0], atol=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_nan_stays_in_its_matrix(method):
    base = np.stack([matrices.matrix("separated", (9, 5), seed=i) for i in range(3)])
    post = base * np.float32(1.1)
    base[1, 0, 0] = np.nan
    found = overlap(base, post, k=3, method=method)
    for part in (found.left, found.right, found.cosines_left[:, 0], found.cosines_right[:, 0]):
        assert np.isnan(part).tolist() == [False, True, False]
    np.testing.assert_allclose(np.asarray(found.left)[[0, 2]], 1, atol=1e-5)
    assert found.intruders_left.tolist() == found.intruders_right.tolist() == [0, 0, 0]


def test_stacks_and_vmap():
    base = np.array([[matrices.matrix("separated", (11, 6), seed=3 * i + j) for j in range(3)] for i in range(2)])
    post = base + 0.02 * matrices.generator("stack").standard_normal(base.shape).astype(np.float32)
    expected = np.empty((2, 3, 2))
    for i, j in np.ndindex(2, 3):
        pair = singular_frames.reference(base[i, j], post[i, j])
        expected[i, j] = _cosines(pair.u_base, pair.u_post, 2)
    for way in (
        functools.partial(overlap, k=2),
        functools.partial(overlap_of_frames, k=2),
        jax.jit(jax.vmap(jax.vmap(functools.partial(kernels.overlap, k=2)))),
    ):
        np.testing.assert_allclose(way(base, post).cosines_left, expected, atol=1e-4)
    assert overlap(base[:0], post[:0], k=2).cosines_left.shape == (0, 3, 2)


def test_errors():
    x = np.ones((3, 2), np.float32)
    for k in (0, -1):
        with pytest.raises(ValueError, match=f"at least 1.*{k}"):
            kernels.overlap(x, x, k=k)
    with pytest.raises(ValueError, match=r"one shape.*\(3, 2\).*\(2, 3\)"):
        kernels.overlap(x, x.T)
    with pytest.raises(ValueError, match="'magic'"):
        kernels.overlap(x, x, method="magic")
