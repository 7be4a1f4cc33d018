"""Spreads where a change is not small beside the smallest singular values: seeded draws of a small problem.

Where noise covers the smallest singular values, no expansion in the change holds for them, and what is left of it holds
for the others. So the smallest values, those that the change covers and some more, are taken as a base of their own,
to which random changes are added; the others keep the first-order forms. If more are covered than the small problem
has room for, each of its values stands for w of theirs, and its noise has w times the variance: sums over values, such
as r nf^2, then have a mean w times smaller, and the same variance.

A change of few directions is drawn as such: its largest singular values in random directions, and the rest of its norm
as isotropic noise. The same numbers are drawn for every matrix, so that neighbours compare.
"""

import enum
import itertools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from polarax.kernels.noise_law.moments import (
    Moments,
    change_moments,
    isotropic_moments,
    variance_of_diagonal,
)
from polarax.kernels.noise_law.spreads import Spreads, spreads
from polarax.kernels.noise_law.units import (
    Base,
    PairSums,
    grown,
    in_units,
    pair_sums,
    total_over,
    turned,
    variance_with_lengths,
)
from polarax.kernels.sequential import one_at_a_time
from polarax.kernels.sides import Shape, longer_side, shorter_side

# Values of the small problem, and directions of a change that are drawn as such.
_VALUES, _DIRECTIONS = 48, 16
# Draws of a square matrix's, 48 x 48, and of any other's, 112 x 48, which take as long. From N normal numbers a
# deviation is known to 1 / sqrt(2 N): 7% and 13%. Square ones have longer tails: their determinant changes its sign.
_DRAWS_OF_SQUARE, _DRAWS = 96, 32
# Values count as covered below so many deviations of what the values below them turn them by.
_COVERED = 4


class SpreadSource(enum.IntEnum):
    """Where a matrix's spreads come from."""

    FIRST_ORDER = 0
    DRAWS = 1


class _Small(NamedTuple):
    """A small problem."""

    values: jax.Array  # (L,), descending; 1 where there is none
    inside: jax.Array  # (L,)
    weight: jax.Array  # how many values each stands for, ()
    members: jax.Array  # (r,), the base's values that it stands for
    sd: jax.Array  # of its isotropic noise, ()
    directions: jax.Array  # (K,): a change's own singular values
    rows: jax.Array  # outside of the base's space, ()
    sides: tuple[jax.Array, jax.Array]  # what is left of either side of the matrix beyond the values and rows drawn


class _Sums(NamedTuple):
    """Sums over values of a base or a part of it, each (...) with y_i = s_p,i / s_i - 1."""

    turn: jax.Array  # r nf^2
    ratio: jax.Array  # sum y
    ratio_square: jax.Array  # sum y^2
    along: jax.Array  # sum s^2 y
    shift_square: jax.Array  # sum s^2 y^2
    shift: jax.Array  # sum s y


