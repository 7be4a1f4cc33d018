"""The drift budget against its four parts formed in full, and against changes planted in one part."""

import functools

import hypothesis
import jax
import numpy as np
import pytest
from hypothesis import strategies

from polarax import kernels
from tests.kernels import matrices, singular_frames

drift_budget = jax.jit(kernels.drift_budget, static_argnames="method")


@functools.partial(jax.jit, static_argnames="shape")
def controls(values, norm, shape):
    return kernels.closed_form_controls(values, norm, shape=shape)


@jax.jit
def budget_of_frames(base, post):
    return kernels.budget_of_frames(kernels.frames(base, post))


WAYS = {"drift_budget": drift_budget, "budget_of_frames": budget_of_frames}
SHAPES = ((16, 16), (30, 12), (12, 30))
PARTS = ("scaling", "coordinated", "discordant", "outside")
PROPERTY = hypothesis.settings(max_examples=60, deadline=None, derandomize=True, database=None)


def _floats(budget):
    return {name: float(value) for name, value in budget._asdict().items()}


def _planted(shape, left_angle, right_angle, values=None):
    """Base U S V^T and post (U R) S (V R')^T, with R and R' the same rotation by different angles."""
    size = min(shape)
    rng = matrices.generator("planted", shape)
    u, v = (matrices.orthonormal(length, size, rng) for length in shape)
    s = np.linspace(1, 0.2, size)
    turned = [side @ singular_frames.rotation(size, angle) for side, angle in ((u, left_angle), (v, right_angle))]
    base = (u * s) @ v.T
    post = (turned[0] * (s if values is None else values(s))) @ turned[1].T
    return base, post


@PROPERTY
@hypothesis.given(
    shape=strategies.sampled_from(SHAPES),
    kind=strategies.sampled_from(["gaussian", "mild", "separated", "llm_like", "rank_deficient", "rank_one"]),
    drift=strategies.sampled_from([1e-6, 1e-3, 0.1, 1.0, 100.0]),
    seed=strategies.integers(0, 2**31),
)
def test_shares(shape, kind, drift, seed):
    base = matrices.matrix(kind, shape, "float64", seed)
    post = matrices.drifted(base, drift, seed)
    expected = singular_frames.budget(singular_frames.reference(base, post))
    with jax.enable_x64(True):
        for name, way in WAYS.items():
            found = _floats(way(base, post))
            for part in PARTS:
                assert abs(found[part] - expected[part]) < 1e-7, (name, part)
                assert 0 <= found[part] <= 1
            assert abs(sum(found[part] for part in PARTS) - 1) < 1e-8


@pytest.mark.pairwise("shape", "way")
@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
@pytest.mark.parametrize("drift", [1e-3, 0.1, 3.0])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_shares_in_float32(shape, drift, way):
    base = matrices.matrix("separated", shape)
    post = matrices.drifted(base, drift)
    expected = singular_frames.budget(singular_frames.reference(base, post))
    found = way(base, post)
    for part in PARTS:
        np.testing.assert_allclose(getattr(found, part), expected[part], atol=1e-5)
    np.testing.assert_allclose(sum(getattr(found, part) for part in PARTS), 1, atol=1e-6)


