"""Edits against float64 NumPy, written anew here from the formulas of the page on edits."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from polarax import kernels
from tests.kernels.matrices import SHAPES, drifted, generator, matrix, orthonormal, with_spectrum

KINDS = ("replace", "break-left", "break-right", "restore-left", "restore-right", "reparameterise", "scaling")
KINDS += ("coordinated", "discordant", "outside")
# Error of an edited matrix relative to its norm. Singular vectors of values that lie close are known to eps / gap only,
# and all edits weigh that by what lies between them: 1e-9 at the gaps of these spectra.
TOLERANCE = {"float64": 1e-9, "float32": 1e-6}


def edit(kind, base, post, **options):
    side = kind.partition("-")[2]
    if kind == "replace":
        return kernels.edit_replace_values(base, post, **options)
    if kind.startswith("break"):
        return kernels.edit_break(base, post, side=side, **options)
    if kind.startswith("restore"):
        return kernels.edit_restore(base, post, side=side, **options)
    if kind == "reparameterise":
        return kernels.edit_reparameterise(base, post, **options)
    return kernels.edit_keep(base, post, part=kind, **options)


def reference(kind, base, post):
    base, post = base.astype(np.float64), post.astype(np.float64)
    (ub, sb, vbt), (up, sp, vpt) = (np.linalg.svd(x, full_matrices=False) for x in (base, post))
    signs = np.where(np.sum(ub * up, 0) + np.sum(vbt * vpt, 1) < 0, -1.0, 1.0)
    ub, vbt = ub * signs, vbt * signs[:, None]
    qu, qv = ub.T @ up, vbt @ vpt.T
    change = post - base
    e = ub.T @ change @ vbt.T
    if kind == "replace":
        return (up * (sb @ sp / (sb @ sb)) * sb) @ vpt
    if kind == "break-left":
        return (ub * sp) @ vpt
    if kind == "break-right":
        return (up * sp) @ vbt
    if kind == "restore-left":
        return (ub @ qv * sp) @ vpt
    if kind == "restore-right":
        return (up * sp) @ (vbt.T @ qu).T
    if kind == "reparameterise":
        left, _, right = np.linalg.svd(qu + qv)
        q = left @ right
        fit = (ub @ q * sb) @ (vbt.T @ q).T
        return fit * np.sum(fit * post) / np.sum(fit * fit)
    symmetric = (e + e.T) / 2
    parts = {
        "scaling": np.diag(np.diag(e)),
        "coordinated": symmetric - np.diag(np.diag(symmetric)),
        "discordant": (e - e.T) / 2,
    }
    if kind == "outside":
        return base + change - ub @ e @ vbt
    return base + ub @ parts[kind] @ vbt


def run(kind, base, post, **options):
    with jax.enable_x64(base.dtype == np.float64):
        return np.asarray(jax.jit(functools.partial(edit, kind, **options))(base, post))


def relative(found, expected):
    return np.linalg.norm(found.astype(np.float64) - expected) / np.linalg.norm(expected)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("shape", [(48, 48), (80, 32), (32, 80), (1, 9), (9, 1)])
@pytest.mark.parametrize("kind", KINDS)
def test_edits_are_those_of_float64_numpy(kind, shape, dtype):
    base = matrix("llm_like", shape, dtype)
    post = drifted(base, 0.05)
    if kind == "reparameterise" and min(shape) > 1:  # the determinants of both have one sign
        assert shape[0] != shape[1] or np.linalg.slogdet(base)[0] == np.linalg.slogdet(post)[0]
    found = run(kind, base, post)
    assert found.dtype == dtype and found.shape == shape
    assert relative(found, reference(kind, base, post)) < TOLERANCE[dtype]


@pytest.mark.parametrize("shape", SHAPES)
def test_the_parts_of_the_budget_add_up_to_the_post(shape):
    base = matrix("separated", shape, "float64")
    post = drifted(base, 0.3)
    parts = [run(part, base, post) - base for part in kernels.BUDGET_PARTS]
    np.testing.assert_allclose(base + sum(parts), post, rtol=0, atol=1e-12)
    budget = kernels.drift_budget(base.astype(np.float32), post.astype(np.float32))
    shares = [np.linalg.norm(part) ** 2 / np.linalg.norm(post - base) ** 2 for part in parts]
    np.testing.assert_allclose(shares, [float(getattr(budget, part)) for part in kernels.BUDGET_PARTS], atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_an_identical_pair_stays_as_it_is(kind):
    for name in ("llm_like", "rank_deficient", "identity"):
        base = matrix(name, (40, 24), "float64")
        np.testing.assert_allclose(run(kind, base, base), base, rtol=0, atol=1e-11 * np.linalg.norm(base))


@pytest.mark.parametrize("kind", KINDS)
def test_zero_matrices_and_nan(kind):
    zero, post = np.zeros((12, 8)), matrix("mild", (12, 8), "float64")
    assert np.all(np.isfinite(run(kind, zero, post))) and np.all(np.isfinite(run(kind, post, zero)))
    assert not run(kind, zero, zero).any()
    broken = post.copy()
    broken[3, 3] = np.nan
    assert np.isnan(run(kind, broken, post)).all() and np.isnan(run(kind, post, broken)).all()


@pytest.mark.parametrize("kind", KINDS)
def test_stacks_and_vmap_are_matrix_by_matrix(kind):
    base = np.stack([matrix("llm_like", (24, 16), "float32", seed) for seed in range(4)]).reshape(2, 2, 24, 16)
    post = drifted(base, 0.05)
    alone = np.stack([run(kind, b, p) for b, p in zip(base.reshape(4, 24, 16), post.reshape(4, 24, 16), strict=True)])
    np.testing.assert_allclose(run(kind, base, post).reshape(alone.shape), alone, rtol=0, atol=1e-5)
    mapped = jax.jit(jax.vmap(functools.partial(edit, kind)))(base[0], post[0])
    np.testing.assert_allclose(mapped, alone[:2], rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", ["replace", "break-left", "break-right", "reparameterise", "scaling", "coordinated"])
def test_what_is_free_in_an_eigenspace_decides_nothing(kind):
    """The same pair behind rotations of rows and columns: LAPACK gives other vectors of equal singular values."""
    rng = generator("eigenspaces")
    values = np.repeat([4.0, 2.0, 1.0], [3, 4, 5])
    base = with_spectrum(values, 20, 12, rng)
    post = with_spectrum(values * 1.1, 20, 12, rng) * 0.05 + base
    tied_post = with_spectrum(values, 20, 12, rng)
    left, right = orthonormal(20, 20, rng), orthonormal(12, 12, rng)
    for before, after in ((base, post), (post, base), (base, tied_post)):
        expected = left @ run(kind, before, after) @ right
        found = run(kind, left @ before @ right, left @ after @ right)
        assert relative(found, expected) < 1e-8
    # Of a base that is orthogonal, all that is symmetric in its frame is a scaling: W_b (I + S).
    symmetric = rng.standard_normal((12, 12))
    symmetric = right @ (np.eye(12) + 0.01 * (symmetric + symmetric.T))
    if kind in ("scaling", "coordinated"):
        np.testing.assert_allclose(run(kind, right, symmetric), symmetric if kind == "scaling" else right, atol=1e-12)


def test_rank_deficient_pairs():
    rng = generator("deficient")
    base, post = (with_spectrum(np.r_[np.linspace(2, 1, 6), np.zeros(6)], 20, 12, rng) for _ in range(2))
    full = with_spectrum(np.linspace(2, 1, 12), 20, 12, rng)
    for kind in KINDS:
        assert np.all(np.isfinite(run(kind, base, post)))
    # Where the base has no vector, the post's stays.
    broken = run("break-left", base, full)
    values = np.linalg.svd(full, compute_uv=False)
    left, _, right = np.linalg.svd(full, full_matrices=False)
    np.testing.assert_allclose(broken @ right[6:].T, left[:, 6:] * values[6:], atol=1e-10)
    # The base's polar factor times the post's positive part.
    of_base = np.linalg.svd(base, full_matrices=False)
    polar = of_base[0][:, :6] @ of_base[2][:6]
    np.testing.assert_allclose(run("restore-left", base, full), polar @ (right.T * values) @ right, atol=1e-10)


def test_singular_values_of_edited_weights():
    base = matrix("llm_like", (40, 24), "float64")
    post = drifted(base, 0.05)
    s_base, s_post = (np.linalg.svd(x, compute_uv=False) for x in (base, post))
    alpha = s_base @ s_post / (s_base @ s_base)
    tolerance = {"rtol": 0, "atol": 1e-9 * s_base[0]}
    for kind, expected in (("replace", alpha * s_base), ("break-left", s_post), ("break-right", s_post)):
        np.testing.assert_allclose(np.linalg.svd(run(kind, base, post), compute_uv=False), expected, **tolerance)


def test_signs_of_ones_choice():
    base = matrix("separated", (20, 12), "float64")
    post = drifted(base, 0.01)
    signs = np.where(np.arange(12) % 2, -1.0, 1.0)
    with jax.enable_x64(True):
        flipped = np.asarray(kernels.edit_break(base, post, side="left", signs=jnp.asarray(signs)))
    aligned, values = run("break-left", base, post), np.linalg.svd(post, full_matrices=False)
    np.testing.assert_allclose(flipped @ values[2].T, aligned @ values[2].T * signs, atol=1e-10)


def test_scaling_and_random_changes():
    base = np.stack([matrix("llm_like", (30, 20), "float32", seed) for seed in range(3)])
    np.testing.assert_allclose(kernels.edit_scale_values(base, 1.5), 1.5 * base, rtol=1e-6)
    np.testing.assert_allclose(
        kernels.edit_scale_values(base, np.array([1, 2, 3])), base * np.array([1, 2, 3])[:, None, None], rtol=1e-6
    )
    keys = jax.random.split(jax.random.key(0), 3)
    changed = kernels.edit_random_control(keys, base, 0.1)
    np.testing.assert_array_equal(changed[1], kernels.edit_random_control(keys[1], base[1], 0.1))
    drawn = (np.asarray(changed) - base) / 0.1
    # 1800 normal numbers: mean 0 and deviation 1, each within 5 of its standard deviations.
    assert abs(drawn.mean()) < 5 / np.sqrt(drawn.size) and abs(drawn.std() - 1) < 5 / np.sqrt(2 * drawn.size)


@pytest.mark.parametrize("method", ["lapack", "gram", "polar"])
def test_other_methods(method):
    base = matrix("separated", (40, 24), "float32")
    post = drifted(base, 0.05)
    for kind in KINDS:
        assert relative(run(kind, base, post, method=method), reference(kind, base, post)) < 1e-4


@pytest.mark.parametrize("shape", [(30, 30), (40, 24), (24, 40)])
def test_measures_are_those_of_a_comparison(shape):
    base = matrix("llm_like", shape, "float64")
    post = drifted(base, 0.05)
    with jax.enable_x64(True):
        of_base, of_post = (kernels.decompose(jnp.asarray(x)) for x in (base, post))
        found = kernels.measure_edit(jnp.asarray(base), jnp.asarray(post), original_svd=of_base, edited_svd=of_post)
        nf = kernels.align(base, post).nf
    s_base, s_post = (np.linalg.svd(x, compute_uv=False) for x in (base, post))
    np.testing.assert_allclose(found.drift, np.linalg.norm(post - base) / np.linalg.norm(base), rtol=1e-10)
    np.testing.assert_allclose(found.alpha, s_base @ s_post / (s_base @ s_base), rtol=1e-8)
    np.testing.assert_allclose(found.nf, nf, rtol=1e-6)


def test_bad_arguments():
    base = np.eye(3, dtype=np.float32)
    for call, words in (
        (lambda: kernels.edit_break(base, base, side="up"), "Unknown side 'up'"),
        (lambda: kernels.edit_restore(base, base, side=""), "Unknown side ''"),
        (lambda: kernels.edit_keep(base, base, part="all"), "Unknown part 'all'"),
        (lambda: kernels.edit_replace_values(base, base[:2]), "one shape"),
        (lambda: kernels.edit_replace_values(base, base, method="fast"), "Unknown SVD method"),
    ):
        with pytest.raises(ValueError, match=words):
            call()
