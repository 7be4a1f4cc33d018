"""Standard deviations of what is measured, under a random change of a given norm and given fourth moments.

What is a share of the change is exact at any size. The rest is to first order in the change: a sum of squares of
entries of E, or of their products, whose variance the moments give. With the moments of independent normal entries
these are the spreads of isotropic noise; with those of the change's own singular values, of that spectrum in random
directions (docs: definitions, "Spreads").
"""

import functools
import operator
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from polarax.kernels.noise_law.moments import (
    Moments,
    moments_of_shares,
    variance_of_block,
    variance_of_diagonal,
    variance_of_lengths,
    variance_of_pairs,
)
from polarax.kernels.noise_law.units import (
    Base,
    grown,
    in_units,
    pair_sums,
    std_of_root,
    total_over,
    turned,
    variance_with_lengths,
)
from polarax.kernels.sides import Shape, entry_count, is_tall, shorter_side


class Spreads(NamedTuple):
    """Standard deviations under a random change; each (...)."""

    nf: jax.Array
    coordination: jax.Array
    alpha: jax.Array
    alpha_entries: jax.Array
    ratio_cv: jax.Array
    ratio_cv_energy: jax.Array
    nss: jax.Array
    budget_scaling: jax.Array
    budget_coordinated: jax.Array
    budget_discordant: jax.Array
    budget_outside: jax.Array
    symmetry: jax.Array
    nuclear_norm_ratio: jax.Array
    fit_error: jax.Array
    overlap_left: jax.Array
    overlap_right: jax.Array
    leading_scaling: jax.Array
    leading_coordinated: jax.Array
    leading_discordant: jax.Array
    leading_coordination: jax.Array


class FirstOrder(NamedTuple):
    """First-order forms of one base."""

    spreads: tuple[Spreads, ...]  # for each of the moments
    turn: jax.Array  # mean of r nf^2, (...)


def spreads(s_base: jax.Array, change_norm: jax.Array, moments: Moments, *, shape: Shape, top_k: int = 16) -> Spreads:
    """The standard deviations of a pair's readings, O(r^2).

    The numerical rank of the base stands for r: what a rank-deficient base leaves undetermined counts as outside.

    Args:
        s_base: Singular values of the base, (..., r), descending.
        change_norm: ||D||_F, (...).
        moments: Of the change: `change_moments` or `isotropic_moments`.
        shape: (m, n) of the matrix, m an operand or a number.
        top_k: Dimension of the leading subspaces; at most the rank is used.

    Returns:
        `Spreads`; NaN for a base that is zero or not finite.
    """
    base = in_units(jnp.asarray(s_base), jnp.asarray(change_norm), shape)
    return first_order(base, [moments], shape=shape, top_k=top_k).spreads[0]


def first_order(base: Base, moments: Sequence[Moments], *, shape: Shape, top_k: int) -> FirstOrder:
    """`spreads` for several kinds of change; sums over the pairs of singular values are those of the base."""
    pairs, repelled, absorbed = pair_sums(base, _pair_weights, base.inside)

    def of_kind(moments):
        return _of_moments(base, moments, (pairs, repelled, absorbed), shape, top_k)

    # One program for all kinds.
    each = [jax.tree.map(lambda x: jnp.broadcast_to(x, base.rank.shape).astype(base.sd.dtype), one) for one in moments]
    found = jax.vmap(of_kind)(jax.tree.map(lambda *x: jnp.stack(x), *each))
    kinds = (jax.tree.map(operator.itemgetter(place), found) for place in range(len(moments)))
    return FirstOrder(tuple(kinds), base.sd**2 * _turn(base, pairs))


def _of_moments(base, moments, sums, shape, top_k):
    """The spreads for one kind of change, from the sums over pairs."""
    pairs, repelled, absorbed = sums
    shares = moments_of_shares(moments)
    norm = jnp.sqrt(base.energy)
    relative_sd = base.sd / norm
    uniform = jnp.where(base.inside, 1 / base.rank[..., None], 0)
    energy = jnp.where(base.inside, base.values**2, 0) / base.energy[..., None]
    growth = base.free[..., None] / (base.values * (grown(base) + base.values))  # of a ratio, over sd^2
    leading = jnp.minimum(base.rank, top_k)
    parts = {"coordinated": _rotations, "discordant": _rotations, "scaling": _diagonal, "coordination": _coordination}
    of_budget = {part: spread(shares, base.rank, shape) for part, spread in parts.items()}
    of_leading = {f"leading_{part}": spread(shares, leading, shape) for part, spread in parts.items()}
    left, right = _overlaps(base, moments, leading, min(top_k, shorter_side(shape)), shape)
    weights, centred = jnp.stack([uniform, energy, energy]), jnp.asarray([1, 1, 0], base.sd.dtype)
    ratio_cv, ratio_cv_energy, nss = jax.vmap(functools.partial(_of_ratios, base, moments, growth))(weights, centred)
    return Spreads(
        nf=_nf(base, moments, pairs),
        coordination=of_budget["coordination"],
        alpha=relative_sd * jnp.sqrt(1 + relative_sd**2 * _variance_of_lengthening(base, moments, shape) / 4),
        alpha_entries=relative_sd,
        ratio_cv=ratio_cv,
        ratio_cv_energy=ratio_cv_energy,
        nss=nss,
        budget_scaling=of_budget["scaling"],
        budget_coordinated=of_budget["coordinated"],
        budget_discordant=of_budget["discordant"],
        budget_outside=jnp.sqrt(variance_of_block(shares, base.rank, shape=shape)) / entry_count(shape),
        symmetry=_symmetry(moments, base.rank),
        nuclear_norm_ratio=_nuclear_norm_ratio(base, moments, repelled),
        fit_error=_fit_error(base, moments, absorbed, shape),
        overlap_left=left,
        overlap_right=right,
        **{name: of_leading[name] for name in Spreads._fields if name in of_leading},
    )


