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

_CONTROL_STYLES = (("--", MUTED), (":", VERMILION))


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
        for control, (style, colour) in zip(controls(rows, metric), _CONTROL_STYLES, strict=False):
            _draw_control(axis, rows, control, style, colour, shown)
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


def _draw_control(axis, rows, control, style, colour, shown):
    layers, means = by_layer(rows, control.mean)
    middle = means["median"].to_numpy()
    alone = len(layers) == 1  # a line of one point would not be seen
    along, level = (layers[0] + np.array([-0.4, 0.4]), np.repeat(middle, 2)) if alone else (layers, middle)
    (line,) = axis.plot(along, level, style, color=colour)
    shown[control.label] = line
    if control.std is not None:
        _, spread = by_layer(rows, control.std)
        width = CONTROL_DEVIATIONS * spread["median"].to_numpy()
        label = f"{control.label}, ± {CONTROL_DEVIATIONS} standard deviations"
        shown[label] = axis.fill_between(along, level - width, level + width, color=colour, alpha=0.25, lw=0)
    rough = (by_layer(rows, control.rough)[1]["median"] > 0).to_numpy()
    if rough.any():
        shown[f"{control.label}, only rough there"] = axis.plot(
            layers[rough], middle[rough], "o", markerfacecolor=PAPER, color=colour
        )[0]
