"""The closed-form controls against Monte Carlo: isotropic changes drawn and decomposed by numpy."""

import functools

import jax
import numpy as np
import pytest

from polarax import kernels
from polarax.kernels import noise_law
from tests.kernels import matrices
from tests.kernels.test_fit import reference as fit_reference

SHAPES = ((24, 24), (40, 16), (16, 40))
WELL_CONDITIONED = "mild"  # condition number 5


_NO_SPREADS = noise_law.Spreads._make([np.float32(0)] * len(noise_law.Spreads._fields))


@functools.partial(jax.jit, static_argnames=("shape", "spreads"))
def _controls(values, norm, *, shape, spreads=True):
    return kernels.closed_form_controls(values, norm, shape=shape, std=None if spreads else _NO_SPREADS)


_controls_of_square = functools.partial(_controls, shape=(24, 24))


def controls(base, drift, dtype="float64", *, spreads=False):
    """Controls of a base, given by numpy's singular values, for a change of norm drift ||base||.

    Without `spreads` standard deviations are 0: most of what there is to compile is theirs.
    """
    values = np.linalg.svd(base.astype(np.float64), compute_uv=False)
    norm = np.asarray(drift * np.linalg.norm(values))
    with jax.enable_x64(dtype == "float64"):
        control = _controls(values.astype(dtype), norm.astype(dtype), shape=base.shape, spreads=spreads)
    return jax.device_get(control)


def draws(base, drift, count, kind="draws"):
    """Isotropic changes of exactly the norm drift ||base||_F, (count, m, n)."""
    change = matrices.generator(kind, base.shape, count).standard_normal((count, *base.shape))
    norms = np.linalg.norm(change, axis=(-2, -1), keepdims=True)
    return change * (drift * np.linalg.norm(base) / norms)


def _factors(x):
    u, _, vt = np.linalg.svd(x, full_matrices=False)
    return u @ vt


def sampled_nf(base, change):
    """||P_p^T P_b - I||_F / sqrt(r) of every draw, by numpy."""
    if base.shape[0] < base.shape[1]:
        base, change = base.T, np.swapaxes(change, -1, -2)
    product = np.swapaxes(_factors(base + change), -1, -2) @ _factors(base)
    return np.linalg.norm(product - np.eye(base.shape[1]), axis=(-2, -1)) / np.sqrt(base.shape[1])


@pytest.mark.parametrize("drift, tolerance", [(1e-3, 0.01), (0.02, 0.01), (0.1, 0.02), (0.3, 0.1)])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_nf(shape, drift, tolerance):
    base = matrices.matrix(WELL_CONDITIONED, shape, "float64")
    samples = sampled_nf(base, draws(base, drift, 400))
    control = controls(base, drift)
    np.testing.assert_allclose(control.nf, np.sqrt(np.mean(samples**2)), rtol=tolerance)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_nf_std(shape):
    base = matrices.matrix(WELL_CONDITIONED, shape, "float64")
    # Entries of a given variance: with the norm held fixed, nf varies less.
    change = matrices.generator("nf_std", shape).standard_normal((1500, *shape))
    drift = 0.02
    change *= drift * np.linalg.norm(base) / np.sqrt(base.size)
    samples = sampled_nf(base, change)
    np.testing.assert_allclose(controls(base, drift, spreads=True).std.nf, np.std(samples), rtol=0.1)


@pytest.mark.parametrize("drift", [0.02, 0.1])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_alpha_std(shape, drift):
    base = matrices.matrix(WELL_CONDITIONED, shape, "float64")
    values = np.linalg.svd(base, compute_uv=False)
    alpha = np.linalg.svd(base + draws(base, drift, 4000), compute_uv=False) @ values / (values @ values)
    np.testing.assert_allclose(controls(base, drift, spreads=True).std.alpha, np.std(alpha), rtol=0.06)


def with_condition(condition, shape):
    """A base whose singular values fall geometrically; "equal" ones for 1."""
    values = np.geomspace(1, 1 / condition, min(shape))
    return matrices.with_spectrum(values, *shape, matrices.generator("condition", condition, shape))


@pytest.fixture(scope="module")
def sample():
    """base, its SVD, drift, draws; r x r frames of the draws. Made once for all tests."""
    made = {}

    def make(shape, condition, reach):
        key = shape, condition, reach
        if key not in made:
            base = with_condition(condition, shape)
            drift = reach / condition
            change = draws(base, drift, 200, key)
            u, s, vt = np.linalg.svd(base, full_matrices=False)
            made[key] = base, s, drift, change, np.swapaxes(u, 0, 1) @ change @ vt.T
        return made[key]

    return make


