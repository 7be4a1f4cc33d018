"""Two decomposed matrices in each other's singular frames: the r x r arrays from which every law is read.

With W = U S V^T for base (b) and post (p) and D = W_p - W_b these are Q_U = U_b^T U_p, Q_V = V_b^T V_p and
E = U_b^T D V_b (He and Cao, arXiv:2509.17866, for the rotations). Nothing downstream needs an m x n array again.

Directions that a rank-deficient matrix does not determine (vectors of singular values that are numerically zero) are
arbitrary in any SVD; their rows and columns are zero here, so that no number depends on them.

A matrix is decomposed once, whatever it is related to. All functions take tall matrices (..., m, n), m >= n.
"""

import dataclasses
import functools
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jax import lax

from polarax.kernels.gram import (
    RightFrame,
    change_grams,
    change_in_frame,
    change_rows,
    eigenvalue_roots,
    right_frame,
    stored_gram,
)
from polarax.kernels.products import frobenius, inner, matmul, transpose
from polarax.kernels.sequential import after
from polarax.kernels.svd import Svd, numerical_rank, singular_values, svd

Item = TypeVar("Item")

# ||W_p|| over ||W_b||: from here up, rounding errors of W_b's Gram matrix are at most 100 times those of W_p's own.
_SMALL_POST = 0.1


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

    shape: tuple[int, int]  # (m, n) of the matrices compared; static
    s_base: jax.Array  # (..., r)
    s_post: jax.Array  # (..., r)
    rank_base: jax.Array  # (...), int32, numerical
    rank_post: jax.Array  # (...), int32, numerical
    left: jax.Array  # Q_U = U_b^T U_p, (..., r, r), signs aligned
    right: jax.Array  # Q_V = V_b^T V_p, (..., r, r), signs aligned
    change: jax.Array  # E = U_b^T D V_b, (..., r, r)
    change_norm: jax.Array  # ||D||_F, (...)
    s_change: jax.Array | None  # singular values of D, (..., r), to 1e-8 of the largest; None unless asked for


class FactorRelations:
    """Relations by thin SVDs.

    Args:
        shape: (m, n) of the matrices, which may have been reduced to triangles.
        change_values: Also decompose changes, for their singular values.
        method: As for `polarax.kernels.svd`.
    """

    def __init__(self, shape: tuple[int, int], change_values: bool, method: str):
        self._shape, self._change_values, self._method = shape, change_values, method

    def decompose(self, x: jax.Array) -> Svd:
        """The SVD of a finite matrix."""
        return svd(x, method=self._method)

    def relate(self, base: jax.Array, of_base: Svd, post: jax.Array, of_post: Svd) -> Frames:
        """Frames of two finite matrices of one dtype."""
        change = post - base
        return _masked(
            self._shape,
            of_base.values,
            of_post.values,
            left=inner(of_base.left, of_post.left),
            right=inner(of_base.right, of_post.right),
            in_frame=matmul(inner(of_base.left, change), of_base.right),
            change_norm=frobenius(change),
            s_change=singular_values(change, method=self._method) if self._change_values else None,
        )

    def with_post(self, base: jax.Array, of_base: Svd, post: jax.Array) -> tuple[Frames, Svd]:
        """Decomposes a post and relates it to its base."""
        of_post = self.decompose(after(post, of_base.values))
        return self.relate(base, of_base, post, of_post), of_post


class Decomposed(NamedTuple):
    """A matrix by its Gram matrix, in the unit of `GramRelations`."""

    frame: RightFrame
    finite: jax.Array  # (...), bool: else it was decomposed as if it were orthonormal


