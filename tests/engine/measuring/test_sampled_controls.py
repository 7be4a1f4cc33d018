"""Sampled controls: the draws read by numpy, the same however a run is divided, and what planted changes show."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg

import polarax
from polarax import kernels
from polarax.measuring.program import measure_stack
from polarax.measuring.sampled_controls import matrix_key
from polarax.metrics import GROUPS, sampled_columns, sampled_metrics
from polarax.planning.measurement import Measurement
from polarax.planning.stacks import pair_operations
from tests.engine.command import NO_CACHE, assert_one_line
from tests.engine.planning.test_plan import plan

KINDS = ("isotropic", "spectrum", "shuffled")
DRAWS, SEED = 4, 7
SHAPE = (20, 12)


def rotation(rng, size, angle):
    skew = rng.standard_normal((size, size))
    skew -= skew.T
    return scipy.linalg.expm(angle * skew / np.linalg.norm(skew, 2))


@pytest.fixture(scope="module")
def planted():
    """name -> base, post, in float32: one change of each kind, all of one shape up to transposition."""
    rng = np.random.default_rng(3)
    pairs = {}
    for name in ("noise", "together", "low_rank", "wide", "unchanged", "not_finite", "zero"):
        u, _ = np.linalg.qr(rng.standard_normal((20, 12)))
        v, _ = np.linalg.qr(rng.standard_normal((12, 12)))
        values = np.linspace(2, 0.5, 12)
        base = (u * values) @ v.T
        noise = 0.02 * rng.standard_normal(SHAPE)
        turn = rotation(rng, 12, 0.1)
        post = {
            "together": (u @ turn * values) @ (v @ turn).T + 0.01 * noise,
            "low_rank": base + 0.3 * np.outer(rng.standard_normal(20), rng.standard_normal(12)) / 12,
            "unchanged": base,
            "zero": np.zeros(SHAPE),
        }.get(name, base + noise)
        if name == "not_finite":
            post[0, 0] = np.nan
        pair = (base.T, post.T) if name == "wide" else (base, post)
        pairs[name] = tuple(np.ascontiguousarray(x, np.float32) for x in pair)
    return pairs


@pytest.fixture(scope="module")
def compared(planted):
    """Compares the planted pairs, or some of them."""

    def compare(*names, **options):
        names = names or tuple(planted)
        base, post = ({name: planted[name][side] for name in names} for side in (0, 1))
        options = {"control_draws": DRAWS, "seed": SEED} | options
        return polarax.compare(base, post, progress=False, **options).frame().set_index("name")

    return compare


@pytest.fixture(scope="module")
def frame(compared):
    return compared()


def headline_numbers(base, post):
    """What is sampled, of one tall pair in float64, by numpy and scipy."""
    change = post - base
    u, s, vt = np.linalg.svd(base, full_matrices=False)
    u_post, s_post, vt_post = np.linalg.svd(post, full_matrices=False)
    in_frame = u.T @ change @ vt.T
    total = np.sum(change**2)
    diagonal = np.sum(np.diag(in_frame) ** 2)
    skew = np.sum(((in_frame - in_frame.T) / 2) ** 2)
    symmetric = np.sum(((in_frame + in_frame.T) / 2) ** 2) - diagonal
    factors = [scipy.linalg.polar(x)[0] for x in (post, base)]
    left, right = u.T @ u_post, vt @ vt_post.T
    signs = np.where(np.diag(left) + np.diag(right) < 0, -1, 1)
    turn, _ = scipy.linalg.polar((left + right) * signs)
    fitted = (u @ turn * s) @ (turn.T @ vt)
    scale = np.sum(fitted * post) / np.sum(fitted**2)
    return {
        "alpha": s @ s_post / (s @ s),
        "ratio_cv": np.std(s_post / s) / np.mean(s_post / s),
        "nf": np.linalg.norm(factors[0].T @ factors[1] - np.eye(len(s))) / np.sqrt(len(s)),
        "budget_scaling": diagonal / total,
        "budget_outside": 1 - np.sum(in_frame**2) / total,
        "coordination": (symmetric - skew) / (symmetric + skew),
        "symmetry": np.sum(in_frame * in_frame.T) / np.sum(in_frame**2),
        "nuclear_norm_ratio": np.sum(s_post) / np.sum(s),
        "leading_scaling": diagonal / total,  # fewer singular values than leading ones are compared
        "leading_coordination": (symmetric - skew) / (symmetric + skew),
        "fit_error": np.linalg.norm(post - scale * fitted) / np.linalg.norm(post),
    }


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["noise", "together", "low_rank", "wide"])
def test_mean_deviation_and_z_are_those_of_the_draws(planted, frame, name, kind):
    base, post = (x.astype(np.float64) for x in planted[name])
    if name == "wide":  # computed as its transpose
        base, post = base.T, post.T
    change = post - base
    values = np.linalg.svd(change, compute_uv=False)
    with jax.enable_x64(True):
        key = jax.random.wrap_key_data(jnp.asarray(matrix_key(SEED, name)), impl="threefry2x32")
        key = jax.random.fold_in(key, KINDS.index(kind))
        drawn = [
            kernels.random_change(jax.random.fold_in(key, draw), jnp.asarray(change), values, kind=kind)
            for draw in range(DRAWS)
        ]
    readings = [headline_numbers(base, base + np.asarray(one)) for one in drawn]
    actual = headline_numbers(base, post)
    assert set(actual) == set(sampled_metrics(GROUPS))
    for metric in actual:
        samples = np.array([one[metric] for one in readings])
        column = f"{metric}_{kind}"
        assert frame.loc[name, column] == pytest.approx(np.mean(samples), rel=1e-6)
        assert frame.loc[name, f"{column}_std"] == pytest.approx(np.std(samples), rel=1e-5)
        z = (actual[metric] - np.mean(samples)) / np.std(samples)
        assert frame.loc[name, f"{column}_z"] == pytest.approx(z, rel=1e-4, abs=1e-4)


def test_rows_say_that_they_are_sampled(frame):
    expected = dict.fromkeys(frame.index, "draws") | {"not_finite": "", "zero": ""}
    assert frame["control"].to_dict() == expected


def test_rows_without_numbers_stay_without(frame):
    columns = list(sampled_columns(GROUPS))
    assert frame.loc[["not_finite", "zero"], columns].isna().all(axis=None)
    z = [column for column in columns if column.endswith("_z")]
    assert frame.loc[["unchanged"], z].isna().all(axis=None)
    assert frame.loc[["noise", "together", "low_rank", "wide"], columns].notna().all(axis=None)


@pytest.mark.parametrize(
    "options", [{"memory_gib": 1e-6}, {"include": "noise|wide"}, {"include": "wide|noise", "metrics": "scaling"}]
)
def test_a_draw_is_the_same_however_the_run_is_divided(compared, frame, options):
    found = compared(**options)
    columns = [column for column in sampled_columns(GROUPS) if column in found]
    for name in ("noise", "wide"):
        np.testing.assert_allclose(
            found.loc[name, columns].astype(float), frame.loc[name, columns].astype(float), rtol=1e-6, atol=1e-9
        )


def test_a_stack_taken_as_a_batch_draws_the_same(planted):
    """As accelerators take it; on CPU it goes matrix by matrix."""
    names = ("noise", "together")
    base, post = (np.stack([planted[name][side] for name in names]) for side in (0, 1))
    keys = np.stack([matrix_key(SEED, name) for name in names])
    read = functools.partial(measure_stack, measurement=Measurement(("rotation",), control_draws=3))
    with jax.enable_x64(True):
        one_by_one, batch = (read(base, (post,), keys, batched=batched).posts[0] for batched in (False, True))
    for column in sampled_columns(["rotation"]):
        np.testing.assert_allclose(batch[column], one_by_one[column], rtol=1e-6, err_msg=column)


def test_seed_and_name_make_the_draws(compared, frame):
    assert matrix_key(0, "a").tolist() != matrix_key(1, "a").tolist() != matrix_key(1, "b").tolist()
    assert matrix_key(1, "1 a").tolist() != matrix_key(11, " a").tolist()
    other = compared("noise", seed=SEED + 1, metrics="rotation")
    assert other.loc["noise", "nf"] == pytest.approx(frame.loc["noise", "nf"])
    assert other.loc["noise", "nf_spectrum"] != pytest.approx(frame.loc["noise", "nf_spectrum"], rel=1e-6)


def test_one_draw_has_no_deviation(compared):
    row = compared("noise", control_draws=1, metrics="rotation").loc["noise"]
    for kind in KINDS:
        assert row[f"nf_{kind}"] > 0
        assert np.isnan(row[f"nf_{kind}_std"]) and np.isnan(row[f"nf_{kind}_z"])


def test_what_is_not_measured_is_not_sampled(compared):
    found = compared("noise", metrics="change,shape")
    assert not [column for column in found if column.startswith(("nf_spectrum", "alpha_"))]
    assert found.loc["noise", "control"] == "law"


def test_planted_changes_stand_out_and_noise_does_not(compared):
    found = compared("noise", "together", control_draws=40, metrics="rotation,budget,fit")
    for kind in KINDS:
        z = found[[f"nf_{kind}_z", f"coordination_{kind}_z", f"fit_error_{kind}_z", f"budget_scaling_{kind}_z"]]
        assert (z.loc["noise"].abs() < 4.5).all()
        assert z.loc["together", f"coordination_{kind}_z"] > 8
        assert z.loc["together", f"nf_{kind}_z"] < -5
        assert z.loc["together", f"fit_error_{kind}_z"] < -5


class TestRequests:
    @pytest.fixture
    def compare(self, cli, small, tmp_path):
        return lambda *flags: cli(
            "compare",
            f"--base={small.base}",
            f"--post={small.post}",
            f"--out={tmp_path / 'run'}",
            "--metrics=scaling",
            "--noplots",
            NO_CACHE,
            *flags,
        )

    @pytest.mark.parametrize("flag", ["control_draws", "seed"])
    def test_negative_numbers(self, compare, small, flag):
        assert_one_line(compare(f"--{flag}=-1"), f"{flag} must be at least 0. Got -1.")
        with pytest.raises(polarax.UsageError, match=f"{flag} must be at least 0. Got -3."):
            polarax.compare(small.base, small.post, **{flag: -3})

    def test_another_number_of_draws_or_seed_is_another_run(self, compare, tmp_path):
        assert compare("--control_draws=2").code == 0
        written = (tmp_path / "run" / "matrices.csv").read_bytes()
        assert b"alpha_spectrum_z" in written
        assert compare("--control_draws=2").code == 0
        assert (tmp_path / "run" / "matrices.csv").read_bytes() == written
        assert_one_line(compare("--control_draws=3"), "--control_draws was 2, is 3")
        assert_one_line(compare("--control_draws=2", "--seed=1"), "--seed was 0, is 1")
        flags = polarax.Run.open(tmp_path / "run").description["flags"]
        assert (flags["control_draws"], flags["seed"]) == (2, 0)


def test_a_plan_counts_draws():
    tree = {"a": np.ones((30, 20)), "b": np.ones((30, 20))}
    without, with_draws = plan(tree, tree), plan(tree, tree, draws=5)
    each = 6 * 30 * 20**2 + 20 * 20**3 + 2 * (2 * 30 * 20**2) + 3 * (2 * 20**3)
    assert pair_operations(30, 20, draws=5) - pair_operations(20, 30) == 15 * each
    assert with_draws.operations - without.operations == 2 * 15 * each
    assert with_draws.peak_memory > without.peak_memory


@pytest.mark.exhaustive
def test_memory_does_not_grow_with_the_number_of_draws():
    stack = jax.ShapeDtypeStruct((1, 60, 40), jnp.float32)
    keys = jax.ShapeDtypeStruct((1, 2), jnp.uint32)
    taken = []
    for draws in (2, 50):
        with jax.enable_x64(True):
            lowered = measure_stack.lower(
                stack, (stack,), keys, measurement=Measurement(("scaling",), control_draws=draws), batched=False
            )
            taken.append(lowered.compile().memory_analysis().temp_size_in_bytes)
    assert taken[1] < taken[0] + 8 * 60 * 40
