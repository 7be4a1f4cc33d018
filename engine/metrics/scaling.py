"""How far singular values were scaled (He and Cao, arXiv:2509.17866, first law)."""

from typing import TYPE_CHECKING

import jax.numpy as jnp

from polarax import kernels
from polarax.metrics.catalogue import SCALING, Chance, Control, Effect, Kind, Metric, Shown, register
from polarax.metrics.controlled import controlled
from polarax.metrics.matrix_pair import MatrixPair, Readings
from polarax.metrics.tables import column, constant

if TYPE_CHECKING:
    import pandas as pd


def read_scaling(pair: MatrixPair) -> Readings:
    """The columns of `SCALING`."""
    s_base, s_post, control = pair.spectra.s_base, pair.spectra.s_post, pair.control
    rank = jnp.minimum(*(kernels.numerical_rank(values, *pair.shape) for values in (s_base, s_post)))
    scaling = kernels.scaling(s_base, s_post, rank=rank)
    return {
        **scaling._asdict(),
        **controlled("alpha", scaling.alpha, pair.spectra.change_norm, null=control.alpha, std=control.alpha_std),
        "ratio_cv_null": control.ratio_cv,
        "nss_null": control.nss,
    }


def _chance_of_alpha(frame: "pd.DataFrame") -> Chance:
    """alpha - 1 = <D, W> / ||W||^2 + (drift^2 - nss^2) / 2, and nss is between 0 and drift."""
    return Chance(constant(frame, 1.0), column(frame, "alpha_null"), column(frame, "alpha_null_std"))


register(
    SCALING,
    [
        Metric(
            "alpha",
            "least-squares scale of the singular values",
            Control(
                null="control of alpha, 1 + drift^2 / 2",
                std="standard deviation of alpha under the control",
                z="(alpha - control) / its standard deviation",
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
                format="{:.5g}",
                above=Kind("scaled up", "scaled up"),
                below=Kind("scaled down", "scaled down"),
                chance=_chance_of_alpha,
                unless=("budget_scaling",),
            ),
        ),
        Metric("alpha_geo", "geometric mean of the ratios of singular values"),
        Metric("ratio_mean", "mean of the ratios"),
        Metric(
            "ratio_cv",
            "standard deviation of the ratios over their mean",
            Control(null="control of ratio_cv", first_order=True, sampled=True),
            Shown.ROLES | Shown.PAGE | Shown.FACTS,
        ),
        Metric("ratio_cv_energy", "ratio_cv with weights s_base^2", shown=Shown.LAYERS),
        Metric(
            "nss",
            "||s_post - s_base|| / ||s_base||",
            Control(null="control of nss: what a random change moves singular values by, or more"),
        ),
    ],
    read_scaling,
)
