"""The program of a run of the group "polar" alone on accelerators: every number of it by matrix products.

Each matrix has its polar factor iterated for, the whole stack at once; a matrix for which that does not converge, such
as one of lower rank, has its SVD taken by itself, and its row says so (`polar_steps` is 0).
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from polarax import kernels
from polarax.metrics import Readings
from polarax.metrics.polar_factors import polar_columns
from polarax.planning.measurement import Measurement


def by_polar_factors(
    base: jax.Array, posts: Sequence[jax.Array], pairs: Sequence[tuple[int, int]], measurement: Measurement
) -> tuple[tuple[Readings, ...], tuple[Readings, ...]]:
    """Reads a stack and its posts.

    Args:
        base: (..., m, n) in the stored dtype.
        posts: (..., m, n) each, in their stored dtypes.
        pairs: Places of posts to be read against each other, the first as the base of the second.
        measurement: What is measured: its dtype is worked in.

    Returns:
        Column name -> (...) for each post, and for each pair.
    """
    working = [x.astype(measurement.dtype) for x in (base, *posts)]
    factors = [kernels.polar_by_products(x) for x in working]

    def read(first, second):
        pair = kernels.polar_pair(working[first], working[second], factors=(factors[first], factors[second]))
        return {
            **{
                f"nonfinite_{side}": jnp.sum(~jnp.isfinite(working[place]), axis=(-2, -1), dtype=jnp.int32)
                for side, place in (("base", first), ("post", second))
            },
            **columns_of_pair(pair),
        }

    def cosine(first, second):
        return kernels.change_cosine(*(working[1 + place] - working[0] for place in (first, second)))

    return (
        tuple(read(0, place) for place in range(1, len(working))),
        tuple(read(1 + i, 1 + j) | {"change_cosine": cosine(i, j)} for i, j in pairs),
    )


def columns_of_pair(pair: kernels.PolarPair) -> dict[str, jax.Array]:
    """What is read of a pair by its polar factors, one number a matrix each."""
    return {
        "change_norm": pair.change_norm,
        "rank_base": pair.rank_base,
        "rank_post": pair.rank_post,
        "control_reach": pair.control.reach,
        "polar_residual": pair.residual,
        "polar_steps": pair.steps,
        **polar_columns(pair.headlines, pair.control, pair.change_norm),
    }
