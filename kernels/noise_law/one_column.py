"""A single small value and its noise: the exact law of a matrix of one column.

No expansion in 1/r knows the rare event that noise flips the sign of one direction. Where the smallest value of a base
is alone and of the size of the noise, that event rules (docs: definitions, "The noise law").
"""

import math
from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

Item = TypeVar("Item")
Result = TypeVar("Result")

_TRAILING = 8  # so many of the smallest values may be isolated
_GAUSS_NODES, _TAIL = 48, 9.0  # of integrals of exp(-a^2 v^2 / 2), cut at e^-40
_MIXED_NODES, _GONE = 128, 20.0  # of integrals over the logarithm of a variance, cut at e^-20


def isolation(s: jax.Array, variance: jax.Array, alone: float) -> tuple[jax.Array, jax.Array]:
    """How far the smallest values are from 0 in standard deviations of their noise, and how far they are alone.

    Values far from it only renormalise the noise of a small one, to sd^2 / x_far with x_far = 1 - sd^2 sum_far 1 / s^2.
    The smallest counts fully, those next to it by (1 - C)^(3/2), C = sd^2 sum 1 / s^2, which was found by drawing:
    those that noise mixes with each other the law has already.

    Args:
        s: (r,), descending.
        variance: sd^2 of an entry of the change.
        alone: The distance from which no sign flips.

    Returns:
        Distances and weights of the smallest values, at most 8 of them, (k,), weights 0 for those that don't count.
    """
    tail = s[-min(_TRAILING, s.shape[-1]) :]
    crowding = variance * jnp.sum(1 / jnp.where(s > 0, s, jnp.inf) ** 2)
    far = 1 - (crowding - variance / jnp.where(tail > 0, tail, jnp.inf) ** 2)
    distance = jnp.sqrt(jnp.maximum(far, 0) / variance) * tail
    weight = jnp.where(far > 0, jnp.maximum(1 - crowding, 0) ** 1.5, 0).at[-1].set(1)
    counts = (far > 0) & (tail > 0) & (distance < alone)
    return jnp.clip(distance, 1e-3, alone), jnp.where(counts, weight, 0)


def by_weight(law: Callable[[Item], Result], single: Item, weight: jax.Array, base: Item) -> tuple[Result, Result]:
    """The law of single values and of a whole base, one after another by one program.

    Args:
        law: Maps a case to arrays.
        single: Cases, (k, ...).
        weight: (k,); the law of those of weight 0 is not looked at, and given as zeros.
        base: One more case.

    Returns:
        The law of the single values, (k, ...), and that of the base.
    """
    cases = jax.tree.map(lambda x, y: jnp.concatenate([x, jnp.asarray(y)[None]]), single, base)

    def nothing(case):
        return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(law, case))

    found = lax.map(lambda x: lax.cond(x[0] > 0, law, nothing, x[1]), (jnp.append(weight, 1), cases))
    return jax.tree.map(lambda x: x[:-1], found), jax.tree.map(lambda x: x[-1], found)


def one_column(distance: jax.Array, free: jax.Array) -> tuple[jax.Array, jax.Array]:
    """1 - E[u^T p] and the mean of what is lost outside, of a column with norm `distance` and noise of 1 in each entry.

    With k = `free` entries more than one, E[u^T p] = sqrt(2 / pi) a times the integral over (0, 1) of exp(-a^2 v^2 / 2)
    (1 - v^2)^(k/2), and what is lost is k times that of v exp(-a^2 v^2 / 2) (1 - v^2)^((k-1)/2).
    """
    nodes, weights = np.polynomial.legendre.leggauss(_GAUSS_NODES)
    # v = sin(angle): powers of cos(angle), which end smoothly.
    end = jnp.minimum(jnp.pi / 2, _TAIL / jnp.sqrt(distance**2 + free))
    angle = end * jnp.asarray((1 + nodes) / 2, distance.dtype)
    area = end * jnp.asarray(weights / 2, distance.dtype)
    bell = jnp.exp(-((distance * jnp.sin(angle)) ** 2) / 2)
    cosine = jnp.cos(angle)
    kept = math.sqrt(2 / math.pi) * distance * jnp.sum(area * bell * cosine ** (free + 1))
    return 1 - kept, jnp.sum(area * bell * jnp.sin(angle) * cosine**free) * free


def mixed_column(distance: jax.Array, free: jax.Array, spread: jax.Array) -> tuple[jax.Array, jax.Array]:
    """As `one_column` with a random variance of the noise in place of 1: Gamma-distributed with mean 1.

    An entry of a change of k equal directions is a sum of k products of nearly normal numbers: normal for given right
    vectors, with a variance that is a Gamma variable of k degrees of freedom.

    Args:
        distance: Of the value from 0, in root mean squares of an entry.
        free: Number of entries but one.
        spread: 1 / k, which need not be one of a whole number: a third of the excess kurtosis, over 2.

    Returns:
        1 - E[u^T p] and the mean of what is lost outside, as of `one_column`.
    """
    # The trapezoidal rule in v, the logarithm of the variance, whose density falls by exp(-(e^v - 1 - v) / (2 spread)).
    reach = jnp.sqrt(2 * _GONE * spread)
    v = reach - (2 * reach + 2 * _GONE * spread) * jnp.linspace(0, 1, _MIXED_NODES, dtype=distance.dtype)
    density = jnp.exp((v - jnp.expm1(v)) / (2 * spread))
    turned, lost = jax.vmap(one_column, (0, None))(distance * jnp.exp(-v / 2), free)
    return density @ turned / jnp.sum(density), density @ lost / jnp.sum(density)
