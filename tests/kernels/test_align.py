"""nf by the polar identity against its definition by singular vectors, the rotations, and the frames."""

import dataclasses
import itertools

import hypothesis
import jax
import numpy as np
import pytest
from hypothesis import strategies

from polarax import kernels
from tests.kernels import matrices, singular_frames

align = jax.jit(kernels.align, static_argnames=("rotations", "method"))
frames = jax.jit(kernels.frames, static_argnames=("method", "dtype"))

rotation_difference, budget_of_frames = jax.jit(kernels.rotation_difference), jax.jit(kernels.budget_of_frames)

SHAPES = ((16, 16), (30, 12), (12, 30))
PROPERTY = hypothesis.settings(max_examples=80, deadline=None, derandomize=True, database=None)
PAIRS = {
    "shape": strategies.sampled_from(SHAPES),
    "kind": strategies.sampled_from(["gaussian", "mild", "separated", "clustered", "llm_like"]),
    "drift": strategies.sampled_from([1e-4, 1e-3, 1e-2, 0.1, 0.5, 2.0]),
    "seed": strategies.integers(0, 2**31),
}


def _pair(shape, kind, drift, seed, dtype="float64"):
    base = matrices.matrix(kind, shape, dtype, seed)
    return base, matrices.drifted(base, drift, seed)


def _condition(x):
    return np.linalg.cond(x.astype(np.float64))


# nf.


@PROPERTY
@hypothesis.given(**PAIRS)
def test_the_polar_identity(shape, kind, drift, seed):
    """||P_p^T P_b - I|| is ||Q_U^T Q_V - I||, in float64."""
    base, post = _pair(shape, kind, drift, seed)
    expected = singular_frames.nf(singular_frames.reference(base, post))
    with jax.enable_x64(True):
        polar_way = float(align(base, post).nf)
        vector_way = float(align(base, post, rotations=True).nf)
    # The polar factors are determined to eps times the condition; nf is a difference of them.
    tolerance = 1e-9 * expected + 1e-14 * (_condition(base) + _condition(post))
    assert abs(polar_way - expected) < tolerance
    assert abs(vector_way - expected) < 1e-6 * expected + tolerance  # small gaps cost vectors, not nf


@PROPERTY
@hypothesis.given(**PAIRS)
def test_the_polar_identity_in_float32(shape, kind, drift, seed):
    base, post = _pair(shape, kind, drift, seed, "float32")
    hypothesis.assume(max(_condition(base), _condition(post)) < 1e3)
    expected = singular_frames.nf(singular_frames.reference(base, post))
    for rotations in (False, True):
        assert abs(float(align(base, post, rotations=rotations).nf) - expected) < 1e-4 * expected + 2e-6


@PROPERTY
@hypothesis.given(
    shape=PAIRS["shape"],
    seed=PAIRS["seed"],
    rank=strategies.integers(1, 11),
    added=strategies.integers(0, 3),
    drift=strategies.sampled_from([1e-3, 0.1, 1.0]),
)
def test_the_polar_identity_for_deficient_ranks(shape, seed, rank, added, drift):
    """The base has rank `rank`; the change lives in its row space and in `added` more directions."""
    added = min(added, min(shape) - rank)
    rng = matrices.generator("deficient", shape, seed, rank, added)
    values = np.linspace(1, 0.5, rank + added)
    left, right = (matrices.orthonormal(length, rank + added, rng) for length in shape)
    base = (left[:, :rank] * values[:rank]) @ right[:, :rank].T
    post = base + drift * rng.standard_normal((shape[0], rank + added)) @ right.T
    expected = singular_frames.nf(singular_frames.reference(base, post))
    with jax.enable_x64(True):
        for rotations in (False, True):
            assert abs(float(align(base, post, rotations=rotations).nf) - expected) < 1e-8 * (1 + expected)