@pytest.mark.pairwise
class TestTwoPercent:
    """Closed forms against 200 draws, over drift sizes, shapes and condition numbers in the range they are stated for.

    Where the first-order part of a draw has a known mean, what it happened to be is taken out: 200 draws are few.
    """

    REACHES = (0.01, 0.1, 1.0)  # of condition number times drift
    CONDITIONS = (3, 30, 300)
    SHAPES = ((32, 32), (60, 24), (24, 60))

    @pytest.mark.parametrize("reach", REACHES)
    @pytest.mark.parametrize("condition", CONDITIONS)
    @pytest.mark.parametrize("shape", SHAPES, ids=str)
    def test_nf(self, sample, shape, condition, reach):
        base, s, drift, change, in_frame = sample(shape, condition, reach)
        sums = s[:, None] + s[None, :]
        off = ~np.eye(len(s), dtype=bool)
        first = np.sum(((in_frame - np.swapaxes(in_frame, 1, 2)) / sums) ** 2, axis=(1, 2)) / len(s)
        variance = drift**2 * np.sum(s**2) / base.size
        mean = np.sum((2 * variance / sums**2)[off]) / len(s)
        square = np.mean(sampled_nf(base, change) ** 2 - first) + mean
        np.testing.assert_allclose(controls(base, drift).nf, np.sqrt(square), rtol=0.02)

    @pytest.mark.parametrize("reach", REACHES)
    @pytest.mark.parametrize("condition", CONDITIONS)
    @pytest.mark.parametrize("shape", SHAPES, ids=str)
    def test_budget(self, sample, shape, condition, reach):
        base, s, drift, change, in_frame = sample(shape, condition, reach)
        total = np.sum(change**2, axis=(1, 2))
        symmetric = (in_frame + np.swapaxes(in_frame, 1, 2)) / 2 * (1 - np.eye(len(s)))
        control = controls(base, drift)
        shares = {
            "coordinated": np.sum(symmetric**2, axis=(1, 2)) / total,
            "outside": 1 - np.sum(in_frame**2, axis=(1, 2)) / total,
        }
        for part, share in shares.items():
            found = getattr(control, f"budget_{part}")
            np.testing.assert_allclose(found, np.mean(share), rtol=0.02, atol=1e-12, err_msg=part)

    @pytest.mark.parametrize("reach", REACHES)
    @pytest.mark.parametrize("condition", [1, *CONDITIONS])
    @pytest.mark.parametrize("shape", SHAPES, ids=str)
    def test_fit_error(self, sample, shape, condition, reach):
        """Also where all singular values are equal, of which a rotation of both sides changes nothing."""
        reach = reach if condition > 1 else reach / 3
        base, _, drift, change, _ = sample(shape, condition, reach)
        errors = [fit_reference(base, base + one).error for one in change]
        np.testing.assert_allclose(controls(base, drift).fit_error, np.sqrt(np.mean(np.square(errors))), rtol=0.02)


@pytest.mark.parametrize("size", [2, 3, 10, 24])
def test_coordination_std(size):
    """Symmetric and skew parts of a Gaussian matrix, drawn and measured."""
    base = matrices.matrix(WELL_CONDITIONED, (size, size), "float64")
    draw = matrices.generator("coordination", size).standard_normal((20_000, size, size))
    symmetric = (draw + np.swapaxes(draw, -1, -2)) / 2 * (1 - np.eye(size))
    skew = (draw - np.swapaxes(draw, -1, -2)) / 2
    energies = [np.sum(part**2, axis=(-2, -1)) for part in (symmetric, skew)]
    coordination = (energies[0] - energies[1]) / (energies[0] + energies[1])
    np.testing.assert_allclose(controls(base, 0.1, spreads=True).std.coordination, np.std(coordination), rtol=0.03)
    assert abs(np.mean(coordination)) < 4 * np.std(coordination) / np.sqrt(coordination.size)


@pytest.mark.parametrize("shape", [*SHAPES, (1, 9), (9, 1), (1, 1)], ids=str)
def test_budget_counts_degrees_of_freedom(shape):
    base = matrices.matrix(WELL_CONDITIONED, shape, "float64")
    control = controls(base, 0.1)
    rows, cols = shape
    size = min(shape)
    pairs = sum(1 for i in range(size) for j in range(i))
    expected = [size, pairs, pairs, rows * cols - size * size]
    found = [getattr(control, f"budget_{part}") for part in ("scaling", "coordinated", "discordant", "outside")]
    np.testing.assert_allclose(np.array(found) * rows * cols, expected, atol=1e-9)


