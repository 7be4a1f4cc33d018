"""The table by role on the terminal: each headline number beside its control."""

from collections.abc import Mapping, Sequence

# (heading, metric, how its value is written, control metric, how that is written)
_HEADLINES = (
    ("alpha", "alpha", "{:.5f}", "alpha_null", "alpha_null_std"),
    ("ratio_cv", "ratio_cv", "{:.3g}", "ratio_cv_null", None),
    ("nf", "nf", "{:.3g}", "nf_null", None),
    ("scaling share", "budget_scaling", "{:.2%}", "budget_scaling_null", None),
    ("coordination", "coordination", "{:+.3f}", None, "coordination_null_std"),
)

# Metrics whose closed-form control is rough where condition number times drift passes 1.
_FIRST_ORDER = ("ratio_cv", "nf")


def table_by_role(summary: Mapping) -> str:
    """The table of a summary: medians over the matrices of a role, each beside the median of its control.

    Args:
        summary: `Run.summary()`.
    """
    return align_rows(*rows_by_role(summary))


def align_rows(rows: Sequence[Sequence[str]], notes: Sequence[str], text_columns: int = 1) -> str:
    """A table for the terminal: the heading first, the first columns to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [_line(row, widths, text_columns) for row in rows]
    lines.insert(1, "-" * max(map(len, lines)))
    return "\n".join([*lines, *notes])


def rows_by_role(summary: Mapping) -> tuple[list[list[str]], list[str]]:
    """The cells of `table_by_role`, headings first, and the notes below it."""
    roles = summary["roles"]
    shown = [headline for headline in _HEADLINES if any(headline[1] in role for role in roles.values())]
    has_drift = any("drift" in role for role in roles.values())
    header = ["role", "matrices", *(["drift"] if has_drift else [])]
    for heading, *_ in shown:
        header += [heading, "control"]
    header.append("named")
    rows = [header]
    rough = False
    for name, role in roles.items():
        row = [name, str(role["matrices"])]
        if has_drift:
            row.append(_number(role, "drift", "{:.4f}"))
        for _, metric, form, control, spread in shown:
            mark = "~" if metric in _FIRST_ORDER and role["out_of_range"] else ""
            rough = rough or bool(mark)
            row += [_number(role, metric, form), mark + _control(role, form, control, spread)]
        rows.append([*row, str(role["named"] or "-")])
    notes = [
        "Medians over a role's matrices; control: what a random change of the same size would show; named: matrices "
        "beyond it."
    ]
    if rough:
        notes.append("~ rough for some of them: condition number times drift above 1 (column control_reach).")
    return rows, notes


def _control(role, form, control, spread):
    value = _number(role, control, form) if control else "0"
    deviation = _number(role, spread, "{:.1g}") if spread else "-"
    return f"{value} ± {deviation}" if deviation != "-" else value


def _number(role, metric, form):
    found = role.get(metric)
    return form.format(found["median"]) if found and found["count"] else "-"


def _line(cells, widths, text_columns):
    aligned = (
        cell.ljust(width) if place < text_columns else cell.rjust(width)
        for place, (cell, width) in enumerate(zip(cells, widths, strict=True))
    )
    return "  ".join(aligned).rstrip()
