"""What an isotropic random change of the same size would show, in closed form.

Put sd = ||D||_F / sqrt(m n) and let the change have independent normal entries of that standard deviation. The budget's
shares count degrees of freedom and hold at any size; what polar factors show follows from the noise law
(`polarax.kernels.noise_law`), which holds at any size too; the framework's fit absorbs what turns left and right
together, as far as singular values are apart, and has a control as long as first order holds.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from polarax.kernels.noise_law import PolarLaw, Spreads, polar_law, spreads_at_any_size
from polarax.kernels.sides import Shape, entry_count, longer_side, root, shorter_side
from polarax.kernels.thin_svd import numerical_rank

# Nodes of Gauss-Hermite quadrature, of which symmetry leaves half, for one number per pair: 0.005 sd^2 off at worst.
_NODES = 16


class Controls(NamedTuple):
    """Expected readings under an isotropic random change of norm ||D||_F; each (...)."""

    nf: jax.Array  # root mean square of nf
    budget_scaling: jax.Array  # r / (m n)
    budget_coordinated: jax.Array  # r (r - 1) / 2 / (m n)
    budget_discordant: jax.Array  # r (r - 1) / 2 / (m n)
    budget_outside: jax.Array  # 1 - r^2 / (m n)
    symmetry: jax.Array  # mean of symmetry, 1 / r
    nuclear_norm_ratio: jax.Array  # mean of the ratio of nuclear norms
    fit_error: jax.Array  # root mean square of the fit's error; NaN where first order ends
    reach: jax.Array  # condition number times drift: first-order forms hold up to about 1; inf if rank-deficient
    std: Spreads  # standard deviations of single readings


def closed_form_controls(
    s_base: jax.Array,
    change_norm: jax.Array,
    *,
    shape: Shape,
    top_k: int = 16,
    law: PolarLaw | None = None,
    std: Spreads | None = None,
) -> Controls:
    """The controls of a pair, from the base's spectrum, the shape and the size of the change alone. O(r^2).

    The numerical rank of the base stands for r: what a rank-deficient base leaves undetermined counts as outside.

    Args:
        s_base: Singular values of the base, (..., r), descending.
        change_norm: ||D||_F, (...).
        shape: (m, n) of the matrix, m an operand or a number.
        top_k: Dimension of the leading subspaces, for the spreads of what is read of them.
        law: What `polar_law` gives for these, if it is known.
        std: What `spreads_at_any_size` gives of isotropic noise, if it is known.

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

    # m n - r^2 as a sum of terms that are never negative. 1 - r^2 / (m n) leaves a rounding error of either sign where
    # it should be 0, if the compiler fuses the quotient by a constant with the difference.
    outside = shorter * (longer - rank) + rank * (shorter - rank)
    rotations = rank * (rank - 1) / 2
    pairs = inside[..., :, None] & inside[..., None, :] & ~jnp.eye(s.shape[-1], dtype=bool)
    # The fit leaves the skew part of E, the diagonal but for alpha, and what is outside.
    unfitted = (rotations + rank - 1 + outside) * sd**2 + _unturned(relative, sd, pairs)
    law = polar_law(s, norm, shape=shape) if law is None else law
    if std is None:
        ((std, _),) = spreads_at_any_size(s, norm, None, shape=shape, top_k=top_k, nf=law.nf)
    return Controls(
        nf=law.nf,
        budget_scaling=rank / entries,
        budget_coordinated=rotations / entries,
        budget_discordant=rotations / entries,
        budget_outside=outside / entries,
        # The symmetric part with its diagonal and the skew part are chi-squares with r (r + 1) / 2 and r (r - 1) / 2
        # degrees of freedom: symmetry is 2 Beta - 1, of mean 1 / r.
        symmetry=1 / rank,
        nuclear_norm_ratio=law.nuclear_norm_ratio,
        fit_error=jnp.where(
            jnp.isnan(std.fit_error), jnp.nan, jnp.sqrt(unfitted) / (base_norm * jnp.sqrt(1 + drift**2))
        ),
        reach=control_reach(s, norm, shape=shape),
        std=std,
    )


def control_reach(s_base: jax.Array, change_norm: jax.Array, *, shape: Shape) -> jax.Array:
    """The base's condition number times drift, (...): infinite for a rank-deficient base, NaN for a zero one.

    Args:
        s_base: Singular values of the base, (..., r), descending.
        change_norm: ||D||_F, (...).
        shape: (m, n) of the matrix, m an operand or a number.
    """
    largest = jnp.where(s_base[..., 0] > 0, s_base[..., 0], jnp.nan)[..., None]
    relative = s_base / largest
    inside = jnp.arange(s_base.shape[-1]) < numerical_rank(s_base, *shape)[..., None]
    drift = change_norm / largest[..., 0] / jnp.sqrt(jnp.sum(jnp.where(inside, relative, 0) ** 2, axis=-1))
    smallest = jnp.min(jnp.where(inside, relative, 1), axis=-1)
    deficient = ~jnp.all(inside, axis=-1)
    return jnp.where(deficient & (drift > 0), jnp.inf, drift / smallest)


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
