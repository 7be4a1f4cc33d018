"""The table of a history on the terminal: for each role a line for each step."""

import pandas as pd

from polarax.findings.effects import column
from polarax.report.plots.rows import changed_rows, known_roles
from polarax.report.table import align_rows

_MOST_STEPS = 12  # lines for a role; matrices.csv has all steps

# Heading, column, how its value is written.
_COLUMNS = (
    ("drift", "drift", "{:.4f}"),
    ("alpha", "alpha", "{:.5f}"),
    ("control", "alpha_null", "{:.5f}"),
    ("nf", "nf", "{:.3g}"),
    ("control", "nf_null", "{:.3g}"),
    ("scaling share", "budget_scaling", "{:.2%}"),
    ("control", "budget_scaling_null", "{:.2%}"),
    ("coordination", "coordination", "{:+.3f}"),
    ("overlap, left", "overlap_left", "{:.4f}"),
    ("overlap, right", "overlap_right", "{:.4f}"),
)


def table_of_steps(frame: pd.DataFrame) -> str:
    """Medians over the matrices of a role at each step, each beside the median of its control.

    Args:
        frame: `History.frame()`.
    """
    rows, notes = rows_of_steps(frame)
    return align_rows(rows, notes, text_columns=1)


def rows_of_steps(frame: pd.DataFrame) -> tuple[list[list[str]], list[str]]:
    """The cells of `table_of_steps`, headings first, and the notes below it."""
    shown = [one for one in _COLUMNS if one[1] in frame]
    steps = sorted(frame["step"].unique())
    chosen = spread_evenly(steps, _MOST_STEPS)
    lines = [["role", "step", "matrices", *(heading for heading, *_ in shown)]]
    for role in (*known_roles(frame), *(["other"] if (frame["role"] == "other").any() else [])):
        for step in chosen:
            rows = frame[(frame["role"] == role) & (frame["step"] == step)]
            if len(rows):
                medians = (column(changed_rows(rows), name).median() for _, name, _ in shown)
                cells = [form.format(m) if pd.notna(m) else "-" for m, (*_, form) in zip(medians, shown, strict=True)]
                lines.append([role, str(step), str(len(rows)), *cells])
    notes = ["Medians over a role's matrices; control: what a random change of the same size would show."]
    if len(chosen) < len(steps):
        notes.append(f"{len(chosen)} of {len(steps)} steps; matrices.csv has all.")
    return lines, notes


def spread_evenly(items: list, most: int) -> list:
    """At most so many of the items, the first and the last among them, spread evenly."""
    if len(items) <= most:
        return list(items)
    return [items[round(place * (len(items) - 1) / (most - 1))] for place in range(most)]