def _pair_weights(values, others, sd):
    """The weights of a pair in r nf^2, in the sum of singular values, and in what a rotation of both sides absorbs."""
    gaps = jnp.abs(values - others)
    reach = jnp.sqrt(gaps**2 + 2 * sd**2) + gaps
    return *turned(values, others, sd), 0.5 / (values + others), gaps / jnp.where(reach > 0, reach, 1)


def first_order_turn(base: Base) -> jax.Array:
    """The mean of r nf^2 to first order, (...)."""
    (pairs,) = pair_sums(base, turned, base.inside)
    return base.sd**2 * _turn(base, pairs)


def _turn(base, pairs):
    """The mean of r nf^2, over sd^2."""
    return 2 * pairs.total + base.sd**2 * total_over(base, _shortening(base) ** 2)


def _shortening(base):
    """1 - s / sqrt(s^2 + free sd^2), over sd^2."""
    longer = grown(base)
    return base.free[..., None] / (longer * (longer + base.values))


def _nf(base, moments, pairs):
    response = base.sd[..., None] ** 2 * _shortening(base) * base.values / grown(base) ** 3
    variance = variance_with_lengths(base, moments, pairs, response)
    return base.sd / jnp.sqrt(base.rank) * std_of_root(_turn(base, pairs), variance)


def _nuclear_norm_ratio(base, moments, pairs):
    second = variance_with_lengths(base, moments, pairs, 0.5 / grown(base))
    return base.sd * jnp.sqrt(base.rank + base.sd**2 * second) / total_over(base, base.values)


def _variance_of_lengthening(base, moments, shape):
    """Variance of ||D||^2 - sum_i E_ii^2, half of which alpha grows by to second order."""
    entries, rank = entry_count(shape), base.rank
    return moments.norm_spread * entries * (entries - 2 * rank) + variance_of_diagonal(moments, rank, rank, rank)


def _of_ratios(base, moments, growth, weights, centred):
    """Standard deviation of the root of sum_i q_i (ratio_i - c)^2, c being their weighted mean, or 1.

    With z_i = E_ii / s_i it is a quadratic form in the diagonal, of matrix S^-1 (diag q - q q^T) S^-1, and where the
    part outside lengthens values unevenly also linear in z and in the lengths outside.

    Args:
        base: Of r values.
        moments: Of the change.
        growth: Of the ratios by what is outside, over sd^2, (..., r).
        weights: q, (..., r), of sum 1.
        centred: 1 if c is the mean, 0 if it is 1.
    """
    q, squares = weights, jnp.where(base.inside, 1 / base.values**2, 0)
    kept = 1 - centred * q
    mean_growth = centred * jnp.sum(q * growth, axis=-1)
    uneven = growth - mean_growth[..., None]
    diagonal = q * kept * squares
    of_mean = centred * (jnp.sum(q**2 * squares, axis=-1) ** 2 - 2 * jnp.sum(q**3 * squares**2, axis=-1))
    trace, square_norm = jnp.sum(diagonal, axis=-1), jnp.sum((q * squares) ** 2, axis=-1) + of_mean
    variance = variance_of_diagonal(moments, trace, square_norm, jnp.sum(diagonal**2, axis=-1))
    variance += 4 * base.sd**2 * jnp.sum(q**2 * uneven**2 * squares, axis=-1)
    longer = 1 + base.sd[..., None] ** 2 * growth
    response = base.sd[..., None] ** 2 * q * uneven * squares / longer
    total = jnp.sum(response, axis=-1)
    variance += variance_of_lengths(moments, base.free, total, jnp.sum(response**2, axis=-1))
    together = moments.excess * trace * total + 2 * moments.crossed * jnp.sum(diagonal * response, axis=-1)
    variance += 2 * base.free * together
    mean = trace + base.sd**2 * jnp.sum(q * uneven**2, axis=-1)
    return base.sd / (1 + base.sd**2 * mean_growth) * std_of_root(mean, variance)


