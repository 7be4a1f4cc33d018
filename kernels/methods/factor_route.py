"""Frames by thin SVDs of base and post."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from polarax.kernels.frames_type import Frames, make_frames, poison
from polarax.kernels.methods.route import Post, Route
from polarax.kernels.products import frobenius, inner, matmul
from polarax.kernels.sequential import after
from polarax.kernels.thin_svd import Parts, Svd, thin_svd
from polarax.kernels.triangle import triangle_by_blocks

# Rows over the columns of base and posts together: from here on they are reduced by QR before a thin SVD. The products
# saved are about those that QR takes at twice the size.
_VERY_TALL = 2


class Reduced(NamedTuple):
    """A matrix for thin SVDs."""

    stored: jax.Array  # (..., m, n), as it was given
    matrix: jax.Array  # (..., m or a few n, n) in the working dtype; 0 for what is not finite
    finite: jax.Array  # (...), bool: this one and the base


class FactorRoute(Route[Reduced, Svd]):
    """Frames of a base and its posts from their thin SVDs.

    Args:
        decompose_tall: As `Method.svd_of_tall`.
        base: (..., m, n), m >= n, as stored.
        posts: (posts, ..., m, n), as stored.
        change_values: Also decompose the changes from the base, for their singular values.
        dtype: Of the frames.
    """

    def __init__(
        self,
        decompose_tall: Callable[..., Parts],
        base: jax.Array,
        posts: jax.Array,
        *,
        change_values: bool,
        dtype: jax.typing.DTypeLike,
    ):
        self._decompose_tall, self._change_values = decompose_tall, change_values
        finite_base, finite_posts = (jnp.all(jnp.isfinite(x), axis=(-2, -1)) for x in (base, posts))
        base_matrix, post_matrices = _reduced(base, posts, dtype)
        self._shape = (base.shape[-2], base.shape[-1])
        self.posts = Reduced(posts, post_matrices, finite_base & finite_posts)
        self._base = Post(Reduced(base, base_matrix, finite_base), thin_svd(base_matrix, decompose_tall))

    def with_post(self, matrix: Reduced) -> tuple[Frames, Svd]:
        """As `Route.with_post`."""
        decomposed = thin_svd(after(matrix.matrix, self._base.decomposed.values), self._decompose_tall)
        return self._related(self._base, Post(matrix, decomposed), self._change_values), decomposed

    def between(self, first: Post[Reduced, Svd], second: Post[Reduced, Svd]) -> Frames:
        """As `Route.between`."""
        return self._related(first, second, change_values=False)

    def _related(self, base, post, change_values):
        change = post.matrix.matrix - base.matrix.matrix
        svd_base, svd_post = base.decomposed, post.decomposed
        pair = make_frames(
            self._shape,
            svd_base.values,
            svd_post.values,
            left=inner(svd_base.left, svd_post.left),
            right=inner(svd_base.right, svd_post.right),
            in_frame=matmul(inner(svd_base.left, change), svd_base.right),
            change_norm=frobenius(change),
            s_change=thin_svd(change, self._decompose_tall, vectors=False).values if change_values else None,
        )
        return poison(pair, base.matrix.finite & post.matrix.finite)


def _reduced(base, posts, dtype):
    """Base and posts in the working dtype, or smaller matrices with the same frames where they are very tall.

    With [W_b W_p ...] = Q R, the blocks of columns of R are base and posts in the basis Q: singular values, right
    vectors and all products of left vectors are the same, and no left vector of m rows is needed.
    """
    base, posts = (jnp.where(jnp.isfinite(x), x, 0) for x in (base, posts))  # else NaN in one would reach all
    if base.shape[-2] < _VERY_TALL * (1 + posts.shape[0]) * base.shape[-1]:
        return base.astype(dtype), posts.astype(dtype)
    stored = [base, *posts]
    triangle = triangle_by_blocks(lambda *block: jnp.concatenate([x.astype(dtype) for x in block], -1), *stored)
    first, *others = jnp.split(triangle, len(stored), axis=-1)
    return first, jnp.stack(others)
