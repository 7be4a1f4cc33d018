"""How far the left and the right singular vectors rotate apart: nf = ||Q_U^T Q_V - I||_F / sqrt(r).

He and Cao (arXiv:2509.17866) define nf by singular vectors. Since Q_U^T Q_V = U_p^T P_b V_p with the polar factor P_b,
it equals ||P_p^T P_b - I||_F / sqrt(r): signs, order and degenerate singular values drop out, and no vector is needed.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from polarax.kernels.frames import frames
from polarax.kernels.frames_type import Frames
from polarax.kernels.polar import polar
from polarax.kernels.products import frobenius, inner, matmul, promote_pair, transpose


class Alignment(NamedTuple):
    """How base and post are rotated against each other."""

    nf: jax.Array  # (...): 0 for the same rotation on both sides, sqrt(1 + r / max(m, n)) for independent matrices
    left: jax.Array | None  # Q_U = U_b^T U_p, (..., r, r), signs aligned; None unless asked for
    right: jax.Array | None  # Q_V = V_b^T V_p, (..., r, r), signs aligned; None unless asked for


def align(
    base: jax.typing.ArrayLike,
    post: jax.typing.ArrayLike,
    /,
    *,
    rotations: bool = False,
    method: str = "auto",
) -> Alignment:
    """nf by the polar identity, and the rotations themselves when asked for.

    Where a matrix is rank-deficient, nf is taken over the directions it determines: with the partial isometries P and
    the projector T = P_p^T P_p of rank rho, nf = ||P_p^T P_b T - T||_F / sqrt(rho). For full rank T = I, rho = r.

    Args:
        base: (..., m, n), floating-point.
        post: The same shape.
        rotations: Also return Q_U and Q_V, which needs two SVDs.
        method: Of the polar factors, or of the SVDs where rotations are asked for.

    Returns:
        An `Alignment`; nf is NaN where either matrix is zero or has NaN or Inf.

    Raises:
        ValueError: The shapes differ, or the method is unknown.

    Example:
        >>> import numpy as np
        >>> from polarax import kernels
        >>> w = np.random.default_rng(0).normal(size=(6, 4)).astype("float32")
        >>> float(kernels.align(w, 1.5 * w).nf) < 1e-5
        True
    """
    if rotations:
        pair = frames(base, post, method=method)
        return Alignment(rotation_difference(pair), pair.left, pair.right)
    base, post = promote_pair(base, post)
    if base.shape[-2] < base.shape[-1]:
        base, post = transpose(base), transpose(post)
    both = polar(jnp.stack([base, post]), method=method)
    return Alignment(difference_of_factors(*both.factor, *both.rank), None, None)


def difference_of_factors(
    factor_base: jax.Array, factor_post: jax.Array, rank_base: jax.Array, rank_post: jax.Array
) -> jax.Array:
    """nf, (...), from the polar factors of tall matrices, (..., m, n), and their ranks, (...)."""
    return difference_of_products(
        inner(factor_post, factor_post), inner(factor_post, factor_base), rank_base, rank_post
    )


def difference_of_products(
    projector: jax.Array, across: jax.Array, rank_base: jax.Array, rank_post: jax.Array
) -> jax.Array:
    """nf, (...), from P_p^T P_p and P_p^T P_b, (..., n, n) each, and the ranks, (...)."""
    product = matmul(across, projector)
    return _normalised(frobenius(product - projector), rank_base, rank_post)


def rotation_difference(pair: Frames) -> jax.Array:
    """nf from the frames, (...): ||Q_U^T Q_V - I||_F / sqrt(rank of the post).

    Of Q_U and Q_V, the one on the short side is a rotation where both matrices have full rank, so that the norm is that
    of Q_V - Q_U; elsewhere the product is taken.
    """
    size = pair.s_post.shape[-1]

    def by_product():
        inside = jnp.arange(size) < pair.rank_post[..., None]
        identity = jnp.eye(size, dtype=pair.left.dtype) * inside[..., None, :]
        return frobenius(inner(pair.left, pair.right) - identity)

    full_rank = jnp.all((pair.rank_base == size) & (pair.rank_post == size))
    norm = lax.cond(full_rank, lambda: frobenius(pair.right - pair.left), by_product)
    return _normalised(norm, pair.rank_base, pair.rank_post)


def _normalised(norm, rank_base, rank_post):
    nf = norm / jnp.sqrt(jnp.maximum(rank_post, 1).astype(norm.dtype))
    return jnp.where((rank_base > 0) & (rank_post > 0), nf, jnp.nan)  # NaN and zero matrices have rank 0