def _fit_error(base, moments, absorbed, shape):
    """What is left is ||D||^2 less what a rotation of both sides absorbs, and less the square along the spectrum."""
    entries, (a, b, excess, spread) = entry_count(shape), moments
    size = base.values / jnp.sqrt(base.energy)[..., None]
    taken = 2 * absorbed.total + 1
    left = jnp.maximum(entries - taken, 0)
    along = excess + 2 * a + 6 * b * total_over(base, size**4)
    together = 2 * excess * absorbed.total + 4 * b * total_over(base, absorbed.rows * size**2)
    variance = absorbed.variance(moments) + along + 2 * together + spread * entries * (entries - 2 * taken)
    post_square = base.energy + entries * base.sd**2
    share = base.sd**2 * left / post_square
    of_norm = spread * entries * ((share - 2) * share * entries + 2 * share * taken)
    of_post = (2 * left * base.sd / post_square) ** 2 * base.energy
    return base.sd / jnp.sqrt(post_square) * std_of_root(left, variance + of_norm + of_post)


def _symmetry(moments, rank):
    a, b, _, _ = moments
    square = a * rank**2 + 4 * b * rank + 2 * (a + b)
    return jnp.sqrt(2 * (rank - 1) * (a * (rank + 1) + b) / square) / rank


def _rotations(shares, size, shape):
    """Of the share of the symmetric part of a block off its diagonal, or of the skew part."""
    pairs = size * (size - 1) / 2
    variance = variance_of_pairs(shares, pairs / 2, pairs * (size - 1) / 2, pairs / 4)
    return jnp.sqrt(jnp.maximum(variance, 0)) / entry_count(shape)


def _diagonal(shares, size, shape):
    return jnp.sqrt(jnp.maximum(variance_of_diagonal(shares, size, size, size), 0)) / entry_count(shape)


def _coordination(shares, size, shape):
    """Of (A - B) / (A + B), of which numerator and denominator have these second moments, exact for normal entries."""
    a, b, _, _ = shares
    return jnp.sqrt(2 * a / (a * size * (size - 1) + 4 * b * (size - 1) + 2 * (a + b)))


def _overlaps(base, moments, count, most, shape):
    """Of the overlaps of left and of right leading subspaces.

    Vector i turns towards j by (s_i E_ij + s_j E_ji) / (s_i^2 - s_j^2) on one side and by the same with E transposed on
    the other. Where values are closer than the change, all that it turns is shared among them.
    """
    a, b, excess, _ = moments
    index = jnp.arange(base.values.shape[-1])
    leading = index[:most] < count[..., None]
    pairs = leading[..., :, None] & (base.inside & (index >= count[..., None]))[..., None, :]
    values, others = base.values[..., :most, None], base.values[..., None, :]
    gap = jnp.where(pairs, (values - others) * (values + others), 1)
    # sin^2 of the angle of a pair by first order, v_ij. What i loses to all j, and j to all i, is at most 1: of N equal
    # values the k leading ones lose v / (1 + sum_j v + sum_i v) = 1 / N to each other one, exactly, and the variance of
    # all together is 2 k^2 (N - k)^2 / N^4.
    floor = jnp.finfo(gap.dtype).eps ** 1.5
    unit = jnp.where(pairs, base.sd[..., None, None] ** 2 / jnp.maximum(gap**2, floor), 0)
    turn = unit * (values**2 + others**2)
    of_leading, of_others = jnp.sum(turn, axis=-1)[..., :, None], jnp.sum(turn, axis=-2)[..., None, :]
    damping = 1 / (1 + of_leading + of_others)
    certain = (1 + of_leading) * (1 + of_others) * damping**2
    relative = jnp.where(pairs, damping / jnp.maximum(gap**2, floor), 0)
    near, far = values**2 * relative, others**2 * relative
    total = jnp.sum((near + far) * damping, axis=(-2, -1))
    lines = sum(jnp.sum(jnp.sum(x * damping, axis=axis) ** 2, axis=-1) for x in (near, far) for axis in (-2, -1))
    squares = jnp.sum((2 * (a + b))[..., None, None] * (near**2 + far**2) * certain, axis=(-2, -1))
    squares += 4 * a * jnp.sum(near * far * certain, axis=(-2, -1))
    inside = excess * total**2 + 2 * b * lines + squares

    def spread(free):
        kept = base.values[..., :most] ** 2
        weights = jnp.where(leading, kept / (kept + free[..., None] * base.sd[..., None] ** 2) ** 2, 0)
        all_weights = jnp.sum(weights, axis=-1)
        outside = variance_of_lengths(moments, free, all_weights, jnp.sum(weights**2, axis=-1))
        together = excess * total * all_weights + 2 * b * jnp.sum(jnp.sum(near * damping, axis=-1) * weights, axis=-1)
        return base.sd**2 * jnp.sqrt(jnp.maximum(inside + outside + 2 * free * together, 0)) / count

    long, short = spread(base.free), spread(shorter_side(shape) - base.rank)
    return (long, short) if is_tall(shape) else (short, long)
