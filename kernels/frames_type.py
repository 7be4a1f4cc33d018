"""Two decomposed matrices in each other's singular frames: the r x r arrays from which every law is read.

With W = U S V^T for base (b) and post (p) and D = W_p - W_b these are Q_U = U_b^T U_p, Q_V = V_b^T V_p and
E = U_b^T D V_b (He and Cao, arXiv:2509.17866, for the rotations). Nothing downstream needs an m x n array again.

Directions that a rank-deficient matrix does not determine (vectors of singular values that are numerically zero) are
arbitrary in any SVD; their rows and columns are zero here, so that no number depends on them.
"""

import dataclasses
import functools
from typing import TypeVar

import jax
import jax.numpy as jnp

from polarax.kernels.products import transpose
from polarax.kernels.sides import Shape
from polarax.kernels.thin_svd import numerical_rank

Readings = TypeVar("Readings")


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=[
        "s_base",
        "s_post",
        "rank_base",
        "rank_post",
        "left",
        "right",
        "change",
        "change_norm",
        "s_change",
    ],
    meta_fields=["shape"],
)
@dataclasses.dataclass(frozen=True)
class Frames:
    """Base and post in each other's frames; r = min(m, n). A pytree."""

    shape: Shape  # (m, n) of the matrices compared; static as a part of the pytree
    s_base: jax.Array  # (..., r)
    s_post: jax.Array  # (..., r)
    rank_base: jax.Array  # (...), int32, numerical
    rank_post: jax.Array  # (...), int32, numerical
    left: jax.Array  # Q_U = U_b^T U_p, (..., r, r), signs aligned
    right: jax.Array  # Q_V = V_b^T V_p, (..., r, r), signs aligned
    change: jax.Array  # E = U_b^T D V_b, (..., r, r)
    change_norm: jax.Array  # ||D||_F, (...)
    s_change: jax.Array | None  # singular values of D, (..., r), to 1e-8 of the largest; None unless asked for


def make_frames(
    shape: tuple[int, int],
    s_base: jax.Array,
    s_post: jax.Array,
    *,
    left: jax.Array,
    right: jax.Array,
    in_frame: jax.Array,
    change_norm: jax.Array,
    s_change: jax.Array | None,
    dtype: jax.typing.DTypeLike | None = None,
) -> Frames:
    """Frames with the undetermined directions zero and the signs aligned.

    Args:
        shape: (m, n) of the matrices.
        s_base: (..., r), and so is `s_post`.
        s_post: Singular values of the post.
        left: Q_U, (..., r, r), with any signs, and so are the next two.
        right: Q_V.
        in_frame: E.
        change_norm: (...).
        s_change: (..., r), or None.
        dtype: In which it is judged what is zero: that of the matrices, which says how far their entries were rounded.
            That of the values if not given.
    """
    rank_base, rank_post = (numerical_rank(s.astype(dtype or s.dtype), *shape) for s in (s_base, s_post))
    index = jnp.arange(s_base.shape[-1])
    inside_base, inside_post = index < rank_base[..., None], index < rank_post[..., None]
    both_inside = inside_base[..., :, None] & inside_post[..., None, :]
    left, right = jnp.where(both_inside, left, 0), jnp.where(both_inside, right, 0)
    signs = joint_signs(left, right)[..., None, :]
    in_frame = jnp.where(inside_base[..., :, None] & inside_base[..., None, :], in_frame, 0)
    left, right = left * signs, right * signs
    return Frames(shape, s_base, s_post, rank_base, rank_post, left, right, in_frame, change_norm, s_change)


def joint_signs(left: jax.Array, right: jax.Array) -> jax.Array:
    """Signs that align the post's singular vector pairs with the base's: sign(Q_U[i,i] + Q_V[i,i]), never 0.

    (u_i, v_i) and (-u_i, -v_i) are the same pair, so one sign serves both sides.

    Args:
        left: Q_U, (..., r, r).
        right: Q_V, (..., r, r).

    Returns:
        (..., r) of +1 and -1.
    """
    diagonal = jnp.diagonal(left, axis1=-2, axis2=-1) + jnp.diagonal(right, axis1=-2, axis2=-1)
    return jnp.where(diagonal < 0, -1, 1).astype(left.dtype)


def poison(readings: Readings, finite: jax.Array) -> Readings:
    """A pytree of arrays (..., *) with NaN, or rank 0, for the pairs that are not finite, (...)."""

    def poisoned(x):
        undefined = jnp.nan if jnp.issubdtype(x.dtype, jnp.floating) else 0
        return jnp.where(finite.reshape(finite.shape + (1,) * (x.ndim - finite.ndim)), x, undefined).astype(x.dtype)

    return jax.tree.map(poisoned, readings)


def transposed_frames(pair: Frames) -> Frames:
    """The frames of the transposes of both matrices."""
    rows, cols = pair.shape
    assert not isinstance(rows, jax.Array)  # what has a side as an operand is tall
    return dataclasses.replace(
        pair, shape=(cols, rows), left=pair.right, right=pair.left, change=transpose(pair.change)
    )
