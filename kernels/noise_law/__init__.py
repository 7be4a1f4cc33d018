"""The noise law: what an isotropic random change does to a matrix, at any size (docs: definitions, "Controls")."""

from polarax.kernels.noise_law.columns import SpectrumColumns, columns_of_law
from polarax.kernels.noise_law.values_law import ValuesLaw, values_law

__all__ = ["SpectrumColumns", "ValuesLaw", "columns_of_law", "values_law"]
