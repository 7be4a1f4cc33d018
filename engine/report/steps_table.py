"""The table of a history: for each role a line for each step."""

import pandas as pd

from polarax.findings.rows import changed_rows, known_roles
from polarax.metrics import Shown, shown_in
from polarax.metrics.tables import column
from polarax.report.table import MEDIANS, align_rows, by_draws, headings

_MOST_STEPS = 12  # lines for a role; matrices.csv has all steps


def table_of_steps(frame: pd.DataFrame) -> str:
    """Medians over the matrices of a role at each step, each beside the median of its control.

    Args:
        frame: `History.frame()`.
    """
    return align_rows(*rows_of_steps(frame))


def rows_of_steps(frame: pd.DataFrame) -> tuple[list[list[str]], list[str]]:
    """The cells of `table_of_steps`, headings first, and the notes below it."""
    shown = []  # heading, column, how its value is written
    judged_by = set(frame["control"])
    for metric in shown_in(Shown.STEPS, measured=frame):
        if metric.name in frame:
            own = f"{metric.name}_spectrum_std"
            drawn = by_draws(judged_by) and own in frame and bool(frame[own].notna().any())
            columns = [metric.name, f"{metric.name}_spectrum" if drawn else metric.null]
            for heading, name in zip(headings(metric, judged_by, drawn), columns, strict=False):
                if name is not None:  # a control that is 0 needs no column
                    shown.append((heading, name, metric.format))
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
    notes = [f"{MEDIANS}."]
    if len(chosen) < len(steps):
        notes.append(f"{len(chosen)} of {len(steps)} steps; matrices.csv has all.")
    return lines, notes


def spread_evenly(items: list, most: int) -> list:
    """At most so many of the items, the first and the last among them, spread evenly."""
    if len(items) <= most:
        return list(items)
    return [items[round(place * (len(items) - 1) / (most - 1))] for place in range(most)]
