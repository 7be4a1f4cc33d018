"""A spectrum of which the leading values and the norm are known, and what a random change of a size does to its front.

The values that are not known stand as their root mean square. Of a spectrum that is known whole nothing is left for
that, and the same formulas are those of a full analysis.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from polarax.kernels.sides import Shape, Side, is_tall, longer_side, shorter_side


class KnownSpectrum(NamedTuple):
    """Singular values as far as they are known, free of their unit."""

    largest: jax.Array  # s_1, (...); NaN for a zero matrix
    values: jax.Array  # the leading ones over s_1, (..., b)
    tail: jax.Array  # root mean square of the others over s_1, (...)
    others: int  # how many these are
    shape: Shape  # (m, n)

    @property
    def free(self) -> Side:
        """The longer side less the shorter one."""
        return longer_side(self.shape) - shorter_side(self.shape)


def known_spectrum(values: jax.Array, norm: jax.Array | None = None, *, shape: Shape) -> KnownSpectrum:
    """The spectrum of a matrix whose b leading values are known.

    Args:
        values: (..., b), descending, b <= min(m, n).
        norm: ||W||_F, (...); not needed where all values are given.
        shape: (m, n).
    """
    others = shorter_side(shape) - values.shape[-1]
    largest = jnp.where(values[..., 0] > 0, values[..., 0], jnp.nan)
    relative = values / largest[..., None]
    tail = jnp.zeros_like(largest)
    if others:
        assert norm is not None
        tail = jnp.sqrt(jnp.maximum((norm / largest) ** 2 - jnp.sum(relative**2, axis=-1), 0) / others)
    return KnownSpectrum(largest, relative, tail, others, shape)


def largest_null(known: KnownSpectrum, sd: jax.Array) -> jax.Array:
    """Mean of s_1 under an isotropic change, to second order: others repel it. (...), in the unit of the matrix.

    Args:
        known: The base's.
        sd: Root mean square entry of the change, (...).
    """
    sd = sd / known.largest

    def repulsion(values):  # of values closer than the change is large no more than that
        gaps = jnp.maximum(1 - values**2, sd[..., None])
        return jnp.where(gaps > 0, 1 / jnp.where(gaps > 0, gaps, 1), 0)

    pushed = (
        jnp.sum(repulsion(known.values[..., 1:]), axis=-1) + known.others * repulsion(known.tail[..., None])[..., 0]
    )
    return known.largest * (1 + sd**2 * (pushed + known.free / 2))


def overlap_null(known: KnownSpectrum, sd: jax.Array, rank: jax.Array, *, k: int) -> tuple[jax.Array, jax.Array]:
    """Overlap of the k leading left and right subspaces under an isotropic change, to first order. (...) each.

    v_i turns towards v_j with variance sd^2 (s_i^2 + s_j^2) / (s_i^2 - s_j^2)^2; half is lost at most, where the two
    cannot be told apart. Vectors of the longer side leave the space of all others besides.

    Args:
        known: The base's.
        sd: Root mean square entry of the change, (...).
        rank: How many of the k values are not zero, (...).
        k: At most the number of values that are known.
    """
    sd = sd / known.largest
    inside = known.values[..., :k, None]
    tail = known.tail[..., None]
    outside = jnp.concatenate([known.values[..., k:], tail], axis=-1)[..., None, :]
    counts = jnp.ones(outside.shape[-1], sd.dtype).at[-1].set(known.others)
    apart = inside > outside
    squares = jnp.where(apart, inside**2 - outside**2, 1)
    turned = sd[..., None, None] ** 2 * (inside**2 + outside**2) / squares**2
    lost = jnp.sum(jnp.where(apart, jnp.minimum(turned, 0.5), 0.5) * counts, axis=-1)
    values = known.values[..., :k]
    left = known.free * (sd[..., None] / jnp.where(values > 0, values, jnp.inf)) ** 2
    determined = jnp.arange(k) < rank[..., None]
    longer, shorter = (
        jnp.sum(jnp.where(determined, x, 0), axis=-1) / jnp.maximum(rank, 1)
        for x in (lost + jnp.minimum(left, 1), lost)
    )
    sides = (longer, shorter) if is_tall(known.shape) else (shorter, longer)
    left_null, right_null = (jnp.where(sd == 0, 1, jnp.clip(1 - x, 0, 1)).astype(sd.dtype) for x in sides)
    return left_null, right_null
