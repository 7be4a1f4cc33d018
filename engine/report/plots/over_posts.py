"""Pictures of several posts: a metric over layers with a line and a control for each, and their drift budgets."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from polarax.findings.rows import by_layer, changed_rows, controls, known_roles, layered_rows
from polarax.report.plots.budget import PARTS, label_parts
from polarax.report.plots.over_layers import CONTROL_DEVIATIONS
from polarax.report.plots.style import (
    BLUE,
    GREEN,
    INK,
    ORANGE,
    PURPLE,
    VERMILION,
    each,
    legend_below,
    marker,
    panels,
    picture,
    printable,
    whole_ticks,
)

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.figure import Figure


_COLOURS = (BLUE, VERMILION, GREEN, PURPLE, ORANGE)
_STYLES = ("-", "--", "-.")  # for more posts than there are colours


@picture
def plot_lines(frames: Mapping[str, pd.DataFrame], metric: str, title: str, role: str | None = None) -> "Figure | None":
    """A metric over layers, a panel for each role and a line for each label, each with the band of its own control.

    Where a layer has several matrices of a role (experts), lines are medians.

    Args:
        frames: Label -> `Run.frame()`.
        metric: A column.
        title: Of the figure.
        role: Only this one; all by default.

    Raises:
        UsageError: Unknown role, or matplotlib is not installed.
    """
    rows = {label: layered_rows(changed_rows(frame), metric) for label, frame in frames.items()}
    rows = {label: found for label, found in rows.items() if len(found)}
    roles = known_roles(pd.concat(list(rows.values())), role) if rows else []
    if not roles:
        return None
    figure, axes = panels(len(roles))
    shown: dict[str, Artist] = {}
    for axis, name in each(axes, roles):
        for place, (label, found) in enumerate(rows.items()):
            of_role = found[found["role"] == name]
            if len(of_role):
                _draw(axis, of_role, metric, place, label, shown)
        axis.ticklabel_format(axis="y", useOffset=False)
        axis.locator_params(axis="y", nbins=5)
        whole_ticks(axis)
    for label, handle in shown.items():
        handle.set_label(printable(label))
    legend_below(figure, list(shown.values()))
    figure.suptitle(title)
    return figure


def _draw(axis, rows, metric, place, label, shown):
    colour, style = look(place)
    for control in controls(rows, metric)[-1:]:  # what the reading rests on
        layers, means = by_layer(rows, control.mean)
        middle = means["median"].to_numpy()
        width = np.zeros_like(middle)
        if control.std is not None:
            width = CONTROL_DEVIATIONS * by_layer(rows, control.std)[1]["median"].to_numpy()
        along = layers if len(layers) > 1 else layers[0] + np.array([-0.4, 0.4])
        band = axis.fill_between(along, middle - width, middle + width, color=colour, alpha=0.2, lw=0)
        (line,) = axis.plot(along, np.broadcast_to(middle, along.shape), ":", color=colour, lw=0.8)
        shown.setdefault(f"{label}: control" + (f", ± {CONTROL_DEVIATIONS} sd" if width.any() else ""), line)
        band.set_zorder(0)
    layers, values = by_layer(rows, rows[metric])
    (line,) = axis.plot(layers, values["median"], style, marker=marker(layers), color=colour)
    shown[label] = line


def look(place: int) -> tuple[str, str]:
    """Colour and style of the n-th line."""
    return _COLOURS[place % len(_COLOURS)], _STYLES[place // len(_COLOURS) % len(_STYLES)]


@picture
def plot_budgets(frames: Mapping[str, pd.DataFrame], role: str | None = None) -> "Figure | None":
    """The drift budgets as stacked bars beside each other, a panel for each role; means over layers and experts.

    Lines across a bar are where the parts of a random change would end. Arguments and errors as for `plot_lines`.
    """
    rows = {label: changed_rows(frame) for label, frame in frames.items() if "budget_scaling" in frame}
    rows = {label: frame[frame["budget_scaling"].notna()] for label, frame in rows.items()}
    roles = known_roles(pd.concat(list(rows.values())), role) if rows else []
    if not roles:
        return None
    figure, axes = panels(len(roles), height=1.9, x_label="")
    places = np.arange(len(rows))
    for axis, name in each(axes, roles):
        of_role = [frame[frame["role"] == name] for frame in rows.values()]
        bottom, expected = np.zeros(len(rows)), np.zeros(len(rows))
        for part, _, colour in PARTS:
            height = np.array([found[part].mean() for found in of_role])
            axis.bar(places, height, 0.8, bottom, color=colour, lw=0)
            bottom = bottom + height
            expected = expected + np.array([found[f"{part}_null"].mean() for found in of_role])
            if part != PARTS[-1][0]:
                axis.hlines(expected, places - 0.4, places + 0.4, color=INK, lw=1, zorder=4)
        axis.set_ylim(0, 1)
        labels = [printable(label) for label in rows]
        turn = 30 if sum(map(len, labels)) > 18 else 0
        axis.set_xticks(places, labels, rotation=turn, ha="right" if turn else "center")
        axis.tick_params(labelbottom=True)
    label_parts(figure, axes)
    figure.suptitle("Drift budget of each post, means over layers")
    return figure
