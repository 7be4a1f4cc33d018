"""A tall base and post by their Gram matrices: all that an edit needs to know, of the size of the shorter side.

Vectors that a matrix does not determine (of singular values that are numerically zero) are zero here.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from polarax.kernels.gram import UNRESOLVED, both_triangles, change_grams, pair_grams, right_frame, stored_gram
from polarax.kernels.methods import AUTO
from polarax.kernels.methods.gram_route import Base
from polarax.kernels.products import inner, matmul, transpose
from polarax.kernels.svd import svd
from polarax.kernels.symmetric_eigen import eigh_ascending

# Singular values that are closer than this, relative to the largest one, span one eigenspace: some times the errors of
# small ones, and far less than the distances between values that are not equal.
_TIED = {"float64": 1e-10, "float32": 5e-7}

# ||W_p|| over ||W_b||: from here up, rounding errors of W_b's Gram matrix are at most 100 times those of W_p's own.
_SMALL_POST = 0.1


class Side(NamedTuple):
    """What is known of a tall matrix W = U S V^T, (..., m, r)."""

    values: jax.Array  # s, (..., r), descending; 0 where undetermined
    frame: jax.Array  # (..., r, r), orthogonal: V, completed by any columns where undetermined
    gram: jax.Array  # W^T W, (..., r, r)

    @property
    def right(self) -> jax.Array:
        """V, (..., r, r); columns of zeros where undetermined."""
        return jnp.where(self.inside[..., None, :], self.frame, 0)

    @property
    def inside(self) -> jax.Array:
        """(..., r), bool: which directions are determined."""
        return self.values > 0

    @property
    def inverses(self) -> jax.Array:
        """1 / s, (..., r); 0 where undetermined."""
        return jnp.where(self.inside, 1 / jnp.where(self.inside, self.values, 1), 0)

    @property
    def tied(self) -> jax.Array:
        """(..., r, r), bool: which singular values are equal up to rounding, each to itself at least."""
        values = self.values
        tolerance = jnp.max(values, axis=-1, keepdims=True) * _TIED[values.dtype.name]
        apart = values[..., :-1] - values[..., 1:] > tolerance
        group = jnp.cumsum(jnp.pad(apart, [(0, 0)] * (apart.ndim - 1) + [(1, 0)]), axis=-1)
        both = self.inside[..., :, None] & self.inside[..., None, :]
        return both & (group[..., :, None] == group[..., None, :]) | jnp.eye(values.shape[-1], dtype=bool)

    def over_ties(self, values: jax.Array) -> jax.Array:
        """Numbers by the index of singular values, (..., r), as their means over the eigenspaces."""
        tied = self.tied.astype(values.dtype)
        return jnp.sum(tied * values[..., None, :], axis=-1) / jnp.sum(tied, axis=-1)


class TallPair(NamedTuple):
    """Base and post, in one unit. What an edit has no use for is not computed under jit."""

    base: Side
    post: Side
    toward: jax.Array  # W_b^T D, (..., r, r)
    turned: jax.Array  # W_b^T W_p V_p, (..., r, r)
    finite: jax.Array  # (...), bool: else what is not was taken to be orthonormal
    unit: jax.Array  # (...): what norms are to be multiplied by

    @property
    def across(self) -> jax.Array:
        """W_b^T W_p, (..., r, r)."""
        return self.base.gram + self.toward

    @property
    def left(self) -> jax.Array:
        """Q_U = U_b^T U_p, (..., r, r), with any signs."""
        base, post = self.base, self.post
        return base.inverses[..., :, None] * inner(base.right, self.turned) * post.inverses[..., None, :]

    @property
    def right(self) -> jax.Array:
        """Q_V = V_b^T V_p, (..., r, r), with the same signs."""
        return inner(self.base.right, self.post.right)

    @property
    def change(self) -> jax.Array:
        """E = U_b^T D V_b, (..., r, r)."""
        return jnp.where(self.base.inside[..., None, :], self._change, 0)

    @property
    def post_in_frame(self) -> jax.Array:
        """C = U_b^T W_p V, (..., r, r), with the completed V of the base."""
        values = self.base.values
        return values[..., :, None] * jnp.eye(values.shape[-1], dtype=values.dtype) + self._change

    @property
    def _change(self) -> jax.Array:
        """U_b^T D V, (..., r, r), with the completed V of the base."""
        base = self.base
        return base.inverses[..., :, None] * matmul(inner(base.right, self.toward), base.frame)


def tall_pair(
    base: jax.Array,
    post: jax.Array,
    *,
    dtype: jax.typing.DTypeLike,
    method: str = AUTO,
    post_is_measured_alone: bool = False,
    begun: Base | None = None,
) -> TallPair:
    """Decomposes base and post.

    Args:
        base: (..., m, n), m >= n, as stored.
        post: The same shape.
        dtype: To compute in: float64, in whose scope this is then called, or float32.
        method: One of `polarax.kernels.SVD_METHODS`; "auto" takes Gram matrices in float64, else the choice of `svd`.
        post_is_measured_alone: No edit is made of the post's vectors: its small singular values need not be resolved.
        begun: The base, if it is decomposed already, by its Gram matrix and in float64; of matrices that are stored in
            less than float64.
    """
    unit = _unit_of(base, post)

    def convert(x):
        x = x.astype(dtype)
        return x if unit is None else x / unit.astype(dtype)[..., None, None]

    finite = jnp.all(jnp.isfinite(base), axis=(-2, -1)) & jnp.all(jnp.isfinite(post), axis=(-2, -1))
    if begun is None:
        upper, change = pair_grams(base, post, convert)
    else:
        upper, change = begun.gram, change_grams(base, post, convert)
    gram_base = both_triangles(upper)
    gram_post = _gram_of_post(post, gram_base, change, convert)
    identity = jnp.eye(base.shape[-1], dtype=dtype)
    gram_base, gram_post = (jnp.where(finite[..., None, None], gram, identity) for gram in (gram_base, gram_post))
    if begun is None:
        of_base = _side(base, gram_base, finite, convert, method)
    else:
        of_base = _side_of_frame(begun.decomposed.frame, gram_base)
    if post_is_measured_alone and gram_post.dtype == jnp.float64:
        of_post = side_of_gram(gram_post)
    else:
        of_post = _side(post, gram_post, finite, convert, method)
    scale = jnp.ones(base.shape[:-2], dtype) if unit is None else unit.astype(dtype)
    toward = jnp.where(finite[..., None, None], change.across, 0)
    turned = matmul(gram_base + toward, of_post.right)
    return TallPair(of_base, of_post, toward, turned, finite, scale)


def _gram_of_post(post, gram_base, change, convert):
    """W_p^T W_p by its difference from the base's, unless it is so small that the base's rounding errors show."""
    across = change.across
    by_sum = gram_base + (across + transpose(across)) + both_triangles(change.change)
    traces = (jnp.trace(gram, axis1=-2, axis2=-1) for gram in (gram_base, by_sum))
    trace_base, trace_post = traces
    small = trace_post < _SMALL_POST**2 * trace_base
    return lax.cond(jnp.any(small), lambda: both_triangles(stored_gram(post, convert)), lambda: by_sum)


def gram_of(x: jax.Array, pair: TallPair) -> jax.Array:
    """W^T W, (..., r, r), in the unit of a pair, of a matrix as it is stored, (..., m, n)."""
    return both_triangles(stored_gram(x, lambda part: part.astype(pair.unit.dtype) / pair.unit[..., None, None]))


def side_of_gram(gram: jax.Array) -> Side:
    """A matrix of which only the Gram matrix is known, (..., r, r): singular values down to 1e-7 of the largest."""
    vectors, squares = eigh_ascending(gram)
    values = jnp.sqrt(jnp.maximum(squares, 0))[..., ::-1]
    floor = 1e-7 if gram.dtype == jnp.float64 else 1e-3  # some times the root of eps
    return _determined(values, vectors[..., ::-1], gram, floor)


def _side(x, gram, finite, convert, method):
    if method == AUTO and gram.dtype == jnp.float64:
        return _side_of_frame(right_frame(gram, functools.partial(stored_gram, x, convert)), gram)
    parts = svd(jnp.where(finite[..., None, None], convert(x), 0), method=method)
    floor = UNRESOLVED if gram.dtype == jnp.float64 else math.sqrt(x.shape[-2]) * float(jnp.finfo(gram.dtype).eps)
    return _determined(parts.values, parts.right, gram, floor)


def _side_of_frame(frame, gram):
    return _determined(frame.values, transpose(frame.rows), gram, UNRESOLVED)


def _determined(values, right, gram, floor):
    kept = values > floor * values[..., :1]
    return Side(jnp.where(kept, values, 0), right, gram)


def _unit_of(base, post):
    """A power of two that float64 matrices are divided by so that their squares stay in range; None for others."""
    if jnp.float64 not in (base.dtype, post.dtype):
        return None
    largest = functools.reduce(jnp.maximum, (jnp.max(jnp.abs(x), axis=(-2, -1)) for x in (base, post)))
    return jnp.where(jnp.isfinite(largest) & (largest > 0), lax.reduce_precision(largest, 11, 0), 1)
