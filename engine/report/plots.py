"""Plots of a run: scaling heat maps by role, nf with its control over layers, the drift budget as stacked bars.

Each function returns a matplotlib Figure that belongs to no window; matplotlib comes with `pip install polarax[plot]`.
"""

import math
import pathlib
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from polarax.errors import UsageError
from polarax.loaders import ROLES
from polarax.metrics import status_kind
from polarax.report.reading import matrix_label
from polarax.run_directory import replacing, writing

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from polarax.run import Run

# Okabe and Ito's colours (2008), told apart by colour-blind readers.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
# Parts of the drift budget, with a colour for each.
_BUDGET = (
    ("budget_scaling", "scaling", "#E69F00"),
    ("budget_coordinated", "coordinated", "#009E73"),
    ("budget_discordant", "discordant", "#CC79A7"),
    ("budget_outside", "outside", "#BBBBBB"),
)

# Heat maps: singular values are drawn in at most this many columns (means of neighbours), about one pixel each.
_HEAT_COLUMNS = 512
# The colours span this share of the ratios; a few ratios of tiny singular values would wash out the rest.
_HEAT_QUANTILE = 0.98


def write_plots(run: "Run", folder: pathlib.Path) -> list[pathlib.Path]:
    """Writes every plot that the run has the numbers for, as PNG.

    Raises:
        UsageError: matplotlib is not installed.
        RunError: The folder cannot be written.
    """
    frame = run.frame()
    drawn = {"scaling": plot_scaling(run)}
    if "nf" in frame:
        drawn["nf"] = plot_nf(run)
    if "budget_scaling" in frame:
        drawn["drift_budget"] = plot_drift_budget(run)
    written = []
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for name, figure in drawn.items():
            if figure is not None:
                written.append(folder / f"{name}.png")
                with replacing(written[-1], mode="wb") as file:
                    figure.savefig(file, format="png", dpi=130)
    return written


def plot_scaling(run: "Run") -> "Figure | None":
    """The scaling matrix of each role, layers x singular-value index, centred on ratio 1; None if there is none."""
    frame = run.frame()
    frame = frame[frame["status"].map(status_kind).isin(["ok", "rank-deficient"])]
    stacked = {}
    for role in (role for role in ROLES if role != "other"):
        rows = frame[frame["role"] == role]
        if len(rows):
            stacked[role] = (
                [matrix_label(row) for _, row in rows.iterrows()],
                _ratio_rows(run, rows),
            )
    if not stacked:
        return None
    spread = max(np.nanquantile(np.abs(ratio - 1), _HEAT_QUANTILE) for _, ratio in stacked.values())
    spread = max(float(spread), 1e-6)
    columns = min(3, len(stacked))
    lines = math.ceil(len(stacked) / columns)
    figure = _figure(4.4 * columns + 1, 0.6 + sum(_heat_heights(stacked, columns)))
    axes = figure.subplots(
        lines,
        columns,
        squeeze=False,
        gridspec_kw={"height_ratios": _heat_heights(stacked, columns)},
    ).ravel()
    for axis in axes[len(stacked) :]:
        axis.set_visible(False)
    for axis, (role, (labels, ratio)) in zip(axes, stacked.items(), strict=False):
        image = axis.imshow(
            ratio,
            aspect="auto",
            cmap="RdBu_r",
            vmin=1 - spread,
            vmax=1 + spread,
            extent=(0, 1, len(labels) - 0.5, -0.5),
            interpolation="nearest",
        )
        step = math.ceil(len(labels) / 12)
        axis.set_yticks(range(0, len(labels), step), [_short(label, role) for label in labels[::step]])
        axis.set_xticks([0, 0.5, 1], ["largest", "", "smallest"])
        axis.set_title(role)
    figure.colorbar(image, ax=axes.tolist(), label="singular value, post / base", extend="both", shrink=0.8)
    figure.suptitle("Scaling of singular values (columns: singular values, largest first)")
    return figure


