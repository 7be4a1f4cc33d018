"""How far singular values were scaled (He and Cao, arXiv:2509.17866, first law)."""

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np

from polarax import kernels
from polarax.metrics.catalogue import SCALING, Chance, Control, ControlKind, Effect, Kind, Metric, Shown, register
from polarax.metrics.controlled import controlled
from polarax.metrics.leading_pair import LeadingPair
from polarax.metrics.matrix_pair import MatrixPair, Readings
from polarax.metrics.tables import column, constant, mean_of, spread_of

if TYPE_CHECKING:
    import pandas as pd


def read_scaling(pair: MatrixPair) -> Readings:
    """The columns of `SCALING`; and mean and standard deviation of each value of the post under noise, (..., r)."""
    s_base, s_post, size, std = pair.spectra.s_base, pair.spectra.s_post, pair.spectra.change_norm, pair.control.std
    rank = jnp.minimum(*(kernels.numerical_rank(values, *pair.shape) for values in (s_base, s_post)))
    scaling = kernels.scaling(s_base, s_post, rank=rank)
    # 2 alpha = 1 + p^2 - nss^2 and 2 <W_b, W_p> / ||W_b||^2 = 1 + p^2 - drift^2, p being ||W_p|| / ||W_b||.
    entries = scaling.alpha + (scaling.nss**2 - pair.drift**2) / 2
    null = pair.spectrum_null
    return {
        "s_post_null": pair.values_null.values,
        "s_post_null_std": pair.values_null.std,
        **scaling._asdict(),
        "alpha_geo_null": null.alpha_geo,
        "ratio_mean_null": null.ratio_mean,
        **_entries_columns(entries, size, std.alpha_entries),
        **controlled("alpha", scaling.alpha, size, null=null.alpha, std=std.alpha),
        **controlled("ratio_cv", scaling.ratio_cv, size, null=null.ratio_cv, std=std.ratio_cv),
        **controlled(
            "ratio_cv_energy", scaling.ratio_cv_energy, size, null=null.ratio_cv_energy, std=std.ratio_cv_energy
        ),
        **controlled("nss", scaling.nss, size, null=null.nss, std=std.nss),
    }


def read_scaling_quickly(pair: LeadingPair) -> Readings:
    """alpha from the leading values and the norms, and the entries' own scale."""
    alpha = alpha_of_leading(
        pair.base.values[: pair.top_k], pair.base.norm, pair.post.values[: pair.top_k], pair.growth
    )
    std = pair.sd / pair.base_norm
    return {
        **controlled("alpha", alpha, pair.change_norm, null=alpha_null(pair.drift), std=std),
        **_entries_columns(1 + pair.along, pair.change_norm, std),
    }


def alpha_of_leading(
    leading_base: jax.Array, norm_base: jax.Array, leading_post: jax.Array, growth: jax.Array
) -> jax.Array:
    """alpha = <s_b, s_p> / <s_b, s_b> from the k leading values and the norms, ().

    The rest of the spectrum is taken as scaled by one factor, which its norms give. By Cauchy and Schwarz that is at
    most ||rest_p - c rest_b||^2 / (2 ||W_b||^2) too large: second order in how unevenly the rest was scaled. What
    `alpha` is lies between this and `alpha_entries`.

    Args:
        leading_base: (k,).
        norm_base: ||W_b||_F, ().
        leading_post: (k,).
        growth: ||W_p||^2 / ||W_b||^2 - 1, ().
    """
    unit = jnp.where(norm_base > 0, norm_base, jnp.nan)
    base, post = leading_base / unit, leading_post / unit
    rest_base = jnp.sqrt(jnp.maximum(1 - jnp.sum(base**2), 0))
    rest_growth = growth - jnp.sum((post - base) * (post + base))
    rest = jnp.sqrt(jnp.maximum(rest_base**2 + rest_growth, 0))
    total = rest + rest_base
    rest_change = jnp.where(total > 0, rest_growth / jnp.where(total > 0, total, 1), 0)
    return 1 + jnp.sum(base * (post - base)) + rest_base * rest_change


def alpha_null(drift: jax.Array) -> jax.Array:
    """Mean of alpha under a random change, (...)."""
    return 1 + drift**2 / 2


