"""Pictures of one matrix: its two spectra with their ratio, its rotations, its principal angles."""

from typing import TYPE_CHECKING

import numpy as np

from polarax.report.plots.noise import MEAN, STD, noisy_spectrum
from polarax.report.plots.style import (
    BLUE,
    INK,
    MUTED,
    VERMILION,
    each,
    logarithmic_colour_bar,
    new_figure,
    picture,
    plain_logarithmic_axis,
    printable,
    whole_ticks,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from polarax import Run

_POINTS = 200  # of a line on logarithmic axes
_RATIO_QUANTILE = 0.95  # of the ratios drawn that fit between the limits; those of tiny singular values need not
_MARGIN = 1.3  # beyond them
_LARGEST_SHARE = 3  # how many times what the ratios need the axis may grow for what is expected under noise
_BAND_DEVIATIONS = 2  # half the width of the band of the ratio under noise
_SEEN = 0.02  # of the height of a panel: how far apart two lines are seen as two


@picture
def plot_spectra(run: "Run", name: str) -> "Figure | None":
    """Singular values of base and post on logarithmic axes, and their ratio beside what noise of the same size gives.

    The spectrum that noise gives is drawn where it is visibly not the base's.

    None where they are not finite, or the run has none.

    Raises:
        KeyError: No such matrix.
        UsageError: matplotlib is not installed.
    """
    base, post = (_array(run, name, kind) for kind in ("s_base", "s_post"))
    if base is None or post is None or not (np.isfinite(base).all() and np.isfinite(post).all()):
        return None
    rows = run.frame()
    row = rows[rows["name"] == name].iloc[0]
    index = np.unique(np.geomspace(1, len(base), _POINTS).astype(int))
    marker = "." if len(index) < 10 else ""
    figure = new_figure(4.6, 3.8, arranged=False)
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=[2, 1])
    figure.subplots_adjust(left=0.15, right=0.97, bottom=0.22, top=0.93, hspace=0.1)
    above.loglog(index, _positive(base[index - 1]), "-", marker=marker, color=BLUE, label="base")
    above.loglog(index, _positive(post[index - 1]), "--", marker=marker, color=VERMILION, label="post")
    change = _array(run, name, "s_change")
    if change is not None and np.isfinite(change).all() and change[0] > 0:
        shown = np.where(change > change[0] * 1e-7, change, np.nan)  # below is rounding
        above.loglog(index, shown[index - 1], ":", marker=marker, color=MUTED, label="change")
    plain_logarithmic_axis(above, "y")
    above.set_ylabel("singular value")
    above.set_title(printable(name))
    noise = noisy_spectrum(row, base, *(_array(run, name, kind) for kind in (MEAN, STD)))
    rounding = np.arange(len(base)) >= row.get("rank_base", np.nan)  # ratios to these would say nothing
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio, mean, width = (
            np.where((base > 0) & ~rounding, values / base, np.nan)[index - 1]
            for values in (post, noise.mean, _BAND_DEVIATIONS * noise.std)
        )
    height = np.log(np.divide(*above.get_ylim()[::-1]))
    lifted = np.any(np.abs(np.log(mean[mean > 0])) > _SEEN * height)
    if lifted:
        above.plot(index, _positive(noise.mean[index - 1]), "-", color=INK, lw=0.6, label="base with noise")
    below.axhline(1, color=MUTED, lw=0.6)
    low, high = _limits(ratio, mean)
    if np.isfinite(width).any():
        ends = (np.clip(end, 2 * low - high, 2 * high - low) for end in (mean - width, mean + width))
        label = f"noise, ± {_BAND_DEVIATIONS} standard deviations"
        below.fill_between(index, *ends, color=MUTED, alpha=0.25, lw=0, label=label)
    handles = [handle for axis in (above, below) for handle in axis.get_legend_handles_labels()[0]]
    figure.legend(handles=handles, loc="lower center", ncols=4 if len(handles) == 4 else 3, columnspacing=1.2)
    below.semilogx(index, ratio, "-", marker=marker, color=BLUE)
    if lifted:
        below.plot(index, mean, "-", color=INK, lw=0.6)
    below.set_ylim(low, high)
    below.ticklabel_format(axis="y", useOffset=False)
    plain_logarithmic_axis(below, "x")
    below.set_ylabel("post / base")
    below.set_xlabel("index of the singular value")
    return figure


