"""The drift budget: where the change goes, in the base's own frame."""

import functools
from typing import TYPE_CHECKING

import jax
import numpy as np

from polarax import kernels
from polarax.metrics.catalogue import (
    BUDGET,
    DEVIATIONS,
    OWN_SPECTRUM,
    Chance,
    Control,
    Effect,
    Kind,
    Metric,
    Shown,
    register,
)
from polarax.metrics.controlled import controlled
from polarax.metrics.matrix_pair import MatrixPair, Readings
from polarax.metrics.tables import column, constant, directions, mean_of, sides, spread_of

if TYPE_CHECKING:
    import pandas as pd

# Parts of the budget, and what the largest of them must make of a change before it is said of a matrix.
PARTS = ("budget_scaling", "budget_coordinated", "budget_discordant", "budget_outside")
SHARE = 0.1  # of the change, beyond the control
# The same of what is outside the base's row or column space. Quantised weights err most where their rows are large,
# which is where the base's own directions are: of that the control knows what they show of it, and misses up to 0.07.
OUTSIDE = 0.2
COORDINATION = 0.1


def read_budget(pair: MatrixPair) -> Readings:
    """The columns of `BUDGET`."""
    columns = budget_columns(kernels.budget_of_frames(pair.vectors), pair.control, pair.spectra.change_norm)
    return columns | {"budget_outside_placed": kernels.placed_outside(pair.vectors)}


def budget_columns(budget: kernels.DriftBudget, control: kernels.Controls, change_norm: jax.Array) -> Readings:
    """A drift budget and its control, each (...)."""
    columns: Readings = {}
    for part in PARTS:
        value = getattr(budget, part.removeprefix("budget_"))
        columns |= controlled(part, value, change_norm, null=getattr(control, part), std=getattr(control.std, part))
    return {
        **columns,
        **controlled("coordination", budget.coordination, change_norm, std=control.std.coordination),
    }


def scaled_by_one_factor(rows: "pd.DataFrame") -> "pd.Series":
    """True where one factor for all singular values makes more of their change than what differs between them."""
    by_one = ((column(rows, "alpha") - 1) / column(rows, "drift")) ** 2  # share of the change
    return by_one >= column(rows, "budget_scaling") / 2


def _singular_values_changed(rows: "pd.DataFrame") -> "pd.Series":
    """True where singular values moved by more than chance, and the diagonal's share is theirs.

    Vectors that turn far take from the diagonal too, whatever singular values do: <D, W> is then -||D||^2 / 2.
    """
    drift, shift = column(rows, "drift"), column(rows, "nss")
    chance = chance_of_diagonal(rows, metric="budget_scaling")
    moved = (shift**2 - column(rows, "nss_null") ** 2) / drift**2 > DEVIATIONS * chance.std
    turned = (drift**2 - shift**2) ** 2 / (4 * drift**2)
    return moved & (column(rows, "budget_scaling") - turned - chance.high > SHARE)


def _uneven(rows: "pd.DataFrame") -> "pd.Series":
    """True where singular values changed, and not by one factor above all."""
    return _singular_values_changed(rows) & ~scaled_by_one_factor(rows)


def much_of_the_change(rows: "pd.DataFrame", *, parts: str) -> "pd.Series":
    """False where the two rotations differ by less of the change than chance gives both; parts: their columns' prefix.

    They may differ much, and both be a small part of the change.
    """
    differ = (column(rows, f"{parts}_coordinated") - column(rows, f"{parts}_discordant")).abs()
    by_chance = column(rows, f"{parts}_coordinated_null") + column(rows, f"{parts}_discordant_null")
    return ~(differ < COORDINATION * by_chance)


def chance_of_diagonal(frame: "pd.DataFrame", *, metric: str) -> Chance:
    """What chance gives of a diagonal's share of the change."""
    null = column(frame, f"{metric}_null")
    mean = mean_of(frame, metric, null)
    widest = np.sqrt(8 * null / (column(frame, "rows") * column(frame, "cols")))
    return Chance(mean, mean, spread_of(frame, metric, widest))


