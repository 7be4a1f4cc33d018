"""report.html of a history: over the steps, and step by step with a slider."""

import pathlib
from collections.abc import Mapping
from typing import TYPE_CHECKING

from polarax.findings.history_summary import step_in_words
from polarax.metrics import Shown, shown_in
from polarax.report.page import (
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
from polarax.report.plots import plot_over_layers
from polarax.report.plots.gallery import draw_history_plots, steps_gallery
from polarax.report.steps_table import spread_evenly
from polarax.report.table import rows_by_role
from polarax.results.directory import REPORT_FILE

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from polarax import History

_DRAWN_STEPS = 16  # that have pictures of their own; more would make the page heavy


def write_history_report(history: "History", *, figures: "Mapping[str, Figure] | None" = None) -> pathlib.Path:
    """Writes the page of a history, finished or not, into its folder; returns its path.

    Raises:
        UsageError: jinja2 or matplotlib is not installed.
        RunError: The file cannot be written.
    """
    return write_page(history_page(history, figures), history.path)


def render_history_report(history: "History") -> str:
    """The page's text. Errors as for `write_history_report`."""
    return render_page(history_page(history))


def history_page(history: "History", figures: "Mapping[str, Figure] | None" = None) -> Page:
    """What the page says. Errors as for `write_history_report`."""
    frame, summary, skipped = history.frame(), history.summary(), history.skipped()
    figures = draw_history_plots(frame) if figures is None else figures
    drawn = set(spread_evenly(list(summary["steps"]), _DRAWN_STEPS))
    steps = [_step(history, label, one, label in drawn) for label, one in summary["steps"].items()]
    by_reason = skipped.groupby(["name", "reason"], sort=False).size().reset_index(name="steps")
    first, last = (history.labels[0], history.labels[-1]) if history.labels else ("", "")
    unusable = history.unusable()
    sections = [
        reading_section(summary["reading"], closer=closer_of(history)),
        *pictures_section("steps-section", "Over the steps", "Over the steps", steps_gallery(), figures),
    ]
    if steps:
        content = {"steps": steps, "without_plots": len(steps) - len(drawn)}
        sections.append(Section("step-section", "Step by step", "Step by step", "steps.html", content))
    sections.append(skipped_section(by_reason, left_out={step_in_words(step): why for step, why in unusable.items()}))
    return Page(
        title=f"{last_part(history.description, 'base')}: {'step' if first == last else f'steps {first} to'} {last}",
        under=f"{len(steps)} step{'' if len(steps) == 1 else 's'} compared"
        + (f", {len(unusable)} left out." if unusable else "."),
        account=history.account(),
        finished=history.finished,
        sections=sections,
        frame=frame,
        grouped_by="step",
        description=history.description,
    )


def _step(history, label, summary, drawn):
    """What the page shows of one step."""
    run = history[label]
    figures = [plot_over_layers(run, metric.name) for metric in shown_in(Shown.OVER_LAYERS)] if drawn else []
    return {
        "step": int(label),
        "link": f"{label}/{REPORT_FILE}" if (run.path / REPORT_FILE).is_file() else "",
        "reading": summary["reading"][:-1],
        "numbers": rows_by_role(summary)[0],
        "plots": [
            svg_of(figure, f"step-{label}-{place}") for place, figure in enumerate(figures) if figure is not None
        ],
    }
