"""The scaling matrix of each role (He and Cao, arXiv:2509.17866): layers x singular values, post over base.

Under each map stands its control in the same colours: how far drift alone moves what is drawn above it.
"""

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd

from polarax.findings.rows import changed_rows, known_roles, norm_of_base
from polarax.findings.words import matrix_label
from polarax.metrics.look import is_first
from polarax.report.plots.style import each, new_figure, picture, printable

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from polarax import Run

# Singular values are drawn in at most this many columns (means of neighbours), about one pixel each.
_COLUMNS = 256
# The colours span this share of the ratios; a few ratios of tiny singular values would wash out the rest.
_COLOUR_QUANTILE = 0.98
# A role with more matrices than this, in layers of several, has a line for each layer: the mean over its experts.
_LINES = 128
_LABELS = 10  # on the left of a map


class ScalingMap(NamedTuple):
    """What one panel draws; columns are singular values, largest first."""

    labels: list[str]  # of the lines
    ratio: np.ndarray  # (lines, columns): means of post / base
    control: np.ndarray  # (columns,): standard deviation of a line under the control, NaN if not known
    end: str = "smallest"  # which singular value is the last


@picture
def plot_scaling(run: "Run", role: str | None = None) -> "Figure | None":
    """The scaling matrices, in diverging colours centred on ratio 1; None if there is none.

    The two lines below each map are its control: 1 plus and minus one standard deviation of a change of the same size
    in random directions, sd / s_i, for the means that the map shows.

    Raises:
        UsageError: Unknown role, or matplotlib is not installed.
    """
    maps = scaling_maps(run, role)
    if not maps:
        return None
    distances = [np.abs(one.ratio - 1)[np.isfinite(one.ratio)] for one in maps.values()]
    spread = max((float(np.quantile(d, _COLOUR_QUANTILE)) for d in distances if d.size), default=0.0)
    colours = {"cmap": "RdBu_r", "vmin": 1 - max(spread, 1e-6), "vmax": 1 + max(spread, 1e-6)}
    columns = min(3, len(maps))
    lines = [min(len(one.labels), 80) for one in maps.values()]
    heights = [1.5 + 0.04 * max(lines[i : i + columns]) for i in range(0, len(lines), columns)]
    figure = new_figure(max(5, 3.2 * columns), sum(heights) + 0.9)
    axes = figure.subplots(len(heights), columns, squeeze=False, height_ratios=heights).ravel().tolist()
    for axis in axes[len(maps) :]:
        axis.set_visible(False)
    for axis, name in each(axes[: len(maps)], list(maps)):
        image = _draw_map(axis, maps[name], colours)
    figure.colorbar(
        image, ax=axes, label="singular value, post / base", extend="both", location="bottom", aspect=60, shrink=0.6
    )
    figure.suptitle("Scaling of singular values; below each map, what ± one standard deviation of drift alone gives")
    return figure


def _draw_map(axis, one, colours):
    count = len(one.labels)
    how = {"aspect": "auto", "interpolation": "nearest", **colours}
    image = axis.imshow(one.ratio, extent=(0, 1, count - 0.5, -0.5), **how)
    # In units of lines: a gap, then the control.
    start, end = count - 0.5 + max(0.3, 0.04 * count), count - 0.5 + max(0.9, 0.2 * count)
    axis.imshow(np.stack([1 + one.control, 1 - one.control]), extent=(0, 1, end, start), **how)
    axis.set_ylim(end, -0.5)
    step = -(-count // _LABELS)
    axis.set_yticks([*range(0, count, step), (start + end) / 2], [*one.labels[::step], "control"])
    axis.set_xticks([0, 1], ["largest", one.end])
    for side, label in zip(("left", "right"), axis.get_xticklabels(), strict=True):
        label.set_horizontalalignment(side)
    return image


def scaling_maps(run: "Run", role: str | None = None) -> dict[str, ScalingMap]:
    """The numbers of the maps, role by role."""
    frame = changed_rows(run.frame())
    places: dict[str, tuple[str, int]] = {}  # name -> role, line
    labels: dict[str, list[str]] = {}
    for name in known_roles(frame, role):
        rows = frame[frame["role"] == name]
        of_layer = rows["layer"].astype("Int64")
        if len(rows) > _LINES and rows["layer"].notna().all() and of_layer.nunique() < len(rows):
            line_of = {layer: line for line, layer in enumerate(sorted(of_layer.unique()))}
            labels[name] = [f"layer {layer}" for layer in line_of]
            places |= {row: (name, line_of[layer]) for row, layer in zip(rows["name"], of_layer, strict=True)}
        else:
            labels[name] = [printable(_short(matrix_label(row), name)) for _, row in rows.iterrows()]
            places |= {row: (name, line) for line, row in enumerate(rows["name"])}
    most = run.top_k if is_first(frame).any() else None  # of a first look all lines have as many
    sums = _sums(run, frame, places, {name: len(lines) for name, lines in labels.items()}, most)
    maps = {name: _map(labels[name], *sums[name]) for name in labels if name in sums}
    return maps if most is None else {name: one._replace(end=f"no. {one.ratio.shape[1]}") for name, one in maps.items()}


def _sums(run, frame, places, lines, most):
    """For each role the sums of ratios, their variances under the control and their numbers, each (lines, columns).

    Of the leading `most` singular values, of all for None.
    """
    rows = frame.set_index("name")
    drift = rows["drift"] if "drift" in rows else pd.Series(np.nan, rows.index)
    sums: dict[str, list[np.ndarray]] = {}
    post_of = run.arrays("s_post")
    widths: dict[str, int] = {}
    collected = []
    for (name, base), (_, post) in zip(run.arrays("s_base"), post_of, strict=True):
        if name not in places:
            continue
        role, line = places[name]
        entries = rows.at[name, "rows"] * rows.at[name, "cols"]
        deviation = drift[name] * norm_of_base(rows.loc[name], base) / np.sqrt(entries)
        base, post = base[:most], post[:most]
        positive = base > 0
        ratio = np.divide(post, base, out=np.full_like(base, np.nan), where=positive)
        variance = np.divide(deviation, base, out=np.full_like(base, np.nan), where=positive) ** 2
        widths[role] = max(widths.get(role, 0), len(base))
        collected.append((role, line, _binned(ratio), _binned(variance), _binned(np.isfinite(ratio).astype(float))))
    for role, line, *values in collected:
        columns = min(_COLUMNS, widths[role])
        if role not in sums:
            sums[role] = [np.zeros((lines[role], columns)) for _ in values]
        for total, value in zip(sums[role], values, strict=True):
            total[line] += value if len(value) == columns else value[np.arange(columns) * len(value) // columns]
    return sums


def _binned(values):
    """Sums over neighbours, (at most _COLUMNS,); NaN counts as nothing."""
    values = np.nan_to_num(values)
    columns = min(_COLUMNS, len(values))
    return np.add.reduceat(values, np.arange(columns) * len(values) // columns)


def _map(labels, ratios, variances, numbers):
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.where(numbers > 0, ratios / numbers, np.nan)
        variance = np.where(numbers > 0, variances / numbers**2, np.nan)
    known = np.isfinite(variance).any(axis=0) & (variances.sum(axis=0) > 0)
    control = np.full(ratio.shape[1], np.nan)
    control[known] = np.sqrt(np.nanmedian(variance[:, known], axis=0))
    return ScalingMap(labels, ratio, control)


def _short(label, role):
    return label.removesuffix(f" {role}")
