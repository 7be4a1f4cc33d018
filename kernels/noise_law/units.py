"""A base in units of its largest singular value, sums over pairs of its values, and what the spreads share."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from polarax.kernels.noise_law.moments import Moments, variance_of_lengths, variance_of_pairs
from polarax.kernels.sides import Shape, entry_count, longer_side, root
from polarax.kernels.thin_svd import numerical_rank

# Entries of the arrays over pairs of singular values that are held at a time: 16 MiB in float64.
_PAIRS_AT_A_TIME = 2**21


class Base(NamedTuple):
    """A base in units of its largest singular value."""

    values: jax.Array  # (..., r), 1 beyond the rank
    inside: jax.Array  # (..., r), whether a value is within the rank
    rank: jax.Array  # (...), NaN for a base that is zero or not finite
    energy: jax.Array  # sum of squares, (...)
    sd: jax.Array  # (...)
    free: jax.Array  # rows outside of the base's space, (...)


class PairSums(NamedTuple):
    """Sums over pairs of singular values with weights g."""

    rows: jax.Array  # sum_j g_ij, (..., r)
    squares: jax.Array  # sum_{i<j} g_ij^2, (...)

    @property
    def total(self) -> jax.Array:
        """sum_{i<j} g_ij, (...)."""
        return jnp.sum(self.rows, axis=-1) / 2

    def variance(self, moments: Moments) -> jax.Array:
        """Of sum_{i<j} g_ij (E_ij - E_ji)^2, (...)."""
        return variance_of_pairs(moments, self.total, jnp.sum(self.rows**2, axis=-1), self.squares)


def std_of_root(mean: jax.Array, variance: jax.Array) -> jax.Array:
    """The standard deviation of sqrt(x), x >= 0 with this mean and variance; of chi-squares it is within 0.4%.

    For a gamma distribution of shape k = mean^2 / variance the variance of sqrt(x) is mean t / (k + t), where
    t = (Gamma(k + 1) / Gamma(k + 1/2))^2 - k falls from 1 / pi to 1/4 (Watson 1959).
    """
    safe = jnp.where(mean > 0, mean, 1)
    inverse_shape = jnp.maximum(variance, 0) / safe**2
    t = 0.25 + inverse_shape / (32 + inverse_shape / (1 / jnp.pi - 0.25))
    return jnp.where(mean == 0, 0, jnp.sqrt(mean * t * inverse_shape / (1 + t * inverse_shape)))


def in_units(s_base: jax.Array, change_norm: jax.Array, shape: Shape) -> Base:
    """The base whose singular values are (..., r), descending, and a change of norm (...)."""
    rank = numerical_rank(s_base, *shape)[..., None]
    inside = jnp.arange(s_base.shape[-1]) < rank
    rank = jnp.where(rank > 0, rank, jnp.nan).astype(s_base.dtype)[..., 0]
    largest = jnp.where(s_base[..., 0] > 0, s_base[..., 0], jnp.nan)
    values = jnp.where(inside, s_base / largest[..., None], 1)
    energy = jnp.sum(jnp.where(inside, values**2, 0), axis=-1)
    sd = change_norm / largest / root(entry_count(shape))
    return Base(values, inside, rank, energy, sd, longer_side(shape) - rank)


def grown(base: Base) -> jax.Array:
    """Values as the part of the change outside lengthens them, (..., r)."""
    return jnp.sqrt(base.values**2 + base.free[..., None] * base.sd[..., None] ** 2)


def total_over(base: Base, x: jax.Array) -> jax.Array:
    """Sum over the values within the rank."""
    return jnp.sum(jnp.where(base.inside, x, 0), axis=-1)


def turned(values: jax.Array, others: jax.Array, sd: jax.Array) -> tuple[jax.Array, ...]:
    """The weight of a pair in r nf^2."""
    return (2 / (values + others) ** 2,)


def pair_sums(base: Base, weights_of: Callable[..., tuple[jax.Array, ...]], members: jax.Array) -> list[PairSums]:
    """Sums over the pairs of members, for each of the weights; rows of pairs by rows, so that memory is bounded.

    Args:
        base: Of r values.
        weights_of: Maps values, others and sd, which broadcast to (..., rows, r), to weights.
        members: (..., r), which values take part.
    """
    *batch, r = base.values.shape
    rows = max(1, min(r, _PAIRS_AT_A_TIME // (r * max(1, base.rank.size))))
    blocks = -(-r // rows)

    def of_rows(start):
        own = jnp.minimum(start + jnp.arange(rows), r - 1)  # beyond the last row it stands again, and is cut off
        values, taken = (jnp.take(x, own, axis=-1)[..., None] for x in (base.values, members))
        pairs = taken & members[..., None, :] & (own[:, None] != jnp.arange(r))
        of_all = weights_of(values, base.values[..., None, :], base.sd[..., None, None])
        weights = [jnp.where(pairs, weight, 0) for weight in of_all]
        return [(jnp.sum(weight, axis=-1), jnp.sum(weight**2, axis=-1)) for weight in weights]

    def joined(x):
        return jnp.moveaxis(x, 0, -2).reshape((*batch, blocks * rows))[..., :r]

    sums = lax.map(of_rows, rows * jnp.arange(blocks))
    return [PairSums(joined(linear), jnp.sum(joined(square), axis=-1) / 2) for linear, square in sums]


def variance_with_lengths(base: Base, moments: Moments, pairs: PairSums, weights: jax.Array) -> jax.Array:
    """Variance of sum_{i<j} g_ij (E_ij - E_ji)^2 + sum_i w_i f_i, f_i being the square of column i outside.

    The covariance of (E_ij - E_ji)^2 and f_k is 2 free (a - 1), and 2 b free more where k is i or j.
    """
    weights = jnp.where(base.inside, weights, 0)
    total = jnp.sum(weights, axis=-1)
    lengths = variance_of_lengths(moments, base.free, total, jnp.sum(weights**2, axis=-1))
    together = moments.excess * pairs.total * total + moments.crossed * jnp.sum(pairs.rows * weights, axis=-1)
    return pairs.variance(moments) + lengths + 4 * base.free * together
