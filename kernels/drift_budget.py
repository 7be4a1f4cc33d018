"""The drift budget: which part of the change D = W_p - W_b does what, in the base's own frame.

E = U_b^T D V_b splits into its diagonal (singular values changed), its symmetric off-diagonal part (left and right
vectors rotate together) and its skew-symmetric part (they rotate against each other); what E misses of D leaves the
base's row or column space. The four are orthogonal, so their shares of ||D||_F^2 sum to 1 at any size of D.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from polarax.kernels.frames_type import Frames
from polarax.kernels.products import frobenius, inner, matmul, promote_pair, transpose
from polarax.kernels.sides import longer_side
from polarax.kernels.svd import svd
from polarax.kernels.thin_svd import Svd, numerical_rank


class DriftBudget(NamedTuple):
    """Shares of ||D||_F^2, each (...) in [0, 1]; all NaN where D = 0 or is not finite."""

    scaling: jax.Array  # diagonal of E
    coordinated: jax.Array  # symmetric, off the diagonal
    discordant: jax.Array  # skew-symmetric
    outside: jax.Array  # D less its projection on the base's row and column space; 0 for square full-rank matrices
    coordination: jax.Array  # (coordinated - discordant) / (coordinated + discordant); NaN if both are rounding errors


def drift_budget(
    base: jax.typing.ArrayLike,
    post: jax.typing.ArrayLike,
    /,
    *,
    base_svd: Svd | None = None,
    method: str = "auto",
) -> DriftBudget:
    """Splits the change from base to post; one SVD (the base's) and two products.

    Args:
        base: (..., m, n), floating-point.
        post: The same shape.
        base_svd: The base's SVD, if it is already at hand.
        method: How to decompose the base otherwise, one of `polarax.kernels.SVD_METHODS`.

    Raises:
        ValueError: The shapes differ, or `polarax.kernels.svd` refuses the input.

    Example:
        >>> import numpy as np
        >>> from polarax import kernels
        >>> w = np.diag([3.0, 2.0, 1.0]).astype("float32")
        >>> round(float(kernels.drift_budget(w, 1.1 * w).scaling), 6)
        1.0
    """
    base, post = promote_pair(base, post)
    left, values, right = svd(base, method=method) if base_svd is None else base_svd
    change = post - base
    in_frame = matmul(inner(left, change), right)
    rank = numerical_rank(values, *base.shape[-2:])
    inside = jnp.arange(values.shape[-1]) < rank[..., None]
    in_frame = jnp.where(inside[..., :, None] & inside[..., None, :], in_frame, 0)
    return split_change(in_frame, frobenius(change))


def budget_of_frames(pair: Frames) -> DriftBudget:
    """The budget of a pair whose frames are at hand."""
    budget = split_change(pair.change, pair.change_norm)
    # Nothing is outside of a square matrix of full rank, not even rounding errors.
    square = (pair.rank_base == longer_side(pair.shape)) & (budget.outside >= 0)
    return budget._replace(outside=jnp.where(square, 0, budget.outside))


def split_change(in_frame: jax.Array, change_norm: jax.Array) -> DriftBudget:
    """The budget from E and ||D||_F.

    Args:
        in_frame: E = U_b^T D V_b, (..., r, r).
        change_norm: ||D||_F, (...).
    """
    unit = in_frame / jnp.where(change_norm > 0, change_norm, 1)[..., None, None]
    diagonal = jnp.diagonal(unit, axis1=-2, axis2=-1)
    symmetric, skew = (unit + transpose(unit)) / 2, (unit - transpose(unit)) / 2
    scaling = jnp.sum(diagonal**2, axis=-1)
    # Each pair i < j stands twice in the matrix; the diagonal is left out by its mask, not by a difference of sums.
    off_diagonal = 1 - jnp.eye(unit.shape[-1], dtype=unit.dtype)
    coordinated = jnp.sum((symmetric * off_diagonal) ** 2, axis=(-2, -1))
    discordant = jnp.sum(skew**2, axis=(-2, -1))
    outside = jnp.clip(1 - scaling - coordinated - discordant, 0, 1)
    rotated = coordinated + discordant
    coordination = jnp.where(rotated > jnp.finfo(unit.dtype).eps, (coordinated - discordant) / rotated, jnp.nan)
    shares = (scaling, coordinated, discordant, outside, coordination)
    defined = (change_norm > 0) & jnp.isfinite(change_norm)
    return DriftBudget(*(jnp.where(defined, share, jnp.nan) for share in shares))
