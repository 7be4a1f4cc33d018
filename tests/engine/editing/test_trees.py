"""Edits of parameter trees, with values and traced."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import polarax
from tests.kernels.matrices import drifted, matrix


def tree(seed=0):
    heads = matrix("separated", (16, 12), "float32", seed).reshape(16, 3, 4)
    return {
        "params": {
            "attention": {"query": {"kernel": heads, "bias": np.ones((3, 4), np.float32)}},
            "dense": {"kernel": matrix("separated", (16, 24), "float32", seed + 1), "bias": np.zeros(24, np.float32)},
            "out": [matrix("separated", (16, 24), "float32", seed + 2).T],
        }
    }


def changed(base):
    return jax.tree.map(lambda x: drifted(x, 0.1) if x.ndim > 1 else x, base)


def polar(x):
    left, _, right = np.linalg.svd(x.astype(np.float64), full_matrices=False)
    return left @ right


def restored_left(base, post):
    """Of a square or tall matrix: the base's polar factor times the post's positive part."""
    _, values, right = np.linalg.svd(post.astype(np.float64), full_matrices=False)
    return polar(base) @ (right.T * values) @ right


@pytest.mark.parametrize("jitted", [False, True])
def test_arrays_of_a_tree_are_edited_where_they_are(jitted):
    base = tree()
    post = changed(base)

    def edit(base, post):
        return polarax.edit(base, post, "restore-left")

    edited = (jax.jit(edit) if jitted else edit)(base, post)
    assert jax.tree.structure(edited) == jax.tree.structure(post)
    found = edited["params"]
    np.testing.assert_array_equal(found["dense"]["bias"], post["params"]["dense"]["bias"])
    # A kernel is (in, out): its matrix is the transpose.
    expected = restored_left(base["params"]["dense"]["kernel"].T, post["params"]["dense"]["kernel"].T)
    np.testing.assert_allclose(found["dense"]["kernel"], expected.T, atol=1e-6)
    expected = restored_left(base["params"]["out"][0], post["params"]["out"][0])
    np.testing.assert_allclose(found["out"][0], expected, atol=1e-6)
    flat = [x["params"]["attention"]["query"]["kernel"].reshape(16, 12) for x in (base, post)]
    # (out, in) is wide: the mirror, (W_p W_p^T)^(1/2) of the tall one times the base's polar factor.
    left, values, right = np.linalg.svd(flat[1].T.astype(np.float64), full_matrices=False)
    of_base = np.linalg.svd(flat[0].T.astype(np.float64), full_matrices=False)
    wanted = of_base[0] @ (of_base[2] @ right.T * values) @ right
    np.testing.assert_allclose(np.asarray(found["attention"]["query"]["kernel"]).reshape(16, 12), wanted.T, atol=1e-6)


def test_strengths_roles_and_bfloat16():
    base = jax.tree.map(lambda x: jnp.asarray(x, jnp.bfloat16), tree())
    post = jax.tree.map(lambda x: x * 2 if x.size > 24 else x, base)  # all but the biases
    first, last = polarax.edit(base, post, "keep-scaling", strength=(0, 1))
    for begun, ended, before, after in zip(*map(jax.tree.leaves, (first, last, base, post)), strict=True):
        assert begun.dtype == ended.dtype == jnp.bfloat16
        np.testing.assert_array_equal(begun, before)
        np.testing.assert_array_equal(ended, after)  # of a change of values alone nothing is lost
    only = polarax.edit(base, post, "keep-discordant", include="dense")
    np.testing.assert_array_equal(only["params"]["out"][0], post["params"]["out"][0])
    np.testing.assert_array_equal(only["params"]["dense"]["kernel"], base["params"]["dense"]["kernel"])


def test_one_tree_is_scaled_and_nan_stays():
    post = tree()
    post["params"]["dense"]["kernel"][0, 0] = np.nan
    edited = polarax.edit(None, post, "scale-values", factor=2)
    np.testing.assert_array_equal(edited["params"]["dense"]["kernel"], post["params"]["dense"]["kernel"])
    np.testing.assert_array_equal(edited["params"]["out"][0], 2 * post["params"]["out"][0])


def test_modules_and_tied_arrays():
    class Model(nnx.Module):
        def __init__(self, rngs):
            self.first = nnx.Linear(8, 8, rngs=rngs)
            self.second = nnx.Linear(8, 4, rngs=rngs)

        def __call__(self, x):
            return self.second(self.first(x))

    base, post = Model(nnx.Rngs(0)), Model(nnx.Rngs(1))
    edited = polarax.edit(base, post, "keep-outside", include="first")
    assert isinstance(edited, Model)
    np.testing.assert_allclose(
        edited.first.kernel[...], base.first.kernel[...], atol=1e-6
    )  # square: nothing is outside
    np.testing.assert_array_equal(edited.second.kernel[...], post.second.kernel[...])
    shared = matrix("separated", (8, 8), "float32")
    before, after = ({"embed": {"embedding": x}, "lm_head": {"weight": x}} for x in (shared, drifted(shared, 0.1)))
    tied = polarax.edit(before, after, "random-control")
    np.testing.assert_array_equal(tied["embed"]["embedding"], tied["lm_head"]["weight"])


def test_what_trees_do_not_take(tmp_path):
    base = tree()
    with pytest.raises(polarax.UsageError, match="an edited parameter tree is returned"):
        polarax.edit(base, base, "break-left", tmp_path / "out")
    with pytest.raises(polarax.UsageError, match="out is missing"):
        polarax.edit("base", "post", "break-left")
