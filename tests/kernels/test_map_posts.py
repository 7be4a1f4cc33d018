"""A base and several posts, and posts against each other, each decomposed once; against numpy, pair by pair."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from polarax import kernels
from tests.kernels import singular_frames

PAIRS = ((0, 1), (0, 2), (2, 1))


def _posts(shape, drifts=(0.02, 0.1, 0.4), dtype=np.float64):
    rng = np.random.default_rng(3)
    base = rng.standard_normal(shape)
    posts = np.stack([base + drift * rng.standard_normal(shape) for drift in drifts])
    return base.astype(dtype), posts.astype(dtype)


def _read(found, *stored):
    return {
        "nf": kernels.rotation_difference(found),
        "coordinated": kernels.budget_of_frames(found).coordinated,
        "s_base": found.s_base,
        "s_post": found.s_post,
        "change": found.change_norm,
        "sums": jnp.stack([jnp.sum(x, axis=(-2, -1)) for x in stored], axis=-1),
    }


def _found(base, posts, **how):
    with jax.enable_x64(True):
        return jax.device_get(jax.jit(lambda b, p: kernels.map_posts(_read, b, p, read_pair=_read, **how))(base, posts))


def _check(found, place, base, post, rtol=1e-9):
    pair = singular_frames.reference(base, post)
    np.testing.assert_allclose(found["s_base"][place], pair.s_base, rtol=1e-11)
    np.testing.assert_allclose(found["s_post"][place], pair.s_post, rtol=1e-11)
    np.testing.assert_allclose(found["nf"][place], singular_frames.nf(pair), rtol=rtol)
    np.testing.assert_allclose(found["coordinated"][place], singular_frames.budget(pair)["coordinated"], rtol=rtol)
    np.testing.assert_allclose(found["change"][place], np.linalg.norm(pair.change), rtol=1e-12)


@pytest.mark.parametrize("method", kernels.SVD_METHODS)
@pytest.mark.parametrize("shape", [(12, 7), (7, 12), (9, 9), (60, 4)])
def test_every_pair_is_as_if_it_were_alone(shape, method):
    base, posts = _posts(shape)
    of_posts, of_pairs = _found(base, posts, pairs=PAIRS, dtype="float64", method=method)
    for place, post in enumerate(posts):
        _check(of_posts, place, base, post)
        np.testing.assert_allclose(of_posts["sums"][place], [post.sum()], rtol=1e-12)
    for place, (first, second) in enumerate(PAIRS):
        _check(of_pairs, place, posts[first], posts[second])
        np.testing.assert_allclose(of_pairs["sums"][place], posts[[first, second]].sum(axis=(1, 2)), rtol=1e-12)


@pytest.mark.parametrize("shape", [(30, 12), (12, 30)])
def test_posts_that_gram_matrices_do_not_resolve(shape):
    """One post has lost rank: the pairs it is in are left to LAPACK, the others are not touched."""
    base, posts = _posts(shape)
    posts[1, -1 if shape[0] < shape[1] else slice(None), slice(None) if shape[0] < shape[1] else -1] = 0
    of_posts, of_pairs = _found(base, posts, pairs=PAIRS, dtype="float64")
    for place in (0, 2):
        _check(of_posts, place, base, posts[place])
    _check(of_pairs, 1, posts[0], posts[2])
    for found, place, first in ((of_posts, 1, base), (of_pairs, 0, posts[0]), (of_pairs, 2, posts[2])):
        pair = singular_frames.reference(first, posts[1])
        np.testing.assert_allclose(found["nf"][place], singular_frames.nf(pair), rtol=1e-8)


def test_a_post_that_is_not_finite_spoils_its_own_pairs_alone():
    base, posts = _posts((8, 5))
    posts[1, 0, 0] = np.nan
    for method in ("auto", "lapack"):
        of_posts, of_pairs = _found(base, posts, pairs=PAIRS, dtype="float64", method=method)
        assert np.isnan(of_posts["nf"]).tolist() == [False, True, False]
        assert np.isnan(of_pairs["nf"]).tolist() == [True, False, True]
        _check(of_pairs, 1, posts[0], posts[2])


def test_stacks_and_stored_dtypes():
    base, posts = _posts((2, 10, 6), dtype=np.float32)
    of_posts, of_pairs = _found(jnp.asarray(base, jnp.bfloat16), jnp.asarray(posts), pairs=PAIRS, dtype="float64")
    assert of_posts["nf"].shape == of_pairs["nf"].shape == (3, 2)
    stored = np.asarray(jnp.asarray(base, jnp.bfloat16).astype(jnp.float32))
    for place in range(2):
        pair = singular_frames.reference(stored[place], posts[2, place])
        np.testing.assert_allclose(of_posts["nf"][2, place], singular_frames.nf(pair), rtol=1e-8)


# Shapes tall, very tall, wide and square; stored as read in practice.
@pytest.mark.pairwise
@pytest.mark.parametrize("method", kernels.SVD_METHODS)
@pytest.mark.parametrize("shape", [(12, 7), (60, 4), (7, 12), (9, 9), (2, 8, 5)], ids=str)
@pytest.mark.parametrize(
    ("stored", "dtype"),
    [("bfloat16", "float32"), ("bfloat16", "float64"), ("float32", "float32"), ("float64", "float64")],
)
def test_one_post_is_what_frames_gives(shape, method, stored, dtype):
    """For whatever pair: full rank, rank-deficient, not finite.

    To the last bit where LAPACK decomposes. The products of the other route are fused with what is around them, in
    either program in its own way: what is read errs by r roundings of each of some dozen products.
    """
    base, (post, *_) = _posts(shape)
    deficient, broken = post.copy(), post.copy()
    deficient[..., -1, :] = deficient[..., :, -1] = 0
    broken[..., 0, 0] = np.nan

    def by_frames(base, post):
        return _read(kernels.frames(base, post, change_values=True, dtype=dtype, method=method), post)

    def by_map_posts(base, post):
        return kernels.map_posts(_read, base, post[None], change_values=True, dtype=dtype, method=method)

    with jax.enable_x64(dtype == "float64"):
        by_frames, by_map_posts = jax.jit(by_frames), jax.jit(by_map_posts)
        for changed in (post, deficient, broken):
            pair = (jnp.asarray(x, stored) for x in (base, changed))
            expected, (readings, of_pairs) = by_frames(*(pair := tuple(pair))), by_map_posts(*pair)
            assert of_pairs is None
            for name, value in expected.items():
                assert readings[name].shape == (1, *value.shape)
                found = np.asarray(readings[name][0])
                if method == "polar":
                    size = np.nanmax(np.abs(value), initial=0)
                    atol = 50 * min(shape[-2:]) * np.finfo(dtype).eps * size
                    np.testing.assert_allclose(found, value, rtol=0, atol=atol, err_msg=name)
                else:
                    assert found.tobytes() == np.asarray(value).tobytes(), name


def test_one_post_takes_no_loop():
    base, posts = _posts((8, 6))

    def program(posts):
        with jax.enable_x64(True):
            traced = jax.make_jaxpr(lambda b, p: kernels.map_posts(_read, b, p, dtype="float64", method="gram"))
            return _count(traced(base, posts).jaxpr, ("eigh",))

    assert program(posts[:1]) == (2, [])
    assert program(posts) == (1, [len(posts)])


def test_one_post_under_vmap():
    """Where the caller has no float64 scope either: the pair is taken as a stack, not mapped operation by operation."""
    base, posts = _posts((2, 9, 5), dtype=np.float32)

    def nf(base, post):
        return kernels.map_posts(lambda pair, _: kernels.rotation_difference(pair), base, post[None], dtype="float32")[
            0
        ][0]

    found = jax.jit(jax.vmap(nf))(base, posts[2])
    expected = [singular_frames.nf(singular_frames.reference(*pair)) for pair in zip(base, posts[2], strict=True)]
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_without_pairs_there_are_no_readings_of_pairs():
    base, posts = _posts((5, 4))
    assert _found(base, posts, dtype="float64")[1] is None


@pytest.mark.parametrize("method", ["gram", "lapack"])
def test_each_matrix_is_decomposed_once(method):
    """Decompositions that run, counted by a spy that is called whenever one is computed."""
    base, posts = _posts((8, 6))
    primitives = {"gram": ("eigh",), "lapack": ("svd",)}[method]
    with jax.enable_x64(True):
        traced = jax.make_jaxpr(
            lambda b, p: kernels.map_posts(_read, b, p, pairs=PAIRS, read_pair=_read, dtype="float64", method=method)
        )(base, posts)
    outside, inside = _count(traced.jaxpr, primitives)
    assert (outside, inside) == (1, [len(posts)])  # the base before the loop; in it one a post; in that of pairs none


def _count(jaxpr, primitives):
    """How many decompositions every input takes outside of loops, and the lengths of the loops that have one."""
    outside, loops = 0, []
    for equation in jaxpr.eqns:
        name = equation.primitive.name
        if name == "scan":
            inner, deeper = _count(equation.params["jaxpr"].jaxpr, primitives)
            loops += [equation.params["length"]] * inner + deeper
        elif name == "cond":  # of second passes, which small singular values alone take: the branch of most
            counts = [_count(branch.jaxpr, primitives) for branch in equation.params["branches"]]
            outside += counts[0][0]
            loops += counts[0][1]
        elif name in primitives:
            outside += 1
        else:
            for value in equation.params.values():
                closed = getattr(value, "jaxpr", value)
                if hasattr(closed, "eqns"):
                    found, deeper = _count(closed, primitives)
                    outside, loops = outside + found, loops + deeper
    return outside, loops
