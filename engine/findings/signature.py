"""The output-projection signature: is the attention's output scaled distinctly more than the other roles?

He and Cao (arXiv:2509.17866) report that of reasoning models. alpha is above 1 after any change, by drift^2 / 2, so
what is compared is how far it lies beyond its control, layer by layer, and the difference stands beside its spread
over the layers and what chance gives.
"""

import math
from typing import NamedTuple

import numpy as np
import pandas as pd

from polarax.findings.effects import chance_of, rows_that_count, thresholds, z_limit
from polarax.metrics.tables import column

OUTPUT = "o"
FEWEST_LAYERS = 3  # fewer have no spread to speak of


class Signature(NamedTuple):
    """alpha of o against the other roles of the same layers."""

    layers: int  # that have both
    difference: float  # mean over layers of (alpha - control) of o, less the mean of it over the other roles
    spread: float  # population std of that difference over layers
    control_std: float  # std of the mean difference under the control, whose mean is 0
    z: float  # difference / control_std
    spreads: float  # difference / spread; infinite where all layers agree
    distinct: bool  # beyond the thresholds, whatever alpha noise of this size may give


def output_signature(frame: pd.DataFrame, draws: int = 0) -> Signature | None:
    """Reads the signature off a table of matrices.

    Args:
        frame: `Run.frame()`.
        draws: How many draws the sampled controls are made of, if the frame has any.

    Returns:
        None where no layer has both an output projection and another role with an alpha.
    """
    rows = frame[rows_that_count(frame) & frame["layer"].notna() & (frame["role"] != "other")]
    control = chance_of(rows, "alpha")
    measured = pd.DataFrame(
        {
            "layer": rows["layer"],
            "output": rows["role"] == OUTPUT,
            "role": rows["role"],
            "excess": column(rows, "alpha") - control.high,
            "most": column(rows, "alpha") - control.low,
            "variance": (control.std * control.tail) ** 2,
            "one": 1.0,
        }
    ).dropna()
    # Experts first, then roles: of a layer with 256 experts, they count as one.
    roles = measured.groupby(["layer", "output", "role"])[["excess", "most", "variance", "one"]].sum()
    roles = roles.div(roles["one"], axis=0).assign(variance=roles["variance"] / roles["one"] ** 2, one=1.0)
    sides = roles.groupby(["layer", "output"]).sum()
    sides = sides.div(sides["one"], axis=0).assign(variance=sides["variance"] / sides["one"] ** 2)
    both = sides.unstack("output").dropna()
    if both.empty or True not in both["excess"] or False not in both["excess"]:
        return None
    differences = both["excess"][True] - both["excess"][False]
    difference, spread = float(differences.mean()), float(differences.std(ddof=0))
    control_std = math.sqrt(both["variance"].to_numpy().sum()) / len(both)
    # Noise may leave alpha anywhere from 1 to 1 + drift^2 / 2: the difference least in favour of either side.
    least = float((both["excess"][True] - both["most"][False]).mean())
    most = float((both["most"][True] - both["excess"][False]).mean())
    threshold = thresholds()["alpha"]
    z = difference / control_std if control_std > 0 else math.nan
    distinct = (
        len(both) >= FEWEST_LAYERS
        and (least > threshold or most < -threshold)
        and abs(difference) > spread
        and abs(z) > float(np.max(z_limit(rows, "alpha", draws)))
    )
    return Signature(
        layers=len(both),
        difference=difference,
        spread=spread,
        control_std=control_std,
        z=z,
        spreads=difference / spread if spread > 0 else math.copysign(math.inf, difference),
        distinct=distinct,
    )
