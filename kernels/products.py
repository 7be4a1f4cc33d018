"""Matrix products at a stated precision.

Accelerators compute float32 products in TF32 or bfloat16 passes unless told otherwise; every product whose error
reaches a reported number goes through here, so that the precision is written down in one place.
"""

import functools
from collections.abc import Callable
from typing import Any, TypeVar, cast

import jax
import jax.numpy as jnp
from jax import lax

Function = TypeVar("Function", bound=Callable[..., Any])

# HIGHEST: full float32 on GPUs (no TF32), six bfloat16 passes on TPUs, no change on CPUs or for float64.
PRECISION = lax.Precision.HIGHEST


def matmul(left: jax.Array, right: jax.Array) -> jax.Array:
    """Product of (..., m, k) and (..., k, n) at the working dtype's full precision."""
    return jnp.matmul(left, right, precision=PRECISION)


def transpose(x: jax.Array) -> jax.Array:
    """Swaps the last two axes: (..., m, n) -> (..., n, m)."""
    return jnp.swapaxes(x, -1, -2)


def inner(x: jax.Array, y: jax.Array) -> jax.Array:
    """x^T y of (..., m, n) and (..., m, k): (..., n, k)."""
    return matmul(transposed_operand(x), y)


def transposed_operand(x: jax.Array) -> jax.Array:
    """x^T, to be the left operand of products: (..., m, n) -> (..., n, m).

    XLA on CPU multiplies float64 matrices up to 1.5 times as fast if the transpose is there than if it is implied.
    """

    def copied(x):
        return lax.optimization_barrier(transpose(x))

    return lax.platform_dependent(x, cpu=copied, default=transpose) if x.dtype == jnp.float64 else transpose(x)


def promote(x: jax.typing.ArrayLike) -> jax.Array:
    """The array in the dtype the kernels work in: float32 and float64 stay, smaller floats become float32.

    Raises:
        ValueError: x is not a floating-point array of at least two axes.
    """
    x = jnp.asarray(x)
    if x.ndim < 2:
        raise ValueError(f"Input must have shape (..., m, n). Got shape={x.shape}.")
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(f"Input must be floating-point. Got dtype={x.dtype}.")
    return x if x.dtype in (jnp.float32, jnp.float64) else x.astype(jnp.float32)


def promote_pair(base: jax.typing.ArrayLike, post: jax.typing.ArrayLike) -> tuple[jax.Array, jax.Array]:
    """Both arrays in one working dtype.

    Raises:
        ValueError: The shapes differ, or `promote` refuses one of them.
    """
    base, post = promote(base), promote(post)
    if base.shape != post.shape:
        raise ValueError(f"base and post must have one shape. Got {base.shape} and {post.shape}.")
    dtype = jnp.promote_types(base.dtype, post.dtype)
    return base.astype(dtype), post.astype(dtype)


def frobenius(x: jax.Array) -> jax.Array:
    """Frobenius norm over the last two axes; entries near the dtype's limits neither over- nor underflow."""
    largest = jnp.max(jnp.abs(x), axis=(-2, -1), initial=0.0)
    scale = jnp.where((largest > 0) & jnp.isfinite(largest), largest, 1.0)
    return scale * jnp.sqrt(jnp.sum((x / scale[..., None, None]) ** 2, axis=(-2, -1)))


def at_full_precision(function: Function) -> Function:
    """The function with all its products at full precision: by default TPUs round float32 to bfloat16."""

    @functools.wraps(function)
    def precise(*given, **named):
        with jax.default_matmul_precision("highest"):
            return function(*given, **named)

    return cast(Function, precise)
