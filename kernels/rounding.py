"""How much of a change is rounding: that of the stored dtype, or of a narrower one that the numbers had before.

Numbers of a narrower type that are saved in a wider one, as of bfloat16 in float32, end in zeros: in all entries alike.
How many they are says how much coarser than the dtype the numbers are.
"""

import math
import operator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from polarax.kernels.products import frobenius, promote, promote_pair
from polarax.kernels.row_blocks import reduce_row_blocks
from polarax.kernels.sides import Shape, root

# Leading digits that are looked at: two of the exponent, three after the leading one. There are 32 of them.
_EXPONENT_DIGITS, _LEADING_DIGITS = 2, 3
# Between a measured change and the noise that a base's rounding would make by itself, relative to the change.
_ALL_OF_THE_CHANGE = 0.1


class Rounding(NamedTuple):
    """What the entries of a matrix say of how they were rounded; of several parts of one, see `joined_rounding`."""

    noise: jax.Array  # (...), expected Frobenius norm of rounding to the stored dtype
    used: jax.Array  # (...), unsigned: the binary digits that any entry uses; the lowest is the dtype's last place
    seen: jax.Array  # (...), uint32: which leading digits occur


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


def rounding_of(x: jax.Array, dtype: jax.typing.DTypeLike, /) -> Rounding:
    """What the entries of x, (..., m, n), floating-point, say of rounding to `dtype`; see `rounding_noise`."""

    def of_rows(rows):
        power, used, seen = digits(rows, dtype)
        noise = frobenius(power.astype(jax.dtypes.canonicalize_dtype(float))) * last_place(dtype)
        return Rounding(noise, *(lax.reduce(y, y.dtype.type(0), lax.bitwise_or, _last_axes(y)) for y in (used, seen)))

    return reduce_row_blocks(of_rows, jnp.asarray(x), combine=_either)


def joined_rounding(rounding: Rounding, joined_noise: jax.Array, axis: str) -> Rounding:
    """That of whole matrices from those of their rows on each device, along the axis of a mesh.

    Args:
        rounding: That of some rows.
        joined_noise: The noise of all.
        axis: Of the mesh.
    """

    def in_any(x):
        places = jnp.arange(8 * x.dtype.itemsize, dtype=x.dtype)
        digit = lax.pmax((x[..., None] >> places) & x.dtype.type(1), axis)
        return jnp.sum(digit << places, axis=-1, dtype=x.dtype)

    return Rounding(joined_noise, in_any(rounding.used), in_any(rounding.seen))


def rounding_noise(x: jax.Array, dtype: jax.typing.DTypeLike, /) -> jax.Array:
    """Expected Frobenius norm of the error made when numbers near x are rounded to `dtype`, or as x itself was before.

    Rounding to nearest errs uniformly within half a unit in the last place: variance ulp^2 / 12 an entry. Entries that
    are exactly zero are taken to be exact. Where x is coarser than `dtype`, the unit is that of the last place it uses.

    Args:
        x: (..., m, n), floating-point.
        dtype: The stored floating-point dtype.

    Returns:
        (...), in the unit of x; float32, or float64 where it is enabled.
    """
    return noise_of_digits(rounding_of(x, dtype))


def noise_of_digits(rounding: Rounding, /) -> jax.Array:
    """Expected norm of rounding to the last place that the entries use, (...)."""
    return rounding.noise * jnp.ldexp(jnp.ones_like(rounding.noise), spare_digits(rounding))


def spare_digits(rounding: Rounding, /) -> jax.Array:
    """How many last binary digits of the dtype are zero in all entries, (...), int32: 16 of bfloat16 in float32.

    0 where the entries are too few, or too much alike, to tell: fewer than half of the leading digits occur that such
    numbers can have. So matrices of ones and of powers of two are not taken for rounded. By chance, 16 entries
    with different leading digits end in a zero 1.5 times in 10^5.
    """
    used = rounding.used
    last = lax.population_count((used & -used) - 1).astype(jnp.int32)  # zeros at the end
    places = 8 * used.dtype.itemsize - 1 - lax.clz(used).astype(jnp.int32) - last  # after the leading one
    possible = 1 << (_EXPONENT_DIGITS + jnp.minimum(places, _LEADING_DIGITS))
    enough = (places > 0) & (2 * lax.population_count(rounding.seen).astype(jnp.int32) >= possible)
    return jnp.where(enough, last, 0)


def noise_between(base: Rounding, post: Rounding, change_norm: jax.Array, /) -> jax.Array:
    """Expected norm of the rounding that is in the change from base to post, (...): the larger of both.

    Training in a wide type that began at rounded weights starts there exactly. So a base that is coarser than its dtype
    counts with its last place only where its rounding by itself is as large as the change, to 10%: the post is then
    what the base was rounded from.

    Args:
        base: That of the base.
        post: That of the post.
        change_norm: ||D||_F, (...).
    """
    coarse = noise_of_digits(base)
    is_change = jnp.abs(coarse - change_norm) <= _ALL_OF_THE_CHANGE * change_norm
    return jnp.maximum(jnp.where(is_change, coarse, base.noise), noise_of_digits(post))


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


def last_place(dtype: jax.typing.DTypeLike, /) -> float:
    """Standard deviation of rounding to `dtype`, over the power of two that is at most the number."""
    return 2.0 ** -jnp.finfo(dtype).nmant / math.sqrt(12)


def digits(x: jax.Array, dtype: jax.typing.DTypeLike, /) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Of each entry of x, (..., m, n): the power of two its rounding goes by, the digits it uses, its leading ones.

    Args:
        x: Floating-point, as stored or promoted.
        dtype: The stored floating-point dtype.

    Returns:
        The power of two that is at most |x| and at least the smallest normal number of `dtype`, 0 for 0; and as in
        `Rounding`, 0 for zero and what is not normal in `dtype`: its last places are cut off, whatever it was before.
    """
    x, stored = promote(x), jnp.finfo(dtype)
    info = jnp.finfo(x.dtype)
    bits = lax.bitcast_convert_type(x, jnp.dtype(f"uint{info.bits}"))
    whole = bits.dtype.type
    power = lax.bitcast_convert_type(bits & whole(((1 << info.nexp) - 1) << info.nmant), x.dtype)
    smallest = np.array(stored.smallest_normal, x.dtype)
    normal = power >= smallest
    leading_one = whole(1 << info.nmant)
    used = ((bits & (leading_one - whole(1))) | leading_one) >> whole(info.nmant - stored.nmant)
    leading = (bits >> whole(info.nmant - _LEADING_DIGITS)) & whole((1 << _EXPONENT_DIGITS + _LEADING_DIGITS) - 1)
    seen = np.uint32(1) << leading.astype(jnp.uint32)
    return (
        jnp.where(x == 0, 0, jnp.maximum(power, smallest)),
        jnp.where(normal, used, 0),
        jnp.where(normal, seen, 0),
    )


def _last_axes(x):
    return x.ndim - 2, x.ndim - 1


def _either(first, second):
    """Of two parts of a matrix, of one leaf of `Rounding`."""
    return jnp.hypot(first, second) if jnp.issubdtype(first.dtype, jnp.floating) else first | second
