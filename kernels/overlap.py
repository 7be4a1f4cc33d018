"""Overlap of leading singular subspaces, their principal angles, and intruder vectors.

Index-by-index agreement of singular vectors misleads where singular values are close; subspaces do not. The cosines
of the principal angles are the singular values of U_b,k^T U_p,k (Bjoerck and Golub 1973). Intruders: Shuttleworth et
al., arXiv:2410.21228.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from polarax.kernels.frames import frames
from polarax.kernels.frames_type import Frames
from polarax.kernels.sequential import after
from polarax.kernels.svd import singular_values

# arXiv:2410.21228 looks at the ten leading vectors and calls one an intruder below |cosine| 0.5.
INTRUDER_COUNT = 10
INTRUDER_COSINE = 0.5


class Overlap(NamedTuple):
    """Agreement of the leading k singular vectors of base and post."""

    left: jax.Array  # ||U_b,k^T U_p,k||_F^2 / min(k, the larger rank), (...), 1 for the same subspace
    right: jax.Array  # the same of V, (...)
    cosines_left: jax.Array  # cosines of the principal angles, (..., k), descending
    cosines_right: jax.Array  # (..., k), descending
    intruders_left: jax.Array  # (...), int32: leading post vectors unlike every base vector
    intruders_right: jax.Array  # (...), int32


def overlap(base: jax.typing.ArrayLike, post: jax.typing.ArrayLike, /, *, k: int = 16, method: str = "auto") -> Overlap:
    """Compares the leading singular subspaces of base and post.

    Args:
        base: (..., m, n), floating-point.
        post: The same shape.
        k: Dimension of the subspaces, at least 1; min(m, n) at most is used.
        method: How to decompose, one of `polarax.kernels.SVD_METHODS`.

    Raises:
        ValueError: k < 1, the shapes differ, or `polarax.kernels.svd` refuses the input.
    """
    return overlap_of_frames(frames(base, post, method=method), k=k)


def overlap_of_frames(pair: Frames, *, k: int = 16) -> Overlap:
    """The overlap of a pair whose frames are at hand. Arguments as for `overlap`."""
    if k < 1:
        raise ValueError(f"k must be at least 1. Got k={k}.")
    k = min(k, pair.s_base.shape[-1])
    blocks = jnp.stack([pair.left[..., :k, :k], pair.right[..., :k, :k]])
    cosines = jnp.clip(singular_values(after(blocks, pair.s_base), method="lapack"), 0, 1)
    determined = jnp.clip(jnp.maximum(pair.rank_base, pair.rank_post), 1, k)  # of a rank-deficient pair, fewer than k
    shares = jnp.sum(cosines**2, axis=-1) / determined
    return Overlap(*shares, *cosines, *_intruders(pair))


def _intruders(pair):
    leading = min(INTRUDER_COUNT, pair.s_base.shape[-1])
    determined = jnp.arange(leading) < pair.rank_post[..., None]
    for cosines in (pair.left, pair.right):
        best = jnp.max(jnp.abs(cosines[..., :leading]), axis=-2)
        yield jnp.sum((best < INTRUDER_COSINE) & determined, axis=-1).astype(jnp.int32)
