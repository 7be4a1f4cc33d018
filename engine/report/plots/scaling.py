"""The scaling matrix of each role (He and Cao, arXiv:2509.17866): layers x singular values, post over base.

Under each map stands its control in the same colours: what noise of the same size makes of what is drawn above it.
"""

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from polarax.findings.rows import changed_rows, known_roles
from polarax.findings.words import matrix_label
from polarax.metrics.look import is_first
from polarax.report.plots.noise import spectra_beside_noise
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
    null: np.ndarray  # (columns,): the line that noise is expected to give; NaN if not known
    null_std: np.ndarray  # (columns,): its standard deviation
    end: str = "smallest"  # which singular value is the last

    @property
    def control(self) -> np.ndarray:
        """(3, columns): one standard deviation above what is expected under noise, that itself, and one below it."""
        return self.null + np.array([[1], [0], [-1]]) * self.null_std


@picture
def plot_scaling(run: "Run", role: str | None = None) -> "Figure | None":
    """The scaling matrices, in diverging colours centred on ratio 1; None if there is none.

    The three lines below each map are its control: what isotropic noise of the same size gives in place of what the
    map shows, in the mean, and one standard deviation above and below that.

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
    figure.suptitle("Scaling of singular values, and below each map what noise gives")
    return figure


def _draw_map(axis, one, colours):
    count = len(one.labels)
    how = {"aspect": "auto", "interpolation": "nearest", **colours}
    image = axis.imshow(one.ratio, extent=(0, 1, count - 0.5, -0.5), **how)
    # In units of lines: a gap, then the control.
    start, end = count - 0.5 + max(0.3, 0.04 * count), count - 0.5 + max(1.2, 0.28 * count)
    axis.imshow(one.control, extent=(0, 1, end, start), **how)
    axis.set_ylim(end, -0.5)
    step = -(-count // _LABELS)
    axis.set_yticks([*range(0, count, step), (start + end) / 2], [*one.labels[::step], "noise ± sd"])
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
    sums = _sums(run, frame.set_index("name"), places, {name: len(lines) for name, lines in labels.items()}, most)
    maps = {name: _map(labels[name], *sums[name]) for name in labels if name in sums}
    return maps if most is None else {name: one._replace(end=f"no. {one.ratio.shape[1]}") for name, one in maps.items()}


def _sums(run, rows, places, lines, most):
    """For each role sums of ratios, of those expected under noise, of the variances of these sums, and the numbers.

    Each is (lines, columns). Of the leading `most` singular values, of all for None.
    """
    sums: dict[str, list[np.ndarray]] = {}
    widths: dict[str, int] = {}
    collected = []
    for name, base, post, noise in spectra_beside_noise(run, rows.loc[list(places)]):
        role, line = places[name]
        ratio, null = (_over(values, base)[:most] for values in (post, noise.mean))
        number = _binned(np.isfinite(ratio).astype(float))
        neighbours = np.repeat(np.maximum(number, 1), np.diff(_starts(len(ratio)), append=len(ratio)))
        variance = neighbours * _over(noise.std_of_means(neighbours), base[:most]) ** 2  # each one's share of a sum's
        widths[role] = max(widths.get(role, 0), len(ratio))
        collected.append((role, line, _binned(ratio), _binned(null), _binned(variance), number))
    for role, line, *values in collected:
        columns = min(_COLUMNS, widths[role])
        if role not in sums:
            sums[role] = [np.zeros((lines[role], columns)) for _ in values]
        for total, value in zip(sums[role], values, strict=True):
            total[line] += value if len(value) == columns else value[np.arange(columns) * len(value) // columns]
    return sums


def _over(values, base):
    """values / base, NaN where the base is 0."""
    return np.divide(values, base, out=np.full_like(base, np.nan), where=base > 0)


def _binned(values):
    """Sums over neighbours, (at most _COLUMNS,); NaN counts as nothing."""
    return np.add.reduceat(np.nan_to_num(values), _starts(len(values)))


def _starts(count):
    """Where each bin begins."""
    columns = min(_COLUMNS, count)
    return np.arange(columns) * count // columns


def _map(labels, ratios, nulls, variances, numbers):
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio, null = (np.where(numbers > 0, sums / numbers, np.nan) for sums in (ratios, nulls))
        std = np.where(variances > 0, np.sqrt(variances) / numbers, np.nan)
    known = np.isfinite(std).any(axis=0)
    control = np.full((2, ratio.shape[1]), np.nan)
    control[:, known] = [np.nanmedian(np.where(np.isfinite(std), x, np.nan)[:, known], axis=0) for x in (null, std)]
    return ScalingMap(labels, ratio, *control)


def _short(label, role):
    return label.removesuffix(f" {role}")
