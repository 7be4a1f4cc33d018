"""The leading subspaces, and intruder vectors (arXiv:2410.21228)."""

import functools
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np

from polarax import kernels
from polarax.kernels.noise_law import LeadingLaw
from polarax.metrics.catalogue import OVERLAP, Chance, Control, ControlKind, Effect, Kind, Metric, Shown, register
from polarax.metrics.leading_pair import LeadingPair
from polarax.metrics.matrix_pair import MatrixPair, Readings
from polarax.metrics.tables import column, directions

if TYPE_CHECKING:
    import pandas as pd

# Directions that what is lost of a subspace is at least spread over.
_FEWEST = 16


def read_overlap(pair: MatrixPair) -> Readings:
    """The columns of `OVERLAP`, and the cosines of the principal angles with their controls, (..., k)."""
    overlap = kernels.overlap_of_frames(pair.vectors, k=pair.top_k)
    names, law = ("intruders_left", "intruders_right", "cosines_left", "cosines_right"), pair.leading_law
    return {
        **_columns(overlap.left, overlap.right, law),
        **{name: getattr(overlap, name) for name in names},
        **{f"{name}_null": getattr(law, name) for name in names},
    }


def read_overlap_quickly(pair: LeadingPair) -> Readings:
    """The columns of `OVERLAP` that leading vectors give, and the cosines with their controls, (k,)."""
    base, post, law = pair.base, pair.post, pair.leading_law
    across = {
        side: _across(getattr(base, side), getattr(post, side), base.rank, post.rank) for side in ("left", "right")
    }
    left, right = (_share(x, base.rank, post.rank).astype(pair.sd.dtype) for x in across.values())
    cosines = jnp.clip(kernels.singular_values(jnp.stack([*across.values()]), method="lapack"), 0, 1)
    return {
        **_columns(left, right, law),
        **{f"cosines_{side}": values for side, values in zip(across, cosines.astype(pair.sd.dtype), strict=True)},
        **{f"cosines_{side}_null": getattr(law, f"cosines_{side}") for side in across},
    }


def subspace_overlap(base: jax.Array, post: jax.Array, rank_base: jax.Array, rank_post: jax.Array) -> jax.Array:
    """||U_b,k^T U_p,k||_F^2 over k, or over the larger rank where that is smaller; ().

    Args:
        base: The k leading singular vectors of one side, or more of them, (m, b).
        post: The post's, (m, k).
        rank_base: How many of the k values are not zero, (): vectors beyond are not determined, and have no overlap.
        rank_post: The same of the post.
    """
    return _share(_across(base[:, : post.shape[1]], post, rank_base, rank_post), rank_base, rank_post)


def _across(base, post, rank_base, rank_post):
    """U_b,k^T U_p,k, (k, k)."""
    index = jnp.arange(base.shape[-1])
    across = jnp.matmul(base.T, post, precision=jax.lax.Precision.HIGHEST)
    return jnp.where((index < rank_base)[:, None] & (index < rank_post), across, 0)


def _share(across, rank_base, rank_post):
    determined = jnp.clip(jnp.maximum(rank_base, rank_post), 1, across.shape[-1])
    return jnp.minimum(jnp.sum(across**2) / determined, 1)


def _columns(left: jax.Array, right: jax.Array, law: LeadingLaw) -> Readings:
    return {
        "overlap_left": left,
        "overlap_left_null": law.overlap_left,
        "overlap_right": right,
        "overlap_right_null": law.overlap_right,
    }


def _chance_of_overlap(frame: "pd.DataFrame", side: str) -> Chance:
    """What is lost is a sum of squares, of few directions of the change: its spread is a multiple of its mean."""
    null = column(frame, f"overlap_{side}_null")
    return Chance(null, null, (1 - null) * np.sqrt(2 * (1 + 3 / directions(frame)) / _FEWEST))


def _turned(side: str) -> Effect:
    return Effect(
        threshold="overlap",
        size=0.1,
        words="overlap of leading subspaces 10 points",
        numbers=f"overlap, {side}",
        format="{:.2f}",
        below=Kind(f"leading {side} turned", f"leading {side} vectors turned away from the base's more than by chance"),
        chance=functools.partial(_chance_of_overlap, side=side),
        first_look=True,
        unless=("leading_coordination", "leading_scaling", "alpha"),
        told=2,
    )


register(
    OVERLAP,
    [
        *(
            Metric(
                f"overlap_{side}",
                f"overlap of the leading {side} subspaces, 1 for the same",
                Control(null=f"control of overlap_{side}", kind=ControlKind.LAW),
                shown=Shown.FIRST_LOOK | Shown.STEPS | Shown.FACTS,
                format="{:.4f}",
                heading=f"overlap, {side}",
                effect=_turned(side),
                quick=True,
            )
            for side in ("left", "right")
        ),
        *(
            Metric(
                f"intruders_{side}",
                f"leading {side} post vectors unlike every base vector",
                Control(null=f"control of intruders_{side}"),
            )
            for side in ("left", "right")
        ),
    ],
    read_overlap,
    quick=read_overlap_quickly,
)
