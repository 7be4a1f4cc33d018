"""The drift budget as stacked bars, against the shares of a random change."""

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from polarax.findings.rows import known_roles
from polarax.report.plots.style import (
    GREEN,
    GREY,
    INK,
    ORANGE,
    PAPER,
    PURPLE,
    each,
    legend_below,
    panels,
    picture,
    printable,
    whole_ticks,
)

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from polarax import Run

# Parts of the budget from the bottom up, with a colour for each.
PARTS = (
    ("budget_scaling", "scaling", ORANGE),
    ("budget_coordinated", "coordinated", GREEN),
    ("budget_discordant", "discordant", PURPLE),
    ("budget_outside", "outside", GREY),
)


@picture
def plot_drift_budget(run: "Run", role: str | None = None) -> "Figure | None":
    """The drift budget of every matrix as a stacked bar over layers, a panel for each role.

    Lines across the bars are where the parts of a random change would end. Where a layer has several matrices of a role
    (experts), a bar is their mean. Roles outside the layers share the last panel.

    Raises:
        UsageError: Unknown role, or matplotlib is not installed.
    """
    frame = run.frame()
    if "budget_scaling" not in frame:
        return None
    frame = frame[frame["budget_scaling"].notna()]
    roles = known_roles(frame, role)
    if not roles:
        return None
    frame = frame[frame["role"].isin(roles)]
    inside, outside = frame[frame["layer"].notna()], frame[frame["layer"].isna()]
    groups = {name: _by(inside[inside["role"] == name], "layer") for name in known_roles(inside)}
    if len(outside):
        groups["outside the layers"] = _by(outside, "role").reindex(known_roles(outside))
    figure, axes = panels(len(groups), share_x=False, height=1.85)
    for axis, title in each(axes, list(groups)):
        shares = groups[title]
        named = shares.index.dtype == object or pd.api.types.is_string_dtype(shares.index)
        if not named:
            shares = shares.reindex(range(int(shares.index.min()), int(shares.index.max()) + 1))
        places = np.arange(len(shares)) if named else shares.index.to_numpy(int)
        edges = np.arange(len(shares) + 1) + places[0] - 0.5
        bottom, expected = np.zeros(len(shares)), np.zeros(len(shares))
        for part, _, colour in PARTS:
            top = bottom + shares[part].to_numpy()
            axis.stairs(top, edges, baseline=bottom, fill=True, color=colour, lw=0)
            bottom, expected = top, expected + shares[f"{part}_null"].to_numpy()
            if part != PARTS[-1][0]:
                axis.hlines(expected, edges[:-1], edges[1:], color=INK, lw=1, zorder=4)
        axis.vlines(edges[1:-1], 0, 1, color=PAPER, lw=min(1.5, 30 / len(shares)), zorder=3)
        axis.set_ylim(0, 1)
        axis.set_xlim(edges[0], edges[-1])
        if named:
            axis.set_xticks(places, [printable(one) for one in shares.index], rotation=20 if len(shares) > 2 else 0)
        else:
            whole_ticks(axis)
    label_parts(figure, axes)
    for axis in axes:
        axis.set_xlabel("layer" if axis is not axes[-1] or not len(outside) else "")
    figure.suptitle("Drift budget: where the change goes, and where a random change would go")
    return figure


def label_parts(figure: "Figure", axes: "list[Axes]") -> None:
    """The legend of the parts below a figure, and what is along y."""
    handles: list[Artist] = [
        axes[0].fill_between([], [], color=colour, lw=0, label=label) for _, label, colour in PARTS
    ]
    handles += axes[0].plot([], [], color=INK, lw=1, label="where a random change's parts end")
    legend_below(figure, handles, columns=5)
    figure.supylabel("share of the change", fontsize=8)


def _by(rows, key):
    columns = [f"{part}{end}" for part, *_ in PARTS for end in ("", "_null")]
    return rows.groupby(key)[columns].mean()
