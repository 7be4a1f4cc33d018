"""The reading: sentences that follow from the numbers, on tables made by hand."""

import re

import numpy as np
import pandas as pd
import pytest

from polarax.findings.answers import HOW_MUCH, MORE_THAN_CHANCE, WHERE
from polarax.findings.effects import thresholds
from polarax.findings.reading import read_frame
from polarax.findings.words import matrix_label

THRESHOLDS = thresholds()

# A matrix where nothing stands out: each number close to its control.
QUIET = {
    "layer": 0,
    "role": "q",
    "expert": None,
    "rows": 96,
    "cols": 48,
    "status": "ok",
    "rounding_share": 0.01,
    "drift": 0.02,
    "nss": 0.003,
    "nss_null": 0.0029,
    "alpha": 1.0003,
    "alpha_null": 1.0002,
    "alpha_null_std": 1e-4,
    "nf": 0.021,
    "nf_null": 0.02,
    "nf_null_std": 1e-4,
    "budget_scaling": 0.011,
    "budget_scaling_null": 48 / (96 * 48),
    "budget_outside": 0.52,
    "budget_outside_null": 0.5,
    "coordination": 0.01,
    "coordination_null_std": 0.003,
    "stable_rank_change": 12.0,
    "effective_rank_change": 40.0,
    "effective_rank_base": 35.0,
    "control": "closed form",
}
THAN = "more than a random change of the same size and spectrum would"
QUIET_OF_SIX = f"no, none of 6 matrices shows {THAN}"


def table(*changes, count=6):
    """A frame of quiet matrices, of which the leading ones differ as given."""
    rows = [QUIET | {"layer": layer, "name": f"layers.{layer}.q"} for layer in range(count)]
    for row, change in zip(rows, changes, strict=False):
        row |= change
    frame = pd.DataFrame(rows)
    return frame.astype({"layer": "Int64", "expert": "Int64"})


def read(*changes, count=6, draws=0):
    """The sentences that come after the answers, without the one on thresholds."""
    reading = read_frame(table(*changes, count=count), draws)
    (last,) = reading.thresholds
    assert last.startswith("Thresholds: ")
    return list(reading.details)


def answer(question, *changes, count=6, draws=0):
    """What is said to a question; "" for nothing."""
    return answer_of(table(*changes, count=count), question, draws)


def answer_of(frame, question, draws=0):
    return next((one.text for one in read_frame(frame, draws).answers if one.question == question), "")


def is_quiet(*changes, count=6, draws=0):
    """Whether nothing stands out."""
    none = "the one matrix does not show" if count == 1 else f"none of {count} matrices shows"
    said = answer(MORE_THAN_CHANCE, *changes, count=count, draws=draws)
    return not read(*changes, count=count, draws=draws) and said == f"no, {none} {THAN}"


def sampled(metric, mean, std):
    return {f"{metric}_spectrum": mean, f"{metric}_spectrum_std": std, "control": "draws"}


class TestQuiet:
    def test_where_nothing_stands_out_there_are_the_answers_alone(self):
        assert is_quiet()

    def test_one_matrix_alone(self):
        assert is_quiet(count=1)

    def test_no_matrices_at_all(self):
        assert read_frame(table().iloc[:0]).sentences == []

    def test_the_thresholds_are_told_with_it(self):
        (last,) = read_frame(table()).thresholds
        assert [float(number) for number in re.findall(r"[\d.]+\d|\d", last)] == [
            THRESHOLDS["z"],
            100 * THRESHOLDS["alpha"],
            100 * THRESHOLDS["share"],
            THRESHOLDS["coordination"],
            100 * THRESHOLDS["outside"],
            THRESHOLDS["nf_factor"],
            THRESHOLDS["low_rank"],
            THRESHOLDS["rounding_share"],
        ]