def spreads_at_any_size(
    s_base: jax.Array,
    change_norm: jax.Array,
    s_change: jax.Array | None,
    *,
    shape: Shape,
    top_k: int = 16,
) -> tuple[Spreads, jax.Array]:
    """`spreads`, and draws of a small problem for those that rest on small singular values, where they are covered.

    Drawn are the spreads of nf, alpha, ratio_cv, ratio_cv_energy, nss and nuclear_norm_ratio.

    Args:
        s_base: Singular values of the base, (..., r), descending.
        change_norm: ||D||_F, (...).
        s_change: Singular values of the change, (..., r), in any unit and of which the directions are random; None for
            isotropic noise.
        shape: (m, n) of the matrix, m an operand or a number.
        top_k: As for `spreads`.

    Returns:
        `Spreads`, and of each matrix (...) a `SpreadSource`, int32.
    """
    s_base, change_norm = jnp.asarray(s_base), jnp.asarray(change_norm)
    moments = isotropic_moments(shape) if s_change is None else change_moments(s_change, shape)
    first = spreads(s_base, change_norm, moments, shape=shape, top_k=top_k)
    batch, r = s_base.shape[:-1], s_base.shape[-1]
    moments = jax.tree.map(lambda x: jnp.broadcast_to(x, batch).astype(s_base.dtype), moments)
    change = jnp.zeros((*batch, 0), s_base.dtype) if s_change is None else jnp.sort(s_change, axis=-1)[..., ::-1]
    numbers = _numbers(min(_VALUES, r), min(_DIRECTIONS, change.shape[-1]), s_base.dtype)

    def of_matrix(operands):
        s, norm, d, own, known = operands
        base = in_units(s, norm, shape)
        covered = _covered(base, own)

        def drawn():
            return _drawn(base, own, _small(base, covered, d, shape), numbers, known)

        return lax.cond(covered > 0, drawn, lambda: known), covered > 0

    operands = (s_base, change_norm, change, moments, first)
    flat = jax.tree.map(lambda x: x.reshape((math.prod(batch), *x.shape[len(batch) :])), operands)
    result, source = lax.map(of_matrix, flat)
    return jax.tree.map(lambda x: x.reshape(batch), result), source.reshape(batch).astype(jnp.int32)


def _covered(base: Base, moments: Moments) -> jax.Array:
    """How many of the smallest values a change covers, ().

    The k smallest turn each other by sd sqrt(k) in size; if the change has one direction, all k in the same sense.
    """
    count = base.rank - jnp.arange(base.values.shape[-1])  # of the values from this one on
    together = count * (1 + jnp.maximum(moments.crossed, 0) * count)
    covered = base.inside & (base.values < _COVERED * base.sd * jnp.sqrt(jnp.maximum(together, 0)))
    return jnp.max(jnp.where(covered, count, 0))


class _Numbers(NamedTuple):
    """What is drawn, standard normal; N draws of L values and K directions."""

    inside: jax.Array  # (N, L, L)
    left: jax.Array  # (N, L, K)
    right: jax.Array  # (N, L, K)
    rest: jax.Array  # (N, 2, K), for what either side of a direction has elsewhere
    outside: jax.Array  # (N, L + K, L + K), the triangular factor of what is outside
    lengths: jax.Array  # (N, L + K), for its diagonal


def _numbers(values, directions, dtype):
    width = values + directions
    of_all = (values, values), (values, directions), (values, directions), (2, directions)
    shapes = [*((_DRAWS_OF_SQUARE, *x) for x in of_all), (_DRAWS, width, width), (_DRAWS, width)]
    # Of one call: each takes a while to compile.
    ends = list(itertools.accumulate(math.prod(shape) for shape in shapes))
    normal = jax.random.normal(jax.random.key(0, impl="threefry2x32"), ends[-1:], dtype)
    return _Numbers(*(x.reshape(shape) for x, shape in zip(jnp.split(normal, ends[:-1]), shapes, strict=True)))


def _small(base, covered, change, shape):
    r, entries = base.values.shape[-1], longer_side(shape) * 1.0 * shorter_side(shape)
    size = min(_VALUES, r)
    taken = jnp.minimum(jnp.maximum(covered, size), base.rank)
    weight = jnp.maximum(taken / size, 1)
    from_below = (jnp.arange(size)[::-1] + 0.5) * weight - 0.5  # place of a value, the smallest being 0
    inside = from_below < base.rank
    ascending = jnp.roll(base.values[::-1], base.rank.astype(jnp.int32) - r)
    values = jnp.where(inside, jnp.interp(from_below, jnp.arange(r), ascending), 1)
    norm_square = base.sd**2 * entries
    if change.size:
        change = change / jnp.where(change[0] > 0, change[0], 1)  # free of the unit, so that squares stay in range
        length = jnp.sqrt(jnp.sum(change**2))
        change = change * jnp.sqrt(norm_square) / jnp.where(length > 0, length, 1)
        places = jnp.arange(min(_DIRECTIONS, change.size)) * weight
        directions = jnp.where(places < change.size, jnp.interp(places, jnp.arange(change.size), change), 0)
        norm_square = jnp.sum(jnp.where(jnp.arange(change.size) < places.size * weight, 0, change**2))
    else:
        directions = change
    return _Small(
        values,
        inside,
        weight,
        base.inside & (jnp.arange(r) >= base.rank - taken),
        jnp.sqrt(weight * norm_square / entries),
        directions,
        base.free / weight,
        (jnp.maximum(base.rank / weight - size, 0), jnp.maximum(shorter_side(shape) / weight - size, 0)),
    )


