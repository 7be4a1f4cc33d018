"""Headlines that polar factors alone give: on accelerators by matrix products, without any decomposition."""

from typing import TYPE_CHECKING

import jax

from polarax import kernels
from polarax.metrics.budget import tail_of_few
from polarax.metrics.catalogue import POLAR, Chance, Control, ControlKind, Effect, Kind, Metric, Shown, register
from polarax.metrics.controlled import controlled
from polarax.metrics.matrix_pair import MatrixPair, Readings
from polarax.metrics.tables import column, mean_of, spread_of

if TYPE_CHECKING:
    import pandas as pd

# Of the parts inside the base's space, the threshold of coordination.
_SYMMETRY = 0.1


def read_polar(pair: MatrixPair) -> Readings:
    """The columns of `POLAR`, and of the metrics of other groups that it gives."""
    return polar_columns(kernels.headlines_of_frames(pair.vectors), pair.control, pair.spectra.change_norm)


def polar_columns(headlines: kernels.Headlines, control: kernels.Controls, change_norm: jax.Array) -> Readings:
    """Headlines and their controls, each (...)."""
    ratio = headlines.nuclear_norm_ratio
    return {
        **controlled("nf", headlines.nf, change_norm, null=control.nf, std=control.std.nf),
        **controlled(
            "budget_outside",
            headlines.outside,
            change_norm,
            null=control.budget_outside,
            std=control.std.budget_outside,
        ),
        **controlled("symmetry", headlines.symmetry, change_norm, null=control.symmetry, std=control.std.symmetry),
        **controlled(
            "nuclear_norm_ratio",
            ratio,
            change_norm,
            null=control.nuclear_norm_ratio,
            std=control.std.nuclear_norm_ratio,
        ),
    }


def _chance_of_symmetry(frame: "pd.DataFrame") -> Chance:
    mean = mean_of(frame, "symmetry", column(frame, "symmetry_null"))
    std = spread_of(frame, "symmetry", column(frame, "symmetry_null_std"))
    return Chance(mean, mean, std, tail_of_few(frame))


def _much_of_the_change(rows: "pd.DataFrame") -> "pd.Series":
    """False where the two parts differ much, but both are a small part of the change."""
    inside, by_chance = 1 - column(rows, "budget_outside"), 1 - column(rows, "budget_outside_null")
    return ~(column(rows, "symmetry").abs() * inside < _SYMMETRY * by_chance)


register(
    POLAR,
    [
        Metric(
            "symmetry",
            "(symmetric - skew) / (symmetric + skew) of the change in the base's frame: coordination with the diagonal "
            "counted as coordinated",
            Control(
                null="control of symmetry, 1 / r",
                std="standard deviation of symmetry under the control",
                z="(symmetry - control) / its standard deviation",
                sampled=True,
            ),
            Shown.ROLES | Shown.STEPS | Shown.PAGE | Shown.FACTS | Shown.LAYERS,
            format="{:+.3f}",
            stands_for="coordination",
            effect=Effect(
                threshold="coordination",
                size=_SYMMETRY,
                words="coordination 0.1",
                numbers="symmetry",
                format="{:+.2f}",
                above=Kind("symmetric", "changed symmetrically in its own frame: scaled, or turned together"),
                below=Kind("skew", "left and right vectors turned against each other"),
                chance=_chance_of_symmetry,
                where=_much_of_the_change,
                unless=("alpha", "budget_scaling"),
            ),
        ),
        Metric(
            "nuclear_norm_ratio",
            "sum of the post's singular values over the base's",
            Control(
                null="control of nuclear_norm_ratio",
                std="standard deviation of nuclear_norm_ratio under the control",
                z="(nuclear_norm_ratio - control) / its standard deviation",
                kind=ControlKind.LAW,
                limited=True,
                sampled=True,
            ),
            Shown.FACTS,
            format="{:.5f}",
            heading="nuclear norms",
        ),
    ],
    read_polar,
)
