"""First looks at pairs with one planted change: it is named and nothing else, and on noise nothing."""

import re

import numpy as np
import pytest

from polarax.findings.effects import find_effects
from polarax.findings.reading import read_frame
from tests.engine import planted
from tests.engine.findings.test_planted import NOISES, PLANTED, frames_of, noise

SEEDS = {"first": range(15), "others": range(15, 60)}

# What is planted, and the kinds of effect that may be named for it: the first one in every matrix.
SEEN = {
    "scaled": {"scaled up"},
    "shrunk": {"scaled down"},
    "coordinated": {"leading coordinated"},
    "coordinated far": {"leading coordinated"},
    "discordant": {"leading discordant"},
    "uneven": {"leading uneven"},
    "rank one": {"one direction"},
}


def looks_of(pairs):
    """The tables of first looks, as `frames_of` gives them."""
    return frames_of(pairs, quick=True)


@pytest.mark.slow
@pytest.mark.parametrize("seeds", ["first", pytest.param("others", marks=pytest.mark.exhaustive)])
@pytest.mark.parametrize("kind", NOISES)
def test_on_noise_nothing_is_named(kind, seeds):
    for (_, seed), frame in looks_of({(kind, seed): noise(kind, seed) for seed in SEEDS[seeds]}).items():
        assert find_effects(frame).empty, (seed, find_effects(frame).to_string())
        assert read_frame(frame).details[0].startswith("A first look: ")


@pytest.fixture(scope="module")
def frames():
    rng = np.random.default_rng(5)
    pairs = {}
    for kind, (change, _) in PLANTED.items():
        base = planted.model(rng)
        pairs[kind, 0] = base, planted.changed(rng, base, change)
    return {kind: frame for (kind, _), frame in looks_of(pairs).items()}


@pytest.mark.slow
@pytest.mark.parametrize("kind", SEEN)
def test_what_is_planted_is_named_and_nothing_else(frames, kind):
    effects = find_effects(frames[kind])
    assert set(effects["kind"]) == SEEN[kind], effects.to_string()
    assert sorted(effects["row"]) == list(range(24)), effects.to_string()
    reading = read_frame(frames[kind], top_k=16)
    first, *others = reading.details
    assert first == (
        "A first look: the 16 leading singular values and their subspaces, and norms; nf, the drift budget and the fit "
        "were not measured."
    )
    explained, named = ([others[0]], []) if kind == "shrunk" else ([], [others[-1]])
    (signature,) = (one for one in others if one not in explained + named)
    assert signature.startswith("o against the other roles: no distinct scaling")
    assert all(re.match(r"q, k, v, o, up, down \(all 24\): ", one) for one in named)
    assert all("weight decay" in one for one in explained)


class TestCertificates:
    """What did not converge is said, and nothing is claimed of it."""

    @pytest.fixture
    def frame(self, frames):
        return frames["coordinated"].copy()

    def test_what_did_not_converge_is_no_effect(self, frame):
        frame.loc[:3, "converged"] = "no"
        assert sorted(find_effects(frame)["row"]) == list(range(4, 24))
        said = read_frame(frame).details[1]
        assert said.startswith("4 matrices did not converge (") and "nothing is claimed" in said

    def test_subspaces_that_are_hardly_known(self, frame):
        frame.loc[:3, "angle_post"] = 0.5
        assert len(find_effects(frame)) == 24  # which the base's frame alone tells
        frame.loc[:3, "angle_base"] = 0.5
        assert sorted(find_effects(frame)["row"]) == list(range(4, 24))
        said = read_frame(frame).details[1]
        assert said.startswith("In 4 matrices (") and said.endswith("nothing is claimed of their overlap.")

    def test_rows_that_were_analysed_in_full_have_no_certificate(self, frame):
        frame.loc[:3, "converged"] = "no"
        frame.loc[:3, "look"] = "full"
        assert read_frame(frame).details[0].startswith("A first look at 20 of 24 matrices, the others in full: ")
        assert not any("did not converge" in sentence for sentence in read_frame(frame).sentences)
        assert sorted(find_effects(frame)["row"]) == list(range(4, 24))  # effects of first looks alone


def test_leading_vectors_of_one_side_turned_away():
    """By 0.4 radians out of the base's leading subspace: all that is lost of the left, nothing of the right."""
    rng = np.random.default_rng(6)
    rows, cols, spikes, angle = 128, 96, 16, 0.4
    values = np.concatenate([np.geomspace(10, 5, spikes), np.geomspace(1, 0.1, cols - spikes)])
    base, post = {}, {}
    for layer in range(planted.LAYERS):
        left, right = planted.haar(rng, rows, cols + spikes), planted.haar(rng, cols, cols)
        turned = left[:, :cols].copy()
        turned[:, :spikes] = np.cos(angle) * left[:, :spikes] + np.sin(angle) * left[:, cols:]
        name = f"layers.{layer}.self_attn.q_proj.weight"
        base[name], post[name] = (left[:, :cols] * values) @ right.T, (turned * values) @ right.T
    frame = looks_of({("turned", 0): (base, post)})["turned", 0]
    np.testing.assert_allclose(frame["overlap_left"], np.cos(angle) ** 2, rtol=1e-4)
    effects = find_effects(frame)
    assert effects["kind"].tolist() == ["leading left turned"] * planted.LAYERS
    assert "q (all 4): leading left vectors turned away from the base's more than by chance (overlap, left 0.85 in" in (
        " ".join(read_frame(frame).sentences)
    )
