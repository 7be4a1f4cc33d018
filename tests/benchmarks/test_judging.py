"""benchmarks/judging: trials are what they say, and what is named is counted as it should be."""

import json

import ml_dtypes
import numpy as np
import pytest

from benchmarks.judging import __main__ as command
from benchmarks.judging import changes, false_alarms, judge, noise, plants, power, spectra
from benchmarks.judging.page import page
from benchmarks.judging.request import Request

RNG = np.random.default_rng(0)
R = 24


def _subject(name="w", rows=96, cols=48):
    short = min(rows, cols)
    return spectra.Subject(
        name, "nowhere", name, rows, cols, np.geomspace(10, 0.01, short), np.geomspace(1, 0.1, short)
    )


@pytest.fixture(scope="module")
def stage():
    return plants.stage([_subject(rows=48)] * 3, R, np.random.default_rng(1))


def _values(matrices):
    return np.linalg.svd(matrices, compute_uv=False)


# Spectra and random changes.


def test_a_reduced_spectrum_keeps_its_ends_and_order():
    values = np.geomspace(30, 1e-3, 576)
    few = spectra.reduced(values, 64)
    assert few[[0, -1]] == pytest.approx(values[[0, -1]], rel=1e-12)
    assert (np.diff(few) < 0).all()
    assert spectra.reduced(values, 576) == pytest.approx(values, rel=1e-12)
    # Geometric between its ends, whatever its length.
    assert few == pytest.approx(np.geomspace(30, 1e-3, 64), rel=1e-10)


def test_proportions_are_kept():
    assert _subject(rows=1536, cols=576).shape(64) == (171, 64)
    assert _subject(rows=192, cols=576).shape(64) == (64, 192)


@pytest.mark.parametrize(("rows", "cols"), [(9, 5), (5, 9), (6, 6)])
def test_changes_have_the_spectrum_and_the_size_asked_for(rows, cols):
    values = np.array([[3.0, 2, 1], [1, 1, 0.5]])
    made = changes.with_spectra(RNG, values, rows, cols)
    assert _values(made)[:, :3] == pytest.approx(values)
    assert _values(made)[:, 3:] == pytest.approx(0, abs=1e-12)
    bases = RNG.standard_normal(made.shape)
    sized = changes.of_size(made, bases, np.array([0.1, 0.5]))
    shares = np.linalg.norm(sized, axis=(1, 2)) / np.linalg.norm(bases, axis=(1, 2))
    assert shares == pytest.approx([0.1, 0.5])


def test_directions_are_uniform_on_the_sphere():
    # E q_1^2 = 1/n, E q_1^4 = 3/(n (n + 2)), and the sign is even; 4 deviations of the means of 4000 draws.
    first = changes.haar(np.random.default_rng(2), 4000, 5, 3)[:, 0, :].ravel()
    count = len(first)
    assert abs(first.mean()) < 4 * np.sqrt(1 / 5 / count)
    assert abs((first**2).mean() - 1 / 5) < 4 * np.sqrt(3 / 35 / count)
    assert abs((first**4).mean() - 3 / 35) < 4 * np.sqrt(105 / (5 * 7 * 9 * 11) / count)


# What happens to entries.


def test_integers_are_as_coarse_as_their_bits():
    block = RNG.standard_normal((6, 70)).astype(np.float32)
    eight, four = noise.to_int8(block), noise.to_int4(block)
    scale = np.abs(block).max(1, keepdims=True) / 127
    assert np.abs(eight - block).max() <= 0.5001 * scale.max()
    assert (np.abs(eight / scale - np.round(eight / scale)) < 1e-3).all()
    for group in (slice(0, 32), slice(32, 64), slice(64, 70)):
        for row in range(6):
            assert len(np.unique(np.round(four[row, group], 5))) <= 15
    assert (noise.to_int4(np.zeros((2, 40), np.float32)) == 0).all()


def test_fp8_is_scaled_to_its_largest_number():
    block = RNG.standard_normal((8, 8)).astype(np.float32)
    rounded = noise.to_fp8(block)
    largest = np.abs(block).argmax()
    assert rounded.ravel()[largest] == pytest.approx(block.ravel()[largest], rel=1e-6)
    # Three bits of mantissa; below the largest by 2^-14 or more numbers are denormal.
    normal = np.abs(block) > 2**-14 * np.abs(block).max()
    assert (np.abs(rounded - block)[normal] <= 2**-4 * np.abs(block)[normal] * 1.0001).all()


