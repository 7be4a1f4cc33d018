"""Size of the change, and how much of it is rounding."""

from polarax import kernels
from polarax.kernels.noise_law import polar_law
from polarax.kernels.sides import entry_count
from polarax.metrics.catalogue import CHANGE, Metric, Shown, register
from polarax.metrics.leading_pair import LeadingPair
from polarax.metrics.matrix_pair import MatrixPair, Readings, ratio_to

# Of ||D||: where rounding makes more, nothing is claimed of the matrix but that.
MOSTLY_ROUNDING = 0.5


def read_change(pair: MatrixPair) -> Readings:
    """The columns of `CHANGE`, and where the change was decomposed its rank beyond rounding, a column of `SHAPE`."""
    entries, size = pair.entries, pair.spectra.change_norm
    assert entries is not None
    noise = kernels.noise_between(entries.rounding_base, entries.rounding_post, size).astype(size.dtype)
    values, rank = pair.spectra.s_change, {}
    if values is not None:
        rank = {"rank_change": kernels.rank_beyond_noise(values, noise, shape=pair.shape)}
    return {
        **rank,
        "drift": pair.drift,
        "unchanged": entries.equal / entry_count(pair.shape),
        "rounding_share": ratio_to(noise, size, size),
        "nf_rounding": polar_law(pair.spectra.s_base, noise, shape=pair.shape).nf,
        "spectral_norm_rounding": kernels.noise_spectral_norm(noise, pair.shape),
    }


def read_change_quickly(pair: LeadingPair) -> Readings:
    """The columns of `CHANGE` that need no whole spectrum."""
    assert pair.unchanged is not None and pair.noise is not None
    return {
        "drift": pair.drift,
        "unchanged": pair.unchanged,
        "rounding_share": ratio_to(pair.noise, pair.change_norm, pair.change_norm),
        "spectral_norm_rounding": kernels.noise_spectral_norm(pair.noise, pair.shape),
    }


register(
    CHANGE,
    [
        Metric(
            "drift",
            "size of the change, ||W_post - W_base|| / ||W_base||",
            shown=Shown.ROLES | Shown.STEPS | Shown.PAGE | Shown.FACTS | Shown.LAYERS | Shown.OVER_STEPS,
            format="{:.4f}",
            title="Drift: the size of the change",
            steps_caption="Size of the change from the base, relative to the weight: median of a role's matrices, and "
            "where most of them are.",
            quick=True,
        ),
        Metric("unchanged", "share of entries bitwise equal in both", quick=True),
        Metric(
            "rounding_share",
            "expected rounding noise of the coarser side over the size of the change",
            shown=Shown.PAGE | Shown.FACTS,
            heading="rounding share",
            of_stored_dtype=True,
            quick=True,
        ),
        Metric("nf_rounding", "nf that this noise alone would give", of_stored_dtype=True),
        Metric("spectral_norm_rounding", "largest singular value of this noise", of_stored_dtype=True, quick=True),
    ],
    read_change,
    quick=read_change_quickly,
)
