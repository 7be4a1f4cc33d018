"""What an edit did, as tables: a row for each matrix and strength, and medians by role for the terminal."""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from polarax.loaders import ROLES
from polarax.report.table import align_rows

COLUMNS = (
    *("name", "layer", "role", "expert", "rows", "cols", "status", "strength"),
    *("drift_base", "asked_drift_base", "drift_post", "asked_drift_post"),
    *("alpha_base", "alpha_post", "nf_base", "nf_post"),
)
"""Columns of `Edited.frame`: drifts are those of what was written, "asked" before it was rounded to the stored type."""

_SHOWN = {
    "drift_base": "drift from base",
    "asked_drift_base": "asked",
    "drift_post": "from post",
    "asked_drift_post": "asked",
    "alpha_base": "alpha to base",
    "alpha_post": "to post",
    "nf_base": "nf to base",
    "nf_post": "to post",
}
_NOTE = "Medians over a role's matrices; asked: before rounding to the stored type, as are alpha and nf."


def table_of_edit(rows: Sequence[Mapping[str, Any]], *, alone: bool) -> str:
    """The table by role and strength.

    Args:
        rows: Of all matrices.
        alone: Whether there is one model, of which "base" and "post" say the same.
    """
    shown = {name: text for name, text in _SHOWN.items() if not alone or name.endswith("_base")}
    shown = {name: text for name, text in shown.items() if any(_is_number(row.get(name)) for row in rows)}
    if alone:
        shown = {name: text.replace("from base", "").replace(" to base", "").strip() for name, text in shown.items()}
    strengths = list(dict.fromkeys(row["strength"] for row in rows))
    lines = [["role", "strength", "matrices", *shown.values()]]
    for role in sorted({row["role"] for row in rows}, key=ROLES.index):
        for strength in strengths:
            group = [row for row in rows if row["role"] == role and row["strength"] == strength]
            lines.append([role, f"{strength:g}", str(len(group)), *(_median(group, name) for name in shown)])
    left = {row["name"]: row["status"] for row in rows if row["status"]}
    notes = [_NOTE, *(f"{name}: {status}." for name, status in left.items())]
    return align_rows(lines, notes)


def _median(rows, name):
    numbers = [row[name] for row in rows if _is_number(row.get(name))]
    return f"{statistics.median(numbers):.4g}" if numbers else "-"


def _is_number(value):
    return isinstance(value, (int, float)) and math.isfinite(value)
