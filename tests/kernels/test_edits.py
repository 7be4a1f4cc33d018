"""Edits against float64 NumPy, written anew here from the formulas of the page on edits."""

import functools

import jax
import numpy as np
import pytest

from polarax import kernels
from polarax.kernels.edits import maps as maps_of
from polarax.kernels.edits.measure import measure_maps
from polarax.kernels.edits.tall_pair import tall_pair
from tests.kernels.matrices import drifted, generator, matrix, orthonormal, with_spectrum

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


@functools.partial(jax.jit, static_argnames=("kinds", "method"))
def edited(base, post, kinds=KINDS, method="auto"):
    """Edits in one program, which decomposes once."""
    return {kind: edit(kind, base, post, method=method) for kind in kinds}


def run_all(base, post):
    with jax.enable_x64(base.dtype == np.float64):
        return jax.device_get(edited(base, post))


def run(kind, base, post):
    return run_all(base, post)[kind]


def relative(found, expected):
    return np.linalg.norm(np.asarray(found, np.float64) - expected) / np.linalg.norm(expected)


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [((48, 48), "float64"), ((48, 48), "float32"), ((20, 12), "float64"), ((32, 80), "float32"), ((1, 9), "float64")],
)
def test_edits_are_those_of_float64_numpy(shape, dtype):
    base = matrix("llm_like", shape, dtype)
    post = drifted(base, 0.05)
    if shape[0] == shape[1]:  # else one vector turns to its opposite, and of that no rotation is determined
        assert np.linalg.slogdet(base)[0] == np.linalg.slogdet(post)[0]
    for kind, found in run_all(base, post).items():
        assert found.dtype == dtype and found.shape == shape
        assert relative(found, reference(kind, base, post)) < TOLERANCE[dtype], kind


@pytest.mark.parametrize("shape", [(48, 48), (20, 12), (1, 9)])  # compiled for the test before
def test_the_parts_of_the_budget_add_up_to_the_post(shape):
    base = matrix("separated", shape, "float64")
    post = drifted(base, 0.3)
    found = run_all(base, post)
    parts = [found[part] - base for part in kernels.BUDGET_PARTS]
    np.testing.assert_allclose(base + sum(parts), post, rtol=0, atol=1e-12)
    budget = kernels.drift_budget(base.astype(np.float32), post.astype(np.float32))
    shares = [np.linalg.norm(part) ** 2 / np.linalg.norm(post - base) ** 2 for part in parts]
    np.testing.assert_allclose(shares, [float(getattr(budget, part)) for part in kernels.BUDGET_PARTS], atol=1e-4)


@pytest.mark.parametrize("name", ["llm_like", "rank_deficient", "identity"])
def test_an_identical_pair_stays_as_it_is(name):
    base = matrix(name, (20, 12), "float64")
    for kind, found in run_all(base, base).items():
        np.testing.assert_allclose(found, base, rtol=0, atol=1e-11 * np.linalg.norm(base), err_msg=kind)


def test_zero_matrices_and_nan():
    zero, post = np.zeros((20, 12)), matrix("mild", (20, 12), "float64")
    broken = post.copy()
    broken[3, 3] = np.nan
    for before, after in ((zero, post), (post, zero)):
        assert all(np.all(np.isfinite(found)) for found in run_all(before, after).values())
    assert not any(found.any() for found in run_all(zero, zero).values())
    for before, after in ((broken, post), (post, broken)):
        assert all(np.isnan(found).all() for found in run_all(before, after).values())


def test_stacks_and_vmap_are_matrix_by_matrix():
    base = np.stack([matrix("llm_like", (20, 12), "float32", seed) for seed in range(4)]).reshape(2, 2, 20, 12)
    post = drifted(base, 0.05)
    kinds = ("break-left", "reparameterise", "coordinated")
    stacked = edited(base, post, kinds)
    mapped = jax.jit(jax.vmap(functools.partial(edited, kinds=kinds)))(base[0], post[0])
    alone = [edited(base[0, i], post[0, i], kinds) for i in range(2)]
    for kind in kinds:
        expected = np.stack([found[kind] for found in alone])
        np.testing.assert_allclose(stacked[kind][0], expected, rtol=0, atol=1e-5)
        np.testing.assert_allclose(mapped[kind], expected, rtol=0, atol=1e-5)


