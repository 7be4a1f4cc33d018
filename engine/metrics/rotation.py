"""How far left and right singular vectors turned differently (He and Cao, arXiv:2509.17866, second law)."""

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np

from polarax import kernels
from polarax.metrics.catalogue import (
    OWN_SPECTRUM,
    ROTATION,
    Chance,
    Control,
    ControlKind,
    Effect,
    Kind,
    Metric,
    Shown,
    register,
)
from polarax.metrics.controlled import controlled
from polarax.metrics.matrix_pair import MatrixPair, Readings
from polarax.metrics.status import is_out_of_range
from polarax.metrics.tables import column, directions, sides, spread_of

if TYPE_CHECKING:
    import pandas as pd


# What the flip of one sign adds to r nf^2; and the standard deviations of noise beyond which no singular value flips.
_FLIP, _ALONE = 4.0, 8.0


def read_rotation(pair: MatrixPair) -> Readings:
    """The columns of `ROTATION`."""
    control, placed = pair.control, kernels.placed_turn(pair.vectors)
    return {
        **rotation_columns(kernels.rotation_difference(pair.vectors), control, pair.spectra.change_norm),
        "nf_placed": control.nf * placed.nf,
        "nf_placed_std": control.std.nf * placed.std,
    }


def rotation_columns(nf: jax.Array, control: kernels.Controls, change_norm: jax.Array) -> Readings:
    """nf and its control, each (...)."""
    return controlled("nf", nf, change_norm, null=control.nf, std=control.std.nf)


def read_pictures(pair: MatrixPair) -> Readings:
    """|Q_U|, |Q_V| and |Q_U - Q_V| as pictures, for people to look at: float32 is enough."""
    if not pair.pictures:
        return {}
    left, right = pair.vectors.left, pair.vectors.right
    turned = {"left": left, "right": right, "difference": left - right}
    return {f"rotation_{which}": kernels.block_magnitudes(x).astype(jnp.float32) for which, x in turned.items()}


def _chance_of_nf(frame: "pd.DataFrame") -> Chance:
    """From that of directions at random to that of a change which lies where this one does.

    The first is that of the change's own spectrum, drawn or in closed form; where neither was measured, isotropic
    noise, wider for few directions. The other is by first order, which overstates it where the change is large.
    """
    isotropic = column(frame, "nf_null").where(~is_out_of_range(frame))
    mean = column(frame, f"nf_{OWN_SPECTRUM}").fillna(isotropic)
    mean = mean.where(mean > 0)
    _, short = sides(frame)
    std = spread_of(frame, "nf", column(frame, "nf_null_std") * np.sqrt(1 + short / directions(frame)))
    std = np.fmax(std, column(frame, "nf_placed_std"))
    placed = mean * column(frame, "nf_placed") / column(frame, "nf_null")
    return Chance.between(mean, placed, std.where(mean.notna()))


def _no_flip(rows: "pd.DataFrame") -> "pd.Series":
    """False where a sign that flips, or two, would make as much of nf.

    A singular value no larger than its noise may change its sign, which turns its vectors apart by all there is:
    r nf^2 grows by 4. That is a rare event, not one of many small ones, and no number of deviations bounds it.
    """
    long, short = sides(rows)
    nearest = np.sqrt(long * short) / (column(rows, "control_reach") * np.sqrt(column(rows, "stable_rank_base")))
    excess = short * (column(rows, "nf") ** 2 - _chance_of_nf(rows).high ** 2)
    return ~((nearest < _ALONE) & (excess > 0) & (excess < 2 * _FLIP))


register(
    ROTATION,
    [
        Metric(
            "nf",
            "how far the left and right rotations differ",
            Control(
                null="control of nf",
                std="standard deviation of nf under the control",
                excess="nf over its control",
                z="(nf - control) / its standard deviation",
                kind=ControlKind.LAW,
                limited=True,
                sampled=True,
                std_shown=False,
            ),
            Shown.HEADLINE | Shown.OVER_PAIRS,
            title="nf: how far the left and right rotations differ",
            caption="How far left and right singular vectors turned differently, from 0 to 2. Small is no evidence of "
            "coordination: near its control it is what any change of this size gives.",
            steps_caption="How far left and right singular vectors turned differently. It grows with the size of the "
            "change: only a distance from the control is a finding.",
            low=0.0,
            effect=Effect(
                threshold="nf_factor",  # over its control, or the other way round
                size=1.25,
                words="nf a factor 1.25 from it",
                numbers="nf",
                format="{:.3g}",
                above=Kind("turned apart", "left and right vectors turned apart more than by chance"),
                below=Kind("turned alike", "left and right vectors turned apart less than by chance"),
                measure="factor",
                chance=_chance_of_nf,
                where=_no_flip,
                unless=("alpha", "budget_scaling", "coordination", "budget_outside"),
                told=2,
            ),
        ),
        Metric(
            "nf_placed",
            "control of nf for a random change with as much of it in each of the base's directions as this one",
        ),
        Metric("nf_placed_std", "standard deviation of nf under that control"),
    ],
    read_rotation,
)
register(ROTATION, [], read_pictures)