class TestHowMuchAndWhere:
    def test_the_median_and_the_range(self):
        drifts = [{"drift": drift} for drift in (0.004, 0.01, 0.03, 0.032, 0.1, 0.12)]
        assert answer(HOW_MUCH, *drifts) == "the weights moved by 3.1% in the median (0.4% to 12% over 6 matrices)"

    def test_what_is_not_the_base_trained_did_not_move(self):
        stranger = {"relation": "unrelated to the base", "drift": 1.4}
        frame = table(stranger).fillna({"relation": ""})
        assert answer_of(frame, HOW_MUCH) == (
            "the weights moved by 2% (in each of 5 matrices); 1 matrix is not the base, trained"
        )

    def test_nothing_was_measured_of_it(self):
        frame = table().drop(columns="drift")
        assert answer_of(frame, HOW_MUCH) == answer_of(frame, WHERE) == ""

    def test_alike(self):
        assert answer(WHERE) == "alike in all layers (within a factor of 1)"
        two = [{"role": role, "layer": layer, "drift": 0.01 + 0.001 * layer} for role in "qk" for layer in range(3)]
        assert answer(WHERE, *two) == "alike in all roles and layers (within a factor of 1.2)"

    def test_roles_that_moved_most_and_least(self):
        drifts = {"q": 0.04, "k": 0.03, "v": 0.082, "o": 0.079, "up": 0.011, "down": 0.02}
        changes = [{"role": role, "drift": drift} for role, drift in drifts.items()]
        assert answer(WHERE, *changes).startswith("most in v (8.2%) and o (7.9%), least in up (1.1%)")

    def test_layers_are_compared_within_their_roles(self):
        """A role that moves more in all layers makes no layer stand out, wherever it is missing."""
        by_layer = dict(enumerate((0.004, 0.01, 0.01, 0.01, 0.01, 0.03, 0.031)))
        changes = [
            {"role": role, "layer": layer, "drift": factor * drift}
            for role, factor in (("q", 1.0), ("o", 5.0))
            for layer, drift in by_layer.items()
            if (role, layer) != ("o", 2)
        ]
        assert answer(WHERE, *changes, count=13) == (
            "most in o (5%), least in q (1%); most in layers 5 and 6 (3 times the median of their roles), least in "
            "layer 0 (0.4 times the median of their roles)"
        )

    def test_matrices_without_roles(self):
        changes = [{"role": "other", "name": name, "drift": drift} for name, drift in (("a", 0.01), ("b", 0.05))]
        assert answer(WHERE, *changes, count=2) == "most in b (5%), least in a (1%)"


class TestEffects:
    @pytest.mark.parametrize(
        ("change", "sentence"),
        [
            ({"alpha": 1.02}, "scaled up (alpha +2%, by chance +0.02% ± 0.01%)."),
            ({"alpha": 0.98}, "scaled down (alpha -2%, by chance 0 ± 0.01%)."),
            ({"coordination": 0.31}, "coordinated (coordination +0.31, by chance 0 ± 0.003)."),
            ({"coordination": -0.31}, "discordant (coordination -0.31, by chance 0 ± 0.003)."),
            (
                {"budget_scaling": 0.4, "nss": 0.0126},
                "singular values changed, each by a factor of its own (share of the change 40%, by chance 1% ± 0.43%).",
            ),
            (
                {"budget_outside": 0.9},
                "changed more outside the base's row or column space than by chance (share 90%, by chance 50% ± 2.1%).",
            ),
            (
                {"budget_outside": 0.2},
                "changed less outside the base's row or column space than by chance (share 20%, by chance 50% ± 2.1%).",
            ),
            (
                {"nf": 0.05},
                "left and right vectors turned apart more than by chance (nf 0.05, by chance 0.02 ± 0.00022).",
            ),
            (
                {"nf": 0.004},
                "left and right vectors turned apart less than by chance (nf 0.004, by chance 0.02 ± 0.00022).",
            ),
            (
                {"effective_rank_change": 3.0},
                "a change of low rank (effective rank 3, of a random change 44.5).",
            ),
        ],
    )
    def test_one_matrix_that_stands_out_is_named_with_its_numbers(self, change, sentence):
        assert read({}, {}, change) == [f"Layer 2's q: {sentence}"]
        assert answer(MORE_THAN_CHANCE, {}, {}, change).startswith(f"yes, 1 of 6 matrices shows {THAN}: ")

    def test_those_that_are_many_are_counted_by_role_with_the_farthest(self):
        shifts = [0.2, 0.9, 0.4, 0.15]
        changes = [{"coordination": shift} for shift in shifts] + [{"role": "o"}, {"role": "o", "coordination": 0.3}]
        (named,) = read(*changes)
        assert answer(MORE_THAN_CHANCE, *changes) == f"yes, 5 of 6 matrices show {THAN}: coordinated 5"
        assert named == (
            "q, o (1 of 2): coordinated (coordination +0.30 in the median; farthest layer 1's q, +0.90, by chance "
            "0 ± 0.003)."
        )

    def test_all_of_them(self):
        (one,) = read(*[{"alpha": 1.01 + 0.001 * layer} for layer in range(6)])
        assert one.startswith(
            "q (all 6): scaled up (alpha +1.25% in the median; farthest layer 5's q, +1.5%, by chance"
        )

    def test_matrices_are_called_so_that_they_can_be_found(self):
        strong = {"coordination": 0.5}
        sentences = read(
            {"role": "other", "name": "blocks.7.mixer"} | strong,
            {"role": "embed", "layer": None} | strong,
            {"role": "up", "expert": 11, "layer": 2} | strong,
        )
        assert [one.split(":")[0] for one in sentences] == ["blocks.7.mixer", "embed", "Layer 2's up of expert 11"]

    def test_a_matrix_is_called_in_a_plot_by_its_label(self):
        rows = table({"role": "other", "name": "mixer"}, {"role": "embed", "layer": None}, {"role": "up", "expert": 11})
        labels = [matrix_label(row) for _, row in rows.head(3).iterrows()]
        assert labels == ["mixer", "embed", "layer 2 up expert 11"]


