"""A metric over the layers, a panel for each role, with the band in which its control lies."""

from typing import TYPE_CHECKING

import numpy as np

from polarax.findings.rows import BAND, by_layer, controls, known_roles, layered_rows
from polarax.metrics import metric_of
from polarax.report.plots.style import (
    BLUE,
    MUTED,
    PAPER,
    VERMILION,
    each,
    legend_below,
    marker,
    panels,
    picture,
    whole_ticks,
)

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.figure import Figure

    from polarax import Run

CONTROL_DEVIATIONS = 3  # half the width of a control's band, in its standard deviations


@picture
def plot_over_layers(run: "Run", metric: str, title: str = "", role: str | None = None) -> "Figure | None":
    """Any metric over the layers; None if there is no matrix in a layer and of a known role that has it.

    Args:
        run: A run.
        metric: A column of matrices.csv.
        title: Of the figure; by default the metric's.
        role: Only this one; all by default.

    Raises:
        UsageError: Unknown role, or matplotlib is not installed.
    """
    frame = layered_rows(run.frame(), metric)
    roles = known_roles(frame, role)
    if not roles:
        return None
    figure, axes = panels(len(roles))
    shown: dict[str, Artist] = {}  # legend: label -> handle
    for axis, name in each(axes, roles):
        rows = frame[frame["role"] == name]
        _draw_controls(axis, rows, controls(rows, metric), shown)
        layers, values = by_layer(rows, rows[metric])
        if len(rows) > len(layers):
            label = f"{BAND[0]:.0%} to {BAND[1]:.0%} of a layer's matrices"
            shown[label] = axis.fill_between(layers, values["low"], values["high"], color=BLUE, alpha=0.25, lw=0)
        (line,) = axis.plot(layers, values["median"], "-", marker=marker(layers), color=BLUE)
        shown[metric if len(rows) == len(layers) else f"{metric}, median of a layer"] = line
        if (low := metric_of(metric).low) is not None:
            axis.set_ylim(bottom=low)
        axis.ticklabel_format(axis="y", useOffset=False)
        axis.locator_params(axis="y", nbins=5)
        whole_ticks(axis)
    for label, handle in shown.items():
        handle.set_label(label)
    legend_below(figure, list(shown.values()))
    figure.suptitle(title or metric_of(metric).title or metric)
    return figure


def _draw_controls(axis, rows, found, shown):
    """The first as a line in a band; what follows as the edges of its own, and a line where that is another."""
    for place, control in enumerate(found):
        layers, means = by_layer(rows, control.mean)
        middle = means["median"].to_numpy()
        alone = len(layers) == 1  # a line of one point would not be seen
        along, level = (layers[0] + np.array([-0.4, 0.4]), np.repeat(middle, 2)) if alone else (layers, middle)
        style, colour = ("-.", VERMILION) if place else ("--", MUTED)
        if not place or not control.mean.equals(found[0].mean):
            (shown[control.label],) = axis.plot(along, level, style, color=colour)
        if control.std is not None:
            width = CONTROL_DEVIATIONS * by_layer(rows, control.std)[1]["median"].to_numpy()
            label = f"{control.label}, ± {CONTROL_DEVIATIONS} standard deviations"
            if place:
                for end in (level - width, level + width):
                    (shown[label],) = axis.plot(along, end, ":", color=colour)
            else:
                shown[label] = axis.fill_between(along, level - width, level + width, color=colour, alpha=0.25, lw=0)
        rough = (by_layer(rows, control.rough)[1]["median"] > 0).to_numpy()
        if rough.any():
            label = f"{control.label}, rough: condition number times drift above 1"
            (shown[label],) = axis.plot(layers[rough], middle[rough], "o", markerfacecolor=PAPER, color=colour)
