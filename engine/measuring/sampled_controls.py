"""Sampled controls: the base with random changes of the pair's size, read as the pair is."""

import hashlib
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from polarax import kernels

# Named, so that a draw does not depend on JAX's settings.
_GENERATOR = "threefry2x32"


class Sampled(NamedTuple):
    """A metric over the draws of one kind of random change, each (...)."""

    mean: jax.Array
    std: jax.Array  # population; NaN for a single draw


def matrix_key(seed: int, name: str) -> np.ndarray:
    """What the random changes of a matrix are drawn from, (2,), uint32: its own, wherever in a run it is measured."""
    digest = hashlib.sha256(f"{seed} {name}".encode(errors="surrogateescape")).digest()
    return np.frombuffer(digest[:8], "<u4").astype(np.uint32)


def sampled_controls(
    read: Callable[[kernels.Frames], dict[str, jax.Array]],
    base: jax.Array,
    post: jax.Array,
    s_change: jax.Array,
    keys: jax.Array,
    *,
    draws: int,
    dtype: str,
    method: str,
) -> dict[str, dict[str, Sampled]]:
    """Draws random changes of each kind, one after another in the memory of one, and reads each.

    Args:
        read: Metric -> (...) of a pair's frames.
        base: (..., m, n) in the stored dtype.
        post: (..., m, n) in its stored dtype.
        s_change: Singular values of the change, (..., r).
        keys: (..., 2), uint32, of `matrix_key`.
        draws: How many of each kind.
        dtype: Working dtype.
        method: How to decompose, one of `polarax.kernels.SVD_METHODS`.

    Returns:
        Metric -> kind -> mean and standard deviation.
    """
    kinds = kernels.RANDOM_CHANGES
    of_matrix = jax.random.wrap_key_data(keys, impl=_GENERATOR)

    def fold_in(keys, number):
        fold = jax.random.fold_in
        for _ in range(keys.ndim):
            fold = jax.vmap(fold, in_axes=(0, None))
        return fold(keys, number)

    def make_post(item):
        kind, draw = item
        key = fold_in(fold_in(of_matrix, kind), draw)
        working = base.astype(dtype)
        makers = [lambda *x, kind=kind: kernels.random_change(*x, kind=kind) for kind in kinds]
        return working + lax.switch(kind, makers, key, post.astype(dtype) - working, s_change)

    items = tuple(np.indices((len(kinds), draws), np.int32).reshape(2, -1))
    drawn = kernels.map_frames(read, base, make_post, jax.tree.map(jnp.asarray, items), dtype=dtype, method=method)
    return {
        metric: {
            kind: Sampled(jnp.mean(x, axis=0), jnp.std(x, axis=0) if draws > 1 else jnp.full(x.shape[1:], jnp.nan))
            for kind, x in zip(kinds, values.reshape(len(kinds), draws, *values.shape[1:]), strict=True)
        }
        for metric, values in drawn.items()
    }
