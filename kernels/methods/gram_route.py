"""Frames by Gram matrices in float64: matrices are taken as they are stored, and nothing over r x r is decomposed."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from polarax.kernels.frames_type import Frames, make_frames, poison
from polarax.kernels.gram import (
    ChangeGrams,
    RightFrame,
    change_grams,
    change_in_frame,
    change_rows,
    eigenvalue_roots,
    pair_grams,
    right_frame,
    stored_gram,
)
from polarax.kernels.methods.route import Post, Route
from polarax.kernels.products import matmul, transpose

# ||W_p|| over ||W_b||: from here up, rounding errors of W_b's Gram matrix are at most 100 times those of W_p's own.
_SMALL_POST = 0.1


class Stored(NamedTuple):
    """A matrix, (..., m, n), as it was given: there is nothing to prepare."""

    stored: jax.Array


class Decomposed(NamedTuple):
    """A matrix by its Gram matrix, in the unit of the route."""

    frame: RightFrame
    finite: jax.Array  # (...), bool: else it was decomposed as if it were orthonormal


class GramRoute(Route[Stored, Decomposed]):
    """Frames of a base and its posts from Gram matrices, in float64 scope.

    Args:
        base: (..., m, n), m >= n, as stored.
        posts: (posts, ..., m, n), as stored; None if they are made later, and of about the base's size.
        change_values: Also decompose the changes from the base, for their singular values.
        dtype: Of the frames.
        fallback: Gives the frames of a base and a post with a singular value that was too small for this route, called
            as `Method.pair` but for the dtype; without it they are approximate.
    """

    def __init__(
        self,
        base: jax.Array,
        posts: jax.Array | None,
        *,
        change_values: bool,
        dtype: jax.typing.DTypeLike,
        fallback: Callable[..., Frames] | None = None,
    ):
        self._shape = (base.shape[-2], base.shape[-1])
        self._unit = _unit_of(base, posts)
        self._scale = jnp.ones(base.shape[:-2]) if self._unit is None else self._unit
        self._identity = jnp.eye(base.shape[-1])
        self._change_values, self._dtype = change_values, jnp.dtype(dtype)
        # What float64 does not resolve, float32 does not hold.
        self._fallback = fallback if self._dtype == jnp.float64 else None
        if posts is not None:
            self.posts = Stored(posts)
        self._grams_of_only_post: ChangeGrams | None = None
        if posts is not None and posts.shape[0] == 1:
            self._gram_base, self._grams_of_only_post = pair_grams(base, posts[0], self._convert)
        else:
            self._gram_base = stored_gram(base, self._convert)
        finite = jnp.isfinite(_root_of_trace(self._gram_base))
        self._base = Post(Stored(base), self._decomposed(base, self._cleaned(self._gram_base, finite), finite))

    def with_post(self, matrix: Stored) -> tuple[Frames, Decomposed]:
        """As `Route.with_post`."""
        grams = self._grams_of_only_post
        if grams is None:
            grams = change_grams(self._base.matrix.stored, matrix.stored, self._convert)
        finite = self._base.decomposed.finite & jnp.isfinite(_root_of_trace(grams.change))
        decomposed = self._decomposed(matrix.stored, self._gram_of_post(matrix.stored, grams, finite), finite)
        pair = self._related(self._base, Post(matrix, decomposed), grams, finite, self._change_values)
        return pair, decomposed

    def between(self, first: Post[Stored, Decomposed], second: Post[Stored, Decomposed]) -> Frames:
        """As `Route.between`."""
        grams = change_grams(first.matrix.stored, second.matrix.stored, self._convert)
        finite = first.decomposed.finite & second.decomposed.finite
        return self._related(first, second, grams, finite, change_values=False)

    def _gram_of_post(self, post, grams, finite):
        """W_p^T W_p by its difference from the base's, unless it is so small that the base's rounding errors show.

        Upper, and the identity for a post that is not finite.
        """
        gram_base = self._gram_base
        traces = (jnp.trace(x, axis1=-2, axis2=-1) for x in (gram_base, 2 * grams.across, grams.change))
        trace_base, trace_across, trace_change = traces
        much_smaller = trace_base + trace_across + trace_change < _SMALL_POST**2 * trace_base
        return lax.cond(
            jnp.any(much_smaller & finite),
            lambda: self._cleaned(stored_gram(post, self._convert), finite),
            lambda: self._cleaned(gram_base + (grams.across + transpose(grams.across)) + grams.change, finite),
        )

    def _decomposed(self, x, upper, finite):
        return Decomposed(right_frame(upper, functools.partial(stored_gram, x, self._convert)), finite)

    def _related(self, base, post, grams, finite, change_values):
        """The frames of two decomposed matrices, given the Gram matrices of their change."""
        frame_base, frame_post = base.decomposed.frame, post.decomposed.frame
        rows_of = functools.partial(change_rows, base.matrix.stored, post.matrix.stored, self._convert)
        in_frame = change_in_frame(frame_base, grams.across, rows_of)
        right = matmul(frame_base.rows, transpose(frame_post.rows))
        grown = frame_base.values[..., :, None] * right + matmul(in_frame, right)
        left = grown / jnp.where(frame_post.values > 0, frame_post.values, 1)[..., None, :]
        scale = self._scale
        s_change = None
        if change_values:
            s_change = eigenvalue_roots(self._cleaned(grams.change, finite)) * scale[..., None]
        pair = make_frames(
            self._shape,
            frame_base.values * scale[..., None],
            frame_post.values * scale[..., None],
            left=left,
            right=right,
            in_frame=in_frame * scale[..., None, None],
            change_norm=_root_of_trace(grams.change) * scale,
            s_change=s_change,
            dtype=self._dtype,
        )
        pair = poison(pair, finite)
        pair = jax.tree.map(lambda x: x.astype(self._dtype) if x.dtype == jnp.float64 else x, pair)
        fallback = self._fallback
        if fallback is None:
            return pair
        return lax.cond(
            jnp.all(frame_base.resolved & frame_post.resolved),
            lambda *_: pair,
            lambda *stored: fallback(*stored, change_values=change_values),
            base.matrix.stored,
            post.matrix.stored,
        )

    def _convert(self, x):
        x = x.astype(jnp.float64)
        return x if self._unit is None else x / self._unit[..., None, None]

    def _cleaned(self, upper, finite):
        """The identity in place of a Gram matrix that is not finite, of which LAPACK might not return."""
        return jnp.where(finite[..., None, None], upper, self._identity)


def _unit_of(base, posts):
    """What to divide float64 matrices by so that their squares neither over- nor underflow, (...); None for others."""
    stored = [base] if posts is None else [base, posts]
    if jnp.float64 not in [x.dtype for x in stored]:  # the squares of anything smaller are in float64's range
        return None
    largest = [jnp.max(jnp.abs(x.astype(jnp.float64)), axis=(-2, -1)) for x in stored]
    unit = largest[0] if posts is None else jnp.maximum(largest[0], jnp.max(largest[1], axis=0))
    # A power of two: dividing by it is exact, so that the change is 0 where base and post are equal. (jnp.frexp would
    # leave the float64 scope under JAX 0.12.)
    return jnp.where(jnp.isfinite(unit) & (unit > 0), lax.reduce_precision(unit, 11, 0), 1)


def _root_of_trace(gram_matrix):
    """Frobenius norm of the matrix that this is the Gram matrix of."""
    return jnp.sqrt(jnp.trace(gram_matrix, axis1=-2, axis2=-1))
