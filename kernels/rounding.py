"""How much of a change is the rounding of the stored dtype."""

import math
import operator

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from polarax.kernels.products import frobenius, promote, promote_pair
from polarax.kernels.row_blocks import reduce_row_blocks
from polarax.kernels.sides import Shape, root


def unchanged_share(base: jax.Array, post: jax.Array) -> jax.Array:
    """Share of entries that are the same in both, bit for bit if their dtypes are equal, by value otherwise.

    Args:
        base: (..., m, n) in its stored dtype.
        post: (..., m, n) in its stored dtype.

    Returns:
        (...), float32 in [0, 1].
    """
    return equal_entries(base, post) / math.prod(base.shape[-2:])


def equal_entries(base: jax.Array, post: jax.Array) -> jax.Array:
    """Number of entries that are the same in both, (...), float32: see `unchanged_share`."""
    alike = base.dtype == post.dtype
    if alike:
        bits = jnp.dtype(f"uint{base.dtype.itemsize * 8}")
        base, post = base.view(bits), post.view(bits)

    def count_equal(*rows):
        # JAX compares floats of eight bits with no other dtype by itself.
        equal = operator.eq(*(rows if alike else promote_pair(*rows)))
        return jnp.sum(equal, axis=(-2, -1), dtype=jnp.float32)

    return reduce_row_blocks(count_equal, base, post)


def rounding_noise(x: jax.Array, dtype: jax.typing.DTypeLike, /) -> jax.Array:
    """Expected Frobenius norm of the error made when numbers near x are rounded to `dtype`.

    Rounding to nearest errs uniformly within half a unit in the last place: variance ulp^2 / 12 an entry. Entries that
    are exactly zero are taken to be exact.

    Args:
        x: (..., m, n), floating-point.
        dtype: The stored floating-point dtype.

    Returns:
        (...), in the unit of x; float32, or float64 where it is enabled.
    """
    x = jnp.asarray(x)
    return reduce_row_blocks(lambda rows: _noise(rows, jnp.finfo(dtype)), x, combine=jnp.hypot)


def noise_spectral_norm(norm: jax.Array, shape: Shape, /) -> jax.Array:
    """Largest singular value of noise of Frobenius norm `norm`, (...): sd (sqrt(m) + sqrt(n)), sd = norm / sqrt(m n).

    The limit for independent entries of one variance, normal or not (Yin, Bai and Krishnaiah 1988, Probability Theory
    and Related Fields 78); small matrices stay a few percent below it.
    """
    rows, cols = shape
    return norm * ((root(rows) + root(cols)) / root(rows * cols))


def rank_beyond_noise(values: jax.Array, noise: jax.Array, /, *, shape: Shape) -> jax.Array:
    """The least rank of which a matrix is, but for noise: (...), int32; 0 for a zero matrix and for one with NaN.

    That many singular values are more than twice the largest of the noise, and what is left is no longer than one and a
    half times the noise: two sides that were rounded make the square root of 2 of one, and the noise of entries of
    different sizes has larger singular values than that of equal ones. Where more is left, what is left is no noise,
    and the rank is that of the numbers themselves.

    Args:
        values: Its singular values, (..., r), descending, as accurate as `Frames.s_change`.
        noise: Expected Frobenius norm of the noise, (...).
        shape: (m, n).
    """
    computed = values[..., 0] * (2 * jnp.finfo(values.dtype).eps ** 0.5)
    largest = jnp.maximum(2 * noise_spectral_norm(noise, shape), computed)
    beyond = (values > largest[..., None]) & (values > 0)
    rest = frobenius(jnp.where(beyond, 0, values)[..., None, :])
    explained = rest <= jnp.hypot(1.5 * noise, computed * values.shape[-1] ** 0.5)
    rank = jnp.sum(beyond, axis=-1, dtype=jnp.int32)
    return jnp.where(explained, rank, jnp.sum((values > computed[..., None]) & (values > 0), axis=-1, dtype=jnp.int32))


def _noise(x, info):
    x = promote(x)
    of_x = jnp.finfo(x.dtype)
    bits = lax.bitcast_convert_type(x, jnp.dtype(f"uint{of_x.bits}"))
    exponent_bits = ((1 << of_x.nexp) - 1) << of_x.nmant
    power = lax.bitcast_convert_type(bits & np.array(exponent_bits, bits.dtype), x.dtype)  # of two, at most |x|
    power = jnp.where(x == 0, 0, jnp.maximum(power, np.array(info.smallest_normal, x.dtype)))
    return frobenius(power.astype(jax.dtypes.canonicalize_dtype(float))) * (2.0**-info.nmant / math.sqrt(12))
