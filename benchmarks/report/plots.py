"""PNG plots of a run; colours and markers that colour-blind readers can tell apart."""

import math
import pathlib
from collections.abc import Sequence

from benchmarks.cases import Record
from benchmarks.report import figures

# Okabe and Ito's colours (2008); each series has a marker of its own too.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "*")
# Errors below this are drawn here: a logarithm has no place for 0.
_LEAST_ERROR = 1e-3


def write_plots(records: Sequence[Record], folder: pathlib.Path) -> list[pathlib.Path]:
    """Draws what there are records for.

    Raises:
        ImportError: matplotlib is not installed.
    """
    drawn = {
        "ratios.png": _ratios(records),
        "growth.png": _growth(records),
        "accuracy.png": _accuracy(records),
        "floor.png": _shares(records),
    }
    written = []
    for name, figure in drawn.items():
        if figure is not None:
            written.append(folder / name)
            figure.savefig(written[-1], dpi=130)
    return written


def _figure(width, height):
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _ratios(records):
    """Times of every script over polarax's, a row for each case of the pairs suite."""
    rows = []
    for case, in_case in figures.groups(figures.timed(figures.of_suite(records, "pairs"))):
        found = {
            record["contestant"]: figures.ratio_to_reference(record, in_case)
            for record in in_case
            if not record["reference"]
        }
        rows.append((case, {name: own for name, own in found.items() if own is not None}))
    rows = [(case, found) for case, found in rows if found]
    if not rows:
        return None
    names = list(dict.fromkeys(name for _, found in rows for name in found))
    figure = _figure(9, 1.6 + 0.35 * len(rows))
    axis = figure.subplots()
    for index, name in enumerate(names):
        places = [(row, found[name]) for row, (_, found) in enumerate(rows) if name in found]
        medians = [own.median for _, own in places]
        low = [max(0.0, own.median - own.low) for _, own in places]
        high = [max(0.0, own.high - own.median) for _, own in places]
        axis.errorbar(
            medians,
            [row for row, _ in places],
            xerr=[low, high],
            fmt=_MARKERS[index % len(_MARKERS)],
            color=_COLOURS[index % len(_COLOURS)],
            label=name,
        )
    axis.axvline(1, color="#555555", linestyle="--")
    axis.set_xscale("log")
    axis.xaxis.set_major_formatter("{x:g}")
    axis.xaxis.set_minor_formatter("{x:g}")
    axis.set_yticks(range(len(rows)), [case for case, _ in rows], fontsize=8)
    axis.invert_yaxis()
    axis.set_xlabel("time over polarax's, in the same round (1 = as fast; quartiles)")
    figure.legend(loc="outside right upper", frameon=False, fontsize=8)
    figure.suptitle("Whole analysis of a pair: everybody against polarax")
    return figure


def _growth(records):
    """Log-log panels of time against n, stack length and devices."""
    series = figures.growth_series(records)
    fits = figures.fits(records)
    labels = {"n": "n of an n x n matrix", "batch": "matrices in the stack", "devices": "devices"}
    axes_of = [axis for axis in labels if any(key[0] == axis for key in series)]
    if not axes_of:
        return None
    figure = _figure(5 * len(axes_of), 4.6)
    panels = figure.subplots(1, len(axes_of), squeeze=False)[0]
    for panel, axis in zip(panels, axes_of, strict=True):
        own = [(key[1], points) for key, points in series.items() if key[0] == axis]
        for index, (name, points) in enumerate(own):
            fit = fits.get((axis, name))
            panel.plot(
                *zip(*points, strict=True),
                marker=_MARKERS[index % len(_MARKERS)],
                color=_COLOURS[index % len(_COLOURS)],
                label=f"{name}: exponent {fit.exponent:.2f}" if fit else name,
            )
        panel.set_xscale("log", base=2)
        panel.xaxis.set_major_formatter("{x:g}")
        panel.set_yscale("log")
        panel.set_xlabel(labels[axis])
        panel.set_ylabel("seconds, median")
        panel.legend(frameon=False, fontsize=8)
        panel.grid(alpha=0.3)
    figure.suptitle("Growth")
    return figure


def _accuracy(records):
    """Error of singular values over the largest, in eps, by class: a panel for each dtype."""
    own = [
        record
        for record in figures.of_suite(records, "accuracy")
        if record["what"] == "svd" and record.get("value_error_of_largest") is not None
    ]
    dtypes = sorted({record["dtype"] for record in own})
    if not dtypes:
        return None
    classes = list(dict.fromkeys(record["class"] for record in own))
    names = list(dict.fromkeys(record["contestant"] for record in own))
    figure = _figure(4.5 * len(dtypes) + 3, 1.4 + 0.4 * len(classes))
    panels = figure.subplots(1, len(dtypes), squeeze=False, sharey=True)[0]
    for panel, dtype in zip(panels, dtypes, strict=True):
        for index, name in enumerate(names):
            places = _worst_by_class(own, dtype, name, classes)
            offset = (index / max(1, len(names) - 1) - 0.5) * 0.6
            panel.plot(
                [max(error, _LEAST_ERROR) for _, error in places],
                [row + offset for row, _ in places],
                linestyle="",
                marker=_MARKERS[index % len(_MARKERS)],
                color=_COLOURS[index % len(_COLOURS)],
                markersize=5,
                label=name if panel is panels[0] else None,
            )
        panel.set_xscale("log")
        panel.set_title(dtype)
        panel.set_xlabel("worst error of s over s_1, in eps")
        panel.grid(alpha=0.3)
    panels[0].set_yticks(range(len(classes)), classes)
    panels[0].invert_yaxis()
    figure.legend(loc="outside right upper", frameon=False, fontsize=8)
    figure.suptitle("Singular values against an extended-precision reference")
    return figure


def _worst_by_class(records, dtype, name, classes):
    places = []
    for row, kind in enumerate(classes):
        errors = [
            record["value_error_of_largest"]
            for record in records
            if (record["dtype"], record["contestant"], record["class"]) == (dtype, name, kind)
        ]
        if errors:
            places.append((row, max(errors)))
    return places


def _shares(records):
    """Nominal rates of whole analyses and kernels as a share of the device's products."""
    peak = figures.peaks(records)
    rows = []
    for suite in ("pairs", "kernels", "batch"):
        for record in figures.timed(figures.of_suite(records, suite)):
            share = figures.share_of_peak(record, peak)
            if share is not None:
                rows.append((record["case"], record["contestant"], share))
    if not rows:
        return None
    cases = list(dict.fromkeys(case for case, *_ in rows))
    names = list(dict.fromkeys(name for _, name, _ in rows))
    figure = _figure(10, 1.6 + 0.28 * len(cases))
    axis = figure.subplots()
    for index, name in enumerate(names):
        places = [(cases.index(case), share) for case, own, share in rows if own == name]
        axis.plot(
            [share for _, share in places],
            [row for row, _ in places],
            linestyle="",
            marker=_MARKERS[index % len(_MARKERS)],
            color=_COLOURS[index % len(_COLOURS)],
            label=name,
        )
    axis.axvline(1, color="#555555", linestyle="--")
    axis.set_xscale("log")
    least = min(share for *_, share in rows)
    axis.set_xlim(left=10 ** math.floor(math.log10(least)))
    axis.set_yticks(range(len(cases)), cases, fontsize=7)
    axis.invert_yaxis()
    axis.set_xlabel("nominal operations per second over the peak of products in the same dtype")
    figure.legend(loc="outside right upper", frameon=False, fontsize=8)
    figure.suptitle("Share of the floor")
    return figure