class TestWhatFollowsFromAnother:
    """A change that went somewhere leaves less for the rest; the rest is not told as a finding of its own."""

    def test_a_scaling_turns_nothing_and_stays_inside(self):
        change = {"alpha": 1.02, "nf": 1e-9, "budget_outside": 0.0, "budget_scaling": 1.0, "coordination": 0.0}
        assert len(read(change)) == 1 and "scaled up" in read(change)[0]

    def test_a_coordinated_rotation_stays_inside_and_turns_nothing_apart(self):
        change = {"coordination": 1.0, "nf": 1e-9, "budget_outside": 0.0}
        assert len(read(change)) == 1 and "coordinated" in read(change)[0]

    def test_a_coordination_of_next_to_nothing_is_not_named(self):
        parts = {"budget_coordinated": 3e-4, "budget_discordant": 1e-4}
        by_chance = {"budget_coordinated_null": 0.25, "budget_discordant_null": 0.25}
        assert read({"alpha": 1.02, "coordination": 0.5} | parts | by_chance) == [
            "Layer 0's q: scaled up (alpha +2%, by chance +0.02% ± 0.01%)."
        ]

    def test_of_uneven_values_the_scale_is_no_finding_where_it_explains_less_than_half(self):
        uneven = {"alpha": 1.01, "budget_scaling": 1.0}
        assert "scaled up" in read(uneven | {"drift": 0.0102, "nss": 0.0102})[0]
        assert "each by a factor of its own" in read(uneven | {"drift": 0.03, "nss": 0.03})[0]
        assert (
            len(read(uneven | {"drift": 0.03, "nss": 0.03}))
            == len(read(uneven | {"drift": 0.0102, "nss": 0.0102}))
            == 1
        )

    def test_two_effects_of_one_matrix_are_both_named(self):
        assert len(read({"alpha": 1.02, "coordination": 0.4})) == 2
        said = answer(MORE_THAN_CHANCE, {"alpha": 1.02, "coordination": 0.4})
        assert said == f"yes, 1 of 6 matrices shows {THAN}: scaled up 1, coordinated 1"


