"""report.html of a history: over the steps, and step by step with a slider, on one self-contained page."""

import pathlib
from typing import TYPE_CHECKING

from polarax.report.history.plots import draw_history_plots
from polarax.report.history.table import spread_evenly
from polarax.report.page import Drawing, flat, last_part, render_template
from polarax.report.plots import plot_coordination, plot_nf
from polarax.report.plots.style import to_svg
from polarax.report.table import rows_by_role
from polarax.report.table_data import table_data
from polarax.results.run_directory import REPORT_FILE, replacing, writing

if TYPE_CHECKING:
    from polarax.results.runs import History

_SKIPPED_ROWS = 1000  # listed on the page; skipped.csv has them all
_DRAWN_STEPS = 24  # that have pictures of their own; more would make the page heavy


def write_history_report(history: "History") -> pathlib.Path:
    """Writes the page of a history, finished or not, into its folder; returns its path.

    Raises:
        UsageError: jinja2 or matplotlib is not installed.
        RunError: The file cannot be written.
    """
    path = history.path / REPORT_FILE
    html = render_history_report(history)
    with writing(path), replacing(path, mode="w", encoding="utf-8", errors="replace") as file:
        file.write(html)
    return path


def render_history_report(history: "History") -> str:
    """The page's text. Errors as for `write_history_report`."""
    frame, summary, skipped = history.frame(), history.summary(), history.skipped()
    drawn = set(spread_evenly(list(summary["steps"]), _DRAWN_STEPS))
    steps = [_step(history, label, one, label in drawn) for label, one in summary["steps"].items()]
    figures = draw_history_plots(frame)
    by_reason = skipped.groupby(["name", "reason"], sort=False).size().reset_index(name="steps")
    first, last = (history.labels[0], history.labels[-1]) if history.labels else ("", "")
    return render_template(
        "history.html",
        title=f"{last_part(history.description, 'base')}: {'step' if first == last else f'steps {first} to'} {last}",
        run=history.description,
        finished=history.finished,
        steps=steps,
        without_plots=len(steps) - len(drawn),
        unusable=history.unusable(),
        reading=summary["reading"],
        plots={name: Drawing(to_svg(figure, name, themed=True)) for name, figure in figures.items()},
        skipped=by_reason.head(_SKIPPED_ROWS).to_dict("records"),
        skipped_count=len(skipped),
        facts=flat(history.description),
        table=table_data(frame),
        grouped_by="step",
    )


def _step(history, label, summary, drawn):
    """What the page shows of one step."""
    run = history[label]
    figures = [draw(run) for draw in (plot_nf, plot_coordination)] if drawn else []
    return {
        "step": int(label),
        "link": f"{label}/{REPORT_FILE}" if (run.path / REPORT_FILE).is_file() else "",
        "reading": summary["reading"][:-1],
        "by_role": rows_by_role(summary)[0],
        "plots": [
            Drawing(to_svg(figure, f"step-{label}-{place}", themed=True))
            for place, figure in enumerate(figures)
            if figure is not None
        ],
    }
