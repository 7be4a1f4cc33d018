"""What chance gives where a change lies unevenly in the base's own directions.

The error of a quantised entry grows with the entry, or with the largest of its row. So there is more of it in the
base's leading directions, where a change turns vectors by less than it does elsewhere, and less outside of the base's
space: nf and the share outside are smaller than isotropic noise of that size would make them, though nothing turned
alike. The control here is a random change that has as much in each of the base's directions as the one at hand (docs:
definitions, "A change that lies where this one does").
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from polarax.kernels.frames_type import Frames
from polarax.kernels.noise_law.units import Base, in_units, std_of_root, total_over
from polarax.kernels.sides import entry_count, is_tall, shorter_side

# Of the base's directions, how many of the last ones say how a change goes on beyond them: one in so many.
_TRAILING = 4


class PlacedTurn(NamedTuple):
    """nf of random changes that lie as one does, over that of isotropic noise of the same size; each (...)."""

    nf: jax.Array  # the ratio of root mean squares
    std: jax.Array  # the ratio of standard deviations


class _Profile(NamedTuple):
    """Independent entries of E, of variances rows_i cols_j / sum(rows), over that of isotropic noise."""

    rows: jax.Array  # energy of each row of E, (..., r), 0 beyond the rank
    cols: jax.Array  # energy of each column, likewise
    step: jax.Array  # the energy that a row has in a direction outside, over its energy inside, (...); a column alike
    gained: jax.Array  # directions that the post has on both sides and the base lacks, (...)


def placed_turn(pair: Frames) -> PlacedTurn:
    """The control of nf for a change that is random but for where it lies, to first order. O(r^2).

    Args:
        pair: Base and post; only E, the sizes and the ranks are read.

    Returns:
        `PlacedTurn`; NaN where nothing changed, where the change is wholly outside of the base's space, and of a 1 x 1
        matrix, which has no two directions.

    Example:
        >>> import numpy as np
        >>> from polarax import kernels
        >>> w = np.diag([10.0, 9.0, 1.0, 1.0])
        >>> change = np.zeros((4, 4))
        >>> change[0, 1] = 0.1  # in the leading directions alone
        >>> bool(kernels.placed_turn(kernels.frames(w, w + change)).nf < 0.3)
        True
    """
    base = in_units(pair.s_base, pair.change_norm, pair.shape)
    energy = entry_count(pair.shape)
    rows, cols = (energy * shares for shares in _shares(pair))
    gained = jnp.maximum(pair.rank_post - base.rank, 0)
    outside = energy / jnp.sum(rows, axis=-1) - 1
    placed = _Profile(rows, cols, _step(base.free, gained, outside), gained)
    uniform = jnp.where(base.inside, base.rank[..., None], 0)
    even = _Profile(uniform, uniform, 1 / base.rank, shorter_side(pair.shape) - base.rank)
    square, std = _turn(base, placed, tall=is_tall(pair.shape))
    square_even, std_even = _turn(base, even, tall=is_tall(pair.shape))
    return PlacedTurn(jnp.sqrt(_ratio(square, square_even)), _ratio(std, std_even))


def placed_outside(pair: Frames) -> jax.Array:
    """The share outside of the base's space if directions there have as much of the change as the base's last ones.

    They are those of singular values of 0, so that a change which falls off along the base's directions has less in
    them. O(r^2).

    Args:
        pair: Base and post; only E, its size and the base's rank are read.

    Returns:
        (...) in [0, 1]; NaN where nothing changed, or nothing of it is inside.
    """
    base = in_units(pair.s_base, pair.change_norm, pair.shape)
    index, last = jnp.arange(base.values.shape[-1]), jnp.maximum(base.rank // _TRAILING, 1)
    trailing = base.inside & (index >= (base.rank - last)[..., None])
    longer, shorter = _shares(pair) if is_tall(pair.shape) else reversed(_shares(pair))
    inside = jnp.sum(longer, axis=-1)
    beyond = base.free, shorter_side(pair.shape) - base.rank
    grown = [
        1 + _ratio(count * jnp.sum(jnp.where(trailing, shares, 0), axis=-1) / last, inside)
        for count, shares in zip(beyond, (longer, shorter), strict=True)
    ]
    return 1 - 1 / (grown[0] * grown[1])


def _shares(pair):
    """Of ||D||^2 in each row and in each column of E, (..., r)."""
    unit = pair.change / jnp.where(pair.change_norm > 0, pair.change_norm, jnp.nan)[..., None, None]
    return tuple(jnp.sum(unit**2, axis=axis) for axis in (-1, -2))


def _step(free, gained, outside):
    """The root of (1 + free x) (1 + gained x) = 1 + outside, which is the change's energy over that of E."""
    sides, outside = free + gained, jnp.maximum(outside, 0)
    root = jnp.sqrt(sides**2 + 4 * free * gained * outside)
    return jnp.where(sides > 0, 2 * outside / jnp.where(sides > 0, sides + root, 1), 0)


def _turn(base: Base, profile: _Profile, *, tall: bool) -> tuple[jax.Array, jax.Array]:
    """The mean of nf^2 over sd^2, and the standard deviation of nf over sd."""
    rows, cols, step, gained = profile
    shares, others = rows / jnp.sum(rows, axis=-1, keepdims=True), base.values[..., None, :]
    variance = shares[..., :, None] * cols[..., None, :] + shares[..., None, :] * cols[..., :, None]
    weights = jnp.where(jnp.eye(rows.shape[-1], dtype=bool), 0, 1 / (base.values[..., None] + others) ** 2)
    pairs = variance * weights  # of which each stands twice
    # What the base lacks and the post has counts as a singular value of 0.
    to_new = (gained * step)[..., None] * (rows + cols) / base.values**2
    across = (base.free * step)[..., None] * (cols if tall else rows)
    longer = jnp.sqrt(base.values**2 + base.sd[..., None] ** 2 * across)
    shortened = across / (longer * (longer + base.values))
    mean = jnp.sum(pairs, axis=(-2, -1)) + total_over(base, to_new + (base.sd[..., None] * shortened) ** 2)
    size = base.rank + gained
    std = std_of_root(mean, 4 * jnp.sum(pairs**2, axis=(-2, -1))) / jnp.sqrt(size)
    return (mean + gained / base.sd**2) / size, std


def _ratio(value, unit):
    return jnp.where(unit > 0, value / unit, jnp.nan)