def _drawn(base, moments, small, numbers, known):
    sums = lax.cond(small.rows > 0, _sums_of_tall, _sums_of_square, small, numbers)
    # Each value stands for `weight` of the base's; a sum over these has as much variance as one over those.
    means = jax.tree.map(lambda x: jnp.mean(x), sums)
    drawn = jax.tree.map(lambda x, mean: x + (small.weight - 1) * mean, sums, means)
    far = base._replace(inside=base.inside & ~small.members)
    (pairs,) = pair_sums(base, turned, base.inside)
    (near,) = pair_sums(base, turned, small.members)
    # Pairs of covered values count with what they really turn by, in what they have in common with the others.
    damping = jnp.minimum(means.turn * small.weight / jnp.maximum(2 * near.total * base.sd**2, _tiny(base.sd)), 1)
    damped = PairSums(pairs.rows - (1 - damping) * near.rows, pairs.squares - (1 - damping**2) * near.squares)
    longer = grown(base)
    shortening = base.free / (longer * (longer + base.values))  # over sd^2
    response = jnp.where(far.inside, base.sd**2 * shortening * base.values / longer**3, 0)
    of_pairs = variance_with_lengths(base, moments, damped, response) - damping**2 * near.variance(moments)
    growth = base.sd**2 * base.free / (base.values * (longer + base.values))
    values, squares = base.values, base.values**2
    others = _Sums(
        2 * (pairs.total - near.total) * base.sd**2 + total_over(far, shortening**2) * base.sd**4,
        total_over(far, growth),
        total_over(far, growth**2 + base.sd**2 / squares),
        total_over(far, squares * growth),
        total_over(far, squares * growth**2 + base.sd**2),
        total_over(far, values * growth),
    )
    spread = _Sums(
        base.sd**4 * of_pairs,
        base.sd**2 * total_over(far, 1 / squares),
        base.sd**4 * _of_squares(far, moments, 1 / squares),
        base.sd**2 * total_over(far, squares),
        base.sd**4 * _of_squares(far, moments, jnp.ones_like(values)),
        base.sd**2 * total_over(far, jnp.ones_like(values)),
    )
    draws = jax.tree.map(jnp.add, drawn, others)
    variances = _variances(base, draws, spread)
    return known._replace(**{name: jnp.sqrt(jnp.maximum(x, 0)) for name, x in variances.items()})


def _tiny(x):
    return jnp.finfo(x.dtype).tiny


def _of_squares(far, moments, weights):
    weights = jnp.where(far.inside, weights, 0)
    total, squares = jnp.sum(weights), jnp.sum(weights**2)
    return variance_of_diagonal(moments, total, squares, squares)


def _readings(base, sums):
    mean, energy = sums.ratio / base.rank, sums.along / base.energy
    return {
        "nf": jnp.sqrt(jnp.maximum(sums.turn, 0) / base.rank),
        "alpha": energy,
        "ratio_cv": jnp.sqrt(jnp.maximum(sums.ratio_square / base.rank - mean**2, 0)) / (1 + mean),
        "ratio_cv_energy": jnp.sqrt(jnp.maximum(sums.shift_square / base.energy - energy**2, 0)) / (1 + energy),
        "nss": jnp.sqrt(sums.shift_square / base.energy),
        "nuclear_norm_ratio": sums.shift / total_over(base, base.values),
    }


