"""Where the singular vectors rotate: maps of roles x layers, and the leading subspaces with their principal angles."""

from typing import TYPE_CHECKING

import numpy as np

from polarax.findings.rows import BAND, by_layer, changed_rows, known_roles, layered_rows
from polarax.report.plots.style import (
    BLUE,
    VERMILION,
    each,
    legend_below,
    logarithmic_colour_bar,
    marker,
    new_figure,
    panels,
    picture,
    plain_logarithmic_axis,
    whole_ticks,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from polarax import Run

# Column, title, whether it is the distance from 1 that is shown, colours.
_MAPS = (
    ("overlap_left", "leading left vectors: 1 - overlap", True, "viridis"),
    ("overlap_right", "leading right vectors: 1 - overlap", True, "viridis"),
    ("nf", "left against right: nf", False, "viridis"),
    ("nf_excess", "nf over its control", False, "RdBu_r"),
)
# The colours of a map on a logarithmic scale span at most this many decades.
_DECADES = 4
_SMALLEST_LOSS = 1e-12  # of an overlap: below is rounding, and no logarithm


@picture
def plot_rotation(run: "Run") -> "Figure | None":
    """Where it rotates more: roles x layers, medians over experts; None if nothing in a layer was measured.

    Raises:
        UsageError: matplotlib is not installed.
    """
    frame = changed_rows(run.frame())
    maps = [one for one in _MAPS if known_roles(layered_rows(frame, one[0]))]
    if not maps:
        return None
    roles = known_roles(layered_rows(frame, maps[0][0]))
    layers = np.sort(layered_rows(frame, maps[0][0])["layer"].astype(int).unique())
    figure = new_figure(9.6 if len(maps) > 1 else 5, (0.75 + 0.2 * len(roles)) * -(-len(maps) // 2) + 0.5)
    axes = figure.subplots(-(-len(maps) // 2), min(2, len(maps)), squeeze=False).ravel().tolist()
    for axis in axes[len(maps) :]:
        axis.set_visible(False)
    for (axis, _), (column, _, distance, colours) in zip(
        each(axes[: len(maps)], [m[1] for m in maps]), maps, strict=True
    ):
        rows = layered_rows(frame, column)
        table = rows.assign(layer=rows["layer"].astype(int)).pivot_table(
            index="role", columns="layer", values=column, aggfunc="median"
        )
        values = table.reindex(index=roles, columns=layers).to_numpy(float)
        image = axis.imshow(
            1 - values if distance else values,
            aspect="auto",
            interpolation="nearest",
            extent=(-0.5, len(layers) - 0.5, len(roles) - 0.5, -0.5),
            cmap=colours,
            norm=_centred(values) if colours == "RdBu_r" else _logarithmic(1 - values if distance else values),
        )
        axis.set_yticks(range(len(roles)), roles)
        step = -(-len(layers) // 12)
        axis.set_xticks(range(0, len(layers), step), layers[::step])
        axis.set_xlabel("layer")
        logarithmic_colour_bar(figure, image, ax=axis, fraction=0.05, pad=0.02)
    figure.suptitle("Where do the singular vectors rotate more?")
    return figure


@picture
def plot_overlap(run: "Run", role: str | None = None) -> "Figure | None":
    """What the leading left and right subspaces lost, 1 - overlap, over layers, a panel for each role.

    Raises:
        UsageError: Unknown role, or matplotlib is not installed.
    """
    frame = layered_rows(changed_rows(run.frame()), "overlap_left")
    roles = known_roles(frame, role)
    if not roles:
        return None
    figure, axes = panels(len(roles))
    low, high = 1.0, 1e-12
    for axis, name in each(axes, roles):
        rows = frame[frame["role"] == name]
        handles = []
        for side, colour, style in (("left", BLUE, "-"), ("right", VERMILION, "--")):
            lost = (1 - rows[f"overlap_{side}"]).clip(lower=_SMALLEST_LOSS)
            layers, values = by_layer(rows, lost)
            handles += axis.plot(
                layers, values["median"], style, marker=marker(layers), color=colour, label=f"{side} vectors"
            )
            if len(rows) > len(layers):
                axis.fill_between(layers, values["low"], values["high"], color=colour, alpha=0.25, lw=0)
            low, high = min(low, values["low"].min()), max(high, values["high"].max())
            if f"overlap_{side}_null" in rows:
                control = by_layer(rows, (1 - rows[f"overlap_{side}_null"]).clip(lower=_SMALLEST_LOSS))[1]["median"]
                handles += axis.plot(layers, control, ":", color=colour, label=f"{side}, control")
                low, high = min(low, control.min()), max(high, control.max())
        whole_ticks(axis)
    for axis in axes:  # one scale for all
        axis.set_yscale("log")
        axis.set_ylim(low / 1.5, high * 1.5)
        plain_logarithmic_axis(axis, "y")
    legend_below(figure, handles)
    several = ", medians of a layer's matrices with bands {:.0%} to {:.0%}".format(*BAND)
    several = several if frame.duplicated(["role", "layer"]).any() else ""
    figure.suptitle(f"What the leading subspaces lost: 1 - overlap{several}")
    return figure


@picture
def plot_principal_angles(run: "Run", role: str | None = None) -> "Figure | None":
    """Principal angles between the leading subspaces, in degrees: layers x angles, left vectors beside right ones.

    Raises:
        UsageError: Unknown role, or matplotlib is not installed.
    """
    frame = changed_rows(run.frame())
    frame = frame[frame["layer"].notna()]
    angles = {side: _angles(run, frame, f"cosines_{side}") for side in ("left", "right")}
    frame = frame[frame["name"].isin(angles["left"])]
    roles = known_roles(frame, role)
    if not roles:
        return None
    tables = {}
    for name in roles:
        rows = frame[frame["role"] == name].sort_values("layer")
        layers = rows["layer"].astype(int).unique()
        tables[name] = layers, [_means_by_layer(rows, layers, angles[side]) for side in ("left", "right")]
    norm = _logarithmic(np.concatenate([np.ravel(side) for _, sides in tables.values() for side in sides]))
    figure, axes = panels(len(roles), share_x=False, x_label="")
    for axis, name in each(axes, roles):
        layers, (left, right) = tables[name]
        gap = np.full((len(layers), 1), np.nan)
        image = axis.imshow(
            np.concatenate([left, gap, right], axis=1),
            aspect="auto",
            interpolation="nearest",
            cmap="viridis",
            norm=norm,
        )
        step = -(-len(layers) // 8)
        axis.set_yticks(range(0, len(layers), step), layers[::step])
        k = left.shape[1]
        axis.set_xticks([(k - 1) / 2, k + 1 + (right.shape[1] - 1) / 2], [f"left, 1 to {k}", f"right, 1 to {k}"])
    bar = {"location": "bottom", "aspect": 60, "shrink": 0.6}
    logarithmic_colour_bar(figure, image, ax=axes, label="principal angle, degrees", **bar)
    figure.supylabel("layer", fontsize=8)
    figure.suptitle("Principal angles between the leading subspaces of base and post")
    return figure


def _angles(run, frame, kind):
    wanted = set(frame["name"])
    return {name: np.degrees(np.arccos(np.clip(row, -1, 1))) for name, row in run.arrays(kind) if name in wanted}


def _means_by_layer(rows, layers, angles):
    """(layers, k) means over experts; NaN where a matrix has fewer angles than the longest."""
    longest = max(len(angles[name]) for name in rows["name"])
    table = np.full((len(layers), longest), np.nan)
    for line, layer in enumerate(layers):
        own = [angles[name] for name in rows.loc[rows["layer"] == layer, "name"]]
        k = min(map(len, own))
        table[line, :k] = np.mean([one[:k] for one in own], axis=0)
    return table


def _logarithmic(values):
    from matplotlib.colors import LogNorm

    positive = values[np.isfinite(values) & (values > 0)]
    high = float(positive.max()) if positive.size else 1.0
    low = max(float(positive.min()), high / 10**_DECADES) if positive.size else 0.1
    return LogNorm(min(low, high / 1.5), high, clip=True)


def _centred(ratios):
    from matplotlib.colors import LogNorm

    logs = np.abs(np.log(ratios[np.isfinite(ratios) & (ratios > 0)]))
    widest = float(np.exp(min(max(logs.max(initial=0.0), 0.1), np.log(10))))
    return LogNorm(1 / widest, widest, clip=True)