def plot_nf(run: "Run") -> "Figure | None":
    """nf and its control over layers, a panel for each role; hollow where the control is rough."""
    frame = run.frame()
    frame = frame[frame["nf"].notna() & frame["layer"].notna() & (frame["role"] != "other")]
    roles = [role for role in ROLES if (frame["role"] == role).any()]
    if not roles:
        return None
    columns = min(3, len(roles))
    figure = _figure(4 * columns, 2.6 * math.ceil(len(roles) / columns) + 0.8)
    axes = figure.subplots(math.ceil(len(roles) / columns), columns, squeeze=False, sharex=True).ravel()
    for axis, role, colour in zip(axes, roles, _COLOURS * len(roles), strict=False):
        rows = frame[frame["role"] == role].sort_values("layer")
        layers = rows["layer"].astype(int).to_numpy()
        axis.plot(layers, rows["nf"], "-o", color=colour)
        axis.plot(layers, rows["nf_null"], "--", color="#555555")
        rough = (rows["control"] == "out of range").to_numpy()
        axis.plot(layers[rough], rows["nf_null"][rough], "o", mfc="white", mec="#555555")
        axis.set_ylim(bottom=0)
        axis.set_title(role)
        axis.xaxis.get_major_locator().set_params(integer=True)
    for axis in axes[len(roles) :]:
        axis.set_visible(False)
    handles = [
        axes[0].plot([], [], "-o", color=_COLOURS[0], label="nf")[0],
        axes[0].plot([], [], "--", color="#555555", label="control")[0],
    ]
    if (frame["control"] == "out of range").any():
        handles += axes[0].plot([], [], "o", mfc="white", mec="#555555", label="control, rough")
    figure.legend(handles=handles, loc="outside lower right", ncols=3, frameon=False)
    figure.supxlabel("layer")
    figure.suptitle("nf: how far the left and right rotations differ, and what a random change gives")
    return figure


def plot_drift_budget(run: "Run") -> "Figure | None":
    """The drift budget of every matrix as a stacked bar, grouped by role, each role beside its control."""
    frame = run.frame()
    frame = frame[frame["budget_scaling"].notna() & (frame["role"] != "other")]
    roles = [role for role in ROLES if (frame["role"] == role).any()]
    if not roles:
        return None
    figure = _figure(max(6.0, 2.5 + 0.24 * (len(frame) + 3 * len(roles))), 4.6)
    axis = figure.subplots()
    position, ticks, labels = 0.0, [], []
    for role in roles:
        rows = frame[frame["role"] == role]
        start = position
        for _, row in rows.iterrows():
            _stacked_bar(axis, position, [row[part] for part, *_ in _BUDGET])
            ticks.append(position)
            labels.append("" if pd.isna(row["layer"]) else str(row["layer"]))
            position += 1
        controls = [rows[f"{part}_null"].median() for part, *_ in _BUDGET]
        _stacked_bar(axis, position, controls, hatch="///", edgecolor="white")
        ticks.append(position)
        labels.append("control")
        axis.text((start + position) / 2, 1.02, role, ha="center", va="bottom")
        position += 2
    axis.set_xticks(ticks, labels, fontsize=7, rotation=90)
    axis.set_ylim(0, 1)
    axis.set_xlim(-1, position - 1)
    axis.set_ylabel("share of the change")
    axis.set_xlabel("layer")
    handles = [axis.bar(0, 0, color=colour, label=label) for _, label, colour in _BUDGET]
    figure.legend(handles=handles, loc="outside right upper", frameon=False)
    figure.suptitle("Drift budget: where the change goes, and where a random change would go (hatched)")
    return figure


def _figure(width, height):
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UsageError("Plots need matplotlib: pip install 'polarax[plot]'.") from error
    return Figure(figsize=(min(width, 40), min(height, 40)), layout="constrained")


def _stacked_bar(axis, position, shares, **style):
    bottom = 0.0
    for share, (_, _, colour) in zip(shares, _BUDGET, strict=True):
        axis.bar(position, share, bottom=bottom, color=colour, width=0.85, **style)
        bottom += share


def _ratio_rows(run, rows):
    """Ratios post / base, one line a matrix, each brought to the same number of columns."""
    spectra = [run.spectra(name) for name in rows["name"]]
    columns = min(_HEAT_COLUMNS, max(len(base) for base, _ in spectra))
    lines = np.full((len(spectra), columns), np.nan)
    for line, (base, post) in zip(lines, spectra, strict=True):
        ratio = np.divide(post, base, out=np.full_like(base, np.nan), where=base > 0)
        edges = np.linspace(0, len(ratio), columns + 1)
        for column, (low, high) in enumerate(zip(edges[:-1], edges[1:], strict=True)):
            line[column] = np.mean(ratio[int(low) : max(int(high), int(low) + 1)])
    return lines


def _heat_heights(stacked, columns):
    counts = [len(labels) for labels, _ in stacked.values()]
    return [0.7 + 0.16 * max(3, *counts[i : i + columns], 0) for i in range(0, len(counts), columns)]


def _short(label, role):
    return label.removesuffix(f" {role}")
