"""Pictures of a history: metrics and drift budgets over the steps by role, and by layer, beside their controls."""

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from polarax.findings.rows import BAND, by_layer, changed_rows, controls, known_roles
from polarax.report.plots.budget import PARTS, label_parts
from polarax.report.plots.over_layers import CONTROL_DEVIATIONS
from polarax.report.plots.style import (
    BLUE,
    INK,
    MUTED,
    VERMILION,
    each,
    legend_below,
    marker,
    new_figure,
    panels,
    picture,
    whole_ticks,
)

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.figure import Figure

_COLOUR_QUANTILE = 0.98


@picture
def plot_over_steps(frame: pd.DataFrame, metric: str, title: str, role: str | None = None) -> "Figure | None":
    """A metric over the steps, a panel for each role: the median of its matrices, where most of them are, the control.

    Args:
        frame: `History.frame()`.
        metric: A column of it.
        title: Of the figure.
        role: Only this one; all by default.

    Raises:
        UsageError: Unknown role, or matplotlib is not installed.
    """
    rows = _rows(frame, metric)
    roles = known_roles(rows, role)
    if not roles:
        return None
    figure, axes = panels(len(roles), x_label="step")
    shown: dict[str, Artist] = {}
    for axis, name in each(axes, roles):
        of_role = rows[rows["role"] == name]
        for control in controls(of_role, metric)[-1:]:
            steps, means = _by_step(of_role, control.mean)
            (line,) = axis.plot(*_along(steps, means["median"]), "--", color=MUTED)
            shown[control.label] = line
            if control.std is not None:
                width = CONTROL_DEVIATIONS * _by_step(of_role, control.std)[1]["median"]
                low, high = means["median"] - width, means["median"] + width
                label = f"of one matrix, ± {CONTROL_DEVIATIONS} standard deviations"
                shown[label] = axis.fill_between(*_along(steps, low, high), color=MUTED, alpha=0.25, lw=0)
        steps, values = _by_step(of_role, of_role[metric])
        if len(of_role) > len(steps):
            label = f"{BAND[0]:.0%} to {BAND[1]:.0%} of the matrices"
            band = _along(steps, values["low"], values["high"])
            shown[label] = axis.fill_between(*band, color=BLUE, alpha=0.25, lw=0)
        (line,) = axis.plot(steps, values["median"], "-", marker=marker(steps), color=BLUE)
        shown[f"{metric}, median"] = line
        axis.ticklabel_format(axis="y", useOffset=False)
        axis.locator_params(axis="y", nbins=5)
        whole_ticks(axis)
    for label, handle in shown.items():
        handle.set_label(label)
    legend_below(figure, list(shown.values()))
    figure.suptitle(title)
    return figure


def _along(steps, *values):
    """Steps, and what is drawn along them as a line or an area, which a single step would show nothing of."""
    along = np.asarray(steps, float)
    if len(along) == 1:
        along = along[0] + np.array([-0.5, 0.5])
    return along, *(np.broadcast_to(value, along.shape) for value in values)


@picture
def plot_budget_over_steps(frame: pd.DataFrame, role: str | None = None) -> "Figure | None":
    """The drift budget over the steps as stacked areas, a panel for each role; means over its matrices.

    Lines are where the parts of a random change would end. Arguments and errors as for `plot_over_steps`.
    """
    rows = _rows(frame, "budget_scaling")
    roles = known_roles(rows, role)
    if not roles:
        return None
    figure, axes = panels(len(roles), x_label="step")
    for axis, name in each(axes, roles):
        columns = [f"{part}{end}" for part, *_ in PARTS for end in ("", "_null")]
        shares = rows[rows["role"] == name].groupby("step")[columns].mean()
        steps = shares.index.to_numpy(float)
        bottom, expected = np.zeros(len(steps)), np.zeros(len(steps))
        for part, _, colour in PARTS:
            top = bottom + shares[part].to_numpy()
            axis.fill_between(*_along(steps, bottom, top), color=colour, lw=0)
            bottom, expected = top, expected + shares[f"{part}_null"].to_numpy()
            if part != PARTS[-1][0]:
                axis.plot(*_along(steps, expected), color=INK, lw=1)
        axis.set_ylim(0, 1)
        axis.set_xlim(*_along(steps)[0][[0, -1]])
        whole_ticks(axis)
    label_parts(figure, axes)
    figure.suptitle("Drift budget over the steps, means of a role's matrices")
    return figure


