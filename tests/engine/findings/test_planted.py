"""Whole runs of pairs with one planted change: the reading names that and nothing else, and on noise nothing.

All models go through one comparison, so that each shape is compiled once.
"""

import re

import numpy as np
import pandas as pd
import pytest

import polarax
from polarax.findings.answers import HOW_MUCH
from polarax.findings.effects import find_effects
from polarax.findings.reading import read_frame
from polarax.findings.signature import output_signature
from tests.engine import planted

pytestmark = pytest.mark.slow

# Seeds of the noises that are read: a few of them for `make test`, the others as well for `make test-all`.
SEEDS = {"first": range(15), "others": range(15, 100)}
GROUPS = "change,scaling,rotation,budget,shape"

# What is planted, and the one kind of effect that every matrix then has.
PLANTED = {
    "scaled": (planted.scaled(1.02), "scaled up"),
    "shrunk": (planted.scaled(0.97), "scaled down"),
    "coordinated": (planted.rotated(0.002), "coordinated"),
    "coordinated far": (planted.rotated(0.02), "coordinated"),
    "discordant": (planted.rotated(0.002, together=False), "discordant"),
    "uneven": (planted.uneven(0.05), "uneven"),
    "rank one": (planted.rank_one(0.02), "low rank"),
}
# Of these, what a known mechanical effect explains.
EXPLAINED = {"shrunk": "weight decay", "rank one": "a LoRA of rank 1"}
PARTIAL = {"o scaled": planted.output_scaled(1.013, 0.01), "outside": planted.outside(0.02)}
CHANGES = {kind: change for kind, (change, _) in PLANTED.items()} | PARTIAL
NOISES = ("gaussian", "concentrated")
ROLES = {"q_proj": "q", "k_proj": "k", "v_proj": "v", "o_proj": "o", "up_proj": "up", "down_proj": "down"}


def noise(kind, seed):
    """Base and post: a size from 0.1% to 30% and a base of a condition number from 3 to 300, by seed."""
    rng = np.random.default_rng([seed, NOISES.index(kind)])
    drift, condition = 10 ** rng.uniform(-3, -0.5), 10 ** rng.uniform(0.5, 2.5)
    base = planted.model(rng, condition)
    return base, planted.changed(rng, base, getattr(planted, kind)(drift))


def planted_pair(kind):
    """Base and post."""
    rng = np.random.default_rng(list(CHANGES).index(kind))
    base = planted.model(rng)
    return base, planted.changed(rng, base, CHANGES[kind])


@pytest.fixture(scope="module")
def frames():
    """Kind of change -> the table of that model."""
    found = frames_of({(kind, 0): planted_pair(kind) for kind in CHANGES})
    return {kind: found[kind, 0] for kind in CHANGES}


def frames_of(pairs, **options):
    """(kind, seed) -> the table of that model, with the names that it would have by itself."""
    base, post = {}, {}
    for (kind, seed), pair in pairs.items():
        for tree, weights in zip((base, post), pair, strict=True):
            tree |= {f"{kind}:{seed}:{name}": w.astype(np.float32) for name, w in weights.items()}
    frame = polarax.compare(base, post, **(options or {"metrics": GROUPS}), progress=False).frame()
    frame[["kind", "seed", "name"]] = frame["name"].str.split(":", expand=True).to_numpy()
    parts = frame["name"].str.split(".", expand=True)
    frame = frame.assign(role=parts[3].map(ROLES), layer=parts[1].astype(int).astype("Int64"))
    return {
        (kind, int(seed)): rows.drop(columns=["kind", "seed"]).reset_index(drop=True)
        for (kind, seed), rows in frame.groupby(["kind", "seed"])
    }


@pytest.mark.parametrize("seeds", ["first", pytest.param("others", marks=pytest.mark.exhaustive)])
@pytest.mark.parametrize("kind", NOISES)
def test_on_noise_nothing_is_named(kind, seeds):
    for (_, seed), frame in frames_of({(kind, seed): noise(kind, seed) for seed in SEEDS[seeds]}).items():
        assert len(frame) == planted.LAYERS * len(planted.SHAPES)
        reading = read_frame(frame)
        much, where, chance = reading.answers
        assert much.question == HOW_MUCH and where.text.startswith("alike in all roles and layers"), seed
        assert chance.text.startswith("no, none of 24 matrices shows more than a random change of the same size"), (
            seed,
            find_effects(frame).to_string(),
        )
        (signature,) = reading.details
        assert signature.startswith("o against the other roles: no distinct scaling"), seed
        assert reading.thresholds[0].startswith("Thresholds: ")


@pytest.mark.parametrize("kind", PLANTED)
def test_what_is_planted_is_named_and_nothing_else(frames, kind):
    frame, expected = frames[kind], PLANTED[kind][1]
    effects = find_effects(frame)
    assert set(effects["kind"]) == {expected}
    assert sorted(effects["row"]) == list(range(24))
    reading = read_frame(frame)
    chance = reading.answers[-1].text
    *explained, signature = reading.details if kind in EXPLAINED else reading.details[:1]
    assert signature.startswith("o against the other roles: no distinct scaling")
    if kind in EXPLAINED:
        assert chance.startswith(f"only what {EXPLAINED[kind]} explains, in all 24 matrices")
        assert len(explained) == 1 and EXPLAINED[kind] in explained[0]
    else:
        (named,) = reading.details[1:]
        assert re.match(r"q, k, v, o, up, down \(all 24\): ", named)
        assert chance.startswith("yes, all 24 matrices show more than ") and chance.endswith(f": {expected} 24")


