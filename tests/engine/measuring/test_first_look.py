"""A first look against NumPy in float64, against full analyses and the tracker, and on input that is ill behaved."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import polarax
from polarax.errors import UsageError
from polarax.measuring.program import measure_stack
from polarax.measuring.sampled_controls import matrix_key
from polarax.metrics import CERTIFICATE, CONTROL_COLUMNS, GROUPS, IDENTITY_COLUMNS, columns, quick_groups
from polarax.metrics.certificate import SUBSPACES_KNOWN, VALUES_KNOWN, Convergence
from polarax.planning.measurement import Measurement
from polarax.planning.options import Options
from tests.engine.leading_reference import leading_reference

K, BLOCK = 6, 14  # leading vectors, and columns that are iterated on
LOOK = Measurement(groups=quick_groups(), top_k=K, quick=True)
FULL = Measurement(groups=quick_groups(), top_k=K, pictures=False)
SHAPES = ((64, 64), (96, 64), (300, 40), (7, 1), (1, 1))
OTHER_DTYPES = ("bfloat16", "float64")

# How far a column may be from the reference, (relative, absolute): values and norms converge to 1e-6 of themselves; of
# the leading block the frame's 1e-5 radians and rounding in float32 are left, over sums of some 30 squares.
TOLERANCES = {
    "alpha": (0, 1e-6),
    "alpha_z": (0, 0.05),
    "alpha_entries": (0, 1e-8),
    "alpha_entries_z": (1e-4, 1e-4),
    "drift": (1e-7, 0),
    "overlap_left": (0, 1e-5),
    "overlap_right": (0, 1e-5),
    "overlap_left_null": (0, 1e-5),
    "overlap_right_null": (0, 1e-5),
    "leading_coordination": (0, 1e-4),
    "leading_coordination_z": (0, 2e-3),
    "leading_scaling": (1e-4, 1e-8),
    "leading_coordinated": (1e-4, 1e-8),
    "leading_discordant": (1e-4, 1e-8),
}
OTHERWISE = (5e-6, 0)


def orthonormal(rng, rows, columns):
    return np.linalg.qr(rng.standard_normal((rows, columns)))[0]


def weights(shape, dtype="float32", *, drift=0.01, seed=0):
    """Base and post: spikes, a bulk and a tail of condition 1e4; the change is half noise, half of few directions."""
    rng = np.random.default_rng(seed)
    rows, cols = shape
    rank = min(shape)
    spikes = min(K, rank)
    values = np.concatenate([np.geomspace(30, 6, spikes), np.geomspace(3, 3e-3, rank)[: rank - spikes]])
    base = (orthonormal(rng, rows, rank) * values) @ orthonormal(rng, cols, rank).T
    base = base.astype(dtype).astype(np.float64)
    few = min(4, rank)
    change = (orthonormal(rng, rows, few) * np.geomspace(1, 0.3, few)) @ orthonormal(rng, cols, few).T
    noise = rng.standard_normal(shape)
    change = change / np.linalg.norm(change) + 0.7 * noise / np.linalg.norm(noise)
    post = base + drift * np.linalg.norm(base) * change / np.linalg.norm(change)
    return base.astype(dtype), post.astype(dtype)


def look_at(base, *posts, measurement=LOOK, batched=False, keys=None, pairs=()):
    """The readings of one matrix against each post, and of pairs of posts."""
    with jax.enable_x64(True):
        given = () if keys is None else (keys[None],)
        stacks = base[None], tuple(post[None] for post in posts)
        found = jax.device_get(measure_stack(*stacks, *given, measurement=measurement, batched=batched, pairs=pairs))
    alone = jax.tree.map(lambda x: x[0], found)
    return list(alone.posts) + list(alone.pairs)


def assert_close(found, wanted, tolerances=TOLERANCES):
    wrong = []
    for name, value in wanted.items():
        relative, absolute = tolerances.get(name, OTHERWISE)
        same = math.isnan(value) and math.isnan(found[name])
        if not same and not abs(found[name] - value) <= absolute + relative * abs(value):
            wrong.append(f"{name}: {found[name]!r}, expected {value!r}")
    assert not wrong, "\n".join(wrong)


def assert_alpha(found, base, post):
    """Of the rest of the spectrum, which counts as scaled by one factor, alpha may be too large by a known amount."""
    base, post = base.astype(np.float64), post.astype(np.float64)
    s_base, s_post = (np.linalg.svd(x, compute_uv=False) for x in (base, post))
    alpha = s_base @ s_post / (s_base @ s_base)
    s_base, s_post = s_base[K:], s_post[K:]
    factor = np.linalg.norm(s_post) / np.linalg.norm(s_base) if len(s_base) else 1
    rest = np.sum((s_post - factor * s_base) ** 2) / (2 * np.sum(base**2))
    assert found["alpha_entries"] - 1e-6 <= alpha - 1e-6 <= found["alpha"] <= alpha + rest + 1e-6


# Every shape, and every dtype; each is a program of its own.
@pytest.mark.parametrize(
    ("shape", "dtype"),
    [
        *((shape, "float32") for shape in SHAPES),
        *(((96, 64), dtype) for dtype in OTHER_DTYPES),
        pytest.param((9, 5), "float32", marks=pytest.mark.exhaustive),
        pytest.param((96, 64), "float16", marks=pytest.mark.exhaustive),
    ],
)
def test_every_column_agrees_with_the_reference(shape, dtype):
    base, post = weights(shape, dtype)
    found = look_at(base, post)[0]
    wanted = leading_reference(base, post, k=K, known=BLOCK)
    assert_alpha(found, base, post)
    for name in ("alpha", "alpha_z"):
        del wanted[name]
    assert_close(found, wanted)
    assert found["unchanged"] == pytest.approx(np.mean(base == post), rel=1e-6)
    assert set(wanted) | {"alpha", "alpha_z", "unchanged", "rounding_share", "spectral_norm_rounding"} == {
        column for group in quick_groups() for column in GROUPS[group].quick_columns
    }


@pytest.mark.parametrize("dtype", ["bfloat16", pytest.param("float64", marks=pytest.mark.exhaustive)])
def test_columns_are_those_of_a_full_analysis(dtype):
    base, post = weights((96, 64), dtype)
    found, full = look_at(base, post)[0], look_at(base, post, measurement=FULL)[0]
    looser = {  # controls know the spectrum as far as they do
        **TOLERANCES,
        **dict.fromkeys(("overlap_left_null", "overlap_right_null"), (0, 1e-3)),
        **dict.fromkeys(("spectral_norm_post_null", "stable_rank_post_null"), (1e-5, 0)),
        "alpha_null": (0, 1e-3),  # to second order
        "alpha_null_std": (0.02, 0),  # to first order
    }
    assert_alpha(found, base, post)
    names = {column for group in quick_groups() for column in GROUPS[group].quick_columns} - {"alpha", "alpha_z"}
    assert_close(found, {name: full[name].item() for name in names}, looser)
    for name in ("s_base", "s_post"):
        np.testing.assert_allclose(found[name], full[name][:K], rtol=5e-6)
    for name in ("cosines_left", "cosines_right"):
        np.testing.assert_allclose(found[name], full[name], atol=1e-5)


def test_a_run_has_the_quick_columns_alone():
    tree = {"layers.0.q.weight": weights((96, 64))}
    base, post = ({name: pair[side] for name, pair in tree.items()} for side in (0, 1))
    frame = polarax.compare(base, post, quick=True, top_k=K, progress=False).frame()
    quick = set(columns(quick_groups(), quick=True))
    assert quick <= set(frame.columns) and quick - set(CERTIFICATE) < set(columns(GROUPS))
    assert not set(frame.columns) & (set(columns(GROUPS)) - quick)
    assert frame.status[0] == "ok" and frame.control[0] == "law" and frame.converged[0] == "yes"
    assert frame[[*(quick - {*IDENTITY_COLUMNS, *CONTROL_COLUMNS})]].notna().all(axis=None)


def test_a_first_look_agrees_with_the_tracker():
    names = [f"model.layers.{layer}.self_attn.{role}_proj.weight" for layer in range(2) for role in "qo"]
    pairs = [weights((96, 64), seed=seed) for seed in range(4)]
    base, post = ({name: pair[side] for name, pair in zip(names, pairs, strict=True)} for side in (0, 1))
    frame = polarax.compare(base, post, quick=True, top_k=K, progress=False).frame().set_index("name")
    tracker = polarax.Tracker(every=1, k=K)
    state = tracker.init({name: jnp.asarray(value) for name, value in base.items()})
    _, metrics = tracker.update(state, {name: jnp.asarray(value) for name, value in post.items()}, 1)
    renamed = {"spectral_norm": "spectral_norm_post", "stable_rank": "stable_rank_post"}
    compared = 0
    for name, values in metrics.readings.items():
        start = next((old for old in renamed if name == old or name.startswith(f"{old}_null")), None)
        column = name if start is None else name.replace(start, renamed[start])
        if column in frame:
            compared += 1
            for label, value in zip(metrics.labels, values, strict=True):
                loose = 0.05 if column.endswith("_z") else 1e-5
                assert frame.loc[label.name, column] == pytest.approx(float(value), rel=1e-5, abs=loose), column
    assert compared >= 18


def test_wide_matrices_have_left_and_right_exchanged():
    base, post = weights((96, 64))
    frames = [
        polarax.compare({"w.weight": b}, {"w.weight": p}, quick=True, top_k=K, progress=False).frame()
        for b, p in ((base, post), (base.T.copy(), post.T.copy()))
    ]
    tall, wide = (frame.iloc[0] for frame in frames)
    assert wide["overlap_left"] != wide["overlap_right"]
    for end in ("", "_null"):
        assert wide[f"overlap_left{end}"] == tall[f"overlap_right{end}"]
        assert wide[f"overlap_right{end}"] == tall[f"overlap_left{end}"]
    assert wide["leading_coordination"] == tall["leading_coordination"]


@pytest.mark.parametrize("spectrum", ["spikes", "flat", "identity", "rank one"])
def test_the_certificate_holds(spectrum):
    """A singular value is as near as the residual says, and subspaces as near as the angle does."""
    rng = np.random.default_rng(3)
    values = {
        "spikes": np.concatenate([np.geomspace(30, 6, K), np.linspace(3, 0.1, 64 - K)]),
        "flat": np.linspace(1.2, 0.8, 64),
        "identity": np.ones(64),
        "rank one": np.eye(64)[0],
    }[spectrum]
    base = ((orthonormal(rng, 96, 64) * values) @ orthonormal(rng, 64, 64).T).astype(np.float32)
    post = (base + 1e-3 * rng.standard_normal(base.shape)).astype(np.float32)
    found = look_at(base, post)[0]
    eps = np.finfo(np.float32).eps
    for side, matrix in (("base", base), ("post", post)):
        _, exact, right = np.linalg.svd(matrix.astype(np.float64), full_matrices=False)
        nearest = np.min(np.abs(found[f"s_{side}"][:, None] - exact), axis=1)
        assert np.all(nearest <= (found[f"residual_{side}"] + 8 * eps) * exact[0])
        assert 0 <= found[f"angle_{side}"] <= 1
    off = np.max(np.abs(found["s_base"] - np.linalg.svd(base.astype(np.float64), compute_uv=False)[:K])) / values[0]
    assert off <= found["values_off"] + 8 * eps
    word = Convergence.of_readings(found)
    expected = {
        "spikes": {Convergence.ALL},
        "flat": {Convergence.ALL, Convergence.VALUES},
        "identity": {Convergence.VALUES, Convergence.NOTHING},
        "rank one": set(Convergence),
    }
    assert word in expected[spectrum]
    assert (word is Convergence.NOTHING) == (found["values_off"] > VALUES_KNOWN)
    assert (word is Convergence.ALL) <= (max(found["angle_base"], found["angle_post"]) <= SUBSPACES_KNOWN)


def test_what_did_not_converge_is_said_and_the_rest_goes_on(monkeypatch):
    monkeypatch.setattr("polarax.measuring.first_look.CYCLES", (1, 1, 1))
    rng = np.random.default_rng(0)
    base = rng.standard_normal((400, 300)).astype(np.float32)
    post = base + 1e-3 * rng.standard_normal(base.shape).astype(np.float32)
    fresh = dataclasses.replace(LOOK, seed=77)  # another program
    found = look_at(base, post, measurement=fresh)[0]
    assert Convergence.of_readings(found) is Convergence.NOTHING
    assert found["drift"] == pytest.approx(1e-3, rel=0.01)


BASE, POST = weights((40, 24))
WIDE_RANGE = {
    "not a number": (BASE, np.where(np.arange(24) == 3, np.nan, POST).astype(np.float32), "not finite: 40 in post"),
    "infinite base": (np.where(np.arange(24) == 3, np.inf, BASE).astype(np.float32), POST, "not finite: 40 in base"),
    "zero base": (0 * BASE, POST, "zero base"),
    "zero post": (BASE, 0 * POST, "zero post"),
    "both zero": (0 * BASE, 0 * POST, "zero base"),
    "identical": (BASE, BASE, "unchanged"),
}


@pytest.mark.parametrize("kind", WIDE_RANGE)
def test_what_cannot_be_read_is_said(kind):
    base, post, status = WIDE_RANGE[kind]
    good = {"good.weight": BASE}, {"good.weight": POST}
    frame = (
        polarax.compare(
            good[0] | {"bad.weight": base}, good[1] | {"bad.weight": post}, quick=True, top_k=K, progress=False
        )
        .frame()
        .set_index("name")
    )
    bad = frame.loc["bad.weight"]
    assert bad["status"] == status
    assert frame.loc["good.weight", "status"] == "ok"
    assert_close(frame.loc["good.weight"], {"drift": leading_reference(BASE, POST, k=K, known=BLOCK)["drift"]})
    measured = [column for group in quick_groups() for column in GROUPS[group].quick_columns]
    if status == "unchanged":
        assert bad["drift"] == 0 and bad["unchanged"] == 1 and bad["alpha"] == pytest.approx(1, abs=1e-6)
        assert math.isnan(bad["leading_coordination"]) and math.isnan(bad["alpha_z"])
        assert bad["overlap_left"] == pytest.approx(1, abs=1e-5) and bad["overlap_left_null"] == 1
    else:
        assert bad[measured].isna().all() and bad["control"] == "" and bad["converged"] == ""


@pytest.mark.parametrize(
    ("dtype", "scale"),
    [
        ("float64", 1e300),
        ("float64", 1e-290),
        ("float32", 1e36),
        ("float32", 1e-30),
        ("bfloat16", 1e36),
        ("bfloat16", 1e-30),
    ],
)
def test_huge_and_tiny_entries(dtype, scale):
    base, post = weights((40, 24), dtype)
    unit = 2.0 ** round(math.log2(scale))  # scales exactly
    found, scaled = (
        look_at(base, post)[0],
        look_at(*((x.astype(np.float64) * unit).astype(dtype) for x in (base, post)))[0],
    )
    for name, value in found.items():
        if name == "alpha_z":  # what rounding leaves of alpha, over its deviation
            assert scaled[name] == pytest.approx(value, abs=0.01)
            continue
        if name.startswith("spectral_norm") or name in ("s_base", "s_post", "norm_base", "norm_post", "change_norm"):
            value = value * unit
        np.testing.assert_allclose(scaled[name], value, rtol=2e-5, atol=1e-5 * np.max(np.abs(value)), err_msg=name)


def test_subnormal_entries_give_something_defined():
    base, post = ((x.astype(np.float64) * 1e-44).astype(np.float32) for x in (BASE, POST))
    found = look_at(base, post)[0]
    assert found["norm_base"] == 0 or np.isfinite(found["drift"])


def test_rank_one():
    rng = np.random.default_rng(1)
    u, v = rng.standard_normal((40, 1)), rng.standard_normal((1, 24))
    u, v = np.round(u * 8) / 8, np.round(v * 8) / 8  # so that products are exact
    base = (u @ v).astype(np.float32)
    post = (base * 1.5).astype(np.float32)
    found = look_at(base, post)[0]
    assert found["alpha"] == pytest.approx(1.5, abs=1e-6) and found["alpha_entries"] == pytest.approx(1.5, abs=1e-8)
    assert found["overlap_left"] == pytest.approx(1, abs=1e-6) and found["overlap_right"] == pytest.approx(1, abs=1e-6)
    assert found["leading_scaling"] == pytest.approx(1, abs=1e-6)
    assert found["stable_rank_change"] == pytest.approx(1, abs=1e-6)
    assert Convergence.of_readings(found) is Convergence.ALL


@pytest.mark.parametrize(
    "dtypes",
    [pytest.param(("float32",) * 3, marks=pytest.mark.exhaustive), ("bfloat16", "float32", "float64")],
    ids=str,
)
def test_several_posts_and_posts_against_each_other(dtypes):
    base, first = weights((96, 64), dtypes[0])
    second, third = (
        weights((96, 64), drift=0.02)[1].astype(dtypes[1]),
        weights((96, 64), drift=0.3)[1].astype(dtypes[2]),
    )
    posts = first, second, third
    pairs = ((0, 1), (0, 2))
    found = look_at(base, *posts, pairs=pairs)
    for readings, post in zip(found[:3], posts, strict=True):
        alone = look_at(base, post)[0]
        assert readings.keys() == alone.keys()
        for name, value in alone.items():
            np.testing.assert_allclose(readings[name], value, rtol=2e-5, atol=1e-5, err_msg=name)
    exact = [x.astype(np.float64) for x in (base, *posts)]
    changes = [x - exact[0] for x in exact[1:]]
    for readings, (i, j) in zip(found[3:], pairs, strict=True):
        wanted = leading_reference(posts[i], posts[j], k=K, known=BLOCK)
        names = [column for group in LOOK.between_posts().groups for column in GROUPS[group].quick_columns]
        looser = TOLERANCES | {
            name: (1e-3, 1e-5) for name in wanted if name.startswith("leading") or name.startswith("overlap")
        }
        assert_alpha(readings, posts[i], posts[j])
        named = {*names} & {*wanted} - {"alpha", "alpha_z"}
        assert_close(readings, {name: wanted[name] for name in named}, looser)
        norms = [np.linalg.norm(changes[place]) for place in (i, j)]
        cosine = np.sum(changes[i] * changes[j]) / math.prod(norms)
        assert readings["change_cosine"] == pytest.approx(cosine, abs=1e-6)
        assert math.isnan(readings["residual_change"]) and not math.isnan(readings["values_off"])


def test_a_batch_reads_as_matrices_one_by_one():
    pairs = [weights((96, 64), seed=seed) for seed in range(3)]
    pairs[1][1][0, 0] = np.nan
    with jax.enable_x64(True):
        bases, posts = (np.stack([pair[side] for pair in pairs]) for side in (0, 1))
        found = [
            jax.device_get(measure_stack(bases, (posts,), measurement=LOOK, batched=batched)).posts[0]
            for batched in (True, False)
        ]
    for name, values in found[0].items():
        np.testing.assert_allclose(values, found[1][name], rtol=2e-5, atol=2e-5, err_msg=name)
    assert found[0]["nonfinite_post"].tolist() == [0, 1, 0]


def test_sampled_controls():
    draws = 6
    base, post = weights((60, 40))
    measurement = dataclasses.replace(LOOK, control_draws=draws)
    keys = matrix_key(5, "w")
    found = look_at(base, post, keys=keys, measurement=measurement)[0]
    full = look_at(base, post, keys=keys, measurement=dataclasses.replace(FULL, control_draws=draws))[0]
    assert measurement.sampled == ("alpha", "leading_scaling", "leading_coordination")
    for metric in measurement.sampled:
        # The same entries in the same order: in float32 as in float64.
        assert found[f"{metric}_shuffled"] == pytest.approx(full[f"{metric}_shuffled"], rel=1e-4, abs=2e-6)
        assert found[f"{metric}_shuffled_std"] == pytest.approx(full[f"{metric}_shuffled_std"], rel=1e-2, abs=2e-6)
        for kind in ("isotropic", "spectrum"):  # others, of the same distribution
            spread = found[f"{metric}_{kind}_std"] + full[f"{metric}_{kind}_std"]
            assert abs(found[f"{metric}_{kind}"] - full[f"{metric}_{kind}"]) < 4 * spread
            assert 1 / 6 < found[f"{metric}_{kind}_std"] / full[f"{metric}_{kind}_std"] < 6
    again = look_at(base, post, keys=keys, measurement=measurement)[0]
    assert all(np.array_equal(found[name], again[name], equal_nan=True) for name in found)


def test_without_float64():
    """As on devices that have none: sums in float32."""
    base, post = weights((96, 64), "bfloat16")
    measurement = dataclasses.replace(LOOK, dtype="float32")
    found = measure_stack(base[None], (post[None],), measurement=measurement, batched=True).posts[0]
    assert not any(x.dtype == jnp.float64 for x in jax.tree.leaves(found))
    wanted = leading_reference(base, post, k=K, known=BLOCK)
    looser = {name: (1e-4, 1e-5) for name in wanted if not name.endswith("_z")}
    assert_close(
        {name: float(value[0]) for name, value in found.items() if value.ndim == 1},
        {name: value for name, value in wanted.items() if name in looser and name != "alpha"},
        looser,
    )


@pytest.mark.parametrize(
    "groups",
    [
        ("overlap",),
        ("scaling", "leading"),
        pytest.param(("change",), marks=pytest.mark.exhaustive),
        pytest.param(("shape",), marks=pytest.mark.exhaustive),
    ],
    ids=",".join,
)
def test_groups_can_be_asked_for(groups):
    base, post = weights((96, 64))
    found = look_at(base, post, measurement=dataclasses.replace(LOOK, groups=groups))[0]
    assert {column for group in groups for column in GROUPS[group].quick_columns} <= set(found)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"metrics": "rotation"}, "With --quick there are change, scaling, overlap, leading, shape."),
        ({"metrics": "change,fit"}, "--metrics=fit needs whole decompositions"),
        ({"metrics": "speed"}, "Unknown metric 'speed'. Expected one of change, scaling, overlap, leading, shape."),
        ({"method": "gram"}, "--quick takes no --method"),
        ({"dtype": "float64"}, "--quick takes no --dtype"),
    ],
)
def test_what_a_first_look_does_not_do_is_an_error_of_one_line(options, words):
    with pytest.raises(UsageError, match=r"^[^\n]*$") as error:
        Measurement.parse(Options(quick=True, **options))
    assert words in str(error.value)


RELATIONS = {
    "rows permuted": lambda w, rng: w[rng.permutation(len(w))],
    "signs of columns flipped": lambda w, rng: w * np.where(np.arange(w.shape[1]) % 3, 1, -1),
    "same singular values, other vectors": lambda w, rng: orthonormal(rng, len(w), len(w)) @ w,
    "unrelated to the base": lambda w, rng: weights(w.shape, seed=9)[1] * rng.uniform(0.5, 2, w.shape[1]),
    "": lambda w, rng: w + 0.3 * np.std(w) * rng.standard_normal(w.shape),
}


@pytest.mark.parametrize("relation", RELATIONS)
def test_posts_that_are_not_the_base_trained(relation):
    base = weights((96, 64))[0]
    post = RELATIONS[relation](base, np.random.default_rng(2)).astype(np.float32)
    frame = polarax.compare({"w.weight": base}, {"w.weight": post}, quick=True, top_k=K, progress=False).frame()
    assert frame.relation[0] == relation