def _entries_columns(entries: jax.Array, change_norm: jax.Array, std: jax.Array) -> Readings:
    return controlled("alpha_entries", entries, change_norm, null=jnp.ones_like(entries), std=std)


def _chance_of_alpha(frame: "pd.DataFrame") -> Chance:
    """alpha - 1 = <D, W> / ||W||^2 + (drift^2 - nss^2) / 2, and nss is between 0 and drift.

    The law's mean is of isotropic noise: a change of fewer directions moves singular values less, and alpha more.
    """
    std = spread_of(frame, "alpha", column(frame, "alpha_null_std"))
    most = np.fmax(column(frame, "alpha_null"), 1 + column(frame, "drift") ** 2 / 2)
    low, high = (mean_of(frame, "alpha", end) for end in (constant(frame, 1.0), most))
    return Chance(low, high, std, _tail_of_products(frame))


def _tail_of_products(frame: "pd.DataFrame") -> "pd.Series":
    """How many times as far what is as rare as `DEVIATIONS` is of <D, W>, where few directions carry both.

    Of one direction each it is a product of two normal numbers, whose tail is exponential, and of R of the one and R'
    of the other about a sum of R R' of them: what is as rare as 6 normal deviates lies up to 6 (1 + 7/3 (R R')^(-2/3))
    of its own away. 1 where the singular values of either were not measured.
    """
    products = column(frame, "stable_rank_base") * column(frame, "stable_rank_change")
    return (1 + 7 / 3 * products.clip(lower=1) ** (-2 / 3)).fillna(1.0)


register(
    SCALING,
    [
        Metric(
            "alpha",
            "least-squares scale of the singular values",
            Control(
                null="control of alpha: noise alone makes singular values grow",
                std="standard deviation of alpha under the control",
                z="(alpha - control) / its standard deviation",
                kind=ControlKind.LAW,
                sampled=True,
            ),
            Shown.HEADLINE | Shown.OVER_PAIRS,
            format="{:.5f}",
            title="alpha: the scale between the two spectra",
            caption="The least-squares scale between the two spectra. Noise alone makes singular values grow by "
            "drift² / 2: the control lies above 1.",
            steps_caption="The least-squares scale between the two spectra. Noise alone makes singular values grow by "
            "drift² / 2; the band is the control of a single matrix.",
            effect=Effect(
                threshold="alpha",  # outside of what noise of the same size gives, which is 1 to 1 + drift^2 / 2
                size=0.005,
                words="alpha 0.5%",
                numbers="alpha",
                format="{:+.3%}",
                origin=1.0,
                above=Kind("scaled up", "scaled up"),
                below=Kind("scaled down", "scaled down"),
                chance=_chance_of_alpha,
                unless=("budget_scaling", "leading_scaling"),
            ),
            quick=True,
        ),
        Metric(
            "alpha_entries",
            "least-squares scale of the entries, <W_base, W_post> / <W_base, W_base>",
            Control(
                null="control of alpha_entries, 1",
                std="standard deviation of alpha_entries under the control",
                z="(alpha_entries - 1) / its standard deviation",
            ),
            quick=True,
        ),
        Metric(
            "alpha_geo",
            "geometric mean of the ratios of singular values",
            Control(null="control of alpha_geo", kind=ControlKind.LAW),
        ),
        Metric("ratio_mean", "mean of the ratios", Control(null="control of ratio_mean", kind=ControlKind.LAW)),
        Metric(
            "ratio_cv",
            "standard deviation of the ratios over their mean",
            Control(
                null="control of ratio_cv, root mean square",
                std="standard deviation of ratio_cv under the control",
                kind=ControlKind.LAW,
                limited=True,
                sampled=True,
                std_shown=False,
            ),
            Shown.ROLES | Shown.PAGE | Shown.FACTS,
        ),
        Metric(
            "ratio_cv_energy",
            "ratio_cv with weights s_base^2",
            Control(
                null="control of ratio_cv_energy, root mean square",
                std="standard deviation of ratio_cv_energy under the control",
                kind=ControlKind.LAW,
            ),
            shown=Shown.LAYERS,
        ),
        Metric(
            "nss",
            "||s_post - s_base|| / ||s_base||",
            Control(
                null="control of nss, root mean square",
                std="standard deviation of nss under the control",
                kind=ControlKind.LAW,
            ),
        ),
    ],
    read_scaling,
    quick=read_scaling_quickly,
)