@pytest.mark.parametrize("dtype", matrices.WORKING_DTYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_method_agrees(shape, dtype):
    base, post = _pair(shape, "separated", 0.01, 1, dtype)
    expected = singular_frames.nf(singular_frames.reference(base, post))
    tolerance = 1e-4 if dtype == "float32" else 1e-6
    with jax.enable_x64(dtype == "float64"):
        for method in kernels.POLAR_METHODS:
            np.testing.assert_allclose(align(base, post, method=method).nf, expected, rtol=tolerance)
        for method in ("auto", "lapack"):
            found = align(base, post, rotations=True, method=method).nf
            np.testing.assert_allclose(found, expected, rtol=tolerance)


@pytest.mark.parametrize("shape", [(16, 16), (30, 12), (12, 30)], ids=str)
@pytest.mark.parametrize("rotations", [False, True])
def test_nf_is_free_of_bases_signs_order_and_scale(shape, rotations):
    base, post = _pair(shape, "mild", 0.1, 3)
    rng = matrices.generator("bases", shape)
    turn_left, turn_right = (matrices.orthonormal(size, size, rng) for size in shape)
    rows, columns = (rng.permutation(size) for size in shape)
    flips = rng.choice([-1.0, 1.0], shape[1])
    with jax.enable_x64(True):

        def nf(base, post):
            return float(align(base, post, rotations=rotations).nf)

        expected = nf(base, post)
        assert expected > 0.01
        changed = {
            "scaled": (3 * base, 0.5 * post),
            "negated": (-base, -post),
            "permuted": (base[rows][:, columns], post[rows][:, columns]),
            "flipped": (base * flips, post * flips),
            "rotated": (turn_left @ base @ turn_right, turn_left @ post @ turn_right),
        }
        if shape[0] == shape[1]:
            changed["transposed"] = (base.T, post.T)
        for name, pair in changed.items():
            np.testing.assert_allclose(nf(*pair), expected, rtol=1e-10, err_msg=name)
        np.testing.assert_allclose(nf(base, base), 0, atol=1e-12)
        np.testing.assert_allclose(nf(base, -base), 2, rtol=1e-12)


@pytest.mark.parametrize("shape", [(16, 16), (30, 12), (12, 30)], ids=str)
@pytest.mark.parametrize("rotations", [False, True])
def test_nf_of_degenerate_values(shape, rotations):
    """Where all singular values are equal the vectors are arbitrary, and the matrix is its own polar factor."""
    rng = matrices.generator("degenerate", shape)
    size = min(shape)
    base = matrices.orthonormal(max(shape), size, rng)
    post = np.linalg.svd(base + 0.02 * rng.standard_normal(base.shape), full_matrices=False)
    post = post[0] @ post[2]
    expected = np.linalg.norm(post.T @ base - np.eye(size)) / np.sqrt(size)
    if shape[0] < shape[1]:
        base, post = base.T, post.T
    with jax.enable_x64(True):
        np.testing.assert_allclose(align(base, 7 * post, rotations=rotations).nf, expected, rtol=1e-10)


def test_nf_of_frames_is_free_of_joint_signs():
    base, post = _pair((30, 12), "mild", 0.3, 4)
    flips = matrices.generator("flips").choice([-1.0, 1.0], 12)
    with jax.enable_x64(True):
        pair = frames(base, post)
        flipped = dataclasses.replace(pair, left=pair.left * flips, right=pair.right * flips)
        expected = kernels.rotation_difference(pair)
        np.testing.assert_allclose(kernels.rotation_difference(flipped), expected, rtol=1e-12)
        one_side = dataclasses.replace(pair, left=pair.left * flips)
        assert kernels.rotation_difference(one_side) > 2 * expected


@pytest.mark.parametrize("shape", [(150, 150), (200, 100), (80, 240)], ids=str)
def test_independent_gaussians(shape):
    base, post = (matrices.matrix("gaussian", shape, seed=seed) for seed in (1, 2))
    expected = np.sqrt(1 + min(shape) / max(shape))
    np.testing.assert_allclose(align(base, post).nf, expected, rtol=0.03)


@pytest.mark.parametrize("kind", ["mild", "separated", "clustered"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_first_order_formula(shape, kind):
    """Its relative error falls at least linearly with the size of the change."""
    base = matrices.matrix(kind, shape, "float64")
    change = matrices.drifted(base, 1.0, seed=5) - base
    errors = []
    with jax.enable_x64(True):
        for size in (1e-3, 1e-4, 1e-5):
            post = base + size * change
            expected = singular_frames.first_order_nf(singular_frames.reference(base, post))
            errors.append(abs(float(align(base, post).nf) / expected - 1))
    assert errors[0] < 0.05
    for larger, smaller in itertools.pairwise(errors):
        assert smaller < 0.2 * larger


@pytest.mark.parametrize("rotations", [False, True])
def test_nf_of_zero_and_of_what_is_not_finite(rotations):
    base = np.stack([matrices.matrix("mild", (9, 5), seed=i) for i in range(5)])
    post = base * np.float32(1.1)
    base[1], post[2], post[3, 0, 0], base[4, 0, 0] = 0, 0, np.nan, np.inf
    nf = align(base, post, rotations=rotations).nf
    assert np.isnan(nf).tolist() == [False, True, True, True, True]
    assert nf[0] < 1e-5


@pytest.mark.parametrize("exponent", [-100, 100])
def test_the_unit_does_not_matter(exponent):
    base, post = _pair((30, 12), "mild", 0.1, 6, "float32")
    expected = float(align(base, post).nf)
    base, post = np.ldexp(base, exponent), np.ldexp(post, exponent)
    np.testing.assert_allclose(align(base, post).nf, expected, rtol=1e-4)
    np.testing.assert_allclose(align(base, post, rotations=True).nf, expected, rtol=1e-4)


@pytest.mark.parametrize("shape", [(1, 9), (9, 1), (1, 1)], ids=str)
def test_nf_of_one_vector(shape):
    """One pair of vectors: nf is 1 less the cosine between them."""
    base, post = (matrices.matrix("gaussian", shape, "float64", seed) for seed in (1, 2))
    expected = 1 - np.sum(base * post) / np.linalg.norm(base) / np.linalg.norm(post)
    with jax.enable_x64(True):
        for rotations in (False, True):
            found = align(base, post, rotations=rotations).nf
            np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-14)


# Rotations and frames.


@pytest.mark.pairwise
@pytest.mark.parametrize("method", ("auto", "lapack"))
@pytest.mark.parametrize("dtype", matrices.WORKING_DTYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_frames_where_values_are_separated(shape, dtype, method):
    base, post = _pair(shape, "separated", 1e-3, 7, dtype)
    expected = singular_frames.reference(base, post)
    with jax.enable_x64(dtype == "float64"):
        found = frames(base, post, method=method)
        aligned = align(base, post, rotations=True, method=method)
    tolerance = 2e-4 if dtype == "float32" else 1e-9
    assert found.shape == shape
    assert {x.dtype for x in (found.left, found.s_base, found.change, found.change_norm)} == {np.dtype(dtype)}
    left, right, change = (np.asarray(x) for x in (found.left, found.right, found.change))
    np.testing.assert_allclose(found.s_base, expected.s_base, rtol=tolerance)
    np.testing.assert_allclose(found.s_post, expected.s_post, rtol=tolerance)
    assert (int(found.rank_base), int(found.rank_post)) == (min(shape), min(shape))
    # numpy's signs differ: a joint flip of a pair of vectors leaves these as they are.
    np.testing.assert_allclose(np.abs(left), np.abs(expected.left), atol=tolerance)
    np.testing.assert_allclose(np.abs(right), np.abs(expected.right), atol=tolerance)
    np.testing.assert_allclose(left * right, expected.left * expected.right, atol=tolerance)
    norm = np.linalg.norm(expected.change)
    np.testing.assert_allclose(found.change_norm, norm, rtol=tolerance)
    np.testing.assert_allclose(np.abs(change), np.abs(expected.in_frame), atol=tolerance * norm)
    np.testing.assert_allclose(change * change.T, expected.in_frame * expected.in_frame.T, atol=tolerance * norm**2)
    np.testing.assert_array_equal(aligned.left, left)
    np.testing.assert_array_equal(aligned.right, right)


@pytest.mark.parametrize("kind", ["gaussian", "mild", "clustered", "llm_like"])
@pytest.mark.parametrize("drift", [1e-3, 0.3, 3.0])
def test_rotations_are_sign_aligned(kind, drift):
    base, post = _pair((30, 12), kind, drift, 8, "float32")
    found = align(base, post, rotations=True)
    left, right = np.asarray(found.left), np.asarray(found.right)
    assert np.all(np.diag(left) + np.diag(right) >= 0)
    for rotation in (left, right):  # both live inside a space of 12 of 30 and of 12 of 12 dimensions
        assert np.linalg.norm(rotation, 2) < 1 + 1e-5
    np.testing.assert_allclose(right.T @ right, np.eye(12), atol=1e-4)


@pytest.mark.parametrize("dtype", matrices.WORKING_DTYPES)
@pytest.mark.parametrize("smaller", ["base", "post"])
def test_one_much_smaller_than_the_other(smaller, dtype):
    """The rounding errors of the larger matrix may not reach what is said of the smaller one."""
    shape = (40, 16)
    base, post = (matrices.matrix("separated", shape, dtype, seed) for seed in (1, 2))
    if smaller == "base":
        base = np.ldexp(base, -20)
    else:
        post = np.ldexp(post, -20)
    expected = singular_frames.reference(base, post)
    tolerance = 1e-5 if dtype == "float32" else 1e-8
    with jax.enable_x64(dtype == "float64"):
        found = frames(base, post)
        nf = kernels.rotation_difference(found)
    assert (int(found.rank_base), int(found.rank_post)) == (16, 16)
    np.testing.assert_allclose(found.s_base, expected.s_base, rtol=tolerance)
    np.testing.assert_allclose(found.s_post, expected.s_post, rtol=tolerance)
    np.testing.assert_allclose(nf, singular_frames.nf(expected), rtol=100 * tolerance)


def test_joint_signs():
    left = np.array([[[0.9, 0.1], [0.2, -0.8]], [[-0.3, 0], [0, 0.0]]], np.float32)
    right = np.array([[[-0.5, 0.1], [0.2, 0.1]], [[-0.1, 0], [0, 0.0]]], np.float32)
    assert kernels.joint_signs(left, right).tolist() == [[1, -1], [-1, 1]]


def test_undetermined_directions_are_zero():
    shape = (24, 16)
    base = matrices.matrix("rank_deficient", shape, "float64")
    post = matrices.drifted(base, 0.01, 9)
    rank = 8
    with jax.enable_x64(True):
        found = frames(base, post)
    assert (int(found.rank_base), int(found.rank_post)) == (rank, 16)
    expected = singular_frames.reference(base, post)
    assert np.all(np.asarray(found.left[rank:]) == 0) and np.all(np.asarray(found.right[rank:]) == 0)
    assert np.all(np.asarray(found.change[rank:]) == 0) and np.all(np.asarray(found.change[:, rank:]) == 0)
    np.testing.assert_allclose(np.linalg.norm(found.change), np.linalg.norm(expected.in_frame), rtol=1e-9)
    np.testing.assert_allclose(np.linalg.norm(found.left), np.linalg.norm(expected.left), rtol=1e-9)


def test_stacks_jit_and_vmap():
    stack = np.array([[_pair((11, 6), "separated", 0.05, 3 * i + j, "float32") for j in range(3)] for i in range(2)])
    base, post = stack[:, :, 0], stack[:, :, 1]
    expected = np.array([[singular_frames.nf(singular_frames.reference(*pair)) for pair in row] for row in stack])

    def nf(base, post):
        return kernels.align(base, post).nf

    def nf_of_frames(base, post):
        return kernels.rotation_difference(kernels.frames(base, post))

    for function in (nf, nf_of_frames):
        for way in (jax.jit(function), jax.jit(jax.vmap(jax.vmap(function)))):
            np.testing.assert_allclose(way(base, post), expected, rtol=1e-3)
        # One base, mapped against many posts.
        one_base = jax.jit(jax.vmap(function, in_axes=(None, 0)))(base[0, 0], post[0])
        by_hand = [singular_frames.nf(singular_frames.reference(base[0, 0], x)) for x in post[0]]
        np.testing.assert_allclose(one_base, by_hand, rtol=1e-3)
    pair = jax.jit(jax.vmap(kernels.frames))(base[0], post[0])
    assert pair.shape == (11, 6)
    assert pair.left.shape == (3, 6, 6)
    assert align(base[:0], post[:0]).nf.shape == (0, 3)


@pytest.mark.parametrize("method", kernels.SVD_METHODS)
def test_frames_of_stacks(method):
    """Each pair of a stack as it is alone, and NaN throughout where it is not finite."""
    pairs = [_pair((11, 6), "separated", 0.05, seed, "float32") for seed in range(3)]
    base, post = np.moveaxis(np.array(pairs), 1, 0)
    post[1, 0, 0] = np.nan
    found = frames(base, post, method=method)
    mapped = jax.jit(jax.vmap(lambda *pair: frames(*pair, method=method)))(base, post)
    assert found.shape == mapped.shape == (11, 6)
    assert found.rank_post.tolist() == [6, 0, 6]
    for name in ("s_base", "s_post", "left", "right", "change", "change_norm"):
        value = np.asarray(getattr(found, name))
        assert np.all(np.isnan(value[1])) and np.all(np.isfinite(value[[0, 2]])), name
        np.testing.assert_allclose(np.abs(getattr(mapped, name)), np.abs(value), atol=1e-4)
    for index in (0, 2):
        expected = singular_frames.reference(base[index], post[index])
        np.testing.assert_allclose(np.abs(found.left[index]), np.abs(expected.left), atol=1e-4)


@pytest.mark.parametrize("function", [kernels.align, kernels.frames])
def test_errors(function):
    x = np.ones((3, 2), np.float32)
    with pytest.raises(ValueError, match=r"one shape.*\(3, 2\).*\(2, 3\)"):
        function(x, x.T)
    with pytest.raises(ValueError, match="'magic'"):
        function(x, x, method="magic")
    with pytest.raises(ValueError, match="floating-point"):
        function(x, x.astype(np.int32))


def test_the_flag_is_untouched():
    x = np.ones((3, 2), np.float32)
    for flag in (False, True):
        with jax.enable_x64(flag):
            kernels.align(x, x)
            kernels.frames(x, x)
            assert jax.config.jax_enable_x64 == flag


@pytest.mark.parametrize("shape", [(200, 200), (600, 128), (128, 1500)])
@pytest.mark.parametrize("condition", [1e4, 1e6, 1e7])
def test_nf_and_budget_of_ill_conditioned_matrices_by_gram(shape, condition):
    """Singular values below what one Gram matrix resolves, few or most of them; blocks of rows with a remainder."""
    rng = matrices.generator("ill-conditioned", shape, condition)
    r = min(shape)
    left, right = (np.linalg.qr(rng.standard_normal((size, r)))[0] for size in shape)
    base = ((left * np.geomspace(1, 1 / condition, r)) @ right.T).astype(np.float32)
    noise = rng.standard_normal(shape) * np.linalg.norm(base) / np.sqrt(base.size)
    post = (base + 0.01 * noise).astype(np.float32)
    w_base, w_post = base.astype(np.float64), post.astype(np.float64)
    u_base, s_base, vt_base = np.linalg.svd(w_base, full_matrices=False)
    u_post, s_post, vt_post = np.linalg.svd(w_post, full_matrices=False)
    expected = np.linalg.norm((u_base.T @ u_post).T @ (vt_base @ vt_post.T) - np.eye(r)) / np.sqrt(r)
    in_frame = u_base.T @ (w_post - w_base) @ vt_base.T
    with jax.enable_x64(True):
        pair = frames(base, post, dtype="float64", method="gram")
        found = rotation_difference(pair)
        budget = budget_of_frames(pair)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    for values, reference in ((pair.s_base, s_base), (pair.s_post, s_post)):
        assert np.all(np.abs(np.asarray(values) - reference) <= 1e-6 * reference + 1e-9 * reference[0])
    total = np.sum((w_post - w_base) ** 2)
    np.testing.assert_allclose(budget.scaling, np.sum(np.diag(in_frame) ** 2) / total, rtol=1e-6)
    np.testing.assert_allclose(budget.discordant, np.sum((in_frame - in_frame.T) ** 2) / 4 / total, rtol=1e-6)
