"""Frames of a pair, and of posts that are made one after another, against numpy's full SVDs."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from polarax import kernels
from tests.kernels import singular_frames


def _posts(shape, count, seed=0):
    rng = np.random.default_rng(seed)
    base = rng.standard_normal(shape)
    drifts = (0.02, 0.1, 0.4)[:count]
    return base, np.stack([base + drift * rng.standard_normal(shape) for drift in drifts])


@pytest.mark.pairwise
@pytest.mark.parametrize("method", kernels.SVD_METHODS)
@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize(("rows", "cols"), [(12, 7), (60, 4)])
def test_a_stack_of_pairs(rows, cols, wide, method):
    shape = (2, cols, rows) if wide else (2, rows, cols)
    base, (post,) = _posts(shape, 1)
    with jax.enable_x64(True):
        pair = kernels.frames(base, post, change_values=True, method=method)
        nf, shares = kernels.rotation_difference(pair), kernels.budget_of_frames(pair)
    for place in range(2):
        expected = singular_frames.reference(base[place], post[place])
        np.testing.assert_allclose(pair.s_base[place], expected.s_base, rtol=1e-12)
        np.testing.assert_allclose(pair.s_post[place], expected.s_post, rtol=1e-12)
        s_change = np.linalg.svd(expected.change, compute_uv=False)
        np.testing.assert_allclose(pair.s_change[place], s_change, rtol=1e-7, atol=1e-8 * s_change[0])
        np.testing.assert_allclose(nf[place], singular_frames.nf(expected), rtol=1e-9)
        coordinated = singular_frames.budget(expected)["coordinated"]
        np.testing.assert_allclose(shares.coordinated[place], coordinated, rtol=1e-9)


@pytest.mark.parametrize("shape", [(5000, 6), (6, 5000), (40, 6)])
def test_very_tall_matrices_that_lose_rank(shape):
    """Gram matrices do not resolve them: they are reduced to triangles, block by block, before their SVDs."""
    base, (post,) = _posts(shape, 1)
    long_axis = 0 if shape[0] > shape[1] else 1
    for matrix in (base, post):
        short_side = matrix if long_axis == 0 else matrix.T
        short_side[:, 4] = short_side[:, 1]
        short_side[:, 5] = 0
    with jax.enable_x64(True):
        found = kernels.frames(base, post)
        budget = kernels.budget_of_frames(found)
    assert int(found.rank_base) == int(found.rank_post) == 4
    np.testing.assert_allclose(found.s_post, np.linalg.svd(post, compute_uv=False), rtol=1e-12, atol=1e-11)
    u, s, vt = np.linalg.svd(base, full_matrices=False)
    change = (u.T @ (post - base) @ vt.T)[:4, :4]
    total = np.sum((post - base) ** 2)
    np.testing.assert_allclose(np.abs(found.change[:4, :4]), np.abs(change), rtol=1e-8, atol=1e-10)
    np.testing.assert_allclose(budget.scaling, np.sum(np.diag(change) ** 2) / total, rtol=1e-9)


def test_shapes_that_do_not_fit():
    with pytest.raises(ValueError, match="one shape"):
        kernels.frames(np.ones((3, 2)), np.ones((4, 3, 2)))
    for posts in (1, 2):
        with pytest.raises(ValueError, match="one shape"):
            kernels.map_posts(_readings, np.ones((3, 2)), np.ones((posts, 3, 3)), dtype="float32")


def _readings(pair):
    return {
        "s_post": pair.s_post,
        "nf": kernels.rotation_difference(pair),
        "coordination": kernels.budget_of_frames(pair).coordination,
        "shape": jnp.asarray(pair.shape),
    }


@pytest.mark.parametrize("method", kernels.SVD_METHODS)
@pytest.mark.parametrize("shape", [(2, 12, 7), (2, 7, 12), (2, 5, 5)])
def test_posts_that_are_made_in_turn(shape, method):
    base, posts = _posts(shape, 3)
    changes = posts - base
    with jax.enable_x64(True):
        found = kernels.map_frames(
            _readings, base, lambda change: base + change, jnp.asarray(changes), dtype="float64", method=method
        )
    np.testing.assert_array_equal(found["shape"], [shape[-2:]] * 3)
    for post in range(3):
        for place in range(2):
            pair = singular_frames.reference(base[place], posts[post, place])
            shares = singular_frames.budget(pair)
            turned = [shares["coordinated"], shares["discordant"]]
            np.testing.assert_allclose(found["s_post"][post, place], pair.s_post, rtol=1e-11)
            np.testing.assert_allclose(found["nf"][post, place], singular_frames.nf(pair), rtol=1e-8)
            expected = (turned[0] - turned[1]) / sum(turned)
            np.testing.assert_allclose(found["coordination"][post, place], expected, rtol=1e-8)


def test_posts_made_in_turn_that_gram_matrices_do_not_resolve():
    base, posts = _posts((9, 5), 2)
    posts[1][:, 4] = posts[1][:, 3]
    with jax.enable_x64(True):
        found = kernels.map_frames(_readings, base, lambda post: post, jnp.asarray(posts), dtype="float64")
    for post in range(2):
        expected = np.linalg.svd(posts[post], compute_uv=False)
        np.testing.assert_allclose(found["s_post"][post], expected, rtol=1e-11, atol=1e-14)


def test_the_base_of_posts_made_in_turn_is_decomposed_once():
    """Outside of the loop over the posts."""
    base, posts = _posts((6, 4), 2)

    def in_turn(base, posts):
        read = kernels.rotation_difference
        return kernels.map_frames(read, base, lambda post: post, posts, dtype="float64", method="gram")

    with jax.enable_x64(True):
        text = jax.jit(in_turn).lower(base, posts).as_text()
    before, loop = (len(re.findall(r"@lapack_\w*syevd\w*", part)) for part in text.split("stablehlo.while", 1))
    assert before == loop > 0
