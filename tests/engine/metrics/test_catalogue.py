"""The catalogue of metrics."""

import pytest

from polarax import UsageError
from polarax.metrics import (
    CONTROL_COLUMNS,
    GROUPS,
    IDENTITY_COLUMNS,
    columns,
    parse_metrics,
    sampled_columns,
)


@pytest.mark.parametrize("given", [None, "", [], (), " , "])
def test_nothing_given_means_everything(given):
    assert parse_metrics(given) == tuple(GROUPS)


@pytest.mark.parametrize(
    ("given", "groups"),
    [
        ("budget", ("budget",)),
        ("budget, change", ("change", "budget")),
        (["shape", "scaling", "shape"], ("scaling", "shape")),
        (("rotation",), ("rotation",)),
        (iter(["overlap"]), ("overlap",)),
    ],
)
def test_groups_come_once_and_in_catalogue_order(given, groups):
    assert parse_metrics(given) == groups


@pytest.mark.parametrize("given", ["nf", "budget,speed", ["Budget"]])
def test_an_unknown_group_is_named_with_what_there_is(given):
    with pytest.raises(UsageError, match=r"Unknown metric '(nf|speed|Budget)'. Expected one of change, .*shape\."):
        parse_metrics(given)


def test_no_column_stands_twice_and_each_has_a_meaning():
    everything = columns(GROUPS)
    assert len(set(everything)) == len(everything)
    assert everything[: len(IDENTITY_COLUMNS)] == IDENTITY_COLUMNS
    assert everything[-2:] == tuple(CONTROL_COLUMNS)
    for meanings in (*(group.columns for group in GROUPS.values()), CONTROL_COLUMNS):
        assert all(meanings.values())


def test_a_control_stands_right_behind_what_it_controls():
    for group in GROUPS.values():
        names = list(group)
        for place, name in enumerate(names):
            if name.endswith("_null"):
                assert names[place - 1] == name.removesuffix("_null")


def test_headline_numbers_have_a_control():
    everything = columns(GROUPS)
    for metric in ("alpha", "ratio_cv", "nf", "budget_scaling", "budget_outside", "fit_error"):
        assert f"{metric}_null" in everything
    assert "coordination_null_std" in everything  # its mean is 0


def test_sampled_columns_are_of_metrics_that_there_are():
    everything = columns(GROUPS, sampled=True)
    assert len(set(everything)) == len(everything)
    assert [column for column in everything if column not in columns(GROUPS)] == list(sampled_columns(GROUPS))
    assert sampled_columns(["rotation"]) == tuple(
        f"nf_{kind}{suffix}" for kind in ("isotropic", "spectrum", "shuffled") for suffix in ("", "_std", "_z")
    )
    assert columns(["shape", "change"], sampled=True) == columns(["shape", "change"])
