"""Readings against numpy in float64 and against compare; the state; what happens over a run."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import polarax
from polarax.errors import UsageError
from polarax.tracking.tracked_metrics import paths
from tests.engine.tracking import trees

K = 8
ALL = "change,scaling,shape,overlap,leading,budget,rotation"


@pytest.fixture(scope="module")
def everything():
    """A tracker of all there is, compiled once, with its state and metrics after two measurements."""
    tracker = polarax.Tracker(every=2, metrics=ALL, full_every=4, k=K)
    update = jax.jit(tracker.update)
    states, metrics = [tracker.init(trees.decoder())], []
    for step, drift in ((0, 0.0), (1, 0.5), (2, 0.01), (4, 0.03)):
        state, found = update(states[-1], trees.decoder(drift=drift), step)
        states.append(state)
        metrics.append(found)
    return tracker, update, states, dict(zip((0, 1, 2, 4), metrics, strict=True))


@pytest.fixture(scope="module")
def comparison():
    return polarax.compare(trees.decoder(), trees.decoder(drift=0.03), progress=False).frame().set_index("name")


def _rows(metrics):
    """Name of the matrix, and its readings."""
    scalars = metrics.scalars(prefix="", leading=True)
    for label, path in zip(metrics.labels, paths(metrics.labels), strict=True):
        mine = {name.removeprefix(path + "/"): x for name, x in scalars.items() if name.startswith(path + "/")}
        yield label.name, mine


def test_matrices_and_their_names(everything):
    labels = everything[3][4].labels
    assert len(labels) == 8  # no embedding, no norm
    assert sorted(paths(labels))[:3] == ["down/layer_00", "down/layer_01", "o/layer_00"]


def test_everything_as_numpy_has_it(everything):
    base_tree, post_tree, before_tree = trees.decoder(), trees.decoder(drift=0.03), trees.decoder(drift=0.01)
    for name, mine in _rows(everything[3][4]):
        base, post, before = (trees.weight(tree, name) for tree in (base_tree, post_tree, before_tree))
        s_base, s_post, s_before = (np.linalg.svd(x, compute_uv=False) for x in (base, post, before))
        np.testing.assert_allclose([mine[f"s_{i + 1:02d}"] for i in range(K)], s_post[:K], rtol=1e-5)
        assert mine["drift"] == pytest.approx(np.linalg.norm(post - base) / np.linalg.norm(base), rel=1e-5)
        assert mine["alpha"] == pytest.approx(s_base @ s_post / (s_base @ s_base), abs=3e-5)
        assert mine["alpha_spectrum"] == pytest.approx(s_base @ s_post / (s_base @ s_base), abs=2e-6)
        assert mine["alpha_previous"] == pytest.approx(s_before @ s_post / (s_before @ s_before), abs=3e-5)
        assert mine["spectral_norm"] == pytest.approx(s_post[0], rel=1e-5)
        assert mine["stable_rank"] == pytest.approx(np.sum(s_post**2) / s_post[0] ** 2, rel=1e-5)
        assert mine["nf"] == pytest.approx(trees.nf(base, post), rel=1e-3)
        shares = [mine[f"budget_{part}"] for part in ("scaling", "coordinated", "discordant")]
        np.testing.assert_allclose(shares, trees.budget(base, post), atol=1e-4)
        leading = [mine[f"leading_{part}"] for part in ("scaling", "coordinated", "discordant")]
        np.testing.assert_allclose(leading, trees.budget(base, post, K), atol=1e-4)
        for since, other in (("", base), ("_previous", before)):
            found = [mine[f"overlap_{side}{since}"] for side in ("left", "right")]
            np.testing.assert_allclose(found, trees.overlaps(other, post, K), atol=2e-3)


# A tracker takes the control of alpha to second order, and its deviation to first.
COMPARED = {
    "drift": 1e-5, "alpha_null": 3e-4, "alpha_null_std": 1e-3, "nf": 1e-3, "nf_null": 1e-3, "nf_null_std": 1e-3,
    "coordination_null_std": 1e-4, "ratio_cv": 1e-3, "ratio_cv_energy": 1e-3, "ratio_mean": 1e-4, "nss": 1e-3,
    "alpha_geo": 1e-4,
    **{f"budget_{part}": 1e-3 for part in ("scaling", "coordinated", "discordant")},
    **{f"budget_{part}_null": 1e-4 for part in ("scaling", "coordinated", "discordant", "outside")},
}  # fmt: skip


@pytest.mark.parametrize("column", COMPARED)
def test_columns_are_those_of_compare(everything, comparison, column):
    for name, mine in _rows(everything[3][4]):
        theirs = comparison.loc[name, column]
        assert mine[column] == pytest.approx(theirs, rel=COMPARED[column], abs=1e-6), name


def test_leading_values_of_compare(everything, tmp_path):
    run = polarax.compare(trees.decoder(), trees.decoder(drift=0.03), out=tmp_path / "run", progress=False)
    for name, mine in _rows(everything[3][4]):
        np.testing.assert_allclose([mine[f"s_{i + 1:02d}"] for i in range(K)], run.spectra(name)[1][:K], rtol=1e-5)


def test_between_measurements_the_last_ones_stay(everything):
    _, _, states, metrics = everything
    assert [int(metrics[step].step) for step in (0, 1, 2, 4)] == [0, 0, 2, 4]
    assert [int(metrics[step].full_step) for step in (0, 1, 2, 4)] == [0, 0, 0, 4]
    same = jax.tree.map(np.array_equal, states[1], states[2])
    assert all(jax.tree.leaves(same._replace(metrics=None)))


def test_nothing_has_moved_at_the_first_step(everything):
    for _, mine in _rows(everything[3][0]):
        assert mine["drift"] == 0 and mine["alpha"] == pytest.approx(1, abs=1e-6)
        assert mine["overlap_left"] == pytest.approx(1, abs=1e-4) and mine["overlap_left_null"] == 1
        assert np.isnan(mine["alpha_z"]) and np.isnan(mine["coordination"])


def test_one_compilation(everything):
    assert everything[1]._cache_size() == 1


def test_whole_spectra_and_histograms(everything):
    metrics = everything[3][4]
    for label, values in zip(metrics.labels, metrics.each_spectrum(), strict=True):
        reference = np.linalg.svd(trees.weight(trees.decoder(drift=0.03), label.name), compute_uv=False)
        np.testing.assert_allclose(values, reference, rtol=1e-4)
    counts, edges = metrics.histograms(bins=5)["spectra/q/layer_01/log10_singular_values"]
    assert counts.sum() == 48 and len(edges) == 6


# --- Outside jit, plans, bad input: with the cheapest metrics, which compile quickly.


@functools.cache
def _cheap(**arguments):
    return polarax.Tracker(metrics="change", **arguments)


def test_outside_jit_it_is_the_same():
    tracker = _cheap(every=2)
    state = tracker.init(trees.decoder())
    inside = jax.jit(tracker.update)(state, trees.decoder(drift=0.1), 2)[1]
    outside = tracker.update(state, trees.decoder(drift=0.1), 2)[1]
    assert outside.scalars() == pytest.approx(inside.scalars())
    same, metrics = tracker.update(state, trees.decoder(drift=0.1), 3)
    assert same is state and metrics.scalars() == {}


def test_no_transfers():
    tracker = _cheap(every=2)
    state, params = tracker.init(trees.decoder()), trees.decoder(drift=0.1)
    update = jax.jit(tracker.update)
    steps = [jnp.int32(step) for step in range(4)]
    state, _ = update(state, params, steps[0])
    with jax.transfer_guard("disallow"):
        for step in steps:
            state, metrics = update(state, params, step)
    assert int(metrics.step) == 2


def test_the_state_holds_copies():
    params = trees.decoder()
    tracker = _cheap(every=1)

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(params, state, number):
        state, _ = tracker.update(state, params, number)
        return jax.tree.map(lambda x: 1.1 * x, params), state

    state = tracker.init(params)
    for number in range(3):
        params, state = step(params, state, number)
    drifts = [x for name, x in state.metrics.scalars().items() if name.endswith("drift")]
    assert drifts == pytest.approx(8 * [0.21], abs=1e-5)


def test_under_jit_init_copies_too():
    params = trees.decoder()
    tracker = _cheap(every=1)
    state = jax.jit(tracker.init)(params)
    pointers = {leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(params)}
    assert pointers.isdisjoint(leaf.unsafe_buffer_pointer() for leaf in state.base)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_matrix_that_is_not_finite(bad):
    tracker = polarax.Tracker(every=1, k=K, include="q_proj")
    update = jax.jit(tracker.update)
    state = tracker.init(trees.decoder())
    state, _ = update(state, trees.decoder(drift=0.01), 0)
    broken = trees.decoder(drift=0.01)
    kernel = broken["layers_1"]["self_attn"]["q_proj"]["kernel"]
    broken["layers_1"]["self_attn"]["q_proj"]["kernel"] = kernel.at[3, 5].set(bad)
    state, metrics = update(state, broken, 1)
    assert metrics.nonfinite() == ["layers_1.self_attn.q_proj.kernel"]
    scalars = metrics.scalars()
    assert scalars["spectra/nonfinite"] == 1
    assert all(np.isnan(x) for name, x in scalars.items() if name.startswith("spectra/q/layer_01"))
    assert not np.isnan(scalars["spectra/q/layer_00/alpha"])
    # And it recovers.
    after = trees.decoder(drift=0.02)
    state, metrics = update(state, after, 2)
    name = "layers_1.self_attn.q_proj.kernel"
    values = np.linalg.svd(trees.weight(after, name), compute_uv=False)
    assert metrics.nonfinite() == []
    assert metrics.scalars()["spectra/q/layer_01/spectral_norm"] == pytest.approx(values[0], rel=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"every": 0}, "every must be a whole number of at least 1. Got every=0"),
        ({"every": 2.5}, "every=2.5"),
        ({"k": 0}, "k must be a whole number"),
        ({"every": 10, "full_every": 25}, "full_every=25 must be a multiple of every=10"),
        ({"metrics": "nff"}, "Unknown metric 'nff'"),
        ({"metrics": ()}, "metrics is empty"),
        ({"include": "("}, "not a regular expression"),
        ({"roles": "queries"}, "Unknown role 'queries'"),
        ({"precision": "low"}, "Unknown precision 'low'"),
    ],
    ids=str,
)
def test_arguments_that_cannot_be_used(arguments, message):
    with pytest.raises(UsageError) as caught:
        polarax.Tracker(**arguments)
    assert message in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "params", "message"),
    [
        ({"include": "nowhere"}, trees.decoder(), "leaves no matrix of 9"),
        ({"k": 49}, trees.decoder(), "k=49 is larger than 'layers_0.self_attn.q_proj.kernel' (48 x 48)"),
        ({}, {"norm": {"scale": jnp.ones(4)}}, "no matrix among the parameters"),
        ({}, 3.0, "expected a path, a URL, a nested dict"),
    ],
    ids=["regular expression", "k", "vectors", "no tree"],
)
def test_parameters_that_cannot_be_followed(arguments, params, message):
    with pytest.raises(ValueError, match=r".") as caught:
        polarax.Tracker(**arguments).init(params)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_parameters_that_change():
    tracker = _cheap(every=1)
    state = tracker.init(trees.decoder())
    with pytest.raises(UsageError, match=r"4 new \('layers_2.mlp.down_proj.kernel'\) matrices"):
        tracker.update(state, trees.decoder(layers=3), 0)
    with pytest.raises(UsageError, match="was float32.* now is bfloat16"):
        tracker.update(state, trees.decoder(dtype="bfloat16"), 0)


def test_embeddings_when_asked_for():
    labels = _cheap(every=1, roles="embed").init(trees.decoder()).metrics.labels
    assert [label.name for label in labels] == ["embed_tokens.embedding"]


def test_bfloat16_parameters():
    tracker = polarax.Tracker(every=1, metrics="change,rotation", include="q_proj")
    base, post = (trees.decoder(drift=drift, dtype="bfloat16") for drift in (0.0, 0.05))
    state = tracker.init(base)
    assert "polar" not in state.reference["48x48"]  # of bfloat16 it would not be accurate
    _, metrics = tracker.update(state, post, 0)
    name = "layers_1.self_attn.q_proj.kernel"
    nf = trees.nf(trees.weight(base, name), trees.weight(post, name))
    assert metrics.scalars()["spectra/q/layer_01/nf"] == pytest.approx(nf, rel=1e-3)


def test_a_plan_needs_shapes_only():
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), trees.decoder())
    tracker = polarax.Tracker(every=100, metrics=ALL, full_every=1000)
    plan = tracker.plan(shapes, tokens=512)
    state = tracker.init(trees.decoder())
    kept = sum(leaf.nbytes for leaf in jax.tree.leaves((state.base, state.reference, state.last)))
    assert sum(plan.state_bytes.values()) == pytest.approx(kept, rel=0.1)
    assert plan.matrices == 8 and 0 < plan.share < 1
    assert "every 100 steps: about" in str(plan)
