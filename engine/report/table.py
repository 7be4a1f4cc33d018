"""The table by role: each headline number beside its control."""

from collections.abc import Mapping, Sequence, Set

from polarax.metrics import ControlKind, Metric, Shown, shown_in
from polarax.metrics.status import JudgedBy

MEDIANS = "Medians over a role's matrices; control: what a random change of the same size would show"
# What stands behind each control is a word: counted, law (ControlKind), or draws; in old runs first order.
_DRAWS = "draws"
_OF_OLD = "closed form"  # of runs that were written before there was a law, where it is not of first order
_BY_LAW = {JudgedBy.LAW.value, JudgedBy.DRAWS.value}
_BEFORE_IT = {one.value for one in JudgedBy if one is not JudgedBy.NONE} - _BY_LAW
_WIDE = 120  # columns of a terminal: headings of a wider table take two lines


def table_by_role(summary: Mapping) -> str:
    """The table of a summary: medians over the matrices of a role, each beside the median of its control.

    Args:
        summary: `Run.summary()`.
    """
    return align_rows(*rows_by_role(summary))


def align_rows(rows: Sequence[Sequence[str]], notes: Sequence[str], text_columns: int = 1) -> str:
    """A table for the terminal: the heading first, the first columns to the left, the others to the right."""
    heading, *cells = rows
    lines = _aligned([heading], cells, text_columns)
    if max(map(len, lines)) > _WIDE:
        lines = _aligned(list(zip(*map(_in_two_lines, heading), strict=True)), cells, text_columns)
    return "\n".join([*lines, *notes])


def rows_by_role(summary: Mapping) -> tuple[list[list[str]], list[str]]:
    """The cells of `table_by_role`, headings first, and the notes below it."""
    roles = summary["roles"]
    measured = {name for role in roles.values() for name in role}
    shown = [metric for metric in _shown(summary, measured) if metric.name in measured]
    judged_by = set(summary["controls"])
    drawn = {metric.name for metric in shown if _has_own(metric, roles.values())} if by_draws(judged_by) else set()
    rows = [["role", "matrices", *(text for m in shown for text in headings(m, judged_by, m.name in drawn)), "named"]]
    rough = False
    for name, role in roles.items():
        cells = [name, str(role["matrices"])]
        for metric in shown:
            cells.append(_number(role, metric.name, metric.format))
            if metric.control is not None:
                sampled = metric.name in drawn
                mark = "~" if metric.control.limited and role["out_of_range"] and not sampled else ""
                rough = rough or bool(mark)
                cells.append(mark + _control(role, metric, sampled))
        rows.append([*cells, str(role["named"] or "-")])
    notes = [f"{MEDIANS}; named: matrices beyond it."]
    if rough:
        notes.append("~ rough for some of them: condition number times drift above 1 (column control_reach).")
    return rows, notes


def by_draws(judged_by: Set[str]) -> bool:
    """Whether the reading judges by draws of the change's own spectrum, from the texts of column `control`."""
    return bool({JudgedBy.DRAWS.value, JudgedBy.SAMPLED.value} & set(judged_by))


def _has_own(metric, roles):
    """Whether the control of the change's own spectrum is known, for all matrices of any of the roles."""
    return any(_is_of_all(role, metric, f"{metric.name}_spectrum_std") for role in roles)


def _is_of_all(role, metric, column):
    """Whether every matrix has it that has the metric: else their medians are not of the same matrices."""
    count = role.get(column, {}).get("count", 0)
    return count > 0 and count >= role.get(metric.name, {}).get("count", 0)


def _shown(summary, measured):
    """The metrics of the table; where some matrices had a first look alone, those that all have."""
    if not summary.get("first_look", {}).get("matrices"):
        return shown_in(Shown.ROLES, measured=measured)
    return [metric for metric in shown_in(Shown.ROLES) if metric.quick] + shown_in(Shown.FIRST_LOOK)


def headings(metric: Metric, judged_by: Set[str], drawn: bool = False) -> list[str]:
    """The headings of a metric and, if it has one, its control.

    Args:
        metric: Its record.
        judged_by: What rows have in column `control`.
        drawn: Whether what is shown was drawn.
    """
    heading = metric.heading or metric.name
    return [heading] if metric.control is None else [heading, f"control ({_word(metric.control, judged_by, drawn)})"]


def _word(control, judged_by, drawn):
    """What a control is, in a word."""
    if drawn:
        return _DRAWS
    if control.kind is ControlKind.LAW and not judged_by & _BY_LAW and judged_by & _BEFORE_IT:
        return ControlKind.FIRST_ORDER.value if control.limited else _OF_OLD
    return control.kind.value


def _control(role, metric, drawn):
    own = _has_own(metric, [role])  # then it is what the reading judges by
    mean, spread = (f"{metric.name}_spectrum", f"{metric.name}_spectrum_std") if own else (metric.null, metric.null_std)
    if metric.null is None and not drawn:
        value = "0"
    else:
        value = _number(role, mean, metric.format) if mean is not None and _is_of_all(role, metric, mean) else "-"
    if not (metric.control.std_shown or drawn):
        spread = None
    deviation = _number(role, spread, "{:.1g}") if spread else "-"
    return f"{value} ± {deviation}" if deviation != "-" else value


def _number(role, column, form):
    described = role.get(column)
    return form.format(described["median"]) if described and described["count"] else "-"


def _aligned(heading, rows, text_columns):
    """The lines of a table whose heading has one line or several, with a rule below it."""
    widths = [max(map(len, column)) for column in zip(*heading, *rows, strict=True)]
    lines = [_line(cells, widths, text_columns) for cells in (*heading, *rows)]
    lines.insert(len(heading), "-" * max(map(len, lines)))
    return lines


def _in_two_lines(heading):
    """A heading broken where it gets narrowest."""
    words = heading.split(" ")
    halves = [(" ".join(words[:place]), " ".join(words[place:])) for place in range(1, len(words) + 1)]
    return min(halves, key=lambda both: max(map(len, both)))


def _line(cells, widths, text_columns):
    aligned = (
        cell.ljust(width) if place < text_columns else cell.rjust(width)
        for place, (cell, width) in enumerate(zip(cells, widths, strict=True))
    )
    return "  ".join(aligned).rstrip()
