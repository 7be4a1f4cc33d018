"""What isotropic noise does to a matrix of a known spectrum, at any size of the noise."""

from polarax.kernels.noise_law.leading_law import LeadingLaw, leading_law

__all__ = ["LeadingLaw", "leading_law"]
