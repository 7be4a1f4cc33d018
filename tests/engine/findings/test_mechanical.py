"""Whole runs of what is known to happen: each has its own sentence, judged by what was planted, and is no finding."""

import ml_dtypes
import numpy as np
import pytest

import polarax
from polarax.findings.answers import HOW_MUCH, MORE_THAN_CHANCE
from polarax.findings.mechanical import tell_apart
from tests.engine import planted

GROUPS = "change,scaling,budget,shape"
RANK = 4
EMBED = "embed_tokens.weight"


def decayed(factor, drift=0.0, *, spared=()):
    """Everything times one factor but what is spared, and noise of training beside it."""

    def change(rng, name, w):
        new = planted.concentrated(drift)(rng, name, w) if drift else w
        return new if any(part in name for part in spared) else new + (factor - 1) * w

    return change


def adapted(rank, drift, roles):
    """A low-rank change of some matrices."""
    low_rank = planted.few_directions(rank, drift)
    return lambda rng, name, w: low_rank(rng, name, w) if any(role in name for role in roles) else w


def in_bfloat16(weights):
    return {name: np.asarray(w, ml_dtypes.bfloat16) for name, w in weights.items()}


def in_float32(weights):
    return {name: np.asarray(w, np.float32) for name, w in weights.items()}


@pytest.fixture(scope="module")
def base():
    rng = np.random.default_rng(0)
    left, right = planted.haar(rng, 96, 48), planted.haar(rng, 48, 48)
    return planted.model(rng, 1000.0) | {f"model.{EMBED}": (left * np.geomspace(30, 1, 48)) @ right.T}


CHANGES = {
    "decay alone": decayed(0.992),
    "small decay alone": decayed(0.998),
    "decay and training": decayed(0.992, 0.01),
    "small decay and training": decayed(0.997, 0.004),
    "all but the embedding": decayed(0.992, 0.01, spared=[EMBED]),
    "adapted": adapted(RANK, 0.01, ["q_proj", "v_proj"]),
    "trained": planted.concentrated(0.02),
    "scaled by role": lambda rng, name, w: (0.98 if "o_proj" in name else 1.0) * planted.gaussian(0.005)(rng, name, w),
    "few rows": lambda rng, name, w: w * np.where(np.arange(len(w))[:, None] < 10, 1.01, 1) if EMBED in name else w,
    "uneven": lambda rng, name, w: planted.uneven(0.05)(rng, name, w) * 0.99,
}


@pytest.fixture(scope="module")
def runs(base):
    """All of these changes of one base, in float32."""
    posts = {
        kind.replace(" ", "_"): in_float32(planted.changed(np.random.default_rng(place), base, change))
        for place, (kind, change) in enumerate(CHANGES.items())
    }
    return compare_posts(in_float32(base), posts, metrics=GROUPS, between=False)


@pytest.fixture
def run(runs, kind):
    return runs[kind.replace(" ", "_")]


def compare_posts(base, posts, **options):
    posts = {label: polarax.open_checkpoint(weights) for label, weights in posts.items()}
    return polarax.compare(base, posts, progress=False, **options)


def sentences(run, word):
    return [sentence for sentence in run.summary()["reading"] if word in sentence]


@pytest.mark.parametrize(
    ("kind", "percent", "which", "pure"),
    [
        ("decay alone", "0.8%", "All 25 matrices shrank", True),
        ("small decay alone", "0.2%", "All 25 matrices shrank", True),
        ("decay and training", "0.8%", "All 25 matrices shrank", False),
        ("small decay and training", "0.3%", "All 25 matrices shrank", False),
        ("all but the embedding", "0.8%", "q, k, v, o, up, down: 24 matrices shrank", False),
    ],
)
def test_weight_decay_is_told_by_its_factor_and_is_no_finding(run, kind, percent, which, pure):
    (sentence,) = sentences(run, "weight decay does")
    assert sentence.startswith(f"{which} alike, by {percent}")
    assert ("nothing else happened" in sentence) is pure
    assert ("; embed did not: " in sentence) is (kind == "all but the embedding")
    summary = run.summary()
    assert summary["effects"] == {}
    assert summary["answers"][MORE_THAN_CHANCE].startswith("only what weight decay explains, in ")
    (explained,) = summary["explained"]
    assert explained["by"] == "weight decay"
    assert sum(explained["roles"].values()) == (24 if kind == "all but the embedding" else 25)
    assert not any(role["named"] for role in summary["roles"].values())


@pytest.mark.parametrize("kind", ["adapted", "trained", "scaled by role", "uneven"])
def test_nothing_else_is_called_weight_decay(run):
    assert not sentences(run, "weight decay")


@pytest.mark.parametrize("kind", ["scaled by role"])
def test_what_is_scaled_down_alone_stays_a_finding(run):
    assert run.summary()["effects"] == {"scaled down": {"o": 4}}


@pytest.mark.parametrize("kind", ["adapted"])
def test_a_lora_is_told_by_its_rank(run):
    (sentence,) = sentences(run, "changes of rank")
    assert sentence == f"q, v (all 8): changes of rank {RANK}: as a LoRA of rank {RANK} makes."
    summary = run.summary()
    assert summary["answers"][HOW_MUCH] == (
        "the weights moved by 1% (in each of 8 matrices); 17 matrices did not change at all"
    )
    chance = summary["answers"][MORE_THAN_CHANCE]
    assert chance.startswith(f"only what a LoRA of rank {RANK} explains, in all 8 matrices, judged by ")
    changed = run.frame().query("status == 'ok'")
    assert (changed["rank_change"] == RANK).all() and summary["effects"] == {}


