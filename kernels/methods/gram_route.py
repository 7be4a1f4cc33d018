"""Frames by Gram matrices in float64: matrices are taken as they are stored, and nothing over r x r is decomposed."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from polarax.kernels.frames_type import make_frames, poison
from polarax.kernels.gram import (
    RightFrame,
    change_grams,
    change_in_frame,
    change_rows,
    eigenvalue_roots,
    pair_grams,
    right_frame,
    stored_gram,
)
from polarax.kernels.methods.route import Begun, Post, Related, Route
from polarax.kernels.products import matmul, transpose

# ||W_p|| over ||W_b||: from here up, rounding errors of W_b's Gram matrix are at most 100 times those of W_p's own.
_SMALL_POST = 0.1


class Decomposed(NamedTuple):
    """A matrix by its Gram matrix, in the unit of the route."""

    frame: RightFrame
    finite: jax.Array  # (...), bool: else it was decomposed as if it were orthonormal


class Base(NamedTuple):
    """A base: what every post is related with."""

    unit: jax.Array | None  # (...), what it and its posts are divided by; None where they need not be
    gram: jax.Array  # W_b^T W_b, (..., n, n), upper
    decomposed: Decomposed


class GramRoute(Route[Base, None, Decomposed]):
    """Frames of a base and its posts from Gram matrices, in float64 scope. Arguments as for `Route`."""

    takes_new_posts = True

    def begin(self, base: jax.Array, posts: tuple[jax.Array, ...]) -> Begun[Base, None]:
        """As `Route.begin`."""
        unit = _unit_of(base, posts)
        return Begun(_begun(base, unit, stored_gram(base, _convert(unit))), (None,) * len(posts))

    def only_post(self, base: jax.Array, post: jax.Array) -> tuple[Base, Related[Decomposed]]:
        """As `Route.only_post`; both are read together."""
        unit = _unit_of(base, (post,))
        gram_base, grams = pair_grams(base, post, _convert(unit))
        begun = _begun(base, unit, gram_base)
        return begun, self._with_post(begun, base, post, grams)

    def with_post(self, begun: Base, base: jax.Array, post: jax.Array, prepared: None) -> Related[Decomposed]:
        """As `Route.with_post`."""
        return self._with_post(begun, base, post, change_grams(base, post, _convert(begun.unit)))

    def with_new_post(self, begun: Base | None, base: jax.Array, post: jax.Array) -> Related[Decomposed]:
        """As `Route.with_new_post`."""
        assert begun is not None
        return self.with_post(begun, base, post, None)

    def between(
        self, begun: Base, first: Post[None, Decomposed], second: Post[None, Decomposed]
    ) -> Related[Decomposed]:
        """As `Route.between`."""
        grams = change_grams(first.stored, second.stored, _convert(begun.unit))
        finite = first.decomposed.finite & second.decomposed.finite
        return self._related(begun.unit, first, second, grams, finite, change_values=False)

    def _with_post(self, begun, base, post, grams):
        finite = begun.decomposed.finite & jnp.isfinite(_root_of_trace(grams.change))
        upper = _gram_of_post(begun, post, grams, finite)
        first = Post(base, None, begun.decomposed)
        second = Post(post, None, _decomposed(post, begun.unit, upper, finite))
        return self._related(begun.unit, first, second, grams, finite, self.change_values)

    def _related(self, unit, base, post, grams, finite, change_values):
        """The frames of two decomposed matrices, given the Gram matrices of their change."""
        frame_base, frame_post = base.decomposed.frame, post.decomposed.frame
        rows_of = functools.partial(change_rows, base.stored, post.stored, _convert(unit))
        in_frame = change_in_frame(frame_base, grams.across, rows_of)
        right = matmul(frame_base.rows, transpose(frame_post.rows))
        grown = frame_base.values[..., :, None] * right + matmul(in_frame, right)
        left = grown / jnp.where(frame_post.values > 0, frame_post.values, 1)[..., None, :]
        scale = jnp.ones(finite.shape) if unit is None else unit
        s_change = None
        if change_values:
            s_change = eigenvalue_roots(_cleaned(grams.change, finite)) * scale[..., None]
        pair = make_frames(
            (base.stored.shape[-2], base.stored.shape[-1]),
            frame_base.values * scale[..., None],
            frame_post.values * scale[..., None],
            left=left,
            right=right,
            in_frame=in_frame * scale[..., None, None],
            change_norm=_root_of_trace(grams.change) * scale,
            s_change=s_change,
            dtype=self.dtype,
        )
        pair = poison(pair, finite)
        pair = jax.tree.map(lambda x: x.astype(self.dtype) if x.dtype == jnp.float64 else x, pair)
        # What float64 does not resolve, float32 does not hold.
        resolved = frame_base.resolved & frame_post.resolved if self.dtype == jnp.float64 else None
        return Related(pair, post.decomposed, resolved)


def _begun(base, unit, gram_base):
    finite = jnp.isfinite(_root_of_trace(gram_base))
    return Base(unit, gram_base, _decomposed(base, unit, _cleaned(gram_base, finite), finite))


def _decomposed(x, unit, upper, finite):
    return Decomposed(right_frame(upper, functools.partial(stored_gram, x, _convert(unit))), finite)


def _gram_of_post(begun, post, grams, finite):
    """W_p^T W_p by its difference from the base's, unless it is so small that the base's rounding errors show.

    Upper, and the identity for a post that is not finite.
    """
    traces = (jnp.trace(x, axis1=-2, axis2=-1) for x in (begun.gram, 2 * grams.across, grams.change))
    trace_base, trace_across, trace_change = traces
    much_smaller = trace_base + trace_across + trace_change < _SMALL_POST**2 * trace_base
    return lax.cond(
        jnp.any(much_smaller & finite),
        lambda: _cleaned(stored_gram(post, _convert(begun.unit)), finite),
        lambda: _cleaned(begun.gram + (grams.across + transpose(grams.across)) + grams.change, finite),
    )


def _convert(unit):
    """Maps stored matrices, or rows of them, to float64 in that unit."""

    def convert(x):
        x = x.astype(jnp.float64)
        return x if unit is None else x / unit[..., None, None]

    return convert


def _cleaned(upper, finite):
    """The identity in place of a Gram matrix that is not finite, of which LAPACK might not return."""
    return jnp.where(finite[..., None, None], upper, jnp.eye(upper.shape[-1]))


def _unit_of(base, posts):
    """What to divide float64 matrices by so that their squares neither over- nor underflow, (...); None for others."""
    stored = (base, *posts)
    if jnp.float64 not in [x.dtype for x in stored]:  # the squares of anything smaller are in float64's range
        return None
    unit = functools.reduce(jnp.maximum, (jnp.max(jnp.abs(x.astype(jnp.float64)), axis=(-2, -1)) for x in stored))
    # A power of two: dividing by it is exact, so that the change is 0 where base and post are equal. (jnp.frexp would
    # leave the float64 scope under JAX 0.12.)
    return jnp.where(jnp.isfinite(unit) & (unit > 0), lax.reduce_precision(unit, 11, 0), 1)


def _root_of_trace(gram_matrix):
    """Frobenius norm of the matrix that this is the Gram matrix of."""
    return jnp.sqrt(jnp.trace(gram_matrix, axis1=-2, axis2=-1))
