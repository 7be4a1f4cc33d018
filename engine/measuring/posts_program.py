"""The compiled program of several posts: as `polarax.measuring.program`, but every matrix is decomposed once."""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from polarax import kernels
from polarax.measuring.program import (
    GROUPS_WITH_VECTORS,
    STATIC,
    Readings,
    Spectra,
    change_readings,
    over_stack,
    read_pair,
    sampled_readings,
)
from polarax.metrics import BETWEEN_GROUPS, sampled_metrics


class PostReadings(NamedTuple):
    """Readings of a stack and several posts, each as `measure_stack` returns them."""

    posts: tuple[Readings, ...]
    pairs: tuple[Readings, ...]  # of posts against each other


@functools.partial(jax.jit, static_argnames=(*STATIC, "pairs"))
def measure_posts(
    base: jax.Array,
    posts: tuple[jax.Array, ...],
    keys: jax.Array | None = None,
    *,
    groups: tuple[str, ...],
    pairs: tuple[tuple[int, int], ...] = (),
    top_k: int = 16,
    dtype: str = "float64",
    method: str = "auto",
    draws: int = 0,
    pictures: bool = True,
    mesh: jax.sharding.Mesh | None = None,
    batched: bool = True,
) -> PostReadings:
    """Reads a stack with several posts; base and posts are decomposed once, whatever they are compared with.

    Args:
        base: (count, m, n) in the stored dtype.
        posts: (count, m, n) each, in their stored dtypes.
        keys: As for `measure_stack`; posts share the draws, for which the base is decomposed again.
        groups: Metric groups.
        pairs: Places of posts to be read against each other in the groups of `BETWEEN_GROUPS`, the first as the base
            of the second; they also have `change_cosine`, of the changes of both from the base.
        top_k: As for `measure_stack`, and so are all others.
        dtype: Working dtype.
        method: How to decompose.
        draws: Random changes of each kind, for the posts.
        pictures: As for `measure_stack`; pairs have none.
        mesh: Devices to divide the stack over.
        batched: Take the stack as one batch.
    """
    measure = functools.partial(
        _measure_posts,
        groups=groups,
        pairs=pairs,
        top_k=top_k,
        dtype=dtype,
        method=method,
        draws=draws,
        pictures=pictures,
    )
    return over_stack(measure, (base, posts) if keys is None else (base, posts, keys), mesh, batched)


def _measure_posts(
    base: jax.Array,
    posts: tuple[jax.Array, ...],
    keys: jax.Array | None = None,
    *,
    groups: tuple[str, ...],
    pairs: tuple[tuple[int, int], ...],
    top_k: int,
    dtype: str,
    method: str,
    draws: int,
    pictures: bool,
) -> PostReadings:
    draws = draws if sampled_metrics(groups) else 0
    with_change_values = "shape" in groups or draws > 0
    between = tuple(group for group in groups if group in BETWEEN_GROUPS)
    read = functools.partial(read_pair, top_k=top_k, dtype=dtype)
    together = jnp.stack([post.astype(_common_dtype(posts)) for post in posts])

    def of_post(found, spectra, post):
        readings = read(base, post, found, spectra, groups=groups, pictures=pictures)
        if draws:
            readings |= sampled_readings(base, post, keys, readings, spectra, groups, draws, dtype, method)
        return readings

    def of_pair(found, spectra, first, second):
        changes = (post.astype(dtype) - base.astype(dtype) for post in (first, second))
        readings = read(first, second, found, spectra, groups=between, pictures=False)
        return readings | {"change_cosine": kernels.change_cosine(*changes)}

    if GROUPS_WITH_VECTORS & set(groups):

        def spectra_of(found):
            return Spectra(found.s_base, found.s_post, found.s_change, found.change_norm)

        of_posts, of_pairs = kernels.map_posts(
            lambda found, post: of_post(found, spectra_of(found), post),
            base,
            together,
            pairs=pairs,
            read_pair=lambda found, *both: of_pair(found, spectra_of(found), *both),
            change_values=with_change_values,
            dtype=dtype,
            method=method,
        )
        of_posts, of_pairs = (
            [jax.tree.map(lambda x, place=place: x[place], stacked) for place in range(count)]
            for stacked, count in ((of_posts, len(posts)), (of_pairs, len(pairs)))
        )
    else:
        of_posts, of_pairs = _by_values_alone(
            base.astype(dtype), together.astype(dtype), pairs, of_post, of_pair, with_change_values, method
        )
    if "change" in groups:  # of the stored dtypes, each its own
        of_posts = [
            found | change_readings(base, post, found["s_base"], found["change_norm"])
            for found, post in zip(of_posts, posts, strict=True)
        ]
        of_pairs = [
            found | change_readings(posts[i], posts[j], found["s_base"], found["change_norm"])
            for found, (i, j) in zip(of_pairs, pairs, strict=True)
        ]
    return PostReadings(tuple(of_posts), tuple(of_pairs))


def _by_values_alone(base, posts, pairs, of_post, of_pair, with_change_values, method):
    """Readings that need no singular vectors, from base and posts (posts, ..., m, n) in the working dtype."""
    s_base, *s_posts = kernels.singular_values(jnp.stack([base, *posts]), method=method)
    s_changes = kernels.singular_values(posts - base, method=method) if with_change_values else [None] * len(posts)
    of_posts = [
        of_post(None, Spectra(s_base, s_post, s_change, kernels.frobenius(post - base)), post)
        for s_post, s_change, post in zip(s_posts, s_changes, posts, strict=True)
    ]
    of_pairs = [
        of_pair(None, Spectra(s_posts[i], s_posts[j], None, kernels.frobenius(posts[j] - posts[i])), posts[i], posts[j])
        for i, j in pairs
    ]
    return of_posts, of_pairs


def _common_dtype(posts: Sequence[jax.Array]) -> jnp.dtype:
    """One that holds the values of all: their own, or float32 unless there is float64."""
    dtypes = {post.dtype for post in posts}
    if len(dtypes) == 1:
        return dtypes.pop()
    return jnp.dtype(jnp.float64 if jnp.dtype(jnp.float64) in dtypes else jnp.float32)
