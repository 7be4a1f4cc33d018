"""A run in a notebook: `run.plot.nf()`, and what is shown where a run is the last line of a cell."""

import functools
import html
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from polarax.errors import UsageError
from polarax.report import plots
from polarax.report.table import rows_by_role

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from polarax.results.run import Run


class RunPlots:
    """Pictures of a run, each a matplotlib Figure.

    Every method raises `polarax.UsageError` if matplotlib is not installed, a role is unknown, or the run has nothing
    for the picture; those that take a name raise KeyError if there is no such matrix.
    """

    def __init__(self, run: "Run"):
        self._run = run

    def scaling(self, role: str | None = None) -> "Figure":
        """Heat maps of the ratios of singular values, layers x index, each above its control."""
        return self._drawn(functools.partial(plots.plot_scaling, role=role))

    def alpha(self, role: str | None = None) -> "Figure":
        """The scale between the spectra over layers, with the band of its control."""
        return self._drawn(functools.partial(plots.plot_alpha, role=role))

    def nf(self, role: str | None = None) -> "Figure":
        """nf over layers, with the band of its control."""
        return self._drawn(functools.partial(plots.plot_nf, role=role))

    def coordination(self, role: str | None = None) -> "Figure":
        """Coordination over layers, with the band of its control."""
        return self._drawn(functools.partial(plots.plot_coordination, role=role))

    def metric(self, column: str, role: str | None = None) -> "Figure":
        """Any column of `Run.frame` over layers, with the bands of the controls that it has."""
        return self._drawn(lambda run: plots.plot_over_layers(run, column, column, role))

    def drift_budget(self, role: str | None = None) -> "Figure":
        """Where the change goes, and where a random change would go."""
        return self._drawn(functools.partial(plots.plot_drift_budget, role=role))

    def rotation(self) -> "Figure":
        """Where it rotates more: roles x layers."""
        return self._drawn(plots.plot_rotation)

    def overlap(self, role: str | None = None) -> "Figure":
        """What the leading subspaces lost, over layers."""
        return self._drawn(functools.partial(plots.plot_overlap, role=role))

    def principal_angles(self, role: str | None = None) -> "Figure":
        """Principal angles between the leading subspaces, layers x angles."""
        return self._drawn(functools.partial(plots.plot_principal_angles, role=role))

    def spectra(self, name: str) -> "Figure":
        """Singular values of one matrix, base and post, and their ratio."""
        return self._drawn(functools.partial(plots.plot_spectra, name=name))

    def rotation_maps(self, name: str) -> "Figure":
        """|Q_U|, |Q_V| and their difference of one matrix."""
        return self._drawn(functools.partial(plots.plot_rotation_maps, name=name))

    def _drawn(self, draw: "Callable[[Run], Figure | None]") -> "Figure":
        figure = draw(self._run)
        if figure is None:
            raise UsageError(f"The run at {self._run.path} has nothing for this picture.")
        return figure


def run_html(run: "Run") -> str:
    """The table by role and the reading as HTML; every text escaped."""
    summary = run.summary()
    state = "finished" if run.finished else "interrupted"
    title = f"polarax run {run.path}: {summary['matrices']} matrices, {state}"
    reading = "".join(f"<li>{html.escape(sentence)}</li>" for sentence in summary["reading"])
    table = table_html(*rows_by_role(summary))
    return f"<div><p><strong>{html.escape(title)}</strong></p><ul>{reading}</ul>{table}</div>"


def table_html(rows: Sequence[Sequence[str]], notes: Sequence[str]) -> str:
    """A table, headings first, and the notes below it as HTML; every text escaped."""
    header, *lines = rows
    body = "".join(f"<tr>{_cells('td', row)}</tr>" for row in lines)
    return (
        f"<table><thead><tr>{_cells('th', header)}</tr></thead><tbody>{body}</tbody></table>"
        f"<p><small>{html.escape(' '.join(notes))}</small></p>"
    )


def _cells(tag, cells):
    return "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells)
