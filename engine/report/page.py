"""report.html: a run as one self-contained page, for a person who would rather look than read.

Names, dtypes and reasons come from checkpoints and are untrusted: the template escapes every text, data goes to the
script as escaped JSON, and the page forbids itself (by its content security policy) the network and any script but its
own.
"""

import base64
import hashlib
import importlib.resources
import pathlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd

from polarax.errors import UsageError
from polarax.findings.chosen import choose_matrices
from polarax.findings.reading import matrix_label
from polarax.report.plots import plot_cosines, plot_rotation_maps, plot_spectra
from polarax.report.plots.files import draw_plots
from polarax.report.plots.style import printable, to_svg
from polarax.report.table import rows_by_role
from polarax.report.table_data import script_json, table_data
from polarax.results.run_directory import REPORT_FILE, replacing, writing

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from polarax.results.run import Run

_SKIPPED_ROWS = 1000  # listed on the page; skipped.csv has them all

# Headline numbers of one matrix: what it is called, its column, that of its control.
_FACTS = (
    ("drift", "drift", None),
    ("alpha", "alpha", "alpha_null"),
    ("ratio_cv", "ratio_cv", "ratio_cv_null"),
    ("nf", "nf", "nf_null"),
    ("coordination", "coordination", None),
    ("overlap, left", "overlap_left", None),
    ("overlap, right", "overlap_right", None),
    ("fit error", "fit_error", "fit_error_null"),
    ("stable rank of the change", "stable_rank_change", None),
    ("rounding share", "rounding_share", None),
)


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
        figures: What `polarax.report.plots.draw_plots` returned, if it was called already.

    Returns:
        The path.

    Raises:
        UsageError: jinja2 or matplotlib is not installed, or a name is not in the run.
        RunError: The file cannot be written.
    """
    path = run.path / REPORT_FILE if path is None else path
    html = render_report(run, matrices=matrices, figures=figures)
    with writing(path), replacing(path, mode="w", encoding="utf-8", errors="replace") as file:
        file.write(html)
    return path


def render_report(run: "Run", *, matrices: Sequence[str] = (), figures: "Mapping[str, Figure] | None" = None) -> str:
    """The page's text. Arguments and errors as for `write_report`."""
    frame, skipped, summary = run.frame(), run.skipped(), run.summary()
    figures = draw_plots(run) if figures is None else figures
    rows, notes = rows_by_role(summary)
    return render_template(
        "report.html",
        title=f"{last_part(run.description, 'base')} → {last_part(run.description, 'post')}",
        run=run.description,
        finished=run.finished,
        measured=len(frame),
        summary=summary,
        by_role=rows,
        notes=notes,
        plots={name: Drawing(to_svg(figure, name, themed=True)) for name, figure in figures.items()},
        only_other=bool(len(frame)) and bool((frame["role"] == "other").all()),
        matrices=[
            _matrix(run, row, number) for number, row in enumerate(_rows_of(frame, choose_matrices(frame, matrices)))
        ],
        skipped=skipped.head(_SKIPPED_ROWS).to_dict("records"),
        skipped_count=len(skipped),
        facts=flat(run.description),
        table=table_data(frame),
        grouped_by="",
    )


class Drawing(str):
    """SVG that was made here: it may stand in a page as it is."""

    def __html__(self) -> str:
        return self


def render_template(name: str, *, table: Mapping[str, Any], **content: Any) -> str:
    """A page of the report: a template, which escapes every text, with the style and the script that all pages have.

    Args:
        name: The template.
        table: What `table_data` returned.
        content: What the template asks for.

    Raises:
        UsageError: jinja2 is not installed.
    """
    try:
        import jinja2
    except ImportError as error:
        raise UsageError("The report needs jinja2: pip install 'polarax[report]'.") from error
    folder = importlib.resources.files("polarax.report") / "templates"
    files = {file.name: file.read_text(encoding="utf-8") for file in folder.iterdir() if file.is_file()}
    environment = jinja2.Environment(
        loader=jinja2.DictLoader(files),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(name).render(
        **content,
        table=Drawing(script_json(table)),
        style=Drawing(files["report.css"]),
        script=Drawing(files["report.js"]),
        script_hash=base64.b64encode(hashlib.sha256(files["report.js"].encode()).digest()).decode(),
    )


def last_part(description: Mapping, side: str) -> str:
    """The end of a location: what a person calls the checkpoint."""
    location = str((description.get(side) or {}).get("location") or side)
    folder = location.partition("?***")[0].rstrip("/")
    return printable(folder.rpartition("/")[2] or location)


def _rows_of(frame, names):
    by_name = frame.drop_duplicates("name").set_index("name", drop=False)
    return [by_name.loc[name] for name in names]


def _matrix(run, row, number):
    """What the page shows of one matrix."""
    drawn = [draw(run, row["name"]) for draw in (plot_spectra, plot_rotation_maps, plot_cosines)]
    label = matrix_label(row)
    return {
        "name": row["name"],
        "label": printable(row["name"] if label == row["name"] else f"{label}: {row['name']}"),
        "status": row["status"],
        "shape": f"{row['rows']} x {row['cols']}",
        "facts": [
            (title, _number(row[column]), _number(row[control]) if control in row else None)
            for title, column, control in _FACTS
            if column in row
        ],
        "plots": [
            Drawing(to_svg(figure, f"matrix-{number}-{place}", themed=True))
            for place, figure in enumerate(drawn)
            if figure is not None
        ],
    }


def _number(value):
    return "–" if pd.isna(value) else f"{value:.5f}" if 0.5 < value < 2 else f"{value:.4g}"


def flat(content: Any, name: str = "") -> list[tuple[str, str]]:
    """(dotted name, value) of every leaf of run.json."""
    if isinstance(content, Mapping):
        return [leaf for key, value in content.items() for leaf in flat(value, f"{name}.{key}" if name else str(key))]
    if isinstance(content, list):
        content = ", ".join(map(str, content))
    return [(name, "–" if content in (None, "") else str(content))]