class TestNotNamed:
    @pytest.mark.parametrize(
        "change",
        [
            {"alpha": 1.0049},
            {"coordination": 0.09},
            {"budget_scaling": 0.1},
            {"budget_outside": 0.69},
            {"nf": 0.0249},
            {"nf": 0.0161},
            {"effective_rank_change": 12.0},
        ],
    )
    def test_significant_but_small(self, change):
        assert is_quiet(change)

    @pytest.mark.parametrize(
        "change",
        [
            {"alpha": 1.02, "alpha_null_std": 0.01},
            {"coordination": 0.2, "coordination_null_std": 0.1},
            {"nf": 0.04, "nf_null_std": 0.01},
        ],
    )
    def test_large_but_within_chance(self, change):
        assert is_quiet(change)

    @pytest.mark.parametrize(("nf", "placed"), [(0.013, 0.012), (0.01, 0.012), (0.03, 0.032), (0.038, 0.032)])
    def test_nf_as_far_as_where_the_change_lies_explains_it(self, nf, placed):
        assert is_quiet({"nf": nf, "nf_placed": placed, "nf_placed_std": 1e-4})

    @pytest.mark.parametrize(("outside", "placed"), [(0.25, 0.22), (0.25, 0.4), (0.78, 0.8), (0.78, 0.6)])
    def test_what_is_outside_as_far_as_what_is_inside_goes_on(self, outside, placed):
        assert len(read({"budget_outside": outside})) == 1
        assert is_quiet({"budget_outside": outside, "budget_outside_placed": placed})
        drawn = sampled("budget_outside", 0.5, 1e-3)
        assert is_quiet({"budget_outside": outside, "budget_outside_placed": placed} | drawn, draws=100)

    def test_nf_beyond_what_the_place_of_the_change_explains(self):
        one = read({"nf": 0.009, "nf_placed": 0.012, "nf_placed_std": 1e-4})[0]
        assert one.endswith(" vectors turned apart less than by chance (nf 0.009, by chance 0.012 ± 0.00022).")
        assert is_quiet({"nf": 0.009, "nf_placed": 0.012, "nf_placed_std": 1e-3})  # spreads more there

    @pytest.mark.parametrize("alpha", [1.0, 1.01, 1.02])
    def test_whatever_noise_of_the_size_may_do_to_alpha(self, alpha):
        """Up to drift^2 / 2, as the spectrum has it: no scaling."""
        assert is_quiet({"alpha": alpha, "alpha_null": 1.02})

    def test_a_change_of_few_directions_spreads_more(self):
        """The share outside of one random direction is anywhere near its mean; that of noise is not."""
        assert len(read({"budget_outside": 0.72})) == 1
        assert is_quiet({"budget_outside": 0.72, "stable_rank_change": 1.0})
        assert is_quiet({"budget_outside": 0.72, "stable_rank_change": np.nan})

    def test_a_low_rank_of_the_base_itself(self):
        assert is_quiet({"effective_rank_change": 3.0, "effective_rank_base": 3.1})


class TestSampledControls:
    def test_the_spectrum_control_decides_where_it_is_there(self):
        isotropic = {"coordination": 0.3}
        assert len(read(isotropic)) == 1
        assert is_quiet(isotropic | sampled("coordination", 0.25, 0.02), draws=100)
        one = read({"coordination": 0.05} | sampled("coordination", -0.3, 0.02), draws=100)[0]
        assert one == "Layer 0's q: coordinated (coordination +0.05, by chance -0.30 ± 0.02)."

    def test_where_the_change_lies_counts_beside_draws(self):
        """Those are of directions at random: what the place of the change makes of nf, it makes of theirs."""
        drawn = sampled("nf", 0.03, 1e-4)
        place = {"nf_placed": 0.012, "nf_placed_std": 1e-4}  # 0.6 of nf_null
        assert is_quiet({"nf": 0.015} | place | drawn, draws=100)
        assert len(read({"nf": 0.014} | place | drawn, draws=100)) == 1
        assert len(read({"nf": 0.015} | drawn, draws=100)) == 1

    def test_few_draws_ask_for_more_standard_deviations(self):
        change = {"coordination": 0.3} | sampled("coordination", 0.0, 0.02)  # 15 of them
        assert len(read(change, draws=100)) == 1
        assert is_quiet(change, draws=5)

    def test_one_draw_has_no_spread_and_the_closed_form_decides(self):
        change = {"coordination": 0.3} | sampled("coordination", 0.0, np.nan)
        assert len(read(change, draws=1)) == 1

    def test_the_limit_is_told(self):
        assert "(8.85 where it was sampled, for 30 draws)" in read_frame(table(), 30).thresholds[0]


