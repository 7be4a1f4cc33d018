"""Norms and inner products of matrices as they are stored, and the float32 arrays that products are taken with.

All sums of a base and a post come from one pass over both: a single reduction of several arrays along the rows, which
XLA on CPU computes from the stored entries without writing anything out. They are in float64 where there is some.
Entries are taken over a power of two, so that squares stay in range and nothing is lost when they are rounded to
float32.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

# Of all products with matrices.
WORKING = jnp.float32


class Entries(NamedTuple):
    """A stored matrix, and what its entries are taken over."""

    stored: jax.Array  # (m, n)
    unit: jax.Array  # a power of two, (), in the dtype of sums


class EntrySums(NamedTuple):
    """What the entries of base and post say, each (): norms, in the units of the matrices' entries."""

    base: jax.Array  # ||W_b||_F
    post: jax.Array  # ||W_p||_F
    change: jax.Array  # ||D||_F
    along: jax.Array  # <W_b, D> over the units of both
    unchanged: jax.Array  # share of entries that are the same, bit for bit or, of different dtypes, in value
    noise: jax.Array  # expected norm of the rounding of the stored types, the larger of both


def entries_of(stored: jax.Array, dtype: str) -> Entries:
    """The entries of a matrix, (m, n), to be summed in `dtype`."""
    # Largest by its bits: of small floats XLA on CPU would write out a float32 copy to reduce.
    bits = jnp.finfo(stored.dtype).bits
    size = stored.view(f"uint{bits}") & np.array((1 << (bits - 1)) - 1, f"uint{bits}")
    return Entries(stored, _power_of_two(_exact(jnp.max(size).view(stored.dtype)).astype(dtype)))


def change_unit(base: Entries, post: Entries) -> jax.Array:
    """What the entries of the change are taken over: twice the larger unit, so that a difference is in range too."""
    return 2 * jnp.maximum(base.unit, post.unit)


def entry_sums(base: Entries, post: Entries) -> EntrySums:
    """The sums of a base and a post."""
    unit, dtype = change_unit(base, post), base.unit.dtype
    sides = [(_over(x.stored, x.unit), _rounding(x)) for x in (base, post)]
    (of_base, base_power), (of_post, post_power) = ((x.astype(dtype), y.astype(dtype)) for x, y in sides)
    change = _difference(base.stored, post.stored, unit).astype(dtype)
    same = _same(base.stored, post.stored).astype(dtype)
    squares = (of_base**2, of_post**2, change**2, base_power**2, post_power**2)
    *sums, along, equal = _sums(*squares, of_base * change, same)
    norm_base, norm_post, norm_change, noise_base, noise_post = (jnp.sqrt(x) for x in sums)
    return EntrySums(
        base=base.unit * norm_base,
        post=post.unit * norm_post,
        change=unit * norm_change,
        along=along,
        unchanged=equal / math.prod(base.stored.shape),
        noise=jnp.maximum(*(x.unit * y * _ulp(x) for x, y in ((base, noise_base), (post, noise_post)))),
    )


def drawn_sums(base: Entries, change: jax.Array, unit: jax.Array) -> tuple[jax.Array, jax.Array]:
    """||D||_F, and <W_b, D> over the units of both, of a change (m, n) over its unit."""
    dtype = base.unit.dtype
    change = change.astype(dtype)
    squares, along = _sums(change**2, _over(base.stored, base.unit).astype(dtype) * change)
    return unit * jnp.sqrt(squares), along


def working_matrix(entries: Entries, finite: jax.Array) -> jax.Array:
    """The matrix over its unit in float32; zero where it is not finite. (m, n)."""
    # Written once, here: a product would convert it again, and what sums are taken of would be written for both.
    stored, finite = lax.optimization_barrier((entries.stored, finite))
    return lax.optimization_barrier(jnp.where(finite, _over(stored, entries.unit).astype(WORKING), 0))


def working_change(base: Entries, post: Entries, finite: jax.Array) -> jax.Array:
    """D over its unit in float32, of differences taken in float64 where either is stored in it; as `working_matrix`."""
    stored_base, stored_post, finite = lax.optimization_barrier((base.stored, post.stored, jnp.asarray(finite)))
    change = _difference(stored_base, stored_post, change_unit(base, post)).astype(WORKING)
    return lax.optimization_barrier(jnp.where(finite, change, 0))


def nonfinite_entries(entries: Entries, norm: jax.Array) -> jax.Array:
    """How many entries are NaN or Inf, (), int32; counted only where the norm is not finite."""
    return lax.cond(
        jnp.isfinite(norm),
        lambda: jnp.int32(0),
        lambda: jnp.sum(~jnp.isfinite(_exact(entries.stored)), dtype=jnp.int32),
    )


def _sums(*terms):
    """The sum of each, (m, n)."""

    def add(sums, more):
        return tuple(x + y for x, y in zip(sums, more, strict=True))

    # Along the rows, where all are summed in one loop; the rest is small.
    rows = lax.reduce(terms, tuple(jnp.zeros((), x.dtype) for x in terms), add, (1,))
    return tuple(jnp.sum(x) for x in rows)


def _difference(base, post, unit):
    exact = jnp.promote_types(_exact(base).dtype, _exact(post).dtype)
    return _over(post.astype(exact), unit) - _over(base.astype(exact), unit)


def _same(base, post):
    if base.dtype != post.dtype:
        exact = jnp.promote_types(_exact(base).dtype, _exact(post).dtype)
        return base.astype(exact) == post.astype(exact)
    bits = jnp.dtype(f"uint{8 * base.dtype.itemsize}")
    return base.view(bits) == post.view(bits)


def _rounding(entries):
    """The power of two that each entry's rounding goes by, over the unit: see `polarax.kernels.rounding_noise`."""
    x, info = _exact(entries.stored), jnp.finfo(entries.stored.dtype)
    of_x = jnp.finfo(x.dtype)
    bits = lax.bitcast_convert_type(x, jnp.dtype(f"uint{of_x.bits}"))
    exponent_bits = ((1 << of_x.nexp) - 1) << of_x.nmant
    power = lax.bitcast_convert_type(bits & np.array(exponent_bits, bits.dtype), x.dtype)  # of two, at most |x|
    power = jnp.maximum(power, np.array(info.smallest_normal, x.dtype))
    return jnp.where(x == 0, 0, _over(power, entries.unit))


def _ulp(entries):
    """Standard deviation of rounding, over that power of two."""
    return 2.0 ** -jnp.finfo(entries.stored.dtype).nmant / math.sqrt(12)


def _over(x, unit):
    x = _exact(x)
    return x * (1 / unit).astype(x.dtype)


def _exact(x):
    """In a dtype that loses nothing: float32, or float64 where it is stored in it."""
    return x.astype(jnp.promote_types(x.dtype, WORKING))


def _power_of_two(largest):
    """At most the largest entry's size, whose inverse is in range; 1 where that is 0 or not finite."""
    info = np.finfo(largest.dtype)
    size = jnp.where((largest > 0) & jnp.isfinite(largest), largest, 1)
    _, exponent = jnp.frexp(size)
    return jnp.ldexp(jnp.ones_like(size), jnp.clip(exponent, info.minexp + 2, info.maxexp - 2))
