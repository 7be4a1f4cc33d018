"""The law of a base plus a random change: what is read of the sum, and how far it spreads."""

from polarax.kernels.noise_law.moments import (
    Moments,
    change_moments,
    isotropic_moments,
    moments_of_concentration,
)
from polarax.kernels.noise_law.reduced import SpreadSource, spreads_at_any_size
from polarax.kernels.noise_law.spreads import Spreads, spreads

__all__ = [
    "Moments",
    "SpreadSource",
    "Spreads",
    "change_moments",
    "isotropic_moments",
    "moments_of_concentration",
    "spreads",
    "spreads_at_any_size",
]
