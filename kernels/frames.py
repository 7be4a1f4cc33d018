"""Frames of base and post, of base and several posts, and of posts among each other: each matrix is decomposed once.

`polarax.kernels.relate` says what frames are.
"""

import functools
from collections.abc import Callable, Sequence
from typing import TypeVar

import jax
import jax.numpy as jnp
from jax import lax

from polarax.kernels.products import promote_pair, transpose
from polarax.kernels.relate import FactorRelations, Frames, GramRelations, poison, turned, unit_of
from polarax.kernels.sequential import by_leading_axes
from polarax.kernels.svd import check_method
from polarax.kernels.triangle import triangle_by_blocks

Item = TypeVar("Item")
Readings = TypeVar("Readings")
PairReadings = TypeVar("PairReadings")

# Rows over the columns of base and posts together: from here on they are reduced by QR before a thin SVD. The products
# saved are about those that QR takes at twice the size.
_VERY_TALL = 2


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


def map_posts(
    read: Callable[[Frames, jax.Array], Readings],
    base: jax.typing.ArrayLike,
    posts: jax.typing.ArrayLike,
    /,
    *,
    pairs: Sequence[tuple[int, int]] = (),
    read_pair: Callable[[Frames, jax.Array, jax.Array], PairReadings] | None = None,
    change_values: bool = False,
    dtype: jax.typing.DTypeLike,
    method: str = "auto",
) -> tuple[Readings, PairReadings | None]:
    """Readings of a base and several posts, and of posts against each other; every matrix is decomposed once.

    One after another, so that of the work arrays only one pair's are there at a time. A pair that "auto" has to leave
    to LAPACK is decomposed again there.

    Args:
        read: Maps the `Frames` of the base and a post, and that post as it was given, to what is kept of them.
        base: (..., m, n), floating-point.
        posts: (posts, ..., m, n), of one dtype.
        pairs: Places of posts to be read against each other, the first as the base of the second.
        read_pair: The same as `read` for two posts, which are given both.
        change_values: As for `frames`, of base and posts; pairs have none.
        dtype: Of the frames, float32 or float64.
        method: As for `frames`.

    Returns:
        The readings of all posts, and those of all pairs, each stacked along a new first axis; None without pairs.

    Raises:
        ValueError: Unknown method.
    """
    check_method(method)
    base, posts, dtype = jnp.asarray(base), jnp.asarray(posts), jnp.dtype(dtype)
    wide = base.shape[-2] < base.shape[-1]
    turn = transpose if wide else lambda x: x

    def kept(read, found, *stored):
        return read(turned(found) if wide else found, *map(turn, stored))

    def by_gram(base, posts):
        with jax.enable_x64(True):
            unit = unit_of(base, jnp.moveaxis(posts, 0, base.ndim - 2))
            of_changes, of_pairs = (GramRelations(base.shape, unit, values, dtype) for values in (change_values, False))
            of_base, gram_base = of_changes.decompose(base)

            def of_post(post):
                found, resolved, of_post = of_changes.with_post(base, of_base, gram_base, post)
                found = _resolved(found, resolved, base, post, change_values, dtype, method)
                return kept(read, found, post), of_post

            def of_pair(places):
                (first, of_first), (second, of_second) = (_at((posts, of_posts), place) for place in places)
                found, resolved = of_pairs.relate(first, of_first, second, of_second)
                found = _resolved(found, resolved, first, second, False, dtype, method)
                return kept(read_pair, found, first, second)

            readings, of_posts = lax.map(of_post, posts)
            return readings, lax.map(of_pair, _columns(pairs)) if pairs else None

    def by_factors(method, base, posts):
        finite = _finite(base, jnp.moveaxis(posts, 0, base.ndim - 2))
        finite = jnp.moveaxis(finite, -1, 0)
        small_base, small = _triangles(base, jnp.moveaxis(posts, 0, base.ndim - 2), dtype)
        small = jnp.moveaxis(small, base.ndim - 2, 0)
        of_changes, of_pairs = (FactorRelations(base.shape[-2:], values, method) for values in (change_values, False))
        of_base = of_changes.decompose(small_base)

        def of_post(item):
            post, small, finite = item
            found, of_post = of_changes.with_post(small_base, of_base, small)
            return kept(read, poison(found, finite), post), of_post

        def of_pair(places):
            (first, small_first, of_first, finite_first), second = (
                _at((posts, small, of_posts, finite), place) for place in places
            )
            post, small_post, of_post, finite_post = second
            found = of_pairs.relate(small_first, of_first, small_post, of_post)
            return kept(read_pair, poison(found, finite_first & finite_post), first, post)

        readings, of_posts = lax.map(of_post, (posts, small, finite))
        return readings, lax.map(of_pair, _columns(pairs)) if pairs else None

    if method in ("lapack", "polar"):
        return by_factors(method, turn(base), turn(posts))
    if method == "gram":
        return by_gram(turn(base), turn(posts))
    return lax.platform_dependent(turn(base), turn(posts), tpu=functools.partial(by_factors, "polar"), default=by_gram)


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
        return read(turned(found) if wide else found)

    def pair_by_pair(method, base, items):
        related = functools.partial(_by_svd, change_values=False, dtype=dtype, method=method)
        return lax.map(lambda item: kept(related(base, post_of(item))), items)

    def by_gram(base, items):
        with jax.enable_x64(True):
            relations = GramRelations(base.shape, unit_of(base, base), False, dtype)
            of_base, gram_base = relations.decompose(base)

            def of_item(item):
                post = post_of(item)
                found, resolved, _ = relations.with_post(base, of_base, gram_base, post)
                return kept(_resolved(found, resolved, base, post, False, dtype, method))

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
    return turned(_related_tall(transpose(base), transpose(post), **how))


