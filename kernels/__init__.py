"""Pure functions on stacks of matrices: arrays in, arrays out; jit, vmap and shard them.

Every function takes arrays of shape (..., m, n), tall or wide, and works in float32 or float64 as given (bfloat16 and
float16 are computed in float32). `docs/definitions.md` has the formulas and their sources.
"""

from typing import TYPE_CHECKING

from polarax.kernels.align import Alignment, align, rotation_difference
from polarax.kernels.block_magnitudes import block_magnitudes
from polarax.kernels.change_cosine import change_cosine, inner_of_directions
from polarax.kernels.controls import Controls, closed_form_controls, control_reach
from polarax.kernels.drift_budget import DriftBudget, budget_of_frames, drift_budget, split_change
from polarax.kernels.edits import (
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
from polarax.kernels.fit import Fit, fit_of_frames
from polarax.kernels.frames import frames, map_frames, map_posts
from polarax.kernels.frames_type import Frames, joint_signs
from polarax.kernels.methods import method_names
from polarax.kernels.overlap import Overlap, overlap, overlap_of_frames
from polarax.kernels.placement import PlacedTurn, placed_outside, placed_turn
from polarax.kernels.polar import POLAR_METHODS, Polar, polar, polar_by_products
from polarax.kernels.polar_headlines import Headlines, PolarPair, headlines_of_frames, polar_pair
from polarax.kernels.products import frobenius
from polarax.kernels.random_changes import RANDOM_CHANGES, random_change
from polarax.kernels.rounding import (
    Rounding,
    digits,
    equal_entries,
    joined_rounding,
    last_place,
    noise_between,
    noise_spectral_norm,
    rank_beyond_noise,
    rounding_noise,
    rounding_of,
    unchanged_share,
)
from polarax.kernels.scaling import Scaling, scaling
from polarax.kernels.sequential import after, one_at_a_time
from polarax.kernels.spectrum_shape import PowerLaw, effective_rank, power_law, stable_rank
from polarax.kernels.svd import singular_values, svd
from polarax.kernels.thin_svd import Svd, numerical_rank

__all__ = [
    "BUDGET_PARTS",
    "POLAR_METHODS",
    "RANDOM_CHANGES",
    "SIDES",
    "SVD_METHODS",
    "Alignment",
    "Controls",
    "DriftBudget",
    "Fit",
    "Frames",
    "Headlines",
    "Overlap",
    "PlacedTurn",
    "Polar",
    "PolarPair",
    "PowerLaw",
    "Rounding",
    "Scaling",
    "Svd",
    "after",
    "align",
    "block_magnitudes",
    "budget_of_frames",
    "change_cosine",
    "closed_form_controls",
    "control_reach",
    "digits",
    "drift_budget",
    "edit_break",
    "edit_keep",
    "edit_random_control",
    "edit_reparameterise",
    "edit_replace_values",
    "edit_restore",
    "edit_scale_values",
    "effective_rank",
    "equal_entries",
    "fit_of_frames",
    "frames",
    "frobenius",
    "headlines_of_frames",
    "inner_of_directions",
    "joined_rounding",
    "joint_signs",
    "last_place",
    "map_frames",
    "map_posts",
    "noise_between",
    "noise_spectral_norm",
    "numerical_rank",
    "one_at_a_time",
    "overlap",
    "overlap_of_frames",
    "placed_outside",
    "placed_turn",
    "polar",
    "polar_by_products",
    "polar_pair",
    "power_law",
    "random_change",
    "rank_beyond_noise",
    "rotation_difference",
    "rounding_noise",
    "rounding_of",
    "scaling",
    "singular_values",
    "split_change",
    "stable_rank",
    "svd",
    "unchanged_share",
]

SVD_METHODS: tuple[str, ...]  # the names that arguments called `method` take, "auto" first

if not TYPE_CHECKING:

    def __getattr__(name):
        if name == "SVD_METHODS":  # of all that are registered by now
            return method_names()
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
