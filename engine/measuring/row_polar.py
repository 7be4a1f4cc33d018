"""Headlines by polar factors of matrices whose rows are divided over devices: every product where the rows are.

As `polarax.measuring.polar_program`, one matrix at a time. A factor has the rows of its matrix on each device, and its
Gram matrices are sums over devices. A pair of which a factor does not converge is read off its frames instead.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from polarax import kernels
from polarax.kernels.polar_headlines import Norms, Quality, pair_of_products, pair_products
from polarax.kernels.polar_polynomial import Iterated, orthogonality_tolerance, polynomial_polar
from polarax.kernels.steps import Steps, joined_norms
from polarax.measuring.polar_program import columns_of_pair
from polarax.metrics import Readings
from polarax.planning.measurement import Measurement


class Side(NamedTuple):
    """A matrix and its polar factor, divided by rows."""

    matrix: Any  # in the working dtype
    iterated: Iterated
    nonfinite: jax.Array  # (1,), int32
    good: bool  # whether the factor is one


def row_sides(steps: Steps, stored: Sequence[Any], measurement: Measurement) -> list[Side]:
    """The matrices, as they are stored, with their polar factors."""
    sides = []
    for x in stored:
        matrix = steps.mapped(_working, (x,), dtype=measurement.dtype)
        nonfinite = steps.over_rows(_nonfinite, (matrix,))
        iterated = polynomial_polar(matrix, steps)
        residual, count = jax.device_get((iterated.residual, nonfinite))
        good = bool(np.all(residual <= orthogonality_tolerance(matrix)) and not np.any(count))
        sides.append(Side(matrix, iterated, nonfinite, good))
    return sides


def read_sides(steps: Steps, base: Side, post: Side, by_frames: Callable[[], Readings]) -> Readings:
    """The columns of a pair.

    Args:
        steps: How the steps are carried out.
        base: The base.
        post: The post.
        by_frames: Gives them where a factor is none, from the frames of the pair, but for what is iterated.
    """
    counts = {"nonfinite_base": base.nonfinite, "nonfinite_post": post.nonfinite}
    if not (base.good and post.good):
        return counts | by_frames() | steps.small(_not_iterated, base.iterated.residual)
    norms = steps.over_rows(_norms, (base.matrix, post.matrix), join=joined_norms)
    factors = base.iterated.factor, post.iterated.factor
    products = steps.over_rows(pair_products, (base.matrix, post.matrix, *factors), norms)
    quality = tuple((side.iterated.residual, side.iterated.steps) for side in (base, post))
    shape = tuple(base.matrix.shape[-2:])
    return counts | steps.small(_columns, products, norms, quality, shape=shape)


def _working(x, *, dtype):
    return x.astype(dtype)


def _nonfinite(x):
    return jnp.sum(~jnp.isfinite(x), axis=(-2, -1), dtype=jnp.int32)


def _norms(base, post):
    return Norms(*(kernels.frobenius(x) for x in (base, post, post - base)))


def _columns(products, norms, quality, *, shape):
    rank = jnp.full(norms.base.shape, shape[-1], jnp.int32)
    base, post = (Quality(rank, jnp.full_like(rank, count), residual) for residual, count in quality)
    return columns_of_pair(pair_of_products(products, norms, base, post, jnp.ones(rank.shape, bool), shape=shape))


def _not_iterated(residual):
    return {"polar_residual": jnp.zeros_like(residual), "polar_steps": jnp.zeros(residual.shape, jnp.int32)}