@picture
def plot_overlap_over_steps(frame: pd.DataFrame, role: str | None = None) -> "Figure | None":
    """What the leading subspaces lost, 1 - overlap, over the steps: medians. Arguments as for `plot_over_steps`."""
    rows = _rows(frame, "overlap_left")
    roles = known_roles(rows, role)
    if not roles:
        return None
    figure, axes = panels(len(roles), x_label="step")
    for axis, name in each(axes, roles):
        of_role = rows[rows["role"] == name]
        handles = []
        for side, colour, style in (("left", BLUE, "-"), ("right", VERMILION, "--")):
            steps, values = _by_step(of_role, 1 - of_role[f"overlap_{side}"])
            handles += axis.plot(
                steps, values["median"], style, marker=marker(steps), color=colour, label=f"{side} vectors"
            )
        axis.set_ylim(bottom=0)
        axis.ticklabel_format(axis="y", useOffset=False)
        axis.locator_params(axis="y", nbins=5)
        whole_ticks(axis)
    legend_below(figure, handles)
    figure.suptitle("What the leading subspaces lost: 1 - overlap, medians")
    return figure


@picture
def plot_layers_over_steps(
    frame: pd.DataFrame, metric: str, title: str = "", role: str | None = None, *, ratio: bool = False
) -> "Figure | None":
    """A metric less its control over steps and layers in diverging colours, a map for each role.

    Args:
        frame: `History.frame()`.
        metric: A column of it.
        title: Of the figure; by default what it shows.
        role: Only this one; all by default.
        ratio: Draw the logarithm of the metric over its control (`*_excess`) instead of the difference.

    Raises:
        UsageError: Unknown role, or matplotlib is not installed.
    """
    column = f"{metric}_excess" if ratio else metric
    rows = _rows(frame, column)
    rows = rows[rows["layer"].notna()]
    roles = known_roles(rows, role)
    if not roles:
        return None
    if ratio:
        distance = np.log2(rows[column].where(rows[column] > 0))
        said, unit = f"{metric} over its control", " (log2)"
    elif f"{metric}_null" in rows:
        distance, said, unit = rows[metric] - rows[f"{metric}_null"], f"{metric} less its control", ""
    else:
        distance, said, unit = rows[metric], metric, ""
    rows = rows.assign(distance=distance, layer=rows["layer"].astype(int))
    sizes = distance.abs()[np.isfinite(distance)]
    limit = max(float(sizes.quantile(_COLOUR_QUANTILE)) if len(sizes) else 0.0, 1e-9)
    columns = min(4, len(roles))
    lines = -(-len(roles) // columns)
    figure = new_figure(max(4.8, 2.4 * columns), 1.9 * lines + 0.9)
    axes = figure.subplots(lines, columns, squeeze=False).ravel().tolist()
    for axis in axes[len(roles) :]:
        axis.set_visible(False)
    for axis, name in each(axes[: len(roles)], roles):
        of_role = rows[rows["role"] == name]
        table = of_role.pivot_table(index="layer", columns="step", values="distance", aggfunc="median", dropna=False)
        layers, steps = table.index.tolist(), table.columns.tolist()
        image = axis.imshow(
            table.to_numpy(float), aspect="auto", interpolation="nearest", cmap="RdBu_r", vmin=-limit, vmax=limit
        )
        axis.set_yticks(range(0, len(layers), -(-len(layers) // 8)), layers[:: -(-len(layers) // 8)])
        axis.set_xticks(range(0, len(steps), -(-len(steps) // 4)), steps[:: -(-len(steps) // 4)])
        axis.set_xlabel("step")
    axes[0].set_ylabel("layer")
    figure.colorbar(image, ax=axes, extend="both", location="bottom", aspect=60, shrink=0.6)
    figure.suptitle(title or f"{said}, layer by layer{unit}")
    return figure


def _rows(frame, metric):
    """Rows that changed and have the metric, in the order of the steps."""
    if metric not in frame:
        return frame.iloc[:0]
    rows = changed_rows(frame)
    return rows[np.isfinite(rows[metric].astype(float))].sort_values("step", kind="stable")


def _by_step(rows, values):
    return by_layer(rows.assign(layer=rows["step"]), values)
