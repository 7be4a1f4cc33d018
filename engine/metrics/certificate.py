"""What is known of the leading values and subspaces of a first look: the certificate of each matrix.

Let u_i, s_i, v_i be what was found, s_i u_i = W v_i, and R = W^T U - V S the residuals. A singular value of W lies
within ||r_i|| of each s_i; with a gap g between s_k and the values that were not found, the k values are off by
||R||^2 / g at most (Mathias 1998), and the subspaces by an angle whose sine is ||R|| / (s_k - s_k+1) (Wedin 1972).
Where there is no gap at k, values may be known to many digits while subspaces are not determined at all.
"""

import enum
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from polarax.metrics.catalogue import CERTIFICATE, Metric, register
from polarax.metrics.matrix_pair import Readings

# Values are known where they are off by no more than this, over s_1; subspaces where the sine of their angle is.
VALUES_KNOWN, SUBSPACES_KNOWN = 1e-5, 1e-2


class Convergence(enum.Enum):
    """What a first look knows, as column `converged` has it."""

    ALL = "yes"
    VALUES = "values alone"
    NOTHING = "no"
    UNKNOWN = ""  # of a matrix that was not looked at: zero, or not finite

    @classmethod
    def of_readings(cls, readings: Mapping[str, Any]) -> "Convergence":
        """From the certificate of one matrix, and `values_off`: how far its leading values are off, over s_1."""
        off, angles = readings["values_off"], (readings["angle_base"], readings["angle_post"])
        if math.isnan(off):
            return cls.UNKNOWN
        if off > VALUES_KNOWN:
            return cls.NOTHING
        return cls.ALL if max(angles) <= SUBSPACES_KNOWN else cls.VALUES


def certificate_of(values: jax.Array, residuals: jax.Array, rank: jax.Array, *, shape: tuple[int, int]) -> Readings:
    """What is known of the k leading values of one matrix, and of their subspaces.

    Args:
        values: As they were found, descending, (b,), with b >= k; the last of them stands for what was not found.
        residuals: ||W^T u_i - s_i v_i|| over s_1, (k,).
        rank: How many of the k values are not numerically zero, ().
        shape: (m, n).

    Returns:
        residual, the largest; angle, the sine of that between what was found and the leading subspaces, at most 1; off,
        how far the values are off, over s_1. NaN for a matrix that is zero.
    """
    k, found = residuals.shape[0], values.shape[0]
    relative = values / jnp.where(values[0] > 0, values[0], jnp.nan)
    inside = jnp.arange(k) < rank
    largest, total = (jnp.max(jnp.where(inside, residuals, 0)), jnp.sqrt(jnp.sum(jnp.where(inside, residuals**2, 0))))
    last = jnp.maximum(rank - 1, 0)
    following = jnp.append(relative, 0)[last + 1]  # of all values that there are the next one is 0
    unknown = relative[-1] if found < min(shape) else jnp.zeros_like(relative[-1])
    return {
        "residual": largest + 0 * relative[0],
        "angle": jnp.minimum(_over_gap(total, relative[last] - following), 1),
        "off": jnp.minimum(largest, _over_gap(total**2, relative[last] - unknown)),
    }


def _over_gap(x: jax.Array, gap: jax.Array) -> jax.Array:
    """x / gap, and infinite for no gap."""
    return jnp.where(jnp.isnan(gap), jnp.nan, jnp.where(gap > 0, x / jnp.where(gap > 0, gap, 1), jnp.inf))


register(
    CERTIFICATE,
    [
        Metric("residual_base", "largest residual of the base's leading values, over the first of them"),
        Metric("residual_post", "the same of the post's"),
        Metric("residual_change", "residual of the largest singular value of the change, over it"),
        Metric("angle_base", "how far the base's leading subspaces may be off: the sine of an angle, at most 1"),
        Metric("angle_post", "the same of the post's"),
        Metric(
            "converged",
            "'yes'; 'values alone' where the leading values are known and the subspaces are not, as in a spectrum "
            "without a gap at k; 'no'",
        ),
    ],
)
