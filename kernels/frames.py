"""Frames of base and post, of base and many posts, and of posts among each other: each matrix is decomposed once.

`polarax.kernels.frames_type` says what frames are, `polarax.kernels.methods` how they are made. Methods know tall
matrices alone: wide ones are handed to them as their transposes, whose frames have left and right exchanged.
"""

import functools
from collections.abc import Callable, Sequence
from typing import TypeVar

import jax
import jax.numpy as jnp
from jax import lax

from polarax.kernels.frames_type import Frames, transposed_frames
from polarax.kernels.methods import Post, by_method, check_method
from polarax.kernels.products import promote_pair, transpose
from polarax.kernels.sequential import by_leading_axes

Item = TypeVar("Item")
Readings = TypeVar("Readings")
PairReadings = TypeVar("PairReadings")


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
        post: The same shape.
        change_values: Also decompose the change, for its singular values.
        dtype: Of the results, float32 or float64; the inputs' own if not given. Small numbers given as they are stored
            take the least memory, and "gram" loses nothing of them.
        method: One of `polarax.kernels.SVD_METHODS`. "lapack" and "polar" take two thin SVDs; "gram" takes float64
            Gram matrices, of which nothing larger than r x r is decomposed, accurate to 1e-7 down to singular values of
            1e-8 s_1; "auto" takes "gram" where there is float64 (CPU, GPU), falling back to "lapack" where a singular
            value is smaller than that, and "polar" on TPUs.

    Returns:
        `Frames` in that dtype; NaN throughout for a pair with NaN or Inf.

    Raises:
        ValueError: Unknown method, the shapes differ, or `polarax.kernels.svd` refuses the input.
    """
    check_method(method)
    base, post = jnp.asarray(base), jnp.asarray(post)
    promoted = _promoted_dtype(base, post)
    pair = functools.partial(
        _pair, change_values=change_values, dtype=promoted if dtype is None else jnp.dtype(dtype), method=method
    )
    return by_leading_axes(pair)(base, post)


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
    """Readings of a base and its posts, and of posts against each other; every matrix is decomposed once.

    Posts are read one after another, so that of the work arrays only one pair's are there at a time; a single one as
    `frames` gives it, without a loop. A pair that "auto" has to leave to LAPACK is decomposed again there.

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
        ValueError: Unknown method, the shapes differ, or `polarax.kernels.svd` refuses the input.
    """
    check_method(method)
    base, posts, dtype = jnp.asarray(base), jnp.asarray(posts), jnp.dtype(dtype)
    if posts.shape[0] == 1 and not pairs:
        post = jnp.squeeze(posts, 0)
        readings = read(frames(base, post, change_values=change_values, dtype=dtype, method=method), post)
        return jax.tree.map(lambda x: jnp.expand_dims(x, 0), readings), None
    _promoted_dtype(base, jax.ShapeDtypeStruct(posts.shape[1:], posts.dtype))
    wide = base.shape[-2] < base.shape[-1]

    def read_as_given(read, pair, *stored):
        return read(transposed_frames(pair), *map(transpose, stored)) if wide else read(pair, *stored)

    def read_all(chosen, base, posts):
        with chosen.scope():
            route = chosen.route(change_values=change_values, dtype=dtype)
            begun = route.begin(base, tuple(posts))
            prepared = jax.tree.map(lambda *x: jnp.stack(x), *begun.posts)

            def read_post(post):
                stored, prepared = post
                related = route.with_post(begun.base, base, stored, prepared)
                pair = chosen.resolved(related, base, stored, change_values=change_values, dtype=dtype)
                return read_as_given(read, pair, stored), related.decomposed

            def read_two(places):
                first, second = (Post(*_at((posts, prepared, decomposed), place)) for place in places)
                related = route.between(begun.base, first, second)
                both = first.stored, second.stored
                pair = chosen.resolved(related, *both, change_values=False, dtype=dtype)
                return read_as_given(read_pair, pair, *both)

            readings, decomposed = lax.map(read_post, (posts, prepared))
            return readings, lax.map(read_two, _columns(pairs)) if pairs else None

    return by_method(method, read_all, *((transpose(base), transpose(posts)) if wide else (base, posts)))


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

    def read_items(chosen, base, items):
        how = {"change_values": False, "dtype": dtype}
        with chosen.scope():
            route = chosen.route(**how)
            begun = route.begin(base, ()).base

            def read_item(item):
                post = transpose(make_post(item)) if wide else make_post(item)
                pair = chosen.resolved(route.with_new_post(begun, base, post), base, post, **how)
                return read(transposed_frames(pair) if wide else pair)

            return lax.map(read_item, items)

    return by_method(method, read_items, transpose(base) if wide else base, items)


def _pair(base, post, *, change_values, dtype, method):
    def pair_by(chosen, base, post):
        return chosen.pair(base, post, change_values=change_values, dtype=dtype)

    if base.shape[-2] >= base.shape[-1]:
        return by_method(method, pair_by, base, post)
    return transposed_frames(by_method(method, pair_by, transpose(base), transpose(post)))


def _promoted_dtype(base, post):
    """The dtype that a pair is worked on by default; raises ValueError for one that cannot be."""
    promoted = jax.eval_shape(promote_pair, base, post)[0].dtype
    if 0 in base.shape[-2:]:
        raise ValueError(f"Matrices must have at least one row and one column. Got shape={base.shape}.")
    return promoted


def _at(stacked, place):
    """One of each of a pytree of stacks."""
    return jax.tree.map(lambda x: lax.dynamic_index_in_dim(x, place, keepdims=False), stacked)


def _columns(pairs):
    """First and second places, (pairs,) each."""
    return tuple(jnp.asarray(places, jnp.int32) for places in zip(*pairs, strict=True))
