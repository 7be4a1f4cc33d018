"""Several posts in a notebook: `runs.plot.alpha()`, and what is shown where they are the last line of a cell."""

import html
from typing import TYPE_CHECKING

from polarax.errors import UsageError
from polarax.report.notebook import table_html
from polarax.report.posts.plots import plot_budgets, plot_lines
from polarax.report.posts.table import rows_of_posts

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from polarax.results.runs import Runs


class RunsPlots:
    """Pictures of several posts, each a matplotlib Figure.

    Every method raises `polarax.UsageError` if matplotlib is not installed, a role is unknown, or there is nothing for
    the picture.
    """

    def __init__(self, runs: "Runs"):
        self._runs = runs

    def alpha(self, role: str | None = None) -> "Figure":
        """The scale between the spectra over layers, a line for each post, with its control."""
        return self.metric("alpha", role)

    def nf(self, role: str | None = None) -> "Figure":
        """nf over layers, a line for each post, with its control."""
        return self.metric("nf", role)

    def coordination(self, role: str | None = None) -> "Figure":
        """Coordination over layers, a line for each post, with its control."""
        return self.metric("coordination", role)

    def metric(self, column: str, role: str | None = None) -> "Figure":
        """Any column of `Runs.frame` over layers, a line for each post."""
        frames = {label: run.frame() for label, run in self._runs.items()}
        return self._drawn(plot_lines(frames, column, column, role))

    def between(self, column: str = "change_cosine", role: str | None = None) -> "Figure":
        """Any column of `Runs.between_frame` over layers, a line for each two posts."""
        frames = {" to ".join(pair): self._runs.between(*pair).frame() for pair in self._runs.pairs}
        return self._drawn(plot_lines(frames, column, f"{column}, post against post", role))

    def drift_budget(self, role: str | None = None) -> "Figure":
        """Where the change of each post goes, and where a random change would go."""
        return self._drawn(plot_budgets({label: run.frame() for label, run in self._runs.items()}, role))

    def _drawn(self, figure: "Figure | None") -> "Figure":
        if figure is None:
            raise UsageError(f"The runs at {self._runs.path} have nothing for this picture.")
        return figure


def runs_html(runs: "Runs") -> str:
    """The table by role and post and the reading as HTML; every text escaped."""
    summary = runs.summary()
    state = "finished" if runs.finished else "interrupted"
    title = f"polarax runs {runs.path}: {', '.join(runs.labels)}, {state}"
    reading = "".join(f"<li>{html.escape(sentence)}</li>" for sentence in summary["reading"])
    table = table_html(*rows_of_posts(summary["posts"]))
    return f"<div><p><strong>{html.escape(title)}</strong></p><ul>{reading}</ul>{table}</div>"
