"""What adding noise to a matrix does to its singular values and vectors, in closed form at any size."""

from polarax.kernels.noise_law.columns import SpectrumColumns, columns_of_law
from polarax.kernels.noise_law.moments import Moments, change_moments, isotropic_moments
from polarax.kernels.noise_law.polar_law import PolarLaw, polar_law
from polarax.kernels.noise_law.spreads import Spreads, spreads
from polarax.kernels.noise_law.values_law import ValuesLaw, values_law

__all__ = [
    "Moments",
    "PolarLaw",
    "Spreads",
    "SpectrumColumns",
    "ValuesLaw",
    "change_moments",
    "columns_of_law",
    "isotropic_moments",
    "polar_law",
    "spreads",
    "values_law",
]
