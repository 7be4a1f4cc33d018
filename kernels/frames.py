"""Two matrices in each other's singular frames: the r x r arrays from which every law is read.

With W = U S V^T for base (b) and post (p) and D = W_p - W_b these are Q_U = U_b^T U_p, Q_V = V_b^T V_p and
E = U_b^T D V_b (He and Cao, arXiv:2509.17866, for the rotations). Nothing downstream needs an m x n array again.

Directions that a rank-deficient matrix does not determine (vectors of singular values that are numerically zero) are
arbitrary in any SVD; their rows and columns are zero here, so that no number depends on them.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp
from jax import lax

from polarax.kernels.gram import (
    change_grams,
    change_in_frame,
    change_rows,
    eigenvalue_roots,
    right_frame,
    stored_gram,
)
from polarax.kernels.products import frobenius, matmul, promote_pair, transpose
from polarax.kernels.sequential import after, by_leading_axes
from polarax.kernels.svd import check_method, numerical_rank, singular_values, svd
from polarax.kernels.triangle import triangle_by_blocks

Item = TypeVar("Item")
Readings = TypeVar("Readings")

# Rows over the columns of base and posts together: from here on they are reduced by QR before a thin SVD. The products
# saved are about those that QR takes at twice the size.
_VERY_TALL = 2

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


def frames(
    base: jax.typing.ArrayLike,
    post: jax.typing.ArrayLike,
    /,
    *,
    change_values: bool = False,
    dtype: jax.typing.DTypeLike | None = None,
    method: str = "auto",
) -> Frames:
    """Decomposes base and post and relates their frames.

    Args:
        base: (..., m, n), floating-point.
        post: The same shape; or (posts, ..., m, n), several posts of this base, which then is decomposed once.
        change_values: Also decompose the change, for its singular values.
        dtype: Of the results, float32 or float64; the inputs' own if not given. Small numbers given as they are stored
            take the least memory, and "gram" loses nothing of them.
        method: One of `polarax.kernels.SVD_METHODS`. "lapack" and "polar" take two thin SVDs; "gram" float64 Gram
            matrices, of which nothing larger than r x r is decomposed, accurate to 1e-7 down to singular values of 1e-8
            s_1; "auto" takes "gram" where there is float64 (CPU, GPU), falling back to "lapack" where a singular value
            is smaller than that, and "polar" on TPUs.

    Returns:
        `Frames` in that dtype, with the leading axes of post (`s_base` and `rank_base` too); NaN throughout for a pair
        with NaN or Inf.

    Raises:
        ValueError: Unknown method, the shapes differ, or `polarax.kernels.svd` refuses the input.
    """
    check_method(method)
    base, post = jnp.asarray(base), jnp.asarray(post)
    several = post.ndim == base.ndim + 1
    one_post = jax.ShapeDtypeStruct(post.shape[1:], post.dtype) if several else post
    promoted = jax.eval_shape(promote_pair, base, one_post)[0]
    if 0 in base.shape[-2:]:
        raise ValueError(f"Matrices must have at least one row and one column. Got shape={base.shape}.")
    related = functools.partial(
        _related,
        change_values=change_values,
        dtype=jnp.dtype(promoted.dtype if dtype is None else dtype),
        method=method,
    )
    if not several:
        return by_leading_axes(related)(base, post)
    # A caller's vmap puts its axis first in both, so the posts' own goes behind those of the stack.
    batch = base.ndim - 2
    found = by_leading_axes(related)(base, jnp.moveaxis(post, 0, batch))
    return jax.tree.map(lambda x: jnp.moveaxis(x, batch, 0), found)


def map_frames(
    read: Callable[[Frames], Readings],
    base: jax.typing.ArrayLike,
    make_post: Callable[[Item], jax.Array],
    items: Item,
    /,
    *,
    dtype: jax.typing.DTypeLike,
    method: str = "auto",
) -> Readings:
    """`read` of the frames of a base and many posts, each made when its turn comes: the memory is that of one.

    The base is decomposed once where "gram" decomposes it, and for every post elsewhere.

    Args:
        read: What is kept of a pair's `Frames`.
        base: (..., m, n), floating-point.
        make_post: Maps an item to a post of the base's shape, in `dtype`.
        items: A pytree of arrays with the items along their first axis.
        dtype: Of the frames, float32 or float64.
        method: As for `frames`.

    Returns:
        The readings of all items, stacked along a new first axis.

    Raises:
        ValueError: Unknown method.
    """
    check_method(method)
    base, dtype = jnp.asarray(base), jnp.dtype(dtype)
    wide = base.shape[-2] < base.shape[-1]

    def post_of(item):
        post = make_post(item)
        return transpose(post) if wide else post

    def kept(found):
        return read(_turned(found) if wide else found)

    def pair_by_pair(method, base, items):
        related = functools.partial(_by_svd, change_values=False, dtype=dtype, method=method)
        return lax.map(lambda item: kept(related(base, post_of(item))), items)

    def by_gram(base, items):
        with jax.enable_x64(True):
            relate = _gram_relation(base, _unit(base, base), False, dtype)

            def of_item(item):
                post = post_of(item)
                found, resolved = relate(post)
                if method == "auto" and dtype == jnp.float64:
                    by_lapack = functools.partial(_by_svd, change_values=False, dtype=dtype, method="lapack")
                    found = lax.cond(jnp.all(resolved), lambda *_: found, by_lapack, base, post)
                return kept(found)

            return lax.map(of_item, items)

    tall = transpose(base) if wide else base
    if method in ("lapack", "polar"):
        return pair_by_pair(method, tall, items)
    if method == "gram":
        return by_gram(tall, items)
    return lax.platform_dependent(tall, items, tpu=functools.partial(pair_by_pair, "polar"), default=by_gram)


def _related(base, post, **how):
    """Frames of a stack (..., m, n) and its post, or its posts (..., p, m, n)."""
    if base.shape[-2] >= base.shape[-1]:
        return _related_tall(base, post, **how)
    return _turned(_related_tall(transpose(base), transpose(post), **how))


def _turned(found):
    """The frames of the transposes."""
    return dataclasses.replace(
        found, shape=found.shape[::-1], left=found.right, right=found.left, change=transpose(found.change)
    )


def _related_tall(base, post, *, change_values, dtype, method):
    by_gram = functools.partial(_by_gram, change_values=change_values, dtype=dtype)
    by_svd = functools.partial(_by_svd, change_values=change_values, dtype=dtype, method="lapack")
    by_polar = functools.partial(_by_svd, change_values=change_values, dtype=dtype, method="polar")

    def gram_or_svd(base, post):
        found, resolved = by_gram(base, post)
        if dtype != jnp.float64:  # what float64 does not resolve, float32 does not hold
            return found
        return lax.cond(jnp.all(resolved), lambda *_: found, by_svd, base, post)

    if method == "lapack":
        return by_svd(base, post)
    if method == "polar":
        return by_polar(base, post)
    if method == "gram":
        return by_gram(base, post)[0]
    return lax.platform_dependent(base, post, tpu=by_polar, default=gram_or_svd)


def _each_post(base, post, relate):
    """relate(post), or the results for all posts (..., p, m, n), one after the other."""
    if post.ndim == base.ndim:
        return relate(post)
    axis = base.ndim - 2
    results = lax.map(relate, jnp.moveaxis(post, axis, 0))
    return jax.tree.map(lambda x: jnp.moveaxis(x, 0, axis), results)


def _by_svd(base, post, *, change_values, dtype, method):
    shape = base.shape[-2:]
    finite = _finite(base, post)
    base, post = _triangles(base, post, dtype)
    u_base, s_base, v_base = svd(base, method=method)

    def relate(post):
        u_post, s_post, v_post = svd(after(post, s_base), method=method)
        change = post - base
        return _masked(
            shape,
            s_base,
            s_post,
            left=matmul(transpose(u_base), u_post),
            right=matmul(transpose(v_base), v_post),
            in_frame=matmul(matmul(transpose(u_base), change), v_base),
            change_norm=frobenius(change),
            s_change=singular_values(change, method=method) if change_values else None,
        )

    return jax.tree.map(lambda x: _poison(x, finite), _each_post(base, post, relate))


def _finite(base, post):
    """Whether a pair is finite, (...), or (..., p) for several posts."""
    finite_base, finite_post = (jnp.all(jnp.isfinite(x), axis=(-2, -1)) for x in (base, post))
    return finite_post & (finite_base if finite_base.ndim == finite_post.ndim else finite_base[..., None])


def _triangles(base, post, dtype):
    """Base and post in the working dtype, or smaller matrices with the same frames where they are very tall.

    With [W_b W_p ...] = Q R, the blocks of columns of R are base and posts in the basis Q: singular values, right
    vectors and all products of left vectors are the same, and no left vector of m rows is needed.
    """
    several = post.ndim > base.ndim
    columns = (1 + (post.shape[-3] if several else 1)) * base.shape[-1]
    base, post = (jnp.where(jnp.isfinite(x), x, 0) for x in (base, post))  # else NaN in one would reach all
    if base.shape[-2] < _VERY_TALL * columns:
        return base.astype(dtype), post.astype(dtype)
    posts = post if several else post[..., None, :, :]
    stored = [base, *jnp.moveaxis(posts, -3, 0)]
    triangle = triangle_by_blocks(lambda *block: jnp.concatenate([x.astype(dtype) for x in block], -1), *stored)
    first, *others = jnp.split(triangle, len(stored), axis=-1)
    return first, jnp.stack(others, axis=-3) if several else others[0]


def _by_gram(base, post, *, change_values, dtype):
    """Frames, and for each pair whether every singular value was large enough for this route."""
    with jax.enable_x64(True):
        return _each_post(base, post, _gram_relation(base, _unit(base, post), change_values, dtype))


def _gram_relation(base, unit, change_values, dtype):
    """Decomposes the base; the function that maps a post to frames and whether they are resolved. In float64 scope."""
    shape = base.shape[-2:]
    scale = jnp.ones(base.shape[:-2]) if unit is None else unit
    identity = jnp.eye(shape[1])

    def convert(x):
        return x.astype(jnp.float64) if unit is None else x.astype(jnp.float64) / unit[..., None, None]

    def cleaned(gram_matrix, finite):
        return jnp.where(finite[..., None, None], gram_matrix, identity)

    gram_base = stored_gram(base, convert)
    norm_base = _root_of_trace(gram_base)
    finite_base = jnp.isfinite(norm_base)
    gram_base = cleaned(gram_base, finite_base)
    frame_base = right_frame(gram_base, functools.partial(stored_gram, base, convert))
    s_base = frame_base.values

    def relate(post):
        gram_change, across = change_grams(base, post, convert)
        norm_change = _root_of_trace(gram_change)
        finite = finite_base & jnp.isfinite(norm_change)
        gram_change, across = cleaned(gram_change, finite), cleaned(across, finite)
        # By difference, unless that is small enough for the base's rounding errors to show in it.
        gram_post = gram_base + across + transpose(across) + gram_change
        much_smaller = _root_of_trace(gram_post) < _SMALL_POST * norm_base
        gram_post = lax.cond(
            jnp.any(much_smaller & finite),
            lambda: cleaned(stored_gram(post, convert), finite),
            lambda: gram_post,
        )
        frame_post = right_frame(gram_post, functools.partial(stored_gram, post, convert))
        s_post = frame_post.values
        rows_of = functools.partial(change_rows, base, post, convert)
        in_frame = change_in_frame(frame_base, across, rows_of)
        right = matmul(transpose(frame_base.vectors), frame_post.vectors)
        grown = in_frame + s_base[..., :, None] * identity
        left = matmul(grown, right) / jnp.where(s_post > 0, s_post, 1)[..., None, :]
        found = _masked(
            shape,
            s_base * scale[..., None],
            s_post * scale[..., None],
            left=left,
            right=right,
            in_frame=in_frame * scale[..., None, None],
            change_norm=norm_change * scale,
            s_change=eigenvalue_roots(gram_change) * scale[..., None] if change_values else None,
            dtype=dtype,
        )
        poisoned = jax.tree.map(lambda x: _poison(x, finite), found)
        rounded = jax.tree.map(lambda x: x.astype(dtype) if x.dtype == jnp.float64 else x, poisoned)
        return rounded, frame_base.resolved & frame_post.resolved

    return relate


def _unit(base, post):
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


def _poison(x, finite):
    """NaN, or rank 0, for pairs that are not finite."""
    undefined = jnp.nan if jnp.issubdtype(x.dtype, jnp.floating) else 0
    return jnp.where(finite.reshape(finite.shape + (1,) * (x.ndim - finite.ndim)), x, undefined).astype(x.dtype)


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