class GramRelations:
    """Relations by Gram matrices, in float64 scope: matrices are taken as they are stored.

    Args:
        shape: (..., m, n) of the base.
        unit: What to divide float64 matrices by, (...); None for others. See `unit_of`.
        change_values: Also decompose changes, for their singular values.
        dtype: Of the results.
    """

    def __init__(self, shape: tuple[int, ...], unit: jax.Array | None, change_values: bool, dtype: jnp.dtype):
        self._shape = shape[-2:]
        self._unit = unit
        self._scale = jnp.ones(shape[:-2]) if unit is None else unit
        self._identity = jnp.eye(shape[-1])
        self._change_values, self._dtype = change_values, dtype

    def decompose(self, x: jax.Array) -> tuple[Decomposed, jax.Array]:
        """The matrix decomposed, and its Gram matrix."""
        gram_matrix = stored_gram(x, self._convert)
        return self._decomposed(x, gram_matrix, jnp.isfinite(_root_of_trace(gram_matrix)))

    def with_post(
        self, base: jax.Array, of_base: Decomposed, gram_base: jax.Array, post: jax.Array
    ) -> tuple[Frames, jax.Array, Decomposed]:
        """Decomposes a post and relates it to its base.

        Returns:
            The frames, whether every singular value of both was large enough for this route, (...), and the post.
        """
        grams = change_grams(base, post, self._convert)
        finite = of_base.finite & jnp.isfinite(_root_of_trace(grams.change))
        change, across = self._cleaned(grams.change, finite), self._cleaned(grams.across, finite)
        # By difference, unless that is small enough for the base's rounding errors to show in it.
        gram_post = gram_base + across + transpose(across) + change
        much_smaller = _root_of_trace(gram_post) < _SMALL_POST * _root_of_trace(gram_base)
        gram_post = lax.cond(
            jnp.any(much_smaller & finite),
            lambda: self._cleaned(stored_gram(post, self._convert), finite),
            lambda: gram_post,
        )
        of_post, _ = self._decomposed(post, gram_post, finite)
        return *self._related(base, of_base, post, of_post, grams, finite), of_post

    def relate(
        self, base: jax.Array, of_base: Decomposed, post: jax.Array, of_post: Decomposed
    ) -> tuple[Frames, jax.Array]:
        """Frames of two decomposed matrices, and whether they are resolved."""
        grams = change_grams(base, post, self._convert)
        return self._related(base, of_base, post, of_post, grams, of_base.finite & of_post.finite)

    def _decomposed(self, x, gram_matrix, finite):
        gram_matrix = self._cleaned(gram_matrix, finite)
        frame = right_frame(gram_matrix, functools.partial(stored_gram, x, self._convert))
        return Decomposed(frame, finite), gram_matrix

    def _related(self, base, of_base, post, of_post, grams, finite):
        change, across = (self._cleaned(gram_matrix, finite) for gram_matrix in grams)
        s_base, s_post = of_base.frame.values, of_post.frame.values
        rows_of = functools.partial(change_rows, base, post, self._convert)
        in_frame = change_in_frame(of_base.frame, across, rows_of)
        right = inner(of_base.frame.vectors, of_post.frame.vectors)
        grown = in_frame + s_base[..., :, None] * self._identity
        left = matmul(grown, right) / jnp.where(s_post > 0, s_post, 1)[..., None, :]
        found = _masked(
            self._shape,
            s_base * self._scale[..., None],
            s_post * self._scale[..., None],
            left=left,
            right=right,
            in_frame=in_frame * self._scale[..., None, None],
            change_norm=_root_of_trace(change) * self._scale,
            s_change=eigenvalue_roots(change) * self._scale[..., None] if self._change_values else None,
            dtype=self._dtype,
        )
        poisoned = poison(found, finite)
        rounded = jax.tree.map(lambda x: x.astype(self._dtype) if x.dtype == jnp.float64 else x, poisoned)
        return rounded, of_base.frame.resolved & of_post.frame.resolved

    def _convert(self, x):
        return x.astype(jnp.float64) if self._unit is None else x.astype(jnp.float64) / self._unit[..., None, None]

    def _cleaned(self, gram_matrix, finite):
        return jnp.where(finite[..., None, None], gram_matrix, self._identity)


def unit_of(base: jax.Array, post: jax.Array) -> jax.Array | None:
    """What to divide float64 matrices by so that their squares neither over- nor underflow, (...); None for others."""
    if jnp.float64 not in (base.dtype, post.dtype):  # the squares of anything smaller are in float64's range
        return None
    of_base, of_post = (jnp.max(jnp.abs(x.astype(jnp.float64)), axis=(-2, -1)) for x in (base, post))
    unit = jnp.maximum(of_base, of_post if of_post.ndim == of_base.ndim else jnp.max(of_post, axis=-1))
    # A power of two: dividing by it is exact, so that the change is 0 where base and post are equal. (jnp.frexp would
    # leave the float64 scope under JAX 0.12.)
    return jnp.where(jnp.isfinite(unit) & (unit > 0), lax.reduce_precision(unit, 11, 0), 1)


def _root_of_trace(gram_matrix):
    """Frobenius norm of the matrix that this is the Gram matrix of."""
    return jnp.sqrt(jnp.trace(gram_matrix, axis1=-2, axis2=-1))


def _masked(shape, s_base, s_post, *, left, right, in_frame, change_norm, s_change, dtype=None):
    """Frames with the undetermined directions zero and the signs aligned.

    What is zero is judged in `dtype`, that of the matrices: it says how far their entries were rounded.
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


def poison(readings: Item, finite: jax.Array) -> Item:
    """A pytree of arrays (..., *) with NaN, or rank 0, for the pairs that are not finite, (...)."""

    def poisoned(x):
        undefined = jnp.nan if jnp.issubdtype(x.dtype, jnp.floating) else 0
        return jnp.where(finite.reshape(finite.shape + (1,) * (x.ndim - finite.ndim)), x, undefined).astype(x.dtype)

    return jax.tree.map(poisoned, readings)


def turned(found: Frames) -> Frames:
    """The frames of the transposes."""
    return dataclasses.replace(
        found, shape=found.shape[::-1], left=found.right, right=found.left, change=transpose(found.change)
    )
