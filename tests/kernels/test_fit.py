"""The framework's fit against numpy: both SVDs in full, the fit written out as an m x n matrix."""

import functools

import jax
import numpy as np
import pytest

from polarax import kernels
from tests.kernels import matrices, singular_frames

SHAPES = ((12, 12), (30, 8), (8, 30))


def reference(base, post, tolerance=1e-9):
    """Errors and alpha by definition: alpha (U_b Q) S_b (V_b Q)^T formed in full, least squares by lstsq."""
    pair = singular_frames.reference(base, post, tolerance)
    left, right = pair.left, pair.right
    signs = np.ones(left.shape[1])
    for i in range(min(left.shape)):
        signs[i] = -1 if left[i, i] + right[i, i] < 0 else 1
    x, values, yt = np.linalg.svd((left + right) * signs, full_matrices=False)
    kept = values > 1e-6  # 0 where left and right turned to opposite directions
    turn = x[:, kept] @ yt[kept]  # rank of the base x rank of the post
    size = min(turn.shape)
    turned = (pair.u_base @ turn[:, :size] * pair.s_base[:size]) @ (pair.v_base @ turn[:, :size]).T
    norm = np.linalg.norm(post)

    def best(model):
        (scale,), *_ = np.linalg.lstsq(model.reshape(-1, 1), post.ravel(), rcond=None)
        return np.linalg.norm(post - scale * model) / norm, scale

    error, alpha = best(turned)
    return kernels.Fit(error, alpha, np.linalg.norm(post - base) / norm, best(base)[0])


@functools.partial(jax.jit, static_argnames="method")
def fitted(base, post, method="auto"):
    return kernels.fit_of_frames(kernels.frames(base, post, method=method))


def found(base, post, dtype="float64", **how):
    with jax.enable_x64(dtype == "float64"):
        return jax.device_get(fitted(base.astype(dtype), post.astype(dtype), **how))


def turned_together(base, angle):
    u, s, vt = np.linalg.svd(base, full_matrices=False)
    turn = singular_frames.rotation(len(s), angle)
    return (u @ turn * s) @ (vt.T @ turn).T


@pytest.mark.pairwise("shape")
@pytest.mark.parametrize("drift", [1e-3, 0.1, 2.0])
@pytest.mark.parametrize("kind", ["mild", "separated", "gaussian", "llm_like"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_definition(shape, kind, drift):
    base = matrices.matrix(kind, shape, "float64")
    post = 1.1 * matrices.drifted(base, drift)
    np.testing.assert_allclose(found(base, post), reference(base, post), rtol=1e-6)


@pytest.mark.parametrize("method", kernels.SVD_METHODS)
def test_every_method(method):
    base = matrices.matrix("mild", (30, 8), "float64")
    post = matrices.drifted(base, 0.05)
    np.testing.assert_allclose(found(base, post, method=method), reference(base, post), rtol=1e-8)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_float32(shape):
    base = matrices.matrix("mild", shape, "float32")
    post = matrices.drifted(base, 0.02)
    expected = reference(base.astype(np.float64), post.astype(np.float64))
    fit = found(base, post, "float32")
    assert {x.dtype for x in fit} == {np.dtype("float32")}
    np.testing.assert_allclose(fit, expected, rtol=1e-4)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_what_the_framework_says_it_fits(shape):
    """A pure scaling and a pure coordinated rotation leave nothing, a discordant rotation nearly all."""
    base = matrices.matrix("mild", shape, "float64")
    exact = 1e-12 if shape[0] == shape[1] else 1e-7  # what is outside of a long matrix is known to sqrt(eps)
    scaled = found(base, 1.3 * base)
    assert scaled.error < exact and scaled.error_scaled < exact
    np.testing.assert_allclose([scaled.alpha, scaled.error_unchanged], [1.3, 0.3 / 1.3], rtol=1e-12)
    together = found(base, 0.9 * turned_together(base, 0.2))
    assert together.error < exact and together.error_scaled > 0.01
    np.testing.assert_allclose(together.alpha, 0.9, rtol=1e-12)
    u, s, vt = np.linalg.svd(base, full_matrices=False)
    turn = singular_frames.rotation(len(s), 0.2)
    against = found(base, (u @ turn * s) @ (vt.T @ turn.T).T)
    assert against.error > 0.95 * against.error_scaled > 0.05


@pytest.mark.parametrize("mirrored", [1, 2])
def test_opposite_directions_are_left_out(mirrored):
    """Of a square matrix whose determinant changes its sign, one direction turns round on one side alone."""
    base = matrices.matrix("mild", (12, 12), "float64")
    u, s, vt = np.linalg.svd(matrices.drifted(base, 0.01))
    u[:, 3 : 3 + mirrored] *= -1
    post = (u * s) @ vt
    fit, expected = found(base, post), reference(base, post)
    np.testing.assert_allclose(fit, expected, rtol=1e-7)
    assert fit.error > 0.1


def test_no_change():
    base = matrices.matrix("mild", (12, 12), "float64")
    fit = found(base, base)
    assert fit.error < 1e-14 and fit.error_unchanged == fit.error_scaled == 0
    np.testing.assert_allclose(fit.alpha, 1, rtol=1e-14)


@pytest.mark.parametrize("kinds", [("rank_deficient", "rank_deficient"), ("mild", "rank_deficient")], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_undetermined_directions_are_no_part_of_it(shape, kinds):
    base, post = (matrices.matrix(kind, shape, "float64", seed) for seed, kind in enumerate(kinds))
    np.testing.assert_allclose(found(base, post), reference(base, post), rtol=1e-7)


@pytest.mark.parametrize("exponent", [-900, 900])
def test_the_unit_does_not_matter(exponent):
    base = matrices.matrix("mild", (12, 8), "float64")
    post = matrices.drifted(base, 0.1)
    np.testing.assert_allclose(found(np.ldexp(base, exponent), np.ldexp(post, exponent)), found(base, post), rtol=1e-12)


def test_zero_and_not_finite_spoil_no_other():
    base = np.stack([matrices.matrix("mild", (6, 4), "float64")] * 4)
    post = 1.01 * base
    base[1], post[2], post[3, 0, 0] = 0, 0, np.nan
    fit = found(base, post)
    assert np.isnan(fit.error).tolist() == [False, True, True, True]
    np.testing.assert_allclose(fit.alpha[0], 1.01, rtol=1e-12)


def test_stacks_and_vmap():
    base = np.stack([matrices.matrix("mild", (6, 4), "float64", seed) for seed in range(6)]).reshape(2, 3, 6, 4)
    post = np.stack([matrices.drifted(x, 0.1) for x in base.reshape(6, 6, 4)]).reshape(base.shape)
    expected = np.stack([reference(*pair) for pair in zip(base.reshape(6, 6, 4), post.reshape(6, 6, 4), strict=True)])
    stacked = found(base, post)
    with jax.enable_x64(True):
        mapped = jax.jit(jax.vmap(jax.vmap(fitted)))(base, post)
    # One step of the series, where it is enough, adds up to 0.03 with the rounding errors of float32.
    for way in (stacked, mapped):
        np.testing.assert_allclose(np.stack(way).reshape(4, 6).T, expected, rtol=0.03 * np.finfo("float32").eps)
