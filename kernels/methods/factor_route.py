"""Frames by thin SVDs of base and post."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from polarax.kernels.frames_type import make_frames, poison
from polarax.kernels.methods.route import Begun, Post, Related, Route
from polarax.kernels.products import frobenius, inner, matmul
from polarax.kernels.sequential import after
from polarax.kernels.thin_svd import Parts, Svd, thin_svd
from polarax.kernels.triangle import triangle_by_blocks

# Rows over the columns of base and posts together: from here on they are reduced by QR before a thin SVD. The products
# saved are about those that QR takes at twice the size.
_VERY_TALL = 2


class Reduced(NamedTuple):
    """A matrix for thin SVDs."""

    matrix: jax.Array  # (..., m or a few n, n) in the working dtype; 0 for what is not finite
    finite: jax.Array  # (...), bool; of a post: this one and the base


class Decomposed(NamedTuple):
    """A matrix and its thin SVD."""

    reduced: Reduced
    factors: Svd


class FactorRoute(Route[Decomposed, Reduced, Svd]):
    """Frames of a base and its posts from their thin SVDs.

    Args:
        decompose_tall: As `Method.svd_of_tall`.
        change_values: As for `Route`.
        dtype: As for `Route`.
    """

    divides_rows = True

    def __init__(self, decompose_tall: Callable[..., Parts], *, change_values: bool, dtype: jax.typing.DTypeLike):
        super().__init__(change_values=change_values, dtype=dtype)
        self._decompose_tall = decompose_tall

    def begin(self, base: jax.Array, posts: tuple[jax.Array, ...]) -> Begun[Decomposed, Reduced]:
        """As `Route.begin`."""
        stored = (base, *posts)
        finite = self.steps.over_rows(_finite, stored, join=lax.pmin)
        very_tall = base.shape[-2] >= _VERY_TALL * len(stored) * base.shape[-1]
        shares = self.steps.shares(_reduced, stored, very_tall=very_tall, dtype=self.dtype)
        both = functools.partial(self.steps.small, _reduced_together, very_tall=very_tall)
        return self.steps.small(_begun, functools.reduce(both, shares), finite, decompose_tall=self._decompose_tall)

    def with_post(self, begun: Decomposed, base: jax.Array, post: jax.Array, prepared: Reduced) -> Related[Svd]:
        """As `Route.with_post`."""
        decompose = self._decompose_tall
        factors = self.steps.small(_decomposed_after, prepared.matrix, begun.factors.values, decompose_tall=decompose)
        return Related(self._related(base, begun, Decomposed(prepared, factors), self.change_values), factors, None)

    def between(self, begun: Decomposed, first: Post[Reduced, Svd], second: Post[Reduced, Svd]) -> Related[Svd]:
        """As `Route.between`."""
        before, after_it = (Decomposed(x.prepared, x.decomposed) for x in (first, second))
        frames = self._related(first.stored, before, after_it, change_values=False)
        return Related(frames, second.decomposed, None)

    def _related(self, stored, base, post, change_values):
        shape = (stored.shape[-2], stored.shape[-1])
        decompose = self._decompose_tall if change_values else None
        return self.steps.small(_frames_of, base, post, shape=shape, decompose_change=decompose)


# Steps over rows: of the same rows of base and posts.


def _finite(*stored):
    return tuple(jnp.all(jnp.isfinite(x), axis=(-2, -1)).astype(jnp.int32) for x in stored)


def _reduced(*stored, very_tall, dtype):
    """Base and posts in the working dtype, or smaller matrices with the same frames where they are very tall.

    With [W_b W_p ...] = Q R, the blocks of columns of R are base and posts in the basis Q: singular values, right
    vectors and all products of left vectors are the same, and no left vector of m rows is needed.
    """
    finite = [jnp.where(jnp.isfinite(x), x, 0) for x in stored]  # else NaN in one would reach all
    if not very_tall:
        return [x.astype(dtype) for x in finite]
    triangle = triangle_by_blocks(lambda *block: jnp.concatenate([x.astype(dtype) for x in block], -1), *finite)
    return jnp.split(triangle, len(finite), axis=-1)


# Steps on what they give.


def _reduced_together(first, following, *, very_tall):
    """Those of some rows and of the rows that follow: as `_reduced` of all these rows."""
    together = [jnp.concatenate(rows, axis=-2) for rows in zip(first, following, strict=True)]
    return _reduced(*together, very_tall=very_tall, dtype=together[0].dtype)


def _begun(matrices, finite, *, decompose_tall):
    finite_base, *finite_posts = (x > 0 for x in finite)
    matrix, *others = matrices
    prepared = tuple(Reduced(x, finite_base & of_x) for x, of_x in zip(others, finite_posts, strict=True))
    return Begun(Decomposed(Reduced(matrix, finite_base), thin_svd(matrix, decompose_tall)), prepared)


def _decomposed_after(matrix, earlier, *, decompose_tall):
    return thin_svd(after(matrix, earlier), decompose_tall)


def _frames_of(base, post, *, shape, decompose_change):
    """The frames, with the singular values of the change if there is what decomposes it."""
    change = post.reduced.matrix - base.reduced.matrix
    pair = make_frames(
        shape,
        base.factors.values,
        post.factors.values,
        left=inner(base.factors.left, post.factors.left),
        right=inner(base.factors.right, post.factors.right),
        in_frame=matmul(inner(base.factors.left, change), base.factors.right),
        change_norm=frobenius(change),
        s_change=None if decompose_change is None else thin_svd(change, decompose_change, vectors=False).values,
    )
    return poison(pair, base.reduced.finite & post.reduced.finite)
