"""Frames by thin SVDs of base and post."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

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

    def __init__(self, decompose_tall: Callable[..., Parts], *, change_values: bool, dtype: jax.typing.DTypeLike):
        super().__init__(change_values=change_values, dtype=dtype)
        self._decompose_tall = decompose_tall

    def begin(self, base: jax.Array, posts: tuple[jax.Array, ...]) -> Begun[Decomposed, Reduced]:
        """As `Route.begin`."""
        finite_base, *finite_posts = (jnp.all(jnp.isfinite(x), axis=(-2, -1)) for x in (base, *posts))
        matrix, *matrices = _reduced(base, posts, self.dtype)
        prepared = (Reduced(x, finite_base & finite) for x, finite in zip(matrices, finite_posts, strict=True))
        decomposed = Decomposed(Reduced(matrix, finite_base), thin_svd(matrix, self._decompose_tall))
        return Begun(decomposed, tuple(prepared))

    def with_post(self, begun: Decomposed, base: jax.Array, post: jax.Array, prepared: Reduced) -> Related[Svd]:
        """As `Route.with_post`."""
        factors = thin_svd(after(prepared.matrix, begun.factors.values), self._decompose_tall)
        second = Decomposed(prepared, factors)
        shape = (base.shape[-2], base.shape[-1])
        return Related(self._related(shape, begun, second, self.change_values), factors, None)

    def between(self, begun: Decomposed, first: Post[Reduced, Svd], second: Post[Reduced, Svd]) -> Related[Svd]:
        """As `Route.between`."""
        shape = (first.stored.shape[-2], first.stored.shape[-1])
        before, after_it = (Decomposed(x.prepared, x.decomposed) for x in (first, second))
        return Related(self._related(shape, before, after_it, change_values=False), second.decomposed, None)

    def _related(self, shape, base, post, change_values):
        change = post.reduced.matrix - base.reduced.matrix
        pair = make_frames(
            shape,
            base.factors.values,
            post.factors.values,
            left=inner(base.factors.left, post.factors.left),
            right=inner(base.factors.right, post.factors.right),
            in_frame=matmul(inner(base.factors.left, change), base.factors.right),
            change_norm=frobenius(change),
            s_change=thin_svd(change, self._decompose_tall, vectors=False).values if change_values else None,
        )
        return poison(pair, base.reduced.finite & post.reduced.finite)


def _reduced(base, posts, dtype):
    """Base and posts in the working dtype, or smaller matrices with the same frames where they are very tall.

    With [W_b W_p ...] = Q R, the blocks of columns of R are base and posts in the basis Q: singular values, right
    vectors and all products of left vectors are the same, and no left vector of m rows is needed.
    """
    stored = [jnp.where(jnp.isfinite(x), x, 0) for x in (base, *posts)]  # else NaN in one would reach all
    if base.shape[-2] < _VERY_TALL * len(stored) * base.shape[-1]:
        return [x.astype(dtype) for x in stored]
    triangle = triangle_by_blocks(lambda *block: jnp.concatenate([x.astype(dtype) for x in block], -1), *stored)
    return jnp.split(triangle, len(stored), axis=-1)
