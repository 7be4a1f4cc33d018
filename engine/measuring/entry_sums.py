"""Norms and inner products of matrices as they are stored, and the float32 arrays that products are taken with.

Sums are in float64 where there is some, block by block on CPU, so that no float64 copy of a matrix is ever there.
Float64 entries, and all where there are no float64 sums, are taken over a power of two, so that squares stay in range
and nothing is lost when they are rounded to float32.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from polarax.kernels.row_blocks import reduce_row_blocks

# Of all products with matrices.
WORKING = jnp.float32


class Entries(NamedTuple):
    """A stored matrix with the unit that its entries are taken over."""

    stored: jax.Array  # (m, n)
    unit: jax.Array  # a power of two, (), in the dtype of sums
    norm: jax.Array  # ||W||_F over the unit, (), in the dtype of sums


class ChangeSums(NamedTuple):
    """What the entries of base and post say of the change, each ()."""

    norm: jax.Array  # ||D||_F over its unit
    along: jax.Array  # <W_b, D> over both units


def entries_of(stored: jax.Array, dtype: str) -> Entries:
    """The entries of a matrix, (m, n), and their norm; sums are in `dtype`."""
    if stored.dtype == jnp.float64 or dtype == "float32":
        unit = _power_of_two(jnp.max(jnp.abs(_exact(stored))).astype(dtype))
    else:
        unit = jnp.ones((), dtype)
    squares = reduce_row_blocks(lambda x: _sum(jnp.square(_over(x, unit).astype(dtype))), stored)
    return Entries(stored, unit, jnp.sqrt(squares))


def working_matrix(entries: Entries) -> jax.Array:
    """The matrix over its unit in float32; zero where the norm is not finite. (m, n)."""
    x = _over(entries.stored, entries.unit).astype(WORKING)
    # Written once: a product would convert it again.
    return lax.optimization_barrier(jnp.where(jnp.isfinite(entries.norm), x, 0))


def change_unit(base: Entries, post: Entries) -> jax.Array:
    """What the entries of the change are taken over: twice the larger unit, so that a difference is in range too."""
    return 2 * jnp.maximum(base.unit, post.unit)


def working_change(base: Entries, post: Entries) -> jax.Array:
    """D over its unit in float32, of differences taken in float64 where either is stored in it; as `working_matrix`."""
    unit = change_unit(base, post)
    finite = jnp.isfinite(base.norm) & jnp.isfinite(post.norm)
    return lax.optimization_barrier(jnp.where(finite, _difference(base.stored, post.stored, unit).astype(WORKING), 0))


def change_sums(base: Entries, post: Entries) -> ChangeSums:
    """Norm of the change, and its inner product with the base."""
    unit = change_unit(base, post)

    def difference(base_rows, post_rows):
        return _difference(base_rows, post_rows, unit)

    return _sums(difference, base, post.stored)


def drawn_sums(base: Entries, change: jax.Array) -> ChangeSums:
    """The same for a change of its own, (m, n), over its unit."""
    return _sums(lambda _, rows: rows, base, change)


def _sums(change_of, base, other):
    dtype = base.norm.dtype

    def sums(base_rows, other_rows):
        change = change_of(base_rows, other_rows).astype(dtype)
        return _sum(change**2), _sum(change * _over(base_rows, base.unit).astype(dtype))

    squares, along = reduce_row_blocks(sums, base.stored, other)
    return ChangeSums(jnp.sqrt(squares), along)


def nonfinite_entries(entries: Entries) -> jax.Array:
    """How many entries are NaN or Inf, (), int32; counted only where the norm is not finite."""
    return lax.cond(
        jnp.isfinite(entries.norm),
        lambda: jnp.int32(0),
        lambda: jnp.sum(~jnp.isfinite(_exact(entries.stored)), dtype=jnp.int32),
    )


def _difference(base, post, unit):
    exact = jnp.promote_types(_exact(base).dtype, _exact(post).dtype)
    return _over(post.astype(exact), unit) - _over(base.astype(exact), unit)


def _over(x, unit):
    x = _exact(x)
    return x * (1 / unit).astype(x.dtype)


def _exact(x):
    """In a dtype that loses nothing: float32, or float64 where it is stored in it."""
    return x.astype(jnp.promote_types(x.dtype, WORKING))


def _sum(x):
    return jnp.sum(x, axis=(-2, -1))


def _power_of_two(largest):
    """At most the largest entry's size, whose inverse is in range; 1 where that is 0 or not finite."""
    info = np.finfo(largest.dtype)
    size = jnp.where((largest > 0) & jnp.isfinite(largest), largest, 1)
    _, exponent = jnp.frexp(size)
    return jnp.ldexp(jnp.ones_like(size), jnp.clip(exponent, info.minexp + 2, info.maxexp - 2))
