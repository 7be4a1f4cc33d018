"""A history in a notebook: `history.plot.alpha()`, and what is shown where it is the last line of a cell."""

import html
from typing import TYPE_CHECKING

from polarax.errors import UsageError
from polarax.report.history.plots import (
    plot_budget_over_steps,
    plot_layers_over_steps,
    plot_over_steps,
    plot_overlap_over_steps,
)
from polarax.report.history.table import rows_of_steps
from polarax.report.notebook import table_html

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from polarax.results.runs import History


class HistoryPlots:
    """Pictures of a history, each a matplotlib Figure.

    Every method raises `polarax.UsageError` if matplotlib is not installed, a role is unknown, or there is nothing for
    the picture.
    """

    def __init__(self, history: "History"):
        self._history = history

    def alpha(self, role: str | None = None) -> "Figure":
        """The scale between the spectra over the steps, with the band of its control."""
        return self.metric("alpha", role)

    def nf(self, role: str | None = None) -> "Figure":
        """nf over the steps, with the band of its control."""
        return self.metric("nf", role)

    def coordination(self, role: str | None = None) -> "Figure":
        """Coordination over the steps, with the band of its control."""
        return self.metric("coordination", role)

    def metric(self, column: str, role: str | None = None) -> "Figure":
        """Any column of `History.frame` over the steps, with its control where it has one."""
        return self._drawn(plot_over_steps(self._history.frame(), column, column, role))

    def drift_budget(self, role: str | None = None) -> "Figure":
        """Where the change goes over the steps, and where a random change would go."""
        return self._drawn(plot_budget_over_steps(self._history.frame(), role))

    def overlap(self, role: str | None = None) -> "Figure":
        """What the leading subspaces lost over the steps."""
        return self._drawn(plot_overlap_over_steps(self._history.frame(), role))

    def layers(self, column: str = "coordination", role: str | None = None) -> "Figure":
        """A column less its control over steps and layers."""
        frame = self._history.frame()
        beside = f"{column}_null" if f"{column}_null" in frame else "zero"
        return self._drawn(plot_layers_over_steps(frame, column, beside, f"{column}, layer by layer", role))

    def _drawn(self, figure: "Figure | None") -> "Figure":
        if figure is None:
            raise UsageError(f"The run at {self._history.path} has nothing for this picture.")
        return figure


def history_html(history: "History") -> str:
    """The table by role and step and the reading as HTML; every text escaped."""
    state = "finished" if history.finished else "interrupted"
    title = f"polarax history {history.path}: {len(history)} steps, {state}"
    reading = "".join(f"<li>{html.escape(sentence)}</li>" for sentence in history.summary()["reading"])
    table = table_html(*rows_of_steps(history.frame()))
    return f"<div><p><strong>{html.escape(title)}</strong></p><ul>{reading}</ul>{table}</div>"
