"""report.html of a run: base against one post."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import pandas as pd

from polarax.findings.chosen import choose_matrices
from polarax.findings.words import matrix_label
from polarax.loaders import short_name
from polarax.metrics import Shown, shown_in
from polarax.metrics.look import FIRST, LOOK
from polarax.metrics.status import Status
from polarax.report.page import (
    NOTHING_YET,
    Page,
    Section,
    closer_of,
    last_part,
    pictures_section,
    reading_section,
    render_page,
    skipped_section,
    svg_of,
    write_page,
)
from polarax.report.plots import plot_cosines, plot_rotation_maps, plot_spectra
from polarax.report.plots.gallery import draw_plots, run_gallery
from polarax.report.plots.style import printable
from polarax.report.table import rows_by_role

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from polarax import Run

_ONE_BY_ONE = (
    "Those farthest from their controls, then one of each role; polarax report --matrix=NAME draws others. Spectra on "
    "logarithmic axes, their ratio with the band of the control. |Q_U| and |Q_V|: how much of each post vector "
    "(column) lies along each base vector (row), a diagonal where nothing turned; |Q_U - Q_V|: how differently left "
    "and right turned, which is what nf sums."
)

_LONGEST_NAME = 300  # characters of a name above its pictures


def write_report(
    run: "Run",
    path: pathlib.Path | None = None,
    *,
    matrices: Sequence[str] = (),
    figures: "Mapping[str, Figure] | None" = None,
) -> pathlib.Path:
    """Writes the page of a run, finished or not.

    Args:
        run: The run.
        path: The file; report.html in the run's folder by default.
        matrices: Names of the matrices that are drawn one by one; by default those that stand out, and one of each
            role.
        figures: What `draw_plots` returned, if it was called already.

    Returns:
        The path.

    Raises:
        UsageError: jinja2 or matplotlib is not installed, or a name is not in the run.
        RunError: The file cannot be written.
    """
    return write_page(run_page(run, matrices, figures), run.path if path is None else path)


def render_report(run: "Run", *, matrices: Sequence[str] = (), figures: "Mapping[str, Figure] | None" = None) -> str:
    """The page's text. Arguments and errors as for `write_report`."""
    return render_page(run_page(run, matrices, figures))


def run_page(run: "Run", matrices: Sequence[str] = (), figures: "Mapping[str, Figure] | None" = None) -> Page:
    """What the page says. Arguments and errors as for `write_report`."""
    frame, skipped, summary = run.frame(), run.skipped(), run.summary()
    figures = draw_plots(run) if figures is None else figures
    closer = closer_of(run)
    names = choose_matrices(frame, matrices)
    if closer is not None and not matrices:
        names = list(dict.fromkeys([*closer.names, *names]))[: max(len(names), len(closer.names))]
    rows, notes = rows_by_role(summary)
    if len(frame) and (frame["role"] == "other").all():
        notes.append(
            "No name in this run is known to a table of names, so nothing is arranged by role and layer below; "
            "--role_map takes a table of your own."
        )
    sections = [
        reading_section(
            summary["reading"],
            rows,
            notes,
            thresholds=summary["thresholds"],
            closer=closer,
            empty="Nothing was measured that a sentence could rest on." if len(frame) else NOTHING_YET,
        )
    ]
    for part in run_gallery():
        sections += pictures_section(part.id, part.title, part.link, part.pictures, figures)
    if names:
        by_name = frame.drop_duplicates("name").set_index("name", drop=False)
        drawn = [_matrix(run, by_name.loc[name], number) for number, name in enumerate(names)]
        content = {"matrices": drawn, "note": _ONE_BY_ONE}
        sections.append(Section("matrix-section", "Matrices one by one", "One by one", "matrices.html", content))
    sections.append(skipped_section(skipped, reasons=summary["skipped"]))
    return Page(
        title=f"{last_part(run.description, 'base')} → {last_part(run.description, 'post')}",
        under=_counted(run, frame, summary, len(skipped)),
        account=run.account(),
        finished=run.finished,
        sections=sections,
        frame=frame,
        grouped_by="",
        description=run.description,
    )


def _counted(run, frame, summary, skipped):
    of_all = "" if run.finished else f" of {run.description.get('matrices', '?')}"
    kinds = "".join(f", {count} {kind}" for kind, count in summary["status"].items() if kind != Status.OK.label)
    return f"{len(frame)}{of_all} matrices{kinds}; {skipped} tensors skipped."


def _matrix(run, row, number):
    """What the page shows of one matrix."""
    drawn = [draw(run, row["name"]) for draw in (plot_spectra, plot_rotation_maps, plot_cosines)]
    label = matrix_label(row)
    return {
        "name": short_name(row["name"], _LONGEST_NAME) if len(row["name"]) > _LONGEST_NAME else row["name"],
        "label": printable(row["name"] if label == row["name"] else f"{label}: {row['name']}"),
        "status": row["status"],
        "shape": f"{row['rows']} x {row['cols']}",
        "facts": [_fact(row, metric) for metric in shown_in(Shown.FACTS, measured=row) if _has(row, metric)],
        "plots": [
            svg_of(figure, f"matrix-{number}-{place}") for place, figure in enumerate(drawn) if figure is not None
        ],
    }


def _has(row, metric):
    """Whether it was measured; of a first look beside full analyses less than there are columns."""
    return metric.name in row and (row.get(LOOK) != FIRST or metric.quick)


def _fact(row, metric):
    """The name of a number, the number, and its control if that has a column."""
    control = _number(row[metric.null]) if metric.null in row else None
    return metric.heading or metric.name, _number(row[metric.name]), control


def _number(value):
    return "–" if pd.isna(value) else f"{value:.5f}" if 0.5 < value < 2 else f"{value:.4g}"
