"""Runs, several posts and histories in a notebook: `run.plot.nf()`, and what is shown at the end of a cell."""

import abc
import html
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from polarax.errors import UsageError
from polarax.report import plots
from polarax.report.plots.over_posts import plot_budgets, plot_lines
from polarax.report.plots.over_steps import (
    plot_budget_over_steps,
    plot_layers_over_steps,
    plot_over_steps,
    plot_overlap_over_steps,
)
from polarax.report.posts_table import rows_of_posts
from polarax.report.steps_table import rows_of_steps
from polarax.report.table import rows_by_role

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from polarax import History, Run, Runs

Shown = TypeVar("Shown")


class _Plots(abc.ABC, Generic[Shown]):
    """Pictures, each a matplotlib Figure.

    Every method raises `polarax.UsageError` if matplotlib is not installed, a role is unknown, or there is nothing for
    the picture; those that take a name raise KeyError if there is no such matrix.
    """

    def __init__(self, shown: Shown):
        self._shown = shown

    def alpha(self, role: str | None = None) -> "Figure":
        """The scale between the spectra, with its control."""
        return self.metric("alpha", role)

    def nf(self, role: str | None = None) -> "Figure":
        """nf, with its control."""
        return self.metric("nf", role)

    def coordination(self, role: str | None = None) -> "Figure":
        """Coordination, with its control."""
        return self.metric("coordination", role)

    @abc.abstractmethod
    def metric(self, column: str, role: str | None = None) -> "Figure":
        """Any column of the frame, with the controls that it has."""

    def _drawn(self, draw: "Callable[..., Figure | None]", *args: Any) -> "Figure":
        figure = draw(*args)
        if figure is None:
            raise UsageError(f"The run at {self._shown.location} has nothing for this picture.")  # type: ignore[attr-defined]
        return figure


class RunPlots(_Plots["Run"]):
    """Pictures of a run; metrics are drawn over the layers."""

    def metric(self, column: str, role: str | None = None) -> "Figure":
        """Any column of `Run.frame` over layers, with the bands of the controls that it has."""
        return self._drawn(plots.plot_over_layers, self._shown, column, "", role)

    def scaling(self, role: str | None = None) -> "Figure":
        """Heat maps of the ratios of singular values, layers x index, each above its control."""
        return self._drawn(plots.plot_scaling, self._shown, role)

    def drift_budget(self, role: str | None = None) -> "Figure":
        """Where the change goes, and where a random change would go."""
        return self._drawn(plots.plot_drift_budget, self._shown, role)

    def rotation(self) -> "Figure":
        """Where it rotates more: roles x layers."""
        return self._drawn(plots.plot_rotation, self._shown)

    def overlap(self, role: str | None = None) -> "Figure":
        """What the leading subspaces lost, over layers."""
        return self._drawn(plots.plot_overlap, self._shown, role)

    def principal_angles(self, role: str | None = None) -> "Figure":
        """Principal angles between the leading subspaces, layers x angles."""
        return self._drawn(plots.plot_principal_angles, self._shown, role)

    def spectra(self, name: str) -> "Figure":
        """Singular values of one matrix, base and post, and their ratio."""
        return self._drawn(plots.plot_spectra, self._shown, name)

    def rotation_maps(self, name: str) -> "Figure":
        """|Q_U|, |Q_V| and their difference of one matrix."""
        return self._drawn(plots.plot_rotation_maps, self._shown, name)


class RunsPlots(_Plots["Runs"]):
    """Pictures of several posts; metrics are drawn over the layers, a line for each post."""

    def metric(self, column: str, role: str | None = None) -> "Figure":
        """Any column of `Runs.frame` over layers, a line for each post."""
        return self._drawn(plot_lines, self._frames(), column, column, role)

    def between(self, column: str = "change_cosine", role: str | None = None) -> "Figure":
        """Any column of `Runs.between_frame` over layers, a line for each two posts."""
        frames = {" to ".join(pair): self._shown.between(*pair).frame() for pair in self._shown.pairs}
        return self._drawn(plot_lines, frames, column, f"{column}, post against post", role)

    def drift_budget(self, role: str | None = None) -> "Figure":
        """Where the change of each post goes, and where a random change would go."""
        return self._drawn(plot_budgets, self._frames(), role)

    def _frames(self):
        return {label: run.frame() for label, run in self._shown.items()}


class HistoryPlots(_Plots["History"]):
    """Pictures of a history; metrics are drawn over the steps."""

    def metric(self, column: str, role: str | None = None) -> "Figure":
        """Any column of `History.frame` over the steps, with its control where it has one."""
        return self._drawn(plot_over_steps, self._shown.frame(), column, column, role)

    def drift_budget(self, role: str | None = None) -> "Figure":
        """Where the change goes over the steps, and where a random change would go."""
        return self._drawn(plot_budget_over_steps, self._shown.frame(), role)

    def overlap(self, role: str | None = None) -> "Figure":
        """What the leading subspaces lost over the steps."""
        return self._drawn(plot_overlap_over_steps, self._shown.frame(), role)

    def layers(self, column: str = "coordination", role: str | None = None) -> "Figure":
        """A column less its control over steps and layers."""
        return self._drawn(plot_layers_over_steps, self._shown.frame(), column, f"{column}, layer by layer", role)


def run_html(run: "Run") -> str:
    """The table by role and the reading as HTML; every text escaped."""
    summary = run.summary()
    title = f"polarax run {run.location}: {summary['matrices']} matrices"
    return _html(title, run, summary["reading"], *rows_by_role(summary))


def runs_html(runs: "Runs") -> str:
    """The table by role and post and the reading as HTML; every text escaped."""
    summary = runs.summary()
    title = f"polarax runs {runs.location}: {', '.join(runs.labels)}"
    return _html(title, runs, summary["reading"], *rows_of_posts(summary["posts"]))


def history_html(history: "History") -> str:
    """The table by role and step and the reading as HTML; every text escaped."""
    title = f"polarax history {history.location}: {len(history)} steps"
    return _html(title, history, history.summary()["reading"], *rows_of_steps(history.frame()))


def _html(
    title: str,
    shown: "Run | Runs",
    sentences: Sequence[str],
    rows: Sequence[Sequence[str]],
    notes: Sequence[str],
) -> str:
    state = "finished" if shown.finished else "interrupted"
    account = "<br>".join(map(html.escape, shown.account()))
    closer = shown.closer() if shown.first_look else None
    if closer is not None:
        sentences = [*sentences, closer.sentence]
    reading = "".join(f"<li>{html.escape(sentence)}</li>" for sentence in sentences)
    command = f"<pre>{html.escape(closer.command)}</pre>" if closer is not None and closer.command else ""
    header, *lines = rows
    body = "".join(f"<tr>{_cells('td', row)}</tr>" for row in lines)
    return (
        f"<div><p><strong>{html.escape(f'{title}, {state}')}</strong></p><p>{account}</p><ul>{reading}</ul>{command}"
        f"<table><thead><tr>{_cells('th', header)}</tr></thead><tbody>{body}</tbody></table>"
        f"<p><small>{html.escape(' '.join(notes))}</small></p></div>"
    )


def _cells(tag, cells):
    return "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells)