def _limits(ratio, mean):
    """Ends of an axis around 1: most of the ratios fit between, and of those expected under noise what is near them."""
    ends = []
    for sign in (1, -1):
        of_ratio, of_mean = (_most(sign * (values - 1)) for values in (ratio, mean))
        ends.append(max(of_ratio, min(of_mean, _LARGEST_SHARE * of_ratio)))
    above, below = ends
    return 1 - max(below, above / 4), 1 + max(above, below / 4)


def _most(distances):
    """What most of the distances are within, with a margin; at least 1e-9."""
    distances = distances[np.isfinite(distances)]
    return max(_MARGIN * float(np.quantile(distances, (1 + _RATIO_QUANTILE) / 2)) if distances.size else 0.0, 1e-9)


@picture
def plot_rotation_maps(run: "Run", name: str) -> "Figure | None":
    """|Q_U|, |Q_V| and |Q_U - Q_V| of one matrix; None if the run has not measured them.

    Raises:
        KeyError: No such matrix.
        UsageError: matplotlib is not installed.
    """
    from matplotlib.colors import LogNorm

    kinds = {"|Q_U|, left": "rotation_left", "|Q_V|, right": "rotation_right", "|Q_U - Q_V|": "rotation_difference"}
    maps = {title: _array(run, name, kind) for title, kind in kinds.items()}
    if any(values is None or not np.isfinite(values).all() for values in maps.values()):
        return None
    largest = max(max(float(values.max()) for values in maps.values()), 1e-12)
    figure = new_figure(6.4, 3.1, arranged=False)
    axes = figure.subplots(1, 3)
    figure.subplots_adjust(left=0.1, right=0.972, bottom=0.324, top=0.8, wspace=0.41)
    size = min(run.frame().set_index("name").loc[name, ["rows", "cols"]])
    for axis, title in each(axes.tolist(), list(maps)):
        values = maps[title]
        image = axis.imshow(
            np.maximum(values, largest * 1e-12),
            interpolation="nearest",
            norm=LogNorm(largest * 1e-4, largest, clip=True),
            extent=(0.5, size + 0.5, size + 0.5, 0.5),
        )
        axis.set_xticks([1, size])
        axis.set_yticks([1, size])
        axis.set_xlabel("post")
    axes[0].set_ylabel("base")
    block = -(-size // len(values))
    label = "magnitude" if block == 1 else f"root mean square of {block} x {block} entries"
    below = figure.add_axes((0.225, 0.132, 0.615, 0.032))
    logarithmic_colour_bar(figure, image, cax=below, orientation="horizontal", label=label)
    return figure


@picture
def plot_cosines(run: "Run", name: str) -> "Figure | None":
    """Cosines of the principal angles of one matrix's leading subspaces, with their controls; None if not measured.

    Raises:
        KeyError: No such matrix.
        UsageError: matplotlib is not installed.
    """
    cosines = {side: _array(run, name, f"cosines_{side}") for side in ("left", "right")}
    if any(values is None or not np.isfinite(values).all() for values in cosines.values()):
        return None
    figure = new_figure(3.2, 2.8, arranged=False)
    axis = figure.subplots()
    figure.subplots_adjust(left=0.21, right=0.97, bottom=0.16, top=0.96)
    for (side, values), (colour, style) in zip(cosines.items(), ((BLUE, "-o"), (VERMILION, "--s")), strict=True):
        places = np.arange(1, len(values) + 1)
        axis.plot(places, values, style, color=colour, label=f"{side} vectors")
        control = _array(run, name, f"cosines_{side}_null")
        if control is not None:
            axis.plot(places, control, ":", color=colour, label=f"{side}, control")
    axis.set_xlabel("principal angle")
    whole_ticks(axis)
    axis.set_ylabel("cosine")
    axis.ticklabel_format(axis="y", useOffset=False)
    axis.legend()
    return figure


def _array(run, name, kind):
    """The array, or None if the run has none of this kind."""
    try:
        return run.array(name, kind)
    except KeyError:
        if name not in set(run.frame()["name"]):
            raise
        return None


def _positive(values):
    return np.where(values > 0, values, np.nan)