@pytest.mark.parametrize("kind", ["decay alone", "decay and training", "trained", "uneven"])
def test_other_changes_have_the_rank_of_the_matrix(run):
    frame = run.frame()
    assert (frame["rank_change"] == frame[["rows", "cols"]].min(axis=1)).all()
    assert not sentences(run, "changes of rank")


@pytest.mark.parametrize("kind", ["few rows"])
def test_few_rows_that_changed_are_no_adapter(run):
    """An embedding of which few tokens were seen."""
    assert run.frame().set_index("name").loc[f"model.{EMBED}", "rank_change"] == 10
    assert not sentences(run, "LoRA")


@pytest.mark.parametrize("kind", ["decay and training"])
def test_a_table_without_these_columns(run):
    frame = run.frame().drop(columns=["alpha_entries", "rank_change"])
    assert tell_apart(frame).explained == ()


@pytest.fixture(scope="module")
def merged(base):
    """Two posts, their soup, the sum of their changes, one that went half way, and one that has none of it, twice."""
    posts = {
        label: planted.changed(np.random.default_rng(seed), base, planted.concentrated(drift))
        for label, seed, drift in (("a", 1, 0.02), ("b", 2, 0.03), ("other", 3, 0.02))
    }
    a, b = posts["a"], posts["b"]
    posts |= {
        "soup": {name: 0.7 * a[name] + 0.3 * b[name] for name in base},
        "sum": {name: a[name] + b[name] - base[name] for name in base},
        "half": {name: base[name] + 0.5 * (b[name] - base[name]) for name in base},
        "again": posts["other"],
    }
    posts = {label: in_float32(weights) for label, weights in posts.items()}
    return compare_posts(in_float32(base), posts, metrics="change")


def test_merges_are_told_with_their_weights(merged):
    summary = merged.summary()
    made = {one["post"]: one["weights"] for one in summary["merges"]}
    assert made == {
        "half": pytest.approx({"b": 0.5}, abs=1e-4),
        "other": pytest.approx({"again": 1.0}, abs=1e-4),
        "soup": pytest.approx({"a": 0.7, "b": 0.3}, abs=1e-4),
        "sum": pytest.approx({"a": 1.0, "b": 1.0}, abs=1e-4),
    }
    reading = " ".join(summary["reading"])
    assert "half is the base plus 0.5 of the change of b, up to 0.0" in reading
    assert "soup is the base plus 0.70 of a and 0.30 of b (their changes), up to 0.0" in reading
    assert "in all 25 matrices: a merge." in reading


def test_the_direction_that_a_merge_explains_is_not_told_again(merged):
    reading = merged.summary()["reading"]
    assert not any(one.startswith("a and soup changed") for one in reading)
    assert any(one.startswith("a and b changed in unrelated directions") for one in reading)


def test_the_three_answers_of_every_post_come_first(merged):
    labels = merged.labels
    leading = [one.split(": ")[0] for one in merged.summary()["reading"][: 2 * len(labels)]]
    assert leading == [f"{question}, {label}" for question in ("How much", "Where") for label in labels]


def test_the_same_change_twice(merged):
    assert any(one.startswith("other changed as again did, ") for one in merged.summary()["reading"])


@pytest.fixture(scope="module")
def stored(base):
    """A base in bfloat16, and posts that are stored so too: two, their soup, an adapter and little training."""
    stored = in_bfloat16(base)
    exact = {name: w.astype(float) for name, w in stored.items()}
    changes = {
        "a": planted.concentrated(0.1),
        "b": planted.concentrated(0.1),
        "adapted": adapted(RANK, 0.1, ["q_proj", "up_proj"]),
        "trained": planted.concentrated(0.01),
    }
    posts = {
        label: in_bfloat16(planted.changed(np.random.default_rng(seed), exact, change))
        for seed, (label, change) in enumerate(changes.items())
    }
    posts["soup"] = in_bfloat16({name: (posts["a"][name].astype(float) + posts["b"][name]) / 2 for name in base})
    return stored, posts, compare_posts(stored, posts, metrics="change,shape")


def test_a_lora_that_was_merged_in_bfloat16(stored):
    """What rounding adds has full rank; beyond it are the directions of the adapter, as NumPy counts them."""
    base, posts, runs = stored
    (sentence,) = sentences(runs["adapted"], "changes of rank")
    assert sentence.startswith(f"q, up (all 8): changes of rank {RANK}: ")
    frame = runs["adapted"].frame().query("status == 'ok'").set_index("name")
    for name, row in frame.iterrows():
        s = np.linalg.svd(posts["adapted"][name].astype(float) - base[name].astype(float), compute_uv=False)
        assert s[RANK] < 1.5 * row["spectral_norm_rounding"] < 3 * row["spectral_norm_rounding"] < s[RANK - 1]
        assert row["rank_change"] == RANK


def test_training_that_rounding_hides_in_part_is_no_adapter(stored):
    """How many directions of a full change are beyond rounding differs from matrix to matrix."""
    run = stored[2]["trained"]
    assert (run.frame()["rounding_share"] > 0.1).all()
    assert not sentences(run, "LoRA")


def test_merges_in_bfloat16_are_told_up_to_their_rounding(stored):
    base, posts, runs = stored
    (merge,) = runs.summary()["merges"]
    assert merge["post"] == "soup" and merge["weights"] == pytest.approx({"a": 0.5, "b": 0.5}, abs=0.01)
    largest = 0.0
    for name, w in base.items():
        changes = (posts[label][name].astype(float).ravel() - w.astype(float).ravel() for label in ("a", "b", "soup"))
        *parts, whole = changes
        weights, *_ = np.linalg.lstsq(np.stack(parts, axis=1), whole)
        left = whole - np.stack(parts, axis=1) @ weights
        largest = max(largest, np.linalg.norm(left) / np.linalg.norm(whole))
    assert merge["left"] == pytest.approx(largest, rel=1e-3)