def _chance_of_outside(frame: "pd.DataFrame") -> Chance:
    """From that of directions at random to that of a change which goes on as it does along the base's own."""
    null = column(frame, "budget_outside_null")
    rank = np.sqrt((1 - null).clip(lower=0) * (column(frame, "rows") * column(frame, "cols")))
    relative = sum(2 * (1 - rank / side) / rank for side in sides(frame))
    widest = (1 - null) * np.sqrt(relative.clip(lower=0) / directions(frame))
    mean, placed = (column(frame, f"budget_outside_{which}") for which in (OWN_SPECTRUM, "placed"))
    return Chance.between(mean.fillna(null), placed, spread_of(frame, "budget_outside", widest))


def chance_of_coordination(frame: "pd.DataFrame", *, metric: str) -> Chance:
    """What chance gives of a coordination. Of few directions it has a longer tail, up to that of a chi-square of 1."""
    mean = mean_of(frame, metric, constant(frame, 0.0))
    std = spread_of(frame, metric, column(frame, f"{metric}_null_std"))
    return Chance(mean, mean, std, tail_of_few(frame))


def tail_of_few(frame: "pd.DataFrame") -> "pd.Series":
    """How many times as far what is as rare as `DEVIATIONS` is of a share, where few directions carry the change.

    For one direction the share is that of a chi-square of 1: what is as rare as z normal deviations lies up to
    z + z^2 / sqrt(2) of its own away, and z + z^2 / (sqrt(2) R) for R directions.
    """
    return 1 + DEVIATIONS / (np.sqrt(2) * directions(frame))


register(
    BUDGET,
    [
        Metric(
            "budget_scaling",
            "share of the change on the diagonal of the base's frame",
            Control(
                null="control of budget_scaling",
                std="standard deviation of budget_scaling under the control",
                sampled=True,
                std_shown=False,
            ),
            Shown.ROLES | Shown.STEPS | Shown.PAGE | Shown.LAYERS,
            format="{:.2%}",
            heading="scaling share",
            effect=Effect(
                threshold="share",
                size=SHARE,
                words="shares of the change 10 points",
                numbers="share of the change",
                format="{:.1%}",
                above=Kind("uneven", "singular values changed, each by a factor of its own"),
                chance=functools.partial(chance_of_diagonal, metric="budget_scaling"),
                where=_uneven,
                needs=("drift", "nss", "nss_null"),
            ),
        ),
        Metric(
            "budget_coordinated",
            "share of the change that rotates left and right together",
            Control(null="control of budget_coordinated"),
            Shown.LAYERS,
        ),
        Metric(
            "budget_discordant",
            "share of the change that rotates left against right",
            Control(null="control of budget_discordant"),
            Shown.LAYERS,
        ),
        Metric(
            "budget_outside",
            "share of the change outside the base's row or column space",
            Control(
                null="control of budget_outside",
                std="standard deviation of budget_outside under the control",
                sampled=True,
            ),
            Shown.LAYERS,
            effect=Effect(
                threshold="outside",
                size=OUTSIDE,
                words="the share outside 20 points",
                numbers="share",
                format="{:.1%}",
                above=Kind("outside", "changed more outside the base's row or column space than by chance"),
                below=Kind("inside", "changed less outside the base's row or column space than by chance"),
                chance=_chance_of_outside,
                unless=("alpha", "budget_scaling", "coordination"),
                told=1,
            ),
        ),
        Metric(
            "budget_outside_placed",
            "control of budget_outside for a random change with as much in each direction outside as this one has in"
            " the base's last ones",
        ),
        Metric(
            "coordination",
            "(coordinated - discordant) / (coordinated + discordant); its control is 0",
            Control(
                std="standard deviation of coordination under the control",
                z="coordination / its standard deviation under the control",
                sampled=True,
            ),
            Shown.HEADLINE,
            format="{:+.3f}",
            title="coordination: 0 random, 1 turned together, -1 against",
            caption="(coordinated - discordant) / (coordinated + discordant): 0 for a random change, 1 for a pure "
            "joint rotation.",
            effect=Effect(
                threshold="coordination",
                size=COORDINATION,
                words="coordination 0.1",
                numbers="coordination",
                format="{:+.2f}",
                above=Kind("coordinated", "coordinated"),
                below=Kind("discordant", "discordant"),
                chance=functools.partial(chance_of_coordination, metric="coordination"),
                where=functools.partial(much_of_the_change, parts="budget"),
            ),
        ),
    ],
    read_budget,
)
