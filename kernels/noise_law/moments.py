"""Fourth moments of a change in random directions, and the variances of sums of squares that follow from them.

Let the change have the singular values d and directions from the Haar measure on both sides. Then entries of odd order
have mean 0, each square has mean sd^2 = sum d^2 / (m n), and of four entries

    E[E_ia E_jb E_kc E_ld] = sum over pairings pi of the rows, rho of the columns, of C(pi, rho),

where a pairing counts if it joins equal indices, and C is a if pi = rho and b otherwise (Collins and Sniady 2006). Two
numbers determine both: (sum d^2)^2 and sum d^4. Independent normal entries have a = sd^4 and b = 0. The same holds of
any block of E, so of what lies within the base's space and outside. All is in units of sd^4.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from polarax.kernels.sides import Shape, entry_count, longer_side, shorter_side


class Moments(NamedTuple):
    """Fourth moments of a change over sd^4; each (...)."""

    same: jax.Array  # a: rows and columns are paired alike
    crossed: jax.Array  # b: they are paired differently
    excess: jax.Array  # a - 1, without cancellation
    norm_spread: jax.Array  # variance of ||D||^2 over (m n sd^2)^2: 0 where ||D|| is given


def isotropic_moments(shape: Shape) -> Moments:
    """The moments of independent normal entries, for which ||D|| itself spreads."""
    one, none = jnp.ones(()), jnp.zeros(())
    return Moments(one, none, none, 2 / (one * entry_count(shape)))


def change_moments(s_change: jax.Array, shape: Shape) -> Moments:
    """The moments of a change with these singular values in random directions, exact.

    Args:
        s_change: Singular values of the change, (..., r), in any unit.
        shape: (m, n) of the matrix, m an operand or a number.

    Returns:
        `Moments`, each (...); those of an isotropic change of given norm where the change is zero, NaN where it is not
        finite.
    """
    d = jnp.asarray(s_change)
    largest = jnp.max(d, axis=-1, keepdims=True)
    square = (d / jnp.where(largest == 0, 1, largest)) ** 2
    total = jnp.sum(square, axis=-1)
    share = square / jnp.where(total == 0, 1, total)[..., None]
    return moments_of_concentration(jnp.where(total == 0, jnp.inf, jnp.sum(share**2, axis=-1)), shape)


def moments_of_concentration(concentration: jax.Array, shape: Shape) -> Moments:
    """The moments from sum d^4 / (sum d^2)^2: 1 for one direction, 1 / R for R equal ones.

    Args:
        concentration: (...); inf for an isotropic change of given norm.
        shape: (m, n) of the matrix, m an operand or a number.
    """
    concentration = jnp.asarray(concentration)
    m, n = longer_side(shape), shorter_side(shape)
    entries, sides = concentration.dtype.type(1) * m * n, concentration.dtype.type(1) * (m + n + 1)
    isotropic = sides / (entries + 2)
    concentration = jnp.where(concentration == jnp.inf, isotropic, concentration)
    if n == 1:  # of a vector only the sum a + 2 b counts
        crossed = jnp.zeros_like(concentration)
        same = crossed + entries / (entries + 2)
    else:
        # S2 = a m n (m n + 2) + 2 b m n (m + n + 1) and S4 = a m n (m + n + 1) + b m n (m n + m + n + 3), solved.
        scale = (1 - 1 / m) * (m + 2) * (1 - 1 / n) * (n + 2)
        same = (entries + sides + 2 - 2 * sides * concentration) / scale
        crossed = (entries + 2) * (concentration - isotropic) / scale
    # From the first equation, in which ||D||^4 is given: a - 1 itself would be a difference of nearly equal numbers.
    excess = -2 * (same + sides * crossed) / entries
    return Moments(same, crossed, excess, jnp.zeros_like(same) + 0 * concentration)


def moments_of_shares(moments: Moments) -> Moments:
    """The moments of D / ||D||, for shares of ||D||^2: of normal entries direction and norm are independent."""
    grown = 1 + moments.norm_spread
    return Moments(
        moments.same / grown,
        moments.crossed / grown,
        (moments.excess - moments.norm_spread) / grown,
        jnp.zeros_like(moments.norm_spread),
    )


def variance_of_pairs(moments: Moments, total: jax.Array, row_squares: jax.Array, squares: jax.Array) -> jax.Array:
    """Variance of sum_{i<j} g_ij (E_ij - E_ji)^2, or with + in place of -, whose mean is 2 sum_{i<j} g_ij.

    Args:
        moments: Of the change.
        total: sum_{i<j} g_ij, (...).
        row_squares: sum_i (sum_j g_ij)^2, (...).
        squares: sum_{i<j} g_ij^2, (...).
    """
    a, b, excess, _ = moments
    return 4 * excess * total**2 + 4 * b * row_squares + (8 * a + 4 * b) * squares


def variance_of_diagonal(moments: Moments, trace: jax.Array, squares: jax.Array, diagonal: jax.Array) -> jax.Array:
    """Variance of sum_ij M_ij E_ii E_jj, whose mean is tr M, from tr M, ||M||^2 and sum M_ii^2; each (...)."""
    a, b, excess, _ = moments
    return excess * trace**2 + 2 * a * squares + 6 * b * diagonal


def variance_of_lengths(moments: Moments, free: jax.Array, total: jax.Array, squares: jax.Array) -> jax.Array:
    """Variance of sum_i w_i f_i, f_i being the square of column i over `free` rows, from sum w_i and sum w_i^2.

    The mean of f_i is `free`, the covariance of f_i and f_j free^2 (a - 1) + 2 b free.
    """
    a, b, excess, _ = moments
    return (free**2 * excess + 2 * b * free) * total**2 + 2 * free * (a + b + b * free) * squares


def variance_of_block(moments: Moments, side: jax.Array, *, shape: Shape) -> jax.Array:
    """Variance of the sum of E_ij^2 over a block of side x side, ||D|| being given; exactly 0 for a whole matrix."""
    a, b, _, _ = moments
    m, n = longer_side(shape), shorter_side(shape)
    outside = ((m - side) * n + side * (n - side)) / entry_count(shape)
    beside = side * ((n - side) / n + (m - side) / m)
    return jnp.maximum(2 * side**2 * ((a + b) * outside + b * beside), 0)