@pytest.mark.pairwise("shape", "way")
@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
@pytest.mark.parametrize("factor", [1.001, 0.5, 2.0])
@pytest.mark.parametrize("kind", ["mild", "clustered", "llm_like", "rank_one"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_pure_scaling(shape, kind, factor, way):
    base = matrices.matrix(kind, shape, "float64")
    with jax.enable_x64(True):
        found = _floats(way(base, factor * base))
    assert abs(found["scaling"] - 1) < 1e-9
    assert max(found[part] for part in PARTS[1:]) < 1e-9


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
class TestPlanted:
    angle = 1e-3

    def test_values_alone(self, shape, way):
        base, post = _planted(shape, 0, 0, values=lambda s: s + 0.1 * np.cos(np.arange(s.size)))
        with jax.enable_x64(True):
            assert _floats(way(base, post))["scaling"] > 1 - 1e-9

    def test_both_sides_rotated_together(self, shape, way):
        base, post = _planted(shape, self.angle, self.angle)
        with jax.enable_x64(True):
            found = _floats(way(base, post))
        assert found["coordinated"] > 1 - 1e-2
        assert found["coordination"] > 1 - 1e-4

    def test_sides_rotated_against_each_other(self, shape, way):
        base, post = _planted(shape, self.angle, -self.angle)
        with jax.enable_x64(True):
            found = _floats(way(base, post))
        assert found["discordant"] > 1 - 1e-2
        assert found["coordination"] < -1 + 1e-4

    def test_one_side_rotated(self, shape, way):
        """E = S K has both parts: ||S K + K^T S||^2 against ||S K - K^T S||^2."""
        base, post = _planted(shape, 0, self.angle)
        expected = singular_frames.budget(singular_frames.reference(base, post))
        with jax.enable_x64(True):
            found = _floats(way(base, post))
        assert 0.05 < found["coordinated"] < 0.95
        np.testing.assert_allclose(found["coordinated"], expected["coordinated"], rtol=1e-7)

    def test_left_the_space(self, shape, way):
        """A change orthogonal to the base's columns (tall) or rows (wide)."""
        base, _ = _planted(shape, 0, 0)
        rng = matrices.generator("outside", shape)
        change = rng.standard_normal(shape)
        if shape[0] == shape[1]:
            expected = 0.0
        else:
            expected = 1.0
            basis = np.linalg.qr(base if shape[0] > shape[1] else base.T)[0]
            projector = basis @ basis.T
            change -= projector @ change if shape[0] > shape[1] else change @ projector
        with jax.enable_x64(True):
            assert abs(_floats(way(base, base + 0.1 * change))["outside"] - expected) < 1e-9


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_signs_and_bases_do_not_matter(shape, way):
    base = matrices.matrix("separated", shape, "float64")
    post = matrices.drifted(base, 0.1)
    rng = matrices.generator("budget bases", shape)
    left, right = (matrices.orthonormal(size, size, rng) for size in shape)
    with jax.enable_x64(True):
        expected = np.array(way(base, post))
        np.testing.assert_allclose(way(-base, -post), expected, atol=1e-9)
        np.testing.assert_allclose(way(left @ base @ right, left @ post @ right), expected, atol=1e-9)
        np.testing.assert_allclose(way(base * 1e-30, post * 1e-30), expected, atol=1e-9)
        np.testing.assert_allclose(way(base * 1e30, post * 1e30), expected, atol=1e-9)


@pytest.mark.parametrize("kind", ["rank_deficient", "rank_one"])
@pytest.mark.parametrize("shape", [(24, 24), (30, 12), (12, 30)], ids=str)
def test_deficient_base(shape, kind):
    """What the base leaves undetermined counts as outside, whatever basis an SVD returns for it."""
    base = matrices.matrix(kind, shape)
    post = matrices.drifted(base, 0.5)
    expected = singular_frames.budget(singular_frames.reference(base, post, tolerance=1e-5))
    for way in WAYS.values():
        found = way(base, post)
        for part in PARTS:
            np.testing.assert_allclose(getattr(found, part), expected[part], atol=1e-5)
    assert expected["outside"] > 0.4


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_nothing_to_share_out(way):
    base = np.stack([matrices.matrix("mild", (9, 5), seed=i) for i in range(5)])
    post = base * np.float32(1.25)
    post[1] = base[1]  # no change
    base[2] = 0  # no frame: the whole change is outside
    post[3, 0, 0] = np.nan
    base[4, 0, 0] = np.inf
    found = {name: np.asarray(value) for name, value in way(base, post)._asdict().items()}
    for part in PARTS:
        assert np.isnan(found[part]).tolist() == [False, True, False, True, True], part
    assert np.isnan(found["coordination"][1:]).all()
    assert found["scaling"][0] > 0.999
    assert found["outside"][2] == 1
    assert found["scaling"][2] == found["coordinated"][2] == found["discordant"][2] == 0


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_svd_at_hand_is_used(shape):
    base = matrices.matrix("separated", shape)
    post = matrices.drifted(base, 0.1)
    expected = np.array(drift_budget(base, post))
    decomposition = kernels.svd(base)
    np.testing.assert_allclose(drift_budget(base, post, base_svd=decomposition), expected, atol=1e-5)
    # In the frame of another matrix the shares are others: the one given is what counts.
    other = kernels.svd(matrices.matrix("separated", shape, seed=1))
    assert np.max(np.abs(np.array(drift_budget(base, post, base_svd=other)) - expected)) > 0.01


@pytest.mark.parametrize("method", kernels.SVD_METHODS)
@pytest.mark.parametrize("shape", [(16, 16), (30, 12)], ids=str)
def test_isotropic_changes(shape, method):
    """Mean shares over many draws are those that counting degrees of freedom gives, at any size of the change."""
    draws, size = 200, min(shape)
    base = np.broadcast_to(matrices.matrix("separated", shape), (draws, *shape))
    change = matrices.generator("isotropic", shape).standard_normal((draws, *shape)).astype(np.float32)
    found = drift_budget(base, base + 0.5 * change, method=method)
    entries = shape[0] * shape[1]
    off_diagonal = size * (size - 1) / 2
    degrees = {
        "scaling": size,
        "coordinated": off_diagonal,
        "discordant": off_diagonal,
        "outside": entries - size**2,
    }
    control = controls(kernels.singular_values(base[0]), 1.0, shape)
    for part, count in degrees.items():
        share = count / entries
        np.testing.assert_allclose(getattr(control, f"budget_{part}"), share, rtol=1e-6, atol=1e-7)
        # A share of K of N degrees of freedom is Beta(K / 2, (N - K) / 2) distributed.
        standard_error = np.sqrt(share * (1 - share) / (entries / 2 + 1) / draws)
        mean = np.mean(np.asarray(getattr(found, part), np.float64))
        assert abs(mean - share) < 4 * standard_error + 1e-6, part
    assert abs(np.mean(found.coordination)) < 4 * float(control.std.coordination) / np.sqrt(draws)
    np.testing.assert_allclose(np.std(found.coordination), control.std.coordination, rtol=0.2)


def test_stacks_and_vmap():
    base = np.array([[matrices.matrix("separated", (11, 6), seed=3 * i + j) for j in range(3)] for i in range(2)])
    post = base + 0.05 * matrices.generator("stack").standard_normal(base.shape).astype(np.float32)
    expected = [
        [singular_frames.budget(singular_frames.reference(*pair))["coordinated"] for pair in zip(*rows, strict=True)]
        for rows in zip(base, post, strict=True)
    ]
    for way in WAYS.values():
        for mapped in (way, jax.jit(jax.vmap(jax.vmap(way)))):
            np.testing.assert_allclose(mapped(base, post).coordinated, expected, atol=1e-4)
    assert drift_budget(base[:0], post[:0]).scaling.shape == (0, 3)


@pytest.mark.parametrize("shape", [(1, 9), (9, 1), (1, 1)], ids=str)
def test_one_vector(shape):
    """No pair of vectors to rotate: the change is along the base, or outside."""
    base, change = (matrices.matrix("gaussian", shape, "float64", seed) for seed in (1, 2))
    along = np.sum(base * change) ** 2 / np.sum(base**2) / np.sum(change**2)
    with jax.enable_x64(True):
        for way in WAYS.values():
            found = _floats(way(base, base + change))
            np.testing.assert_allclose(found["scaling"], along, rtol=1e-9)
            assert found["coordinated"] == found["discordant"] == 0
            assert np.isnan(found["coordination"])


def test_errors():
    x = np.ones((3, 2), np.float32)
    with pytest.raises(ValueError, match=r"one shape.*\(3, 2\).*\(2, 3\)"):
        kernels.drift_budget(x, x.T)
    with pytest.raises(ValueError, match="'magic'"):
        kernels.drift_budget(x, x, method="magic")