def _related_tall(base, post, *, change_values, dtype, method):
    by_gram = functools.partial(_by_gram, change_values=change_values, dtype=dtype)
    by_lapack = functools.partial(_by_svd, change_values=change_values, dtype=dtype, method="lapack")
    by_polar = functools.partial(_by_svd, change_values=change_values, dtype=dtype, method="polar")

    def gram_or_svd(base, post):
        found, resolved = by_gram(base, post)
        return _resolved(found, resolved, base, post, change_values, dtype, "auto")

    if method == "lapack":
        return by_lapack(base, post)
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
    relations = FactorRelations(base.shape[-2:], change_values, method)
    finite = _finite(base, post)
    base, post = _triangles(base, post, dtype)
    of_base = relations.decompose(base)
    return poison(_each_post(base, post, lambda post: relations.with_post(base, of_base, post)[0]), finite)


def _by_gram(base, post, *, change_values, dtype):
    """Frames, and for each pair whether every singular value was large enough for this route."""
    with jax.enable_x64(True):
        relations = GramRelations(base.shape, unit_of(base, post), change_values, dtype)
        of_base, gram_base = relations.decompose(base)
        return _each_post(base, post, lambda post: relations.with_post(base, of_base, gram_base, post)[:2])


def _resolved(found, resolved, base, post, change_values, dtype, method):
    """The frames by Gram matrices; those by LAPACK where "auto" finds them not resolved."""
    if method != "auto" or dtype != jnp.float64:  # what float64 does not resolve, float32 does not hold
        return found
    by_lapack = functools.partial(_by_svd, change_values=change_values, dtype=dtype, method="lapack")
    return lax.cond(jnp.all(resolved), lambda *_: found, by_lapack, base, post)


def _at(stacked, place):
    """One of each of a pytree of stacks."""
    return jax.tree.map(lambda x: lax.dynamic_index_in_dim(x, place, keepdims=False), stacked)


def _columns(pairs):
    """First and second places, (pairs,) each."""
    return tuple(jnp.asarray(places, jnp.int32) for places in zip(*pairs, strict=True))


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