def _variances(base, draws, spread):
    """Of the readings: over the draws, and by the variance of the other values' sums."""
    means = jax.tree.map(jnp.mean, draws)
    slopes = jax.jacfwd(lambda sums: _readings(base, sums))(means)
    variances = {}
    for name, reading in _readings(base, draws).items():
        others = sum(jnp.where(v > 0, slope**2 * v, 0) for slope, v in zip(slopes[name], spread, strict=True))
        variances[name] = jnp.var(reading) + others
    return variances


def _sums_of_square(small, numbers):
    none = jnp.zeros((_DRAWS_OF_SQUARE, 0, numbers.outside.shape[-1]), small.values.dtype)
    return _sums_of_draws(small, numbers._replace(outside=none, lengths=none[..., 0]))


def _sums_of_tall(small, numbers):
    """Fewer draws, repeated: their mean and variance stay."""
    sums = _sums_of_draws(small, jax.tree.map(lambda x: x[:_DRAWS], numbers))
    return jax.tree.map(lambda x: jnp.tile(x, _DRAWS_OF_SQUARE // _DRAWS), sums)


def _sums_of_draws(small, numbers):
    """`_Sums` of the small problem, each (N,)."""
    noise = jnp.where(small.inside[:, None] & small.inside, small.sd * numbers.inside, 0)
    outside = _outside(small.rows, numbers.outside, numbers.lengths)
    size = small.values.size
    left, right = (jnp.where(small.inside[:, None], x, 0) for x in (numbers.left, numbers.right))
    below = outside[..., size:]
    far = (_chi_square(rest, numbers.rest[:, side]) for side, rest in enumerate(small.sides))
    left_square, right_square = (jnp.sum(x**2, axis=-2) + rest for x, rest in zip((left, right), far, strict=True))
    scaled = small.directions / jnp.sqrt((left_square + jnp.sum(below**2, axis=-2)) * right_square)
    right = jnp.swapaxes(right * scaled[:, None, :], -1, -2)
    square = jnp.diag(small.values) + noise + left @ right
    rows = jnp.where(small.inside, small.sd * outside[..., :size] + below @ right, 0)
    post = jnp.concatenate([square, rows], axis=-2)
    u, s, vt = one_at_a_time(lambda x: jnp.linalg.svd(x, full_matrices=False), post)
    apart = jnp.where(small.inside[:, None] & small.inside, u[:, :size] @ vt - jnp.eye(size, dtype=s.dtype), 0)
    # Values that are not there are 1 in base and post, and stand where such a value does.
    shift = s - jnp.sort(small.values)[::-1]
    base = jnp.sort(small.values)[::-1]
    ratio = shift / base
    terms = ratio, ratio**2, base**2 * ratio, shift**2, shift
    return _Sums(jnp.sum(apart**2, axis=(-2, -1)), *(jnp.sum(x, axis=-1) for x in terms))


def _outside(rows, normal, lengths):
    """A triangular factor with the Gram matrix of `rows` rows of independent normal numbers (Bartlett 1933)."""
    row, column = jnp.arange(normal.shape[-2])[:, None], jnp.arange(normal.shape[-1])
    left = rows - row
    diagonal = jnp.sqrt(_chi_square(left[:, 0], lengths[..., : row.size]))
    upper = jnp.where((left > 0) & (column > row), normal, 0)
    return jnp.where(column == row, diagonal[..., None], upper)


def _chi_square(freedom, normal):
    """A chi-square of this many degrees of freedom from a normal number (Wilson and Hilferty 1931); 0 for none."""
    size = 2 / (9 * jnp.maximum(freedom, 0.5))
    return jnp.maximum(freedom, 0) * jnp.maximum(1 - size + normal * jnp.sqrt(size), 0) ** 3
