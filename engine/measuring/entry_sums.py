"""Norms and inner products of matrices as they are stored, and the float32 arrays that products are taken with.

All sums of a base and a post come from one pass over both: a single reduction of several arrays along the rows, which
XLA on CPU computes from the stored entries without writing anything out. They are in float64 where there is some.
Float64 entries, and all where there are no float64 sums, are taken over a power of two, so that squares stay in range
and nothing is lost when they are rounded to float32.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from polarax import kernels

# Of all products with matrices.
WORKING = jnp.float32


class Entries(NamedTuple):
    """A stored matrix, and what its entries are taken over."""

    stored: jax.Array  # (m, n)
    unit: jax.Array  # a power of two, (), in the dtype of sums

    @property
    def shape(self) -> tuple[int, int]:
        """(m, n)."""
        return self.stored.shape[0], self.stored.shape[1]


class Working(NamedTuple):
    """A matrix for products."""

    matrix: jax.Array  # (m, n), float32, over the unit: squares are in range; zero where the stored one is not finite
    unit: jax.Array  # a power of two near its norm, (), in the dtype of sums

    @property
    def shape(self) -> tuple[int, int]:
        """(m, n)."""
        return self.matrix.shape[0], self.matrix.shape[1]


class EntrySums(NamedTuple):
    """What the entries of base and post say, each ()."""

    base: jax.Array  # ||W_b||_F
    post: jax.Array  # ||W_p||_F
    change: jax.Array  # ||D||_F
    along: jax.Array  # <W_b, D> / ||W_b||^2; NaN for a base that is zero
    unchanged: jax.Array  # share of entries that are the same, bit for bit or, of different dtypes, in value
    noise: jax.Array  # expected norm of their rounding, the larger of both


def entries_of(stored: jax.Array, dtype: str) -> Entries:
    """The entries of a matrix, (m, n), to be summed in `dtype`."""
    if stored.dtype != jnp.float64 and dtype != "float32":
        return Entries(stored, jnp.ones((), dtype))
    return Entries(stored, _power_of_two(jnp.max(jnp.abs(_exact(stored))).astype(dtype)))


def change_unit(base: Entries, post: Entries) -> jax.Array:
    """What the entries of the change are taken over: twice the larger unit, so that a difference is in range too."""
    return 2 * jnp.maximum(base.unit, post.unit)


def entry_sums(base: Entries, post: Entries) -> EntrySums:
    """The sums of a base and a post."""
    unit, dtype = change_unit(base, post), base.unit.dtype
    of_base, of_post = (_over(x.stored, x.unit).astype(dtype) for x in (base, post))
    (base_power, *base_digits), (post_power, *post_digits) = (_digits(x) for x in (base, post))
    change = _difference(base.stored, post.stored, unit).astype(dtype)
    same = _same(base.stored, post.stored).astype(dtype)
    squares = (of_base**2, of_post**2, change**2, base_power**2, post_power**2)
    *sums, along, equal, base_used, base_seen, post_used, post_seen = _sums(
        *squares, of_base * change, same, *base_digits, *post_digits
    )
    norm_base, norm_post, norm_change, noise_base, noise_post = (jnp.sqrt(x) for x in sums)
    rounding_base = _rounding(base, noise_base, base_used, base_seen)
    rounding_post = _rounding(post, noise_post, post_used, post_seen)
    return EntrySums(
        base=base.unit * norm_base,
        post=post.unit * norm_post,
        change=unit * norm_change,
        along=_share(along, norm_base, unit / base.unit),
        unchanged=equal / math.prod(base.stored.shape),
        noise=kernels.noise_between(rounding_base, rounding_post, unit * norm_change),
    )


def drawn_sums(base: Entries, norm: jax.Array, drawn: Working) -> tuple[jax.Array, jax.Array]:
    """||D||_F and <W_b, D> / ||W_b||^2 of a change that is not there as two stored matrices.

    Args:
        base: The base's entries.
        norm: ||W_b||_F, ().
        drawn: The change.
    """
    dtype = base.unit.dtype
    change = drawn.matrix.astype(dtype)
    squares, along = _sums(change**2, _over(base.stored, base.unit).astype(dtype) * change)
    return drawn.unit * jnp.sqrt(squares), _share(along, norm / base.unit, drawn.unit / base.unit)


def working_matrix(entries: Entries, norm: jax.Array) -> Working:
    """The matrix for products, of its norm, ()."""
    x = _exact(entries.stored)
    unit = _power_of_two(norm, x.dtype)
    return _written(_over(x, unit), norm, unit)


def working_change(base: Entries, post: Entries, norm: jax.Array) -> Working:
    """The change for products, of its norm, (): differences are taken in float64 where either is stored in it."""
    unit = _power_of_two(norm, jnp.promote_types(_exact(base.stored).dtype, _exact(post.stored).dtype))
    return _written(_difference(base.stored, post.stored, unit), norm, unit)


def _written(x, norm, unit):
    """In float32, written once: each product would convert it again."""
    return Working(lax.optimization_barrier(jnp.where(jnp.isfinite(norm), x, 0).astype(WORKING)), unit)


def _share(along, norm, units):
    norm = jnp.where(norm > 0, norm, jnp.nan)
    return units * (along / norm) / norm


def nonfinite_entries(entries: Entries, norm: jax.Array) -> jax.Array:
    """How many entries are NaN or Inf, (), int32; counted only where the norm is not finite."""
    return lax.cond(
        jnp.isfinite(norm),
        lambda: jnp.int32(0),
        lambda: jnp.sum(~jnp.isfinite(_exact(entries.stored)), dtype=jnp.int32),
    )


def _sums(*terms):
    """The sum of each, (m, n); of unsigned integers the digits that are in any."""

    def add(sums, more):
        return tuple(x + y if _is_float(x) else x | y for x, y in zip(sums, more, strict=True))

    # Along the rows, where all are summed in one loop; the rest is small.
    rows = lax.reduce(terms, tuple(jnp.zeros((), x.dtype) for x in terms), add, (1,))
    return tuple(jnp.sum(x) if _is_float(x) else lax.reduce(x, x.dtype.type(0), lax.bitwise_or, (0,)) for x in rows)


def _is_float(x):
    return jnp.issubdtype(x.dtype, jnp.floating)


def _difference(base, post, unit):
    exact = jnp.promote_types(_exact(base).dtype, _exact(post).dtype)
    return _over(post.astype(exact), unit) - _over(base.astype(exact), unit)


def _same(base, post):
    if base.dtype != post.dtype:
        exact = jnp.promote_types(_exact(base).dtype, _exact(post).dtype)
        return base.astype(exact) == post.astype(exact)
    bits = jnp.dtype(f"uint{8 * base.dtype.itemsize}")
    return base.view(bits) == post.view(bits)


def _rounding(entries, norm, used, seen):
    """From the sums of `_digits`, norm the root of that of squares."""
    return kernels.Rounding(entries.unit * norm * kernels.last_place(entries.stored.dtype), used, seen)


def _digits(entries):
    """`polarax.kernels.digits` of each entry; the power of two over the unit, in its dtype."""
    power, used, seen = kernels.digits(entries.stored, entries.stored.dtype)
    return _over(power, entries.unit).astype(entries.unit.dtype), used, seen


def _over(x, unit):
    x = _exact(x)
    return x * (1 / unit).astype(x.dtype)


def _exact(x):
    """In a dtype that loses nothing: float32, or float64 where it is stored in it."""
    return x.astype(jnp.promote_types(x.dtype, WORKING))


def _power_of_two(size, dtype=None):
    """Near a size, (), its inverse in range, in a dtype if one is given; 1 where the size is 0 or not finite."""
    info = np.finfo(size.dtype if dtype is None else min((dtype, size.dtype), key=lambda x: x.itemsize))
    size = jnp.where((size > 0) & jnp.isfinite(size), size, 1)
    _, exponent = jnp.frexp(size)
    return jnp.ldexp(jnp.ones_like(size), jnp.clip(exponent, info.minexp + 2, info.maxexp - 2))
