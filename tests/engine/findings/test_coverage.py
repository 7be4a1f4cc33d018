"""How much of either model was compared, in words: numbers that were worked out by hand."""

import pytest

from polarax.findings.coverage import account, accounts, not_compared, not_compared_of_steps


def side(compared, tensors, share, layers=None, **left_out):
    """One side of 1,000,000 weights; what is left out as kind=(tensors, weights), "_" in place of blanks."""
    return {
        "tensors": tensors,
        "compared_tensors": compared,
        "weights": 1_000_000,
        "compared_weights": round(share * 1_000_000),
        "matrix_weights": 1_000_000,
        "unpaired_weights": 0,
        "layers": layers,
        "left_out": {
            kind.replace("_", " "): {"tensors": count, "weights": weights}
            for kind, (count, weights) in left_out.items()
        },
    }


def coverage(base, post=None, matched_by=(), notes=()):
    return {
        "base": base,
        "post": base if post is None else post,
        "matched_by": dict(matched_by) or {"name": 12},
        "notes": list(notes),
    }


ALL = coverage(side(12, 12, 1))
WELL = coverage(side(12, 20, 0.999, vectors=(8, 1000)))
PART = coverage(
    side(12, 20, 0.7, layers=28, only_in_base=(6, 299_000), vectors=(2, 1000)),
    side(12, 45, 0.4, layers=24, only_in_post=(31, 599_000), vectors=(2, 1000)),
    {"name": 2, "prefix": 10, "role": 1},
    ["config.json says one thing, the bytes another"],
)


class TestAccount:
    def test_one_line_where_all_is_well(self):
        assert account(ALL) == ("Compared: 12 of 12 tensors, 100% of the weights of either side.",)
        assert account(WELL) == (
            "Compared: 12 of 20 tensors, 99.9% of the weights of either side; the rest: 8 x vectors.",
        )

    def test_a_line_for_each_reason_the_largest_first_and_all_that_is_remarkable(self):
        assert account(PART, verb="To compare") == (
            "To compare: 12 of 20 tensors of the base, 70.0% of its weights; 12 of 45 of the post, 40.0% of its "
            "weights.",
            "  not compared: only in post: 31 tensors, 59.9% of the post",
            "  not compared: only in base: 6 tensors, 29.9% of the base",
            "  not compared: vectors: 2 tensors, 0.1% of either side",
            "The base has 28 layers, the post 24.",
            "Matched under other names: 10 matrices by prefix, 1 matrix by role.",
            "config.json says one thing, the bytes another",
        )

    @pytest.mark.parametrize(("share", "words"), [(0.9999999, "99.9%"), (1e-6, "under 0.1%"), (0, "0%"), (1, "100%")])
    def test_nearly_all_is_not_all_and_little_is_not_nothing(self, share, words):
        whole = coverage(side(12, 12, 1) | {"weights": 10**9, "compared_weights": int(share * 10**9)})
        assert f"12 tensors, {words} of the weights" in account(whole)[0]

    def test_a_run_that_was_written_without_says_nothing(self):
        assert account(None) == () and not_compared(None) == ""
        assert accounts({"a": None, "b": None}) == ()

    def test_a_checkpoint_without_weights(self):
        empty = side(0, 0, 0) | {"weights": 0}
        assert account(coverage(empty)) == ("Compared: 0 of 0 tensors, 0% of the weights of either side.",)
        assert not_compared(coverage(empty)) == ""


class TestSentence:
    def test_says_nothing_where_nearly_all_was_compared(self):
        assert not_compared(ALL) == not_compared(WELL) == ""
        assert not_compared(coverage(side(12, 13, 0.9, only_in_base=(1, 100_000)))) == ""

    def test_names_the_sides_of_which_much_was_not_with_the_reasons(self):
        assert not_compared(PART) == (
            "30.0% of the base's weights and 60.0% of the post's weights were not compared "
            "(only in base; only in post)."
        )
        one_side = coverage(side(12, 12, 1), side(12, 13, 0.89, quantised=(1, 110_000)))
        assert not_compared(one_side) == "11.0% of the post's weights were not compared (quantised)."

    def test_what_another_tensor_stands_for_or_cannot_differ_is_not_missed(self):
        assert not_compared(coverage(side(12, 13, 0.6, tied=(1, 400_000)))) == ""
        assert not_compared(coverage(side(2, 13, 0.1, not_adapted=(11, 900_000)))) == ""


class TestSeveral:
    def test_what_is_the_same_of_all_is_said_once(self):
        assert accounts({"sft": WELL, "rl": WELL}) == account(WELL)
        assert not_compared_of_steps({"10": PART, "20": PART}) == [not_compared(PART)]

    def test_what_differs_is_said_of_each(self):
        first, *others = accounts({"sft": WELL, "rl": PART, "dpo": WELL})
        assert first == f"sft, dpo: {account(WELL)[0]}"
        assert others == [f"rl: {account(PART)[0]}", *(f"  {line}" for line in account(PART)[1:])]
        steps = {"10": WELL, "20": PART, "30": PART, "50": PART}
        assert not_compared_of_steps(steps) == [f"3 steps from 20 to 50: {not_compared(PART)}"]
        assert accounts(dict(list(steps.items())[:2]), heading="step")[0].startswith("Step 10: Compared: ")
