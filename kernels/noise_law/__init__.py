"""What adding noise to a matrix does to its singular values and vectors, in closed form at any size."""

from polarax.kernels.noise_law.any_size import SpreadSource, spreads_at_any_size
from polarax.kernels.noise_law.columns import SpectrumColumns, columns_of_law
from polarax.kernels.noise_law.leading_law import LeadingLaw, leading_law
from polarax.kernels.noise_law.moments import Moments, change_moments, isotropic_moments, moments_of_concentration
from polarax.kernels.noise_law.polar_law import PolarLaw, polar_law
from polarax.kernels.noise_law.second_order import SecondOrder, second_order
from polarax.kernels.noise_law.spectrum_law import SpectrumLaw, spectrum_law
from polarax.kernels.noise_law.spreads import Spreads, spreads
from polarax.kernels.noise_law.values_law import ValuesLaw, values_law

__all__ = [
    "LeadingLaw",
    "Moments",
    "PolarLaw",
    "SecondOrder",
    "SpectrumColumns",
    "SpectrumLaw",
    "SpreadSource",
    "Spreads",
    "ValuesLaw",
    "change_moments",
    "columns_of_law",
    "isotropic_moments",
    "leading_law",
    "moments_of_concentration",
    "polar_law",
    "second_order",
    "spectrum_law",
    "spreads",
    "spreads_at_any_size",
    "values_law",
]