def test_what_is_free_in_an_eigenspace_decides_nothing():
    """The same pair behind rotations of rows and columns: LAPACK gives other vectors of equal singular values."""
    rng = generator("eigenspaces")
    values = np.repeat([4.0, 2.0, 1.0], [3, 4, 5])
    base = with_spectrum(values, 20, 12, rng)
    post = with_spectrum(values * 1.1, 20, 12, rng) * 0.05 + base
    tied_post = with_spectrum(values, 20, 12, rng)
    left, right = orthonormal(20, 20, rng), orthonormal(12, 12, rng)
    for before, after in ((base, post), (post, base), (base, tied_post)):
        expected, found = run_all(before, after), run_all(left @ before @ right, left @ after @ right)
        for kind in KINDS:
            assert relative(found[kind], left @ expected[kind] @ right) < 1e-8, kind
    # Of a base with orthonormal columns, all that is symmetric in its frame is a scaling: W_b (I + S).
    orthogonal, symmetric = left[:, :12], rng.standard_normal((12, 12))
    scaled = orthogonal @ (np.eye(12) + 0.01 * (symmetric + symmetric.T))
    found = run_all(orthogonal, scaled)
    np.testing.assert_allclose(found["scaling"], scaled, atol=1e-12)
    np.testing.assert_allclose(found["coordinated"], orthogonal, atol=1e-12)


def test_rank_deficient_pairs():
    rng = generator("deficient")
    base, post = (with_spectrum(np.r_[np.linspace(2, 1, 6), np.zeros(6)], 20, 12, rng) for _ in range(2))
    full = with_spectrum(np.linspace(2, 1, 12), 20, 12, rng)
    assert all(np.all(np.isfinite(found)) for found in run_all(base, post).values())
    found = run_all(base, full)
    # Where the base has no vector, nothing is left.
    values = np.linalg.svd(full, compute_uv=False)
    _, _, right = np.linalg.svd(full, full_matrices=False)
    np.testing.assert_allclose(found["break-left"] @ right[6:].T, 0, atol=1e-10)
    # The base's polar factor times the post's positive part.
    of_base = np.linalg.svd(base, full_matrices=False)
    polar = of_base[0][:, :6] @ of_base[2][:6]
    np.testing.assert_allclose(found["restore-left"], polar @ (right.T * values) @ right, atol=1e-10)


def test_signs_of_ones_choice():
    base = matrix("separated", (20, 12), "float64")
    post = drifted(base, 0.01)
    signs = np.where(np.arange(12) % 2, -1.0, 1.0)
    with jax.enable_x64(True):
        flipped = np.asarray(jax.jit(functools.partial(kernels.edit_break, side="left"))(base, post, signs=signs))
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


@pytest.mark.parametrize("method", ["lapack", "polar"])
def test_other_methods_in_float32(method):
    base = matrix("separated", (20, 12), "float32")  # a condition number of 50
    post = drifted(base, 0.05)
    for kind, found in edited(base, post, ("break-left", "coordinated"), method).items():
        assert relative(found, reference(kind, base, post)) < 1e-4


@pytest.mark.parametrize("shape", [(30, 30), (40, 24)])
def test_measures_are_those_of_a_comparison(shape):
    """Of W_b + 0.7 (keep one part of D), found from Gram matrices, as of the matrix itself."""
    base = matrix("llm_like", shape, "float64")
    post = drifted(base, 0.05)

    def measured(base, post):
        pair = tall_pair(base, post, dtype=base.dtype)
        maps = maps_of.kept_part(pair, "discordant", square=shape[0] == shape[1])
        maps = maps.between(maps_of.starting_maps(pair, "base"), 0.7)
        edited = maps.apply(base, post)
        frames = [kernels.frames(x, edited) for x in (base, post)]
        expected = [(kernels.scaling(x.s_base, x.s_post).alpha, kernels.rotation_difference(x)) for x in frames]
        return measure_maps(pair, maps), expected

    with jax.enable_x64(True):
        found, expected = jax.device_get(jax.jit(measured)(base, post))
    np.testing.assert_allclose(found, np.transpose(expected).reshape(-1), rtol=1e-5)


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