class TestControlsThatDoNotHold:
    ROUGH = {"control": "out of range", "nf": 0.2}

    def test_some_of_them_are_counted_and_not_judged(self):
        named, rough = read(self.ROUGH, {"nf": 0.05})
        said = answer(MORE_THAN_CHANCE, self.ROUGH, {"nf": 0.05})
        assert said == f"yes, 1 of 6 matrices shows {THAN}, as far as it can be judged: turned apart 1"
        assert named.startswith("Layer 1's q: left and right vectors turned apart more")
        assert rough == (
            "nf can't be judged in 1 matrix (q): condition number times drift passes 1, where its first-order control "
            "does not hold, and none was sampled."
        )

    def test_all_of_them(self):
        (rough,) = read(*[self.ROUGH] * 6)
        said = answer(MORE_THAN_CHANCE, *[self.ROUGH] * 6)
        assert "judged by alpha, budget_scaling, coordination, effective_rank_change and budget_outside" in said
        assert rough.startswith("nf can't be judged in 6 matrices")

    @pytest.mark.parametrize("control", ["draws", "sampled"])  # as it is written, and as it was
    def test_a_sampled_control_judges_them(self, control):
        change = self.ROUGH | {"control": control}
        assert is_quiet(sampled("nf", 0.19, 0.01) | change, draws=50)
        one = read(sampled("nf", 0.1, 0.005) | change, draws=50)[0]
        assert one.endswith("(nf 0.2, by chance 0.1 ± 0.005).")

    def test_coordination_and_alpha_hold_at_any_size(self):
        assert len(read(self.ROUGH | {"coordination": 0.4, "alpha": 1.1})) == 3


class TestWhatIsMissing:
    @pytest.mark.parametrize(
        ("gone", "left"),
        [
            ("alpha", "budget_scaling, coordination, effective_rank_change, budget_outside and nf"),
            ("nf", "alpha, budget_scaling, coordination, effective_rank_change and budget_outside"),
            ("coordination|budget", "alpha, effective_rank_change and nf"),
            ("stable|effective", "alpha, budget_scaling, coordination, budget_outside and nf"),
            ("alpha|nf|coordination|stable|effective|budget_outside", "budget_scaling"),
        ],
    )
    def test_what_was_judged_is_said(self, gone, left):
        frame = table().filter(regex=f"^(?!{gone})")
        assert answer_of(frame, MORE_THAN_CHANCE) == f"{QUIET_OF_SIX}, judged by {left}"

    def test_nothing_is_said_of_a_run_without_any_of_it(self):
        frame = table().filter(regex="^(?!alpha|nf|coordination|stable|effective|budget)")
        assert not read_frame(frame).details and not answer_of(frame, MORE_THAN_CHANCE)
        assert read_frame(frame.drop(columns=["drift"])).sentences == []

    def test_without_a_rounding_share(self):
        assert answer_of(table().drop(columns="rounding_share"), MORE_THAN_CHANCE) == QUIET_OF_SIX

    @pytest.mark.parametrize("status", ["not finite: 3 in post", "zero base", "unchanged"])
    def test_rows_that_say_nothing_are_counted_and_not_judged(self, status):
        bad = {"status": status, "coordination": 0.9, "nf": 0.9, "alpha": 0.0}
        what = "did not change at all" if status == "unchanged" else "could not be read (zero, NaN or Inf)"
        assert read(bad, bad) == []
        assert answer(HOW_MUCH, bad, bad) == f"the weights moved by 2% (in each of 4 matrices); 2 matrices {what}"
        assert answer(MORE_THAN_CHANCE, bad, bad) == f"no, none of 4 matrices shows {THAN}"

    def test_nothing_but_rows_that_say_nothing(self):
        reading = read_frame(table(*[{"status": "unchanged"}] * 6))
        assert [one.sentence for one in reading.answers] == ["How much: none of 6 matrices changed at all."]
        assert not reading.details

    def test_rank_deficient_rows_are_judged(self):
        assert len(read({"status": "rank 5 of 8 in base", "coordination": 0.5})) == 1

    def test_a_matrix_that_cannot_rotate(self):
        assert is_quiet({"coordination": np.nan})

    def test_rounding_is_flagged_and_nothing_else_is_claimed(self):
        loud = {"rounding_share": 0.8, "coordination": 0.9, "alpha": 1.5, "nf": 1.0, "effective_rank_change": 1.0}
        assert read(loud, {"rounding_share": 0.49}) == [
            "q (1 of 6): mostly storage rounding, and nothing else is claimed, in 1 of 6 matrices.",
        ]

    def test_nothing_but_rounding(self):
        assert answer(MORE_THAN_CHANCE, *[{"rounding_share": 0.8}] * 6) == "that can't be told from storage rounding"

    def test_quantisation_is_flagged(self):
        stored = {"rounding_share": np.nan, "dtype_base": "float32", "dtype_post": "q4_0"}
        assert read(stored)[-1] == (
            "q (1 of 6): stored quantised (float32 to q4_0) in 1 of 6 matrices: how much of the change is quantisation "
            "is unknown."
        )
