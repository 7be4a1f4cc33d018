"""power.png: how many of the matrices with a planted effect are named for it, over its size."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from benchmarks.judging.plants import PLANTS, Plant
from polarax.report.plots import style

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COLOURS = (style.BLUE, style.VERMILION, style.GREEN, style.PURPLE)
_LINES = ("--", "-", ":")


@style.picture
def power_picture(records: Sequence[dict[str, Any]]) -> bytes:
    """The picture as PNG: a panel for each effect, a colour for each r, a kind of line for what surrounds it.

    Args:
        records: Of power alone.
    """
    from matplotlib.lines import Line2D

    sizes = sorted({record["r"] for record in records})
    plants = [plant for plant in PLANTS.values() if any(record["plant"] == plant.name for record in records)]
    figure = style.new_figure(7.0, 5.2)
    axes = figure.subplots(2, 2, sharey=True).ravel().tolist()
    for axis, _ in style.each(axes[: len(plants)], [plant.name for plant in plants]):
        plant = plants[axes.index(axis)]
        _panel(axis, plant, [record for record in records if record["plant"] == plant.name], sizes)
    for axis in axes[len(plants) :]:
        axis.set_visible(False)
    for axis in axes[::2]:
        axis.set_ylabel("matrices named")
        axis.yaxis.set_major_formatter("{x:.0%}")
    handles = [Line2D([], [], color=colour, label=f"r = {r}") for r, colour in zip(sizes, _COLOURS, strict=False)]
    handles.append(Line2D([], [], color=style.GREY, linewidth=0.8, label="threshold in the docs"))
    style.legend_below(figure, handles)
    return style.to_png(figure)


def curves(records: Sequence[dict[str, Any]], plant: Plant) -> dict[tuple[int, float], list[tuple[float, float, int]]]:
    """(r, line) -> (size, share named, matrices) in the order of sizes."""
    counted: dict[tuple[int, float, float], list[int]] = {}
    for record in records:
        if record["plant"] == plant.name:
            count = counted.setdefault((record["r"], record["line"], record["size"]), [0, 0])
            count[0] += record["named"].get(plant.told, 0)
            count[1] += record["matrices"]
    found: dict[tuple[int, float], list[tuple[float, float, int]]] = {}
    for (r, line, size), (told, matrices) in sorted(counted.items()):
        found.setdefault((r, line), []).append((size, told / matrices, matrices))
    return found


def _panel(axis: "Axes", plant: Plant, records: Sequence[dict[str, Any]], sizes: Sequence[int]) -> None:
    from matplotlib.lines import Line2D

    axis.axvline(plant.threshold, color=style.GREY, linewidth=0.8)
    for (r, line), points in curves(records, plant).items():
        drawn = _LINES[plant.lines.index(line)]
        x, y, _ = zip(*points, strict=True)
        axis.plot(x, y, drawn, color=_COLOURS[sizes.index(r)], marker="o" if drawn == "-" else "")
    axis.set_xscale("log")
    ticks = style.logarithmic_ticks(*axis.get_xlim())
    axis.set_xticks(ticks, [f"{100 * tick:.3g}%" for tick in ticks])
    axis.set_xticks([], minor=True)
    axis.set_xlabel(plant.axis)
    axis.set_ylim(-0.03, 1.03)
    handles = [
        Line2D([], [], color=style.INK, linestyle=drawn, label=plant.line.format(line))
        for line, drawn in zip(plant.lines, _LINES, strict=True)
    ]
    # Where no curve is: of low rank is what has a small size.
    axis.legend(handles=handles, loc="lower left" if plant.name == "low rank" else "upper left")
