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
    divides_rows = True

    def begin(self, base: jax.Array, posts: tuple[jax.Array, ...]) -> Begun[Base, None]:
        """As `Route.begin`."""
        unit = self._unit_of(base, posts)
        upper = self.steps.over_rows(_stored_gram, (base,), unit)
        return Begun(self._begun(base, unit, upper), (None,) * len(posts))

    def only_post(self, base: jax.Array, post: jax.Array) -> tuple[Base, Related[Decomposed]]:
        """As `Route.only_post`; both are read together."""
        unit = self._unit_of(base, (post,))
        upper, grams = self.steps.over_rows(_pair_grams, (base, post), unit)
        begun = self._begun(base, unit, upper)
        return begun, self._with_post(begun, base, post, grams)

    def with_post(self, begun: Base, base: jax.Array, post: jax.Array, prepared: None) -> Related[Decomposed]:
        """As `Route.with_post`."""
        return self._with_post(begun, base, post, self.steps.over_rows(_change_grams, (base, post), begun.unit))

    def with_new_post(self, begun: Base | None, base: jax.Array, post: jax.Array) -> Related[Decomposed]:
        """As `Route.with_new_post`."""
        assert begun is not None
        return self.with_post(begun, base, post, None)

    def between(
        self, begun: Base, first: Post[None, Decomposed], second: Post[None, Decomposed]
    ) -> Related[Decomposed]:
        """As `Route.between`."""
        grams = self.steps.over_rows(_change_grams, (first.stored, second.stored), begun.unit)
        return self._related(begun.unit, first, second, grams, change_values=False)

    def _unit_of(self, base, posts):
        """What to divide float64 matrices by so that their squares neither over- nor underflow, (...); else None."""
        stored = (base, *posts)
        if jnp.float64 not in [x.dtype for x in stored]:  # the squares of anything smaller are in float64's range
            return None
        return self.steps.small(_power_of_two, self.steps.over_rows(_largest_entry, stored, join=lax.pmax))

    def _begun(self, base, unit, upper):
        cleaned, finite = self.steps.small(_cleaned_of_base, upper)
        return Base(unit, upper, self._decomposed(base, unit, cleaned, finite))

    def _decomposed(self, x, unit, upper, finite):
        def gram_of(rows):
            return self.steps.over_rows(_stored_gram, (x,), unit, rows)

        return Decomposed(right_frame(upper, gram_of, self.steps), finite)

    def _with_post(self, begun, base, post, grams):
        finite, much_smaller = self.steps.small(_compared, begun, grams)
        upper = self.steps.choose(
            much_smaller,
            (
                lambda: self.steps.small(_sum_of_grams, begun, grams, finite),
                lambda: self.steps.small(_cleaned, self.steps.over_rows(_stored_gram, (post,), begun.unit), finite),
            ),
        )
        first = Post(base, None, begun.decomposed)
        second = Post(post, None, self._decomposed(post, begun.unit, upper, finite))
        return self._related(begun.unit, first, second, grams, self.change_values)

    def _related(self, unit, base, post, grams, change_values):
        """The frames of two decomposed matrices, given the Gram matrices of their change."""

        def rows_of(rows):
            return self.steps.over_rows(_change_rows, (base.stored, post.stored), unit, rows)

        in_frame = change_in_frame(base.decomposed.frame, grams.across, rows_of, self.steps)
        frames, resolved = self.steps.small(
            _frames_of,
            (base.decomposed, post.decomposed),
            in_frame,
            grams.change,
            unit,
            shape=(base.stored.shape[-2], base.stored.shape[-1]),
            change_values=change_values,
            dtype=self.dtype,
        )
        # What float64 does not resolve, float32 does not hold.
        return Related(frames, post.decomposed, resolved if self.dtype == jnp.float64 else None)


# Steps over rows: of the same rows of base and post.


def _largest_entry(*stored):
    return functools.reduce(jnp.maximum, (jnp.max(jnp.abs(x.astype(jnp.float64)), axis=(-2, -1)) for x in stored))


def _stored_gram(x, unit, rows=None):
    return stored_gram(x, _convert(unit), rows)


def _pair_grams(base, post, unit):
    return pair_grams(base, post, _convert(unit))


def _change_grams(base, post, unit):
    return change_grams(base, post, _convert(unit))


def _change_rows(base, post, unit, rows):
    return change_rows(base, post, _convert(unit), rows)


def _convert(unit):
    """Maps stored matrices, or rows of them, to float64 in that unit."""

    def convert(x):
        x = x.astype(jnp.float64)
        return x if unit is None else x / unit[..., None, None]

    return convert


# Steps on r x r arrays.


def _power_of_two(largest):
    """What to divide by: exact, so that the change is 0 where base and post are equal.

    (jnp.frexp would leave the float64 scope under JAX 0.12.)
    """
    return jnp.where(jnp.isfinite(largest) & (largest > 0), lax.reduce_precision(largest, 11, 0), 1)


def _cleaned_of_base(upper):
    finite = jnp.isfinite(_root_of_trace(upper))
    return _cleaned(upper, finite), finite


def _cleaned(upper, finite):
    """The identity in place of a Gram matrix that is not finite, of which LAPACK might not return."""
    return jnp.where(finite[..., None, None], upper, jnp.eye(upper.shape[-1]))


def _compared(begun, grams):
    """Whether base and post are finite, (...), and 1 where a post is so small that the base's rounding errors show."""
    finite = begun.decomposed.finite & jnp.isfinite(_root_of_trace(grams.change))
    traces = (jnp.trace(x, axis1=-2, axis2=-1) for x in (begun.gram, 2 * grams.across, grams.change))
    trace_base, trace_across, trace_change = traces
    much_smaller = trace_base + trace_across + trace_change < _SMALL_POST**2 * trace_base
    return finite, jnp.any(much_smaller & finite).astype(jnp.int32)


def _sum_of_grams(begun, grams, finite):
    """W_p^T W_p by its difference from the base's: upper, and the identity for a post that is not finite."""
    return _cleaned(begun.gram + (grams.across + transpose(grams.across)) + grams.change, finite)


def _frames_of(decomposed, in_frame, gram_of_change, unit, *, shape, change_values, dtype):
    """The frames of two matrices, and whether this route resolves both, (...)."""
    finite = decomposed[0].finite & decomposed[1].finite & jnp.isfinite(_root_of_trace(gram_of_change))
    frame_base, frame_post = (matrix.frame for matrix in decomposed)
    right = matmul(frame_base.rows, transpose(frame_post.rows))
    grown = frame_base.values[..., :, None] * right + matmul(in_frame, right)
    left = grown / jnp.where(frame_post.values > 0, frame_post.values, 1)[..., None, :]
    scale = jnp.ones(finite.shape) if unit is None else unit
    s_change = None
    if change_values:
        s_change = eigenvalue_roots(_cleaned(gram_of_change, finite)) * scale[..., None]
    pair = make_frames(
        shape,
        frame_base.values * scale[..., None],
        frame_post.values * scale[..., None],
        left=left,
        right=right,
        in_frame=in_frame * scale[..., None, None],
        change_norm=_root_of_trace(gram_of_change) * scale,
        s_change=s_change,
        dtype=dtype,
    )
    pair = poison(pair, finite)
    pair = jax.tree.map(lambda x: x.astype(dtype) if x.dtype == jnp.float64 else x, pair)
    return pair, frame_base.resolved & frame_post.resolved


def _root_of_trace(gram_matrix):
    """Frobenius norm of the matrix that this is the Gram matrix of."""
    return jnp.sqrt(jnp.trace(gram_matrix, axis1=-2, axis2=-1))
