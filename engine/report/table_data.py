"""The table of all matrices as compact JSON, for the script of the report's page."""

import json
import re
from typing import Any

import pandas as pd

from polarax.findings.effects import mostly_rounding
from polarax.findings.first_look import is_lost
from polarax.loaders import short_name
from polarax.metrics import BETWEEN, CERTIFICATE, GROUPS, IDENTITY_COLUMNS, Shown, shown_in
from polarax.metrics.look import LOOK
from polarax.metrics.status import Status, is_out_of_range
from polarax.results.files import jsonable

_LABELS = ("post", "other", "step")  # of several posts or steps, in front

# Cells that a page takes with all columns; beyond, it has the headlines alone.
_ALL_COLUMNS_CELLS = 120_000
# Rows that a page takes at all; beyond, it has those with the largest drift.
MOST_ROWS = 20_000
_LONGEST_NAME = 300  # characters of a name that the page has; matrices.csv has all
_DIGITS = 5  # significant; of numbers about 1, such as alpha, what matters is their distance from it
_DIGITS_ABOUT_ONE = 7


def table_data(frame: pd.DataFrame) -> dict[str, Any]:
    """What the script draws the table from; JSON-ready.

    Args:
        frame: `Run.frame()`.

    Returns:
        columns: key, group, meaning and whether it is text; values: for each column, in order, one per row (names of
        either side are [pattern, numbers...]); patterns: names with a hole for each number in them; flags: for each row
        what to beware of; matrices: how many the run has; rows left out are those with the smallest drift.
    """
    total = len(frame)
    if total > MOST_ROWS:
        largest = frame["drift"].nlargest(MOST_ROWS).index if "drift" in frame else frame.index[:MOST_ROWS]
        frame = frame.loc[sorted(largest)]
    shown, headlines = list(frame.columns), _headlines(frame)
    if frame.size > _ALL_COLUMNS_CELLS:
        shown = [column for column in shown if column in headlines]
    groups = [*GROUPS.values(), BETWEEN, CERTIFICATE]
    group_of = {column: group.name for group in groups for column in group}
    meaning = {column: text for group in groups for column, text in group.columns.items()}
    patterns: dict[str, int] = {}
    columns, values = [], []
    for column in shown:
        texts = pd.api.types.is_string_dtype(frame[column]) or frame[column].dtype == object
        group = "matrix" if column in (*_LABELS, *IDENTITY_COLUMNS, LOOK) else group_of.get(column, "controls")
        columns.append(
            {
                "key": column,
                "group": group,
                "headline": column in headlines and bool(frame[column].notna().any()),
                "meaning": meaning.get(column, ""),
                "text": bool(texts),
            }
        )
        cells = frame[column].tolist()
        if column == "name_post":  # nothing where it is the base's
            cells = [other if other != name else "" for other, name in zip(cells, frame["name"], strict=True)]
        is_name = column in ("name", "name_post")
        values.append([_pattern(name, patterns) for name in cells] if is_name else list(map(_short, cells)))
    return {
        "columns": columns,
        "values": values,
        "patterns": list(patterns),
        "flags": _flags(frame),
        "matrices": total,
    }


def _headlines(frame: pd.DataFrame) -> set[str]:
    """Columns shown first; the others are a choice away."""
    of_matrix = {*_LABELS, "name", "layer", "role", "expert", "status"}
    if "matched_by" in frame and not frame["matched_by"].isin(["name", ""]).all():
        of_matrix |= {"name_post", "matched_by"}
    shown = shown_in(Shown.PAGE, measured=frame)
    if LOOK in frame:
        of_matrix |= {LOOK, "converged"}
        shown = [*shown, *shown_in(Shown.FIRST_LOOK)]
    return of_matrix | {column for metric in shown for column in metric.page_columns}


def script_json(content: Any) -> str:
    """JSON that may stand in a script element: nothing in it ends the element or opens another."""
    text = json.dumps(jsonable(content), separators=(",", ":"), allow_nan=False)
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def _pattern(name, patterns):
    """[number of the pattern, what fills its holes...]; names of a model repeat themselves up to numbers."""
    name = name if len(name) <= _LONGEST_NAME else short_name(name, _LONGEST_NAME)
    if "\0" in name:  # what marks a hole
        return [patterns.setdefault(name.replace("\0", "\N{REPLACEMENT CHARACTER}"), len(patterns))]
    pieces = re.split(r"(?<![0-9])(0|[1-9][0-9]{0,8})(?![0-9])", name)
    pattern = "\0".join(pieces[::2])
    return [patterns.setdefault(pattern, len(patterns)), *map(int, pieces[1::2])]


def _short(value):
    if value is pd.NA:
        return None
    if not isinstance(value, float):
        return value
    return float(f"{value:.{_DIGITS_ABOUT_ONE if 0.5 < value < 2 else _DIGITS}g}")


def _flags(frame):
    """One string for each row: what its numbers are worth, "" if nothing speaks against them."""
    flags = []
    relations = frame["relation"] if "relation" in frame else [""] * len(frame)
    worth = frame["status"], relations, is_out_of_range(frame), mostly_rounding(frame), is_lost(frame)
    for text, relation, is_rough, is_rounded, lost in zip(*worth, strict=True):
        beware = [] if Status.of_message(text) is Status.OK else [text]
        beware += [relation] * bool(relation)
        beware += ["not converged"] * bool(lost)
        beware += ["control rough"] * bool(is_rough) + ["rounding"] * bool(is_rounded)
        flags.append(", ".join(beware))
    return flags
