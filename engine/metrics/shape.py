"""Shape of the spectra of base, post and change."""

import math
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

from polarax import kernels
from polarax.kernels.sides import Shape, entry_count, longer_side, root, shorter_side
from polarax.metrics.catalogue import SHAPE, Chance, Control, ControlKind, Effect, Kind, Metric, Shown, register
from polarax.metrics.leading_pair import LeadingPair
from polarax.metrics.matrix_pair import MatrixPair, Readings
from polarax.metrics.tables import column, constant

if TYPE_CHECKING:
    import pandas as pd

# Nodes of the mean over Marchenko and Pastur's law: all digits, but for squares, whose density has a pole at 0.
_NODES = 128


def read_shape(pair: MatrixPair) -> Readings:
    """The columns of `SHAPE` but the ranks of base and post, which every run needs; and `s_change`, (..., r).

    Of the rank of the change that which is numerically there: `read_change` knows what rounding of entries makes of it.
    """
    spectra = pair.spectra
    assert spectra.s_change is not None
    readings: Readings = {}
    for which, values in (("base", spectra.s_base), ("post", spectra.s_post), ("change", spectra.s_change)):
        readings |= {
            f"stable_rank_{which}": kernels.stable_rank(values),
            f"effective_rank_{which}": kernels.effective_rank(values),
            f"spectral_norm_{which}": values[..., 0],
        }
        if which == "change":
            readings["s_change"] = values
        else:
            readings[f"power_law_{which}"] = kernels.power_law(values).exponent
    norm = kernels.frobenius(spectra.s_base[..., None, :])
    readings["rank_change"] = kernels.rank_beyond_noise(spectra.s_change, jnp.zeros_like(norm), shape=pair.shape)
    readings["effective_rank_change_null"] = jnp.broadcast_to(
        random_effective_rank(pair.shape).astype(norm.dtype), norm.shape
    )
    readings["effective_rank_post_null"] = pair.spectrum_null.effective_rank
    readings["power_law_post_null"] = pair.spectrum_null.exponent
    largest = pair.leading_law.spectral_norm
    return readings | null_columns(norm, spectra.change_norm, largest, shape=pair.shape)


def read_shape_quickly(pair: LeadingPair) -> Readings:
    """Spectral norms and stable ranks."""
    assert pair.change_values is not None
    sides = {
        "base": (pair.base.norm, pair.base.values),
        "post": (pair.post.norm, pair.post.values),
        "change": (pair.change_norm, pair.change_values),
    }
    readings: Readings = {}
    for which, (norm, values) in sides.items():
        readings[f"stable_rank_{which}"] = stable_rank_of(norm, values[0])
        readings[f"spectral_norm_{which}"] = values[0]
    largest = pair.leading_law.spectral_norm
    return readings | null_columns(pair.base.norm, pair.change_norm, largest, shape=pair.shape)


def stable_rank_of(norm: jax.Array, largest: jax.Array) -> jax.Array:
    """||W||_F^2 / s_1^2, (...); NaN where that is 0."""
    return (norm / jnp.where(largest > 0, largest, jnp.nan)) ** 2


def null_columns(norm: jax.Array, change_norm: jax.Array, largest: jax.Array, *, shape: Shape) -> Readings:
    """The controls of post and change, each (...).

    The largest singular value of isotropic noise is that of `noise_spectral_norm`.

    Args:
        norm: ||W_b||_F, (...).
        change_norm: ||D||_F, (...).
        largest: Mean of the post's s_1 under the control, (...).
        shape: (m, n).
    """
    sd = change_norm / root(entry_count(shape))
    noise = kernels.noise_spectral_norm(change_norm, shape)
    return {
        "spectral_norm_post_null": largest,
        "spectral_norm_post_null_std": sd,
        "stable_rank_post_null": stable_rank_null(norm, change_norm, largest),
        "spectral_norm_change_null": noise,
        "stable_rank_change_null": stable_rank_of(change_norm, noise),
    }


def stable_rank_null(norm: jax.Array, change_norm: jax.Array, largest: jax.Array) -> jax.Array:
    """Stable rank under an isotropic change, (...): the squares of all values grow by ||D||^2 together.

    Args:
        norm: ||W_b||_F, (...).
        change_norm: ||D||_F, (...).
        largest: Mean of s_1 under that change, (...).
    """
    unit = jnp.where(largest > 0, largest, jnp.nan)
    return (norm / unit) ** 2 + (change_norm / unit) ** 2