def test_the_factor_of_a_scaling_is_that_which_was_planted(frames):
    sentences = " ".join(read_frame(frames["scaled"]).details)
    assert "scaled up (alpha +2% in the median; " in sentences


def test_o_scaled_alone(frames):
    frame = frames["o scaled"]
    effects = find_effects(frame)
    assert set(effects["kind"]) == {"scaled up"}
    assert set(frame.loc[effects["row"], "role"]) == {"o"} and len(effects) == 4
    reading = read_frame(frame)
    signature, named = reading.details
    assert reading.answers[-1].text.startswith("yes, 4 of 24 matrices show more than ")
    assert re.match(r"o: scaled 1\.[34]\d?% above the other roles of the same layers, ", signature)
    assert named.startswith("o: scaled up (alpha +1.")
    # The same numbers from the weights, by SVDs of NumPy's.
    base, post = planted_pair("o scaled")
    excess = {}
    for name, w in base.items():
        s, t = (np.linalg.svd(x.astype(np.float32).astype(float), compute_uv=False) for x in (w, post[name]))
        drift = np.linalg.norm(post[name] - w) / np.linalg.norm(w)
        _, layer, _, role, _ = name.split(".")
        excess.setdefault(layer, {})[role] = s @ t / (s @ s) - 1 - drift**2 / 2
    differences = [
        values["o_proj"] - np.mean([value for role, value in values.items() if role != "o_proj"])
        for values in excess.values()
    ]
    found = output_signature(frame)
    assert found.difference == pytest.approx(np.mean(differences), rel=1e-4)
    assert found.spread == pytest.approx(np.std(differences), rel=1e-4)


def test_outside_of_the_base_s_space(frames):
    """Square weights have no outside: theirs is noise."""
    frame = frames["outside"]
    effects = find_effects(frame)
    assert set(effects["kind"]) == {"outside"}
    assert sorted(frame.loc[effects["row"], "role"]) == ["down"] * 4 + ["up"] * 4


def test_the_errors_of_a_quantisation_are_no_coordination():
    """They grow with the norm of a row, so that they lie where the base's leading directions are."""
    rng = np.random.default_rng(11)
    base = planted.with_rows_apart(planted.model(rng), 30.0)
    turned = planted.changed(rng, base, planted.rotated(0.002))
    pairs = {("int4", 0): (base, planted.changed(rng, base, planted.to_int4)), ("turned", 0): (base, turned)}
    found = frames_of(pairs)
    errors, turned = found["int4", 0], found["turned", 0]
    assert find_effects(errors).empty
    unaware = find_effects(errors.drop(columns=["nf_placed", "budget_outside_placed"]))
    assert set(unaware["kind"]) == {"turned alike", "inside"}
    assert set(find_effects(turned)["kind"]) == {"coordinated"}
    assert len(find_effects(turned)) == len(turned)


@pytest.mark.parametrize("dithered", [False, True])
def test_only_storage_rounding(dithered):
    rng = np.random.default_rng(8)
    weights = planted.model(rng)
    base = {name: w.astype(np.float32) for name, w in weights.items()}
    post = planted.changed(rng, weights, planted.dithered if dithered else planted.rounded)
    summary = polarax.compare(base, post, metrics=GROUPS, progress=False).summary()
    much, where, chance, rounding, thresholds = summary["reading"]
    assert much.startswith("How much: ") and where.startswith("Where: ")
    assert chance == "More than chance: that can't be told from storage rounding."
    assert rounding == (
        "q, k, v, o, up, down: mostly storage rounding, and nothing else is claimed, in all 24 matrices."
    )
    assert thresholds.startswith("Thresholds: ")
    assert summary["flagged"]["rounding"] == 24 and summary["roles"]["q"]["rounding"] == 4
    assert summary["effects"] == {} and summary["signature"] is None


def test_no_reading_of_noise_is_far_from_its_control():
    """Noise of few directions, of which many controls know less; bases of which it covers the smallest values."""
    rng, pairs = np.random.default_rng(7), {}
    for place, (condition, drift) in enumerate([(20, 0.003), (1000, 0.05), (1000, 0.3)]):
        base = planted.model(rng, condition)
        pairs["few", place] = base, planted.changed(rng, base, planted.few_directions(4, drift))
    groups = "scaling,rotation,budget,fit,polar,leading,shape"
    distances = pd.concat(frames_of(pairs, metrics=groups).values()).filter(regex="_spectrum_z$").astype(float)
    assert len(distances.columns) == 11
    # What is as rare as 6 deviations of a normal number is up to 6 + 36 / (sqrt(2) R) of R directions away; of 4, 15.
    farthest, known = distances.abs().max(), distances.notna().mean()
    assert farthest[farthest > 15].empty, farthest
    known = known.drop("budget_outside_spectrum_z")  # of square matrices there is none
    of_first_order = ["ratio_cv_spectrum_z", "fit_error_spectrum_z"]
    assert (known.drop(of_first_order) == 1).all() and (known[of_first_order] == 1 / 3).all()
