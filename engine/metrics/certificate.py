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

from polarax.metrics.catalogue import CERTIFICATE, Metric, register

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
