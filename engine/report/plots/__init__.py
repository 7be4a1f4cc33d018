"""Pictures of a run, each a matplotlib Figure that belongs to no window; the one place where any is drawn.

matplotlib comes with `pip install 'polarax[plot]'`. A function returns None where the run has nothing for its picture.
"""

from polarax.report.plots.budget import plot_drift_budget
from polarax.report.plots.gallery import draw_plots, write_plots
from polarax.report.plots.matrix import plot_cosines, plot_rotation_maps, plot_spectra
from polarax.report.plots.over_layers import plot_over_layers
from polarax.report.plots.rotation import plot_overlap, plot_principal_angles, plot_rotation
from polarax.report.plots.scaling import plot_scaling

__all__ = [
    "draw_plots",
    "plot_cosines",
    "plot_drift_budget",
    "plot_over_layers",
    "plot_overlap",
    "plot_principal_angles",
    "plot_rotation",
    "plot_rotation_maps",
    "plot_scaling",
    "plot_spectra",
    "write_plots",
]
