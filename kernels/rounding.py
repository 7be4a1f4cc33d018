"""How much of a change is the rounding of the stored dtype."""

import math

import jax
import jax.numpy as jnp

from polarax.kernels.products import frobenius


def unchanged_share(base: jax.Array, post: jax.Array) -> jax.Array:
    """Share of entries that are the same in both, bit for bit if their dtypes are equal, by value otherwise.

    Args:
        base: (..., m, n) in its stored dtype.
        post: (..., m, n) in its stored dtype.

    Returns:
        (...), float32 in [0, 1].
    """
    if base.dtype == post.dtype:
        bits = jnp.dtype(f"uint{base.dtype.itemsize * 8}")
        base, post = base.view(bits), post.view(bits)
    return jnp.mean(base == post, axis=(-2, -1), dtype=jnp.float32)


def rounding_noise(x: jax.Array, dtype: jax.typing.DTypeLike, /) -> jax.Array:
    """Expected Frobenius norm of the error made when numbers near x are rounded to `dtype`.

    Rounding to nearest errs uniformly within half a unit in the last place: variance ulp^2 / 12 an entry. Entries that
    are exactly zero are taken to be exact.

    Args:
        x: (..., m, n) in the working dtype.
        dtype: The stored floating-point dtype.

    Returns:
        (...), in the unit and dtype of x.
    """
    info = jnp.finfo(dtype)
    _, exponent = jnp.frexp(x)  # |x| = f 2^e with f in [1/2, 1)
    exponent = jnp.maximum(exponent - 1, int(info.minexp)) - int(info.nmant)
    ulp = jnp.where(x == 0, 0, jnp.exp2(exponent.astype(x.dtype)))
    return frobenius(ulp) / math.sqrt(12)
