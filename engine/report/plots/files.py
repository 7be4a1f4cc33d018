"""The pictures of a whole run, as files: PNG for slides and notes, SVG for papers."""

import pathlib
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from polarax.report.plots.budget import plot_drift_budget
from polarax.report.plots.over_layers import plot_alpha, plot_coordination, plot_nf
from polarax.report.plots.rotation import plot_overlap, plot_principal_angles, plot_rotation
from polarax.report.plots.scaling import plot_scaling
from polarax.report.plots.style import to_png, to_svg
from polarax.results.run_directory import replacing, writing

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from polarax.results.run import Run
    from polarax.results.runs import Runs

# Name of the file -> what draws it.
PLOTS: dict[str, Callable[["Run"], "Figure | None"]] = {
    "scaling": plot_scaling,
    "alpha": plot_alpha,
    "nf": plot_nf,
    "rotation": plot_rotation,
    "overlap": plot_overlap,
    "principal_angles": plot_principal_angles,
    "drift_budget": plot_drift_budget,
    "coordination": plot_coordination,
}


def draw_plots(run: "Run") -> "dict[str, Figure]":
    """Every picture that the run has the numbers for, by name.

    Raises:
        UsageError: matplotlib is not installed.
    """
    drawn = {name: draw(run) for name, draw in PLOTS.items()}
    return {name: figure for name, figure in drawn.items() if figure is not None}


def write_plots(
    run: "Run | Runs", folder: pathlib.Path, figures: "Mapping[str, Figure] | None" = None
) -> list[pathlib.Path]:
    """Writes the pictures of a run as PNG and as SVG.

    Args:
        run: The run; nothing is asked of it if the figures are given.
        folder: Where to; it is made.
        figures: What `draw_plots` returned, if it was called already.

    Returns:
        The paths of the PNGs; the SVGs lie beside them.

    Raises:
        UsageError: matplotlib is not installed.
        RunError: The folder cannot be written.
    """
    figures = draw_plots(run) if figures is None else figures  # type: ignore[arg-type]
    written = []
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for name, figure in figures.items():
            contents = {".png": to_png(figure), ".svg": to_svg(figure, name).encode()}
            for ending, content in contents.items():
                with replacing(folder / f"{name}{ending}", mode="wb") as file:
                    file.write(content)
            written.append(folder / f"{name}.png")
    return written
