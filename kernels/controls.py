"""What an isotropic random change of the same size would show, in closed form.

Put sd = ||D||_F / sqrt(m n) and let the change have independent normal entries of that standard deviation. To first
order nf^2 = ||O||_F^2 / r with O_ij = (E_ij - E_ji) / (s_i + s_j), whose expectation is a sum over pairs of singular
values; the relative change of a singular value is E_ii / s_i; the budget's shares count degrees of freedom and hold at
any size; the framework's fit absorbs what turns left and right together, as far as singular values are apart. Where the
base's condition number times the drift passes 1 the first-order forms fail, and say so.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from polarax.kernels.sides import Shape, entry_count, longer_side, root, shorter_side
from polarax.kernels.thin_svd import numerical_rank

# Nodes of Gauss-Hermite quadrature, of which symmetry leaves half, for one number per pair: 0.005 sd^2 off at worst.
_NODES = 16


class Controls(NamedTuple):
    """Expected readings under an isotropic random change of norm ||D||_F; each (...)."""

    nf: jax.Array  # root mean square of nf
    nf_std: jax.Array  # standard deviation of nf, from that of nf^2
    ratio_cv: jax.Array  # root mean square of ratio_cv
    nss: jax.Array  # root mean square of nss, or more: beyond the first order an upper estimate
    alpha: jax.Array  # mean of alpha, 1 + drift^2 / 2
    alpha_std: jax.Array  # standard deviation of alpha, sd / ||W_b||_F
    budget_scaling: jax.Array  # r / (m n)
    budget_coordinated: jax.Array  # r (r - 1) / 2 / (m n)
    budget_discordant: jax.Array  # r (r - 1) / 2 / (m n)
    budget_outside: jax.Array  # 1 - r^2 / (m n)
    coordination_std: jax.Array  # its mean is 0
    symmetry: jax.Array  # mean of symmetry, 1 / r
    symmetry_std: jax.Array  # its standard deviation
    nuclear_norm_ratio: jax.Array  # mean of the ratio of nuclear norms, to second order
    nuclear_norm_ratio_std: jax.Array  # its standard deviation, to first order
    fit_error: jax.Array  # root mean square of the fit's error
    reach: jax.Array  # condition number times drift: the first-order forms hold up to about 1; inf if rank-deficient


def closed_form_controls(s_base: jax.Array, change_norm: jax.Array, *, shape: Shape) -> Controls:
    """The controls of a pair, from the base's spectrum, the shape and the size of the change alone. O(r^2).

    The numerical rank of the base stands for r: what a rank-deficient base leaves undetermined counts as outside.

    Args:
        s_base: Singular values of the base, (..., r), descending.
        change_norm: ||D||_F, (...).
        shape: (m, n) of the matrix, m an operand or a number.

    Returns:
        `Controls`; NaN for a base that is zero or not finite.

    Example:
        >>> import numpy as np
        >>> from polarax import kernels
        >>> control = kernels.closed_form_controls(np.array([2.0, 1.0]), np.array(0.1), shape=(4, 2))
        >>> float(control.budget_outside)
        0.5
    """
    s, norm = jnp.asarray(s_base), jnp.asarray(change_norm)
    longer, shorter = longer_side(shape), shorter_side(shape)
    entries = entry_count(shape)
    rank = numerical_rank(s, *shape)[..., None]
    inside = jnp.arange(s.shape[-1]) < rank
    rank = jnp.where(rank > 0, rank, jnp.nan).astype(s.dtype)[..., 0]
    largest = jnp.where(s[..., 0] > 0, s[..., 0], jnp.nan)
    relative = jnp.where(inside, s / largest[..., None], 0)  # free of the unit, so that squares stay in range
    base_norm = jnp.sqrt(jnp.sum(relative**2, axis=-1))
    sd = norm / largest / root(entries)
    drift = norm / largest / base_norm

    pairs = inside[..., :, None] & inside[..., None, :] & ~jnp.eye(s.shape[-1], dtype=bool)
    sums = jnp.where(pairs, relative[..., :, None] + relative[..., None, :], 1)
    pair_means = jnp.where(pairs, 2 * (sd[..., None, None] / sums) ** 2, 0)  # of O_ij^2, times a chi-square of 1
    free = (longer - rank)[..., None]  # dimensions outside the base's space
    # m n - r^2 as a sum of terms that are never negative. 1 - r^2 / (m n) leaves a rounding error of either sign where
    # it should be 0, if the compiler fuses the quotient by a constant with the difference.
    outside = shorter * (longer - rank) + rank * (shorter - rank)
    values = jnp.where(inside, relative, 1)
    grown = jnp.sqrt(values**2 + free * sd[..., None] ** 2)
    shortening = jnp.where(inside, 1 - values / grown, 0)
    nf_squared = (jnp.sum(pair_means, axis=(-2, -1)) + jnp.sum(shortening**2, axis=-1)) / rank
    # Each pair i < j stands twice in the sum with one and the same chi-square, whose variance is 2. The squared length
    # outside is sd^2 times a chi-square of `free` degrees of freedom, of variance 2 sd^4 free.
    length_std = jnp.sqrt(2 * free) * sd[..., None] ** 2
    shortening_std = 2 * shortening * values / (2 * grown**3) * length_std
    variance = 4 * jnp.sum(pair_means**2, axis=(-2, -1)) + jnp.sum(shortening_std**2, axis=-1)
    nf_squared_std = jnp.sqrt(variance) / rank

    # Each ratio spreads by sd / s_i about (1 + free sd^2 / s_i^2)^(1/2), which itself differs from ratio to ratio.
    growth = jnp.where(inside, grown / values, 0)
    growth_mean = jnp.sum(growth, axis=-1) / rank
    uneven = jnp.sum(jnp.where(inside, (growth - growth_mean[..., None]) ** 2, 0), axis=-1) / rank
    inverse_squares = jnp.sum(jnp.where(inside, 1 / jnp.where(inside, relative, 1) ** 2, 0), axis=-1)
    smallest = jnp.min(jnp.where(inside, relative, 1), axis=-1)
    rotations = rank * (rank - 1) / 2
    repulsion = _unturned(relative, sd, pairs)
    # The fit leaves the skew part of E, the diagonal but for alpha, and what is outside.
    unfitted = (rotations + rank - 1 + outside) * sd**2 + repulsion
    repelled = jnp.sum(jnp.where(pairs, sd[..., None, None] ** 2 / sums, 0), axis=(-2, -1)) / 2
    lengthened, total = (jnp.sum(jnp.where(inside, x, 0), axis=-1) for x in (grown - relative, relative))
    # Singular values move by E_ii, apart from each other, and up: all squares together grow by ||D||^2.
    lifted = jnp.where(inside, jnp.sqrt(relative**2 + longer * sd[..., None] ** 2) - relative, 0)
    moved = rank * sd**2 + repulsion + jnp.sum(lifted**2, axis=-1)
    return Controls(
        nf=jnp.sqrt(nf_squared),
        nf_std=jnp.where(nf_squared == 0, 0, nf_squared_std / (2 * jnp.sqrt(nf_squared))),
        ratio_cv=jnp.sqrt((1 - 1 / rank) * inverse_squares / rank * sd**2 + uneven) / growth_mean,
        nss=jnp.sqrt(moved) / base_norm,
        alpha=1 + drift**2 / 2,
        alpha_std=sd / base_norm,
        budget_scaling=rank / entries,
        budget_coordinated=rotations / entries,
        budget_discordant=rotations / entries,
        budget_outside=outside / entries,
        # coordinated and discordant are two chi-squares with K = r(r-1)/2 degrees of freedom each, so
        # coordination = 2 Beta(K/2, K/2) - 1, whose variance is 1 / (K + 1).
        coordination_std=1 / jnp.sqrt(rotations + 1),
        # The symmetric part with its diagonal and the skew part are chi-squares with r (r + 1) / 2 and K degrees of
        # freedom: symmetry = 2 Beta - 1 again.
        symmetry=1 / rank,
        symmetry_std=jnp.sqrt(2 * (rank**2 - 1) / (rank**2 + 2)) / rank,
        # Of the second order, each pair gives sd^2 s_i / (s_i^2 - s_j^2) + sd^2 s_j / (s_j^2 - s_i^2).
        nuclear_norm_ratio=1 + (repelled + lengthened) / total,
        nuclear_norm_ratio_std=sd * jnp.sqrt(rank) / total,
        fit_error=jnp.sqrt(unfitted) / (base_norm * jnp.sqrt(1 + drift**2)),
        reach=jnp.where((rank < shorter) & (drift > 0), jnp.inf, drift / smallest),
    )


def _unturned(relative, sd, pairs):
    """What a rotation of both sides leaves of the symmetric part of E, summed over the pairs.

    Of two singular values a gap apart, with e between them, it leaves the repulsion: each moves by
    sqrt(gap^2 / 4 + e^2) - gap / 2. The mean of 2 (...)^2 over e, normal with variance sd^2 / 2, is taken at nodes.
    """
    half_gap = jnp.abs(relative[..., :, None] - relative[..., None, :]) / 2
    nodes, weights = np.polynomial.hermite_e.hermegauss(_NODES)
    total = jnp.zeros_like(half_gap)
    for node, weight in zip(nodes[nodes > 0], 2 * weights[nodes > 0] / weights.sum(), strict=True):
        square = (float(node) ** 2 / 2) * sd[..., None, None] ** 2
        apart = jnp.sqrt(half_gap**2 + square) + half_gap
        total += 2 * float(weight) * (square / jnp.where(apart > 0, apart, 1)) ** 2
    return jnp.sum(jnp.where(pairs, total, 0), axis=(-2, -1)) / 2