def test_random_kinds_change_by_what_they_say():
    subjects = [_subject(), _subject(rows=48), _subject(rows=48, cols=96)]
    for name in ("isotropic", f"own spectrum: {changes.REAL}", "own spectrum: rank 4"):
        trials = noise.KINDS[name].make(subjects, 0, R, np.random.default_rng(0))
        assert [trial.base.shape for trial in trials] == [(48, 24), (24, 24), (24, 48)]
        for trial, drift in zip(trials, noise.DRIFTS, strict=False):
            base, post = (side.astype(np.float64) for side in trial[:2])
            change = post - base
            assert np.linalg.norm(change) / np.linalg.norm(base) == pytest.approx(drift, rel=1e-3)
            assert f"drift {drift:g}" in trial.about
            assert _values(base) == pytest.approx(spectra.reduced(subjects[0].values, R), rel=1e-3)
            if "rank 4" in name:
                assert _values(change)[4] < 1e-3 * _values(change)[3]


def test_weight_decay_is_one_factor(monkeypatch):
    weight = RNG.standard_normal((96, 48)).astype(np.float32)
    monkeypatch.setattr(spectra, "_read", lambda path, name: weight)
    (trial,) = noise.KINDS["weight decay, float32"].make([_subject()], 1, R, np.random.default_rng(0))
    assert trial.post / trial.base == pytest.approx(1 - noise.DECAYS[1], rel=1e-6)
    (rounded,) = noise.KINDS["bf16 rounding"].make([_subject()], 0, None, np.random.default_rng(0))
    assert rounded.post.dtype == ml_dtypes.bfloat16
    assert (rounded.base == weight).all()


# Planted effects.


def test_turning_together_keeps_the_values_and_has_its_size(stage):
    norm = 0.2 * stage.norm
    turned = plants.turned_together(stage.values, stage.turning, norm)
    diagonal = stage.values[:, :, None] * np.eye(R)
    assert np.linalg.norm(turned, axis=(1, 2)) == pytest.approx(norm, rel=1e-2)
    assert _values(diagonal + turned) == pytest.approx(stage.values, rel=1e-9, abs=1e-12)
    assert np.abs(turned - turned.swapaxes(1, 2)).max() < 1e-12  # so that nothing of it is discordant


def _inner(stage, change):
    return stage.left.swapaxes(1, 2) @ change @ stage.right


def test_planted_shares_are_those_of_the_drift_budget(stage):
    drift, share = 0.01, 0.999
    for name in ("coordination", "uneven scaling"):
        change = plants.PLANTS[name].change(stage, share, drift)
        assert np.linalg.norm(change, axis=(1, 2)) / stage.norm == pytest.approx(drift, rel=0.1)
        inner = _inner(stage, change)
        squares = (inner**2).sum((1, 2))
        diagonal = np.diagonal(inner, axis1=1, axis2=2)
        if name == "coordination":
            skew = ((inner - inner.swapaxes(1, 2)) ** 2).sum((1, 2)) / 4
            assert (skew / squares < 0.01).all()
        else:
            assert ((diagonal**2).sum(1) / squares > 0.99).all()
            alpha = (stage.values * diagonal).sum(1) / stage.norm**2
            assert np.abs(alpha).max() < 0.1 * drift


def test_scaling_and_low_rank(stage):
    scaled = plants.PLANTS["scaling"].change(stage, 0.02, 0.0)
    assert scaled == pytest.approx(0.02 * stage.base)
    low = plants.PLANTS["low rank"].change(stage, 0.125, 0.0)
    assert (np.linalg.matrix_rank(low) == 3).all()
    assert np.linalg.norm(low, axis=(1, 2)) / stage.norm == pytest.approx(0.01)


# What is said of them.


def test_what_is_named_is_counted():
    rng = np.random.default_rng(3)
    base = changes.with_spectra(rng, np.tile(np.geomspace(1, 0.1, 16), (4, 1)), 16, 16)
    change = changes.of_size(changes.isotropic(rng, 4, 16, 16), base, np.full(4, 1e-4))
    change[2] += 0.03 * base[2]
    trials = [noise.Trial(*pair, f"trial {i}") for i, pair in enumerate(zip(base, base + change, strict=True))]
    assert judge.named(trials) == [set(), set(), {"scaled up"}, set()]
    found, expected = judge.judge(trials), judge.judge(trials, expected=("scaled up",))
    assert (found["matrices"], found["judged"], found["named"]) == (4, 4, {"scaled up": 1})
    assert (found["wrongly"], expected["wrongly"], expected["alarms"]) == (1, 0, [])
    assert [alarm["about"] for alarm in found["alarms"]] == ["trial 2"]
    assert found["alarms"][0]["value"] == pytest.approx(1.03, abs=1e-3)
    json.dumps(found)
    both = judge.merged([found, found])
    assert both["matrices"] == 8 and both["named"] == {"scaled up": 2}
    assert judge.spread(both["z"]["alpha"]) == pytest.approx(judge.spread(found["z"]["alpha"]))