def random_effective_rank(shape: Shape) -> jax.Array:
    """Effective rank of a large Gaussian matrix, from the Marchenko-Pastur law of its singular values, ().

    On [l, h] with l, h = sqrt(m) -+ sqrt(n) these have the density sqrt((h^2 - s^2)(s^2 - l^2)) / s, up to a factor.
    With s = (l + h) / 2 + (h - l) / 2 cos(t) it is smooth and periodic in t.

    Example:
        >>> round(float(random_effective_rank((1000, 1000))))
        805
    """
    longer, shorter = longer_side(shape), shorter_side(shape)
    half = jnp.sqrt(shorter / longer)  # in units of sqrt(m): l, h = 1 -+ half
    t = (jnp.arange(_NODES) + 0.5) * (math.pi / _NODES)
    s = 1 + half * jnp.cos(t)
    density = jnp.sin(t) ** 2 * jnp.sqrt((1 + half + s) * (s + 1 - half)) / s
    density /= jnp.sum(density)
    mean = jnp.sum(density * s)
    return shorter * jnp.exp(jnp.log(mean) - jnp.sum(density * s * jnp.log(s)) / mean)


def _chance_of_effective_rank(frame: "pd.DataFrame") -> Chance:
    random = column(frame, "effective_rank_change_null")
    if {"rows", "cols"} <= set(frame) and "effective_rank_change_null" not in frame:  # as runs were written before
        shapes = list(zip(frame["rows"], frame["cols"], strict=True))
        of_shape = {shape: float(random_effective_rank(shape)) for shape in set(shapes)}
        random[:] = [of_shape[shape] for shape in shapes]
    return Chance(random, random, constant(frame, math.nan))


def _below_that_of_the_base(rows: "pd.DataFrame") -> "pd.Series":
    """False where it is the base that is of low rank."""
    return column(rows, "effective_rank_change") < column(rows, "effective_rank_base") / 2


_LOW_RANK = Effect(
    threshold="low_rank",
    size=0.25,
    words="effective rank of the change 0.25 of a random one's",
    numbers="effective rank",
    format="{:.3g}",
    below=Kind("low rank", "a change of low rank"),
    measure="share",
    by_deviations=False,
    chance=_chance_of_effective_rank,
    where=_below_that_of_the_base,
)


def _chance_of_stable_rank(frame: "pd.DataFrame") -> Chance:
    random = column(frame, "stable_rank_change_null")
    return Chance(random, random, constant(frame, math.nan))


def _mostly_one_direction(rows: "pd.DataFrame") -> "pd.Series":
    """False where the base is so too."""
    rank = column(rows, "stable_rank_change")
    return (rank < 2) & (rank < column(rows, "stable_rank_base") / 2)


# Noise of training concentrates as well: what is said is what its largest singular value shows.
_ONE_DIRECTION = Effect(
    threshold="one_direction",
    size=0.25,
    words="stable rank of the change 2, and 0.25 of a random one's",
    numbers="stable rank",
    format="{:.3g}",
    below=Kind("one direction", "more than half of the change in one direction"),
    measure="share",
    by_deviations=False,
    chance=_chance_of_stable_rank,
    where=_mostly_one_direction,
    first_look=True,
)

register(
    SHAPE,
    [
        Metric("rank_base", "numerical rank of the base"),
        Metric("rank_post", "numerical rank of the post"),
        Metric(
            "rank_change",
            "rank of the change, up to the rounding of the stored types (metric change) and of what is computed",
            of_stored_dtype=True,
        ),
        Metric("stable_rank_base", "||W||^2 / s_1^2 of the base", quick=True),
        Metric(
            "stable_rank_post",
            "the same of the post",
            Control(null="control of stable_rank_post", kind=ControlKind.LAW),
            quick=True,
        ),
        Metric(
            "stable_rank_change",
            "the same of the change",
            Control(null="control of stable_rank_change", kind=ControlKind.LAW),
            shown=Shown.FIRST_LOOK | Shown.FACTS,
            heading="stable rank, change",
            title="stable rank of the change",
            effect=_ONE_DIRECTION,
            quick=True,
        ),
        Metric("effective_rank_base", "exp(entropy(s / sum s)) of the base"),
        Metric(
            "effective_rank_post",
            "the same of the post",
            Control(null="control of effective_rank_post", kind=ControlKind.LAW),
        ),
        Metric(
            "effective_rank_change",
            "the same of the change",
            Control(null="control of effective_rank_change"),
            effect=_LOW_RANK,
        ),
        Metric("spectral_norm_base", "largest singular value of the base", quick=True),
        Metric(
            "spectral_norm_post",
            "the same of the post",
            Control(
                null="control of spectral_norm_post",
                std="standard deviation of spectral_norm_post under the control",
                kind=ControlKind.LAW,
            ),
            quick=True,
        ),
        Metric(
            "spectral_norm_change",
            "the same of the change",
            Control(null="control of spectral_norm_change", kind=ControlKind.LAW),
            quick=True,
        ),
        Metric("power_law_base", "power-law exponent of the tail of s^2 of the base"),
        Metric(
            "power_law_post", "the same of the post", Control(null="control of power_law_post", kind=ControlKind.LAW)
        ),
    ],
    read_shape,
    quick=read_shape_quickly,
)
