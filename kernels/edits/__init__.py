"""Matrices changed along the axes that a comparison measures: values, vectors of one side, parts of the drift budget.

`edits` has the functions on whole matrices. They are made of maps of rows (`maps`), which is all that somebody needs
who has more rows than memory.
"""

from polarax.kernels.edits.edits import (
    edit_break,
    edit_keep,
    edit_random_control,
    edit_reparameterise,
    edit_replace_values,
    edit_restore,
    edit_scale_values,
)
from polarax.kernels.edits.maps import BUDGET_PARTS, SIDES

__all__ = [
    "BUDGET_PARTS",
    "SIDES",
    "edit_break",
    "edit_keep",
    "edit_random_control",
    "edit_reparameterise",
    "edit_replace_values",
    "edit_restore",
    "edit_scale_values",
]
