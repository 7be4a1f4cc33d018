"""Matrices changed along the axes that a comparison measures: values, vectors of one side, parts of the drift budget."""

from polarax.kernels.edits.decomposed import Decomposed, decompose
from polarax.kernels.edits.edits import (
    BUDGET_PARTS,
    SIDES,
    edit_break,
    edit_keep,
    edit_random_control,
    edit_reparameterise,
    edit_replace_values,
    edit_restore,
    edit_scale_values,
)
from polarax.kernels.edits.measure import Measured, measure_edit

__all__ = [
    "BUDGET_PARTS",
    "SIDES",
    "Decomposed",
    "Measured",
    "decompose",
    "edit_break",
    "edit_keep",
    "edit_random_control",
    "edit_reparameterise",
    "edit_replace_values",
    "edit_restore",
    "edit_scale_values",
    "measure_edit",
]
