"""What adding noise to a matrix does to its singular values and its polar factor, in closed form at any size."""

from polarax.kernels.noise_law.polar_law import PolarLaw, polar_law
from polarax.kernels.noise_law.spectrum_law import spectrum_law

__all__ = ["PolarLaw", "polar_law", "spectrum_law"]