def test_sums_of_batches_are_those_of_all():
    values = [np.array([1.0, -7.0]), np.array([2.0, 3.0, 4.0])]
    batches = [
        {**dict.fromkeys(("matrices", "judged", "wrongly", "signature"), len(x)), "named": {}, "relations": {}}
        | {"z": {"alpha": judge._sums(x)}, "beyond": {}, "alarms": []}
        for x in values
    ]
    total = judge.merged(batches)
    together = np.concatenate(values)
    assert judge.spread(total["z"]["alpha"]) == pytest.approx((together.mean(), together.std()))
    assert total["z"]["alpha"]["largest"] == 7
    assert total["z"]["alpha"]["far"] == 1


# The command.


def _request(tmp_path, **options):
    pairs, parts = (("base", "post"),), ("false_alarms", "power")
    given = {"matrices": 1200, "seeds": 30, "size": 16, "seed": 0, "limit": 10.0} | options
    return Request(tmp_path, pairs, parts, **given)


@pytest.mark.parametrize("part", [false_alarms, power])
def test_cases_have_names_of_their_own_and_are_done_once(part, tmp_path):
    labels = [case.label for case in part.cases(_request(tmp_path))]
    assert len(labels) == len(set(labels)) > 20
    left = part.cases(_request(tmp_path, done=frozenset(labels[1:])))
    assert [case.label for case in left] == labels[:1]


def test_every_kind_has_as_many_matrices_as_asked_for(tmp_path):
    labels = [case.label for case in false_alarms.cases(_request(tmp_path))]
    assert sum(label.startswith("isotropic, batch") for label in labels) == 3
    assert sum(label.startswith("isotropic, whole matrices") for label in labels) == 1


def test_a_run_is_continued_by_the_same_code_alone(tmp_path):
    request = _request(tmp_path)
    assert command._earlier(request) == []
    lines = tmp_path / "results.jsonl"
    lines.write_text(lines.read_text() + '{"label": "one"}\n{"label": "cut o')
    assert command._earlier(request) == [{"label": "one"}]
    assert lines.read_text().endswith('{"label": "one"}\n')  # what is added later is a line of its own
    with pytest.raises(ValueError, match="other weights, flags or code"):
        command._earlier(_request(tmp_path, seed=1))


@pytest.mark.parametrize(
    ("flags", "said"), [(["--pair=one"], "BASE,POST"), (["--parts=other"], "Unknown part 'other'")]
)
def test_bad_flags_are_one_line(tmp_path, capsys, flags, said):
    assert command.main([f"--out={tmp_path}", "--pair=a,b", *flags]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


def test_the_page_says_what_was_named_and_from_which_size_on():
    sums = {"count": 2, "far": 0, "sum": 0.0, "squares": 8.0, "largest": 2.5}
    alarm = {"about": "w, drift 0.1", "kind": "uneven", "metric": "budget_scaling", "value": 0.5, "z": 9.0}
    noisy = {
        "part": "false_alarms", "kind": "isotropic", "matrices": 2, "judged": 2, "wrongly": 1, "signature": 0,
        "named": {"uneven": 1}, "relations": {}, "z": {"alpha": sums}, "beyond": {}, "alarms": [alarm],
    }  # fmt: skip
    planted = [
        {"part": "power", "plant": "scaling", "line": 0.03, "r": 64, "size": size, "matrices": 4, "named": named}
        for size, named in ((0.001, {"uneven": 1}), (0.015, {"scaled up": 3}))
    ]
    text = page([noisy, *planted], [])
    assert "| isotropic | 2 | 2 | 1 | 1 uneven |" in text
    assert "| isotropic | 2.00, 2.5 |" in text
    assert "isotropic: w, drift 0.1: uneven (budget_scaling: value 0.5, z 9)" in text
    assert "| r 64, drift 0.03 | 0% |  |  |  |  |  | 75% |  |" in text
    assert "Named otherwise, of 8: 1 uneven." in text
