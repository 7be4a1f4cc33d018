"""Pairs of weights with realistic spectra, made on the device: large ones take seconds there and minutes on a host."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.matrices import language_model_spectrum

# As `benchmarks.matrices.fine_tuned`: half of the change in few directions, half noise.
_DRIFT, _RANK_DIVISOR = 0.01, 16


def pair(rows: int, cols: int, *, seed: int = 0, condition: float = 1e4, dtype: str = "bfloat16"):
    """A weight as a language model has it and the same after a fine-tune, each (rows, cols), on the device."""
    values = language_model_spectrum(rows, cols, condition).astype(np.float32)
    base, post = _pair(jnp.asarray(values), jax.random.key(seed), rows=rows, cols=cols)
    return jax.block_until_ready((base.astype(dtype), post.astype(dtype)))


def stack(rows: int, cols: int, count: int, *, dtype: str = "bfloat16"):
    """So many pairs, (count, rows, cols) each."""
    pairs = [pair(rows, cols, seed=seed, condition=10.0 ** (3 + seed % 3), dtype=dtype) for seed in range(count)]
    return jax.block_until_ready(tuple(jnp.stack(side) for side in zip(*pairs, strict=True)))


@functools.partial(jax.jit, static_argnames=("rows", "cols"))
def _pair(values, key, *, rows, cols):
    keys = jax.random.split(key, 5)
    product = functools.partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)
    size = min(rows, cols)
    left, right = (
        jnp.linalg.qr(jax.random.normal(key, (side, size)))[0] for key, side in zip(keys, (rows, cols), strict=False)
    )
    base = product(left * values, right.T)
    base *= 0.02 * np.sqrt(rows * cols) / jnp.linalg.norm(base)
    rank = max(1, size // _RANK_DIVISOR)
    few = product(
        jax.random.normal(keys[2], (rows, rank)) / jnp.arange(1, rank + 1), jax.random.normal(keys[3], (rank, cols))
    )
    noise = jax.random.normal(keys[4], (rows, cols))
    change = few / jnp.linalg.norm(few) + noise / jnp.linalg.norm(noise)
    return base, base + _DRIFT * jnp.linalg.norm(base) / jnp.linalg.norm(change) * change