@pytest.mark.parametrize("kind", ["mild", "separated", "llm_like"])
def test_reach_is_condition_number_times_drift(kind):
    base = matrices.matrix(kind, (24, 24), "float64")
    np.testing.assert_allclose(controls(base, 1e-3).reach, 1e-3 * np.linalg.cond(base), rtol=1e-9)


def test_nf_holds_far_beyond_first_order():
    """An ill-conditioned base, whose smallest singular values are far below the change."""
    base = matrices.matrix("llm_like", (24, 24), "float64")
    for drift in (1e-7, 1e-2, 0.3):
        control = controls(base, drift)
        assert (control.reach < 0.1) == (drift < 1e-6)
        samples = sampled_nf(base, draws(base, drift, 400))
        np.testing.assert_allclose(control.nf, np.sqrt(np.mean(samples**2)), rtol=0.04)


@pytest.mark.parametrize("kind", ["rank_deficient", "rank_one"])
@pytest.mark.parametrize("shape", [(24, 24), (40, 16)], ids=str)
def test_the_rank_stands_for_r(shape, kind):
    base = matrices.matrix(kind, shape, "float64")
    rank = matrices.RANKS[kind](min(shape))
    entries = shape[0] * shape[1]
    control = controls(base, 0.1)
    np.testing.assert_allclose(control.budget_scaling, rank / entries, rtol=1e-12)
    np.testing.assert_allclose(control.budget_coordinated, rank * (rank - 1) / 2 / entries, atol=1e-12)
    np.testing.assert_allclose(control.budget_outside, 1 - rank**2 / entries, rtol=1e-12)
    assert control.reach == np.inf  # no multiple of a change is small beside a singular value of zero


@pytest.mark.parametrize("exponent", [-100, 100])
@pytest.mark.parametrize("dtype", matrices.WORKING_DTYPES)
def test_the_unit_does_not_matter(dtype, exponent):
    base = matrices.matrix("separated", (24, 24), dtype)
    expected, found = (controls(x, 0.1, dtype, spreads=True) for x in (base, np.ldexp(base, exponent)))
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4 if dtype == "float32" else 1e-11)
        assert one.dtype == np.dtype(dtype)


def test_no_change_no_base():
    values = np.stack([np.linspace(1, 0.2, 24)] * 4).astype(np.float32)
    values[1], values[2] = 0, np.nan
    norm = np.array([0, 1, 1, np.nan], np.float32)
    control = _controls_of_square(values, norm)
    assert control.nf[0] == control.std.nf[0] == control.std.alpha[0] == control.reach[0] == 0
    for value in (control.nf, control.std.nf, control.std.alpha, control.fit_error, control.reach):
        assert np.all(np.isnan(value[1:]))
    for value in (control.budget_scaling, control.budget_coordinated, control.budget_outside, control.std.coordination):
        assert np.isnan(value).tolist() == [False, True, True, False]


def test_leading_axes_and_vmap():
    values = np.stack([np.linspace(1, low, 24) for low in (0.1, 0.2, 0.3, 0.4, 0.5, 0.6)]).reshape(2, 3, 24)
    values, norm = values.astype(np.float32), np.linspace(0.1, 0.6, 6, dtype=np.float32).reshape(2, 3)
    stacked = _controls_of_square(values, norm)
    mapped = jax.vmap(jax.vmap(_controls_of_square))(values, norm)
    single = [_controls_of_square(values[index], norm[index]) for index in np.ndindex(2, 3)]
    leaves = [jax.tree.leaves(control) for control in single]
    for place, (value, vmapped) in enumerate(zip(jax.tree.leaves(stacked), jax.tree.leaves(mapped), strict=True)):
        assert value.shape == (2, 3)
        one_by_one = np.reshape([control[place] for control in leaves], (2, 3))
        np.testing.assert_allclose(value, one_by_one, rtol=1e-4)
        np.testing.assert_allclose(vmapped, one_by_one, rtol=1e-4)
    assert _controls_of_square(values[:0], norm[:0]).nf.shape == (0, 3)


@pytest.mark.parametrize("size", [1, 24, 5000])
def test_nothing_is_outside_of_a_square_matrix(size):
    """Exactly, compiled or not: as 1 - r^2 / (m n) it would be a rounding error where that is one fused operation."""
    values, norm = np.ones(size, np.float32), np.float32(0.1)

    def outside(values, norm):
        return kernels.closed_form_controls(values, norm, shape=(size, size), std=_NO_SPREADS).budget_outside

    if size < 1000:
        assert outside(values, norm) == 0
    assert jax.jit(outside)(values, norm) == 0
