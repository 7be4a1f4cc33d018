"""Random changes of the size of a given one: what the sampled controls add to the base.

Three kinds, each keeping more of the change D than the one before:

    isotropic   sd G with sd = ||D||_F / sqrt(m n) and G standard normal: its size alone
    spectrum    U diag(s) V^T with the singular values s of D and random directions U, V: its size and its spectrum;
                where only the leading values are known, the rest of its size as isotropic noise
    shuffled    the entries of D in random order: its size and its entries

U and V are from the Haar measure: Q of a Gaussian matrix's QR decomposition with R's diagonal made positive, without
which Q depends on the algorithm (Mezzadri 2007, "How to generate random matrices from the classical compact groups").
"""

import functools
import math

import jax
import jax.numpy as jnp

from polarax.kernels.products import frobenius, matmul, transpose
from polarax.kernels.sequential import one_at_a_time

RANDOM_CHANGES = ("isotropic", "spectrum", "shuffled")


def random_change(key: jax.Array, change: jax.Array, values: jax.Array, /, *, kind: str) -> jax.Array:
    """A random change like the one given. Each key gives its own, the same alone and in a stack.

    Args:
        key: PRNG keys of `jax.random`, (...).
        change: D, (..., m, n), float32 or float64.
        values: Singular values of D, (..., min(m, n)), or the leading ones of them.
        kind: One of `RANDOM_CHANGES`.

    Returns:
        (..., m, n) in the dtype of the change.

    Raises:
        ValueError: Unknown kind.

    Example:
        >>> import jax
        >>> from polarax import kernels
        >>> change = jax.numpy.arange(6.0).reshape(3, 2)
        >>> values = kernels.singular_values(change)
        >>> drawn = kernels.random_change(jax.random.key(0), change, values, kind="shuffled")
        >>> sorted(drawn.ravel().tolist())
        [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]
    """
    if kind not in RANDOM_CHANGES:
        raise ValueError(f"Unknown kind of random change {kind!r}. Expected one of {', '.join(RANDOM_CHANGES)}.")
    if change.ndim > 2:
        return jax.vmap(functools.partial(random_change, kind=kind))(key, change, values)
    if kind == "isotropic":
        sd = frobenius(change) / math.sqrt(change.size)
        return sd * jax.random.normal(key, change.shape, change.dtype)
    if kind == "shuffled":
        return jax.random.permutation(key, change.ravel()).reshape(change.shape)
    of_left, of_right = jax.random.split(key)
    left, right = (_directions(k, size, values) for k, size in zip((of_left, of_right), change.shape, strict=True))
    leading = matmul(left * values, transpose(right))
    if values.shape[-1] == min(change.shape):
        return leading
    size = frobenius(change)
    share = jnp.sum((values / jnp.where(size > 0, size, 1)) ** 2)
    sd = size * jnp.sqrt(jnp.maximum(1 - share, 0) / change.size)
    return leading + sd * jax.random.normal(jax.random.fold_in(key, 1), change.shape, change.dtype)


def _directions(key, rows, values):
    """Orthonormal columns from the Haar measure, (rows, r)."""
    gaussian = jax.random.normal(key, (rows, values.shape[-1]), values.dtype)
    orthonormal, triangle = one_at_a_time(lambda x: tuple(jnp.linalg.qr(x)), gaussian)
    return orthonormal * jnp.where(jnp.diagonal(triangle) < 0, -1, 1).astype(values.dtype)
