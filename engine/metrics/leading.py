"""The change in the base's leading frame: the drift budget of the block of its k leading singular vectors."""

import functools
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

from polarax import kernels
from polarax.kernels.sides import Shape, entry_count, shorter_side
from polarax.metrics.budget import (
    COORDINATION,
    SHARE,
    chance_of_coordination,
    chance_of_diagonal,
    much_of_the_change,
)
from polarax.metrics.catalogue import LEADING, Control, Effect, Kind, Metric, Shown, register
from polarax.metrics.controlled import controlled
from polarax.metrics.leading_pair import LeadingPair
from polarax.metrics.matrix_pair import MatrixPair, Readings
from polarax.metrics.tables import column

if TYPE_CHECKING:
    import pandas as pd

# Error of the base's leading vectors, in radians, that first looks and trackers allow: what is read of the change in
# their frame errs by as much as they do.
FRAME_TOLERANCE = 1e-5


def read_leading(pair: MatrixPair) -> Readings:
    """The columns of `LEADING`."""
    k = min(pair.top_k, shorter_side(pair.shape))
    in_frame = pair.vectors.change[..., :k, :k]
    return leading_columns(in_frame, pair.spectra.change_norm, pair.vectors.rank_base, shape=pair.shape)


def read_leading_quickly(pair: LeadingPair) -> Readings:
    """The columns of `LEADING`."""
    return leading_columns(pair.in_frame, pair.change_norm, pair.base.rank, shape=pair.shape)


def leading_columns(in_frame: jax.Array, change_norm: jax.Array, rank: jax.Array, *, shape: Shape) -> Readings:
    """The budget of the leading block, and its control.

    Args:
        in_frame: U_b,k^T D V_b,k, (..., k, k).
        change_norm: ||D||_F, (...).
        rank: Of the base, (...): directions beyond it are not determined, and count as outside.
        shape: (m, n).
    """
    k, entries = in_frame.shape[-1], entry_count(shape)
    inside = jnp.arange(k) < rank[..., None]
    shares = kernels.split_change(jnp.where(inside[..., :, None] & inside[..., None, :], in_frame, 0), change_norm)
    count = jnp.minimum(rank, k).astype(change_norm.dtype)
    count = jnp.where(count > 0, count, jnp.nan)
    pairs = count * (count - 1) / 2
    return {
        **controlled("leading_scaling", shares.scaling, change_norm, null=count / entries),
        **controlled("leading_coordinated", shares.coordinated, change_norm, null=pairs / entries),
        **controlled("leading_discordant", shares.discordant, change_norm, null=pairs / entries),
        # As the whole budget's coordination: 2 Beta(K/2, K/2) - 1 with K pairs.
        **controlled("leading_coordination", shares.coordination, change_norm, std=1 / jnp.sqrt(pairs + 1)),
    }


def _uneven(rows: "pd.DataFrame") -> "pd.Series":
    """True where leading singular values changed, and not all by one factor.

    Vectors that turn far take drift^2 / 4 of the change from the diagonal, whatever singular values do.
    """
    share, drift = column(rows, "leading_scaling"), column(rows, "drift")
    moved = share - drift**2 / 4 - column(rows, "leading_scaling_null") > SHARE
    by_one = ((column(rows, "alpha") - 1) / drift) ** 2  # share of the change
    return moved & ~(by_one > share / 2)


register(
    LEADING,
    [
        Metric(
            "leading_scaling",
            "share of the change on the diagonal of the base's leading frame",
            Control(null="control of leading_scaling", sampled=True),
            Shown.STEPS | Shown.PAGE | Shown.FACTS,
            format="{:.2%}",
            heading="leading scaling",
            effect=Effect(
                threshold="share",
                size=SHARE,
                words="shares of the change 10 points",
                numbers="share of the change",
                format="{:.1%}",
                above=Kind("leading uneven", "leading singular values changed, each by a factor of its own"),
                chance=functools.partial(chance_of_diagonal, metric="leading_scaling"),
                where=_uneven,
                needs=("drift",),
                first_look=True,
            ),
            quick=True,
        ),
        Metric(
            "leading_coordinated",
            "share of the change that rotates leading left and right vectors together",
            Control(null="control of leading_coordinated"),
            quick=True,
        ),
        Metric(
            "leading_discordant",
            "share of the change that rotates leading left vectors against right ones",
            Control(null="control of leading_discordant"),
            quick=True,
        ),
        Metric(
            "leading_coordination",
            "(leading coordinated - discordant) / (leading coordinated + discordant); its control is 0",
            Control(
                std="standard deviation of leading_coordination under the control",
                z="leading_coordination / its standard deviation under the control",
                sampled=True,
            ),
            Shown.FIRST_LOOK | Shown.PAGE | Shown.FACTS,
            format="{:+.3f}",
            heading="leading coordination",
            effect=Effect(
                threshold="coordination",
                size=COORDINATION,
                words="coordination 0.1",
                numbers="leading coordination",
                format="{:+.2f}",
                above=Kind("leading coordinated", "coordinated in the leading subspace"),
                below=Kind("leading discordant", "discordant in the leading subspace"),
                chance=functools.partial(chance_of_coordination, metric="leading_coordination"),
                where=functools.partial(much_of_the_change, parts="leading"),
                first_look=True,
            ),
            quick=True,
        ),
    ],
    read_leading,
    quick=read_leading_quickly,
)
