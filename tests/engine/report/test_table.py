"""The table by role: each headline number beside its control, as far as they were measured."""

import itertools
import re

import numpy as np
import pandas as pd
import pytest

from polarax.findings.summary import summarise
from polarax.report.table import table_by_role

ROW = {
    "name": "w",
    "layer": 0,
    "role": "q",
    "expert": None,
    "rows": 8,
    "cols": 8,
    "dtype_base": "float32",
    "dtype_post": "float32",
    "status": "ok",
    "drift": 0.0123,
    "alpha": 1.00021,
    "alpha_null": 1.00008,
    "alpha_null_std": 0.0004,
    "alpha_z": 0.3,
    "ratio_cv": 0.0345,
    "ratio_cv_null": 0.0321,
    "nf": 0.0567,
    "nf_null": 0.0555,
    "nf_excess": 1.02,
    "nf_z": 0.7,
    "budget_scaling": 0.0021,
    "budget_scaling_null": 0.002,
    "coordination": 0.3111,
    "coordination_null_std": 0.0071,
    "coordination_z": 43.8,
    "control_reach": 0.5,
    "control": "law",
}
NO_SKIPPED = pd.DataFrame({"name": [], "reason": []}, dtype=str)


def table(*changes, without=()):
    frame = pd.DataFrame([ROW | change for change in changes]).drop(columns=list(without))
    return table_by_role(summarise(frame, NO_SKIPPED)).splitlines()


def lines(*changes, without=()):
    """The heading's first line, the rule, the rows, the notes."""
    found = table(*changes, without=without)
    return [found[0], *found[found.index("-" * len(found[0])) :]]


def columns(*changes, without=()):
    """Heading and cell of each column, by where they end; of the first row."""
    found = table(*changes, without=without)
    rule = found.index("-" * len(found[0]))
    parts = [{cell.end(): cell[0] for cell in re.finditer(r"\S+( \S+)*", line)} for line in found[: rule + 2]]
    texts = parts.pop()
    headings = [" ".join(line[end] for line in parts[:rule] if end in line) for end in texts]
    return list(zip(headings[1:], list(texts.values())[1:], strict=True))  # roles begin where their heading does


def test_each_headline_number_stands_beside_its_control():
    header, rule, _, note = lines({})
    assert header.split("  ")[0] == "role" and set(rule) == {"-"}
    assert columns({}) == [
        ("matrices", "1"),
        ("drift", "0.0123"),
        ("alpha", "1.00021"),
        ("control (law)", "1.00008 ± 0.0004"),
        ("ratio_cv", "0.0345"),
        ("control (law)", "0.0321"),
        ("nf", "0.0567"),
        ("control (law)", "0.0555"),
        ("scaling share", "0.21%"),
        ("control (counted)", "0.20%"),
        ("coordination", "+0.311"),
        ("control (counted)", "0 ± 0.007"),
        ("named", "1"),
    ]
    assert note.startswith("Medians over a role's matrices; control: what a random change")


def controls(*changes):
    """Heading -> (the control's heading, its cell in the first row)."""
    found = columns(*changes)
    return {name: control for (name, _), control in itertools.pairwise(found)}


@pytest.mark.parametrize("control", ["first order", "out of range", "closed form", "sampled"])
def test_runs_without_a_law_have_controls_of_first_order(control):
    """Those that were written before there was one."""
    words = {name: heading for name, (heading, _) in controls({"control": control}).items()}
    assert words["nf"] == words["ratio_cv"] == "control (first order)"
    assert words["alpha"] == "control (closed form)" and words["coordination"] == "control (counted)"


def test_where_changes_were_drawn_the_table_shows_what_the_reading_judges_by():
    drawn = {"control": "draws", "nf_spectrum": 0.0612, "nf_spectrum_std": 0.0031}
    shown = controls(drawn)
    assert shown["nf"] == ("control (draws)", "0.0612 ± 0.003")
    assert shown["alpha"] == ("control (law)", "1.00008 ± 0.0004")


def test_a_single_draw_has_no_spread_and_the_law_is_shown():
    drawn = {"control": "draws", "nf_spectrum": 0.0612, "nf_spectrum_std": np.nan}
    assert controls(drawn)["nf"] == ("control (law)", "0.0555")


def test_columns_are_aligned():
    header, rule, *rows = lines({"role": "embed", "alpha": 0.9}, {"role": "q"}, {"role": "o", "nf": 123.0})[:5]
    assert len({len(line) for line in (header, rule, *rows)}) == 1


def test_headings_of_a_wide_table_take_two_lines():
    wide, narrow = table({}), table({}, without=[c for c in ROW if c.startswith(("alpha", "ratio", "nf"))])
    assert wide[1].split() == ["(law)", "(law)", "(law)", "share", "(counted)", "(counted)"]
    assert "control (counted)" in narrow[0] and set(narrow[1]) == {"-"} and len(narrow[1]) <= 120


def test_roles_come_in_display_order_with_medians():
    rows = lines(
        {"role": "o", "alpha": 1.5},
        {"role": "q", "alpha": 1.0},
        {"role": "q", "alpha": 1.1},
        {"role": "q", "alpha": 3.0},
    )[2:4]
    assert [row.split()[:2] for row in rows] == [["q", "3"], ["o", "1"]]
    assert rows[0].split()[3] == "1.10000" and rows[1].split()[3] == "1.50000"


def test_what_was_not_measured_has_no_column():
    assert lines({}, without=[c for c in ROW if c.startswith(("alpha", "ratio", "nf", "budget", "coord"))])[
        0
    ].split() == [
        "role",
        "matrices",
        "drift",
        "named",
    ]
    assert "drift" not in lines({}, without=["drift"])[0]
    nothing = [c for c in ROW if c.startswith(("drift", "alpha", "ratio", "nf", "budget", "coord"))]
    assert lines({}, without=nothing)[2].split() == ["q", "1", "-"]


def test_a_number_that_no_matrix_has_is_a_dash():
    row = lines({"coordination": np.nan, "coordination_null_std": np.nan, "nf": np.nan})[2]
    assert row.split()[-3:] == ["-", "0", "-"] and " - " in row


def test_nan_does_not_spoil_the_median_of_the_others():
    row = lines({"alpha": np.nan}, {"alpha": 1.25})[2]
    assert row.split()[:2] == ["q", "2"] and "1.25000" in row


def test_matrices_beyond_their_control_are_counted():
    quiet = {"coordination": 0.01, "coordination_z": 1.4}
    rows = lines({}, {} | quiet, {"role": "o"} | quiet)[2:4]
    assert [row.split()[-1] for row in rows] == ["1", "-"]


def test_a_control_that_is_rough_for_some_is_marked_and_explained():
    rough = lines({"control": "out of range"}, {}, {"role": "o"})
    assert "~0.0321" in rough[2] and "~0.0555" in rough[2] and "~1.0" not in rough[2]
    assert "~" not in rough[3]
    assert rough[-1].startswith("~ rough for some of them: condition number times drift above 1")
    assert not any(line.startswith("~") for line in lines({}))


def test_no_matrices_at_all():
    frame = pd.DataFrame([ROW]).iloc[:0]
    assert table_by_role(summarise(frame, NO_SKIPPED)).splitlines()[0].split() == ["role", "matrices", "named"]
