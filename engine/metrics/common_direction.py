"""What two posts of one base have in common, beside the groups that any pair is measured in."""

import math
from collections.abc import Mapping
from typing import Any

from polarax.metrics.catalogue import BETWEEN, Control, Metric, Shown, register

register(
    BETWEEN,
    [
        Metric(
            "change_cosine",
            "cosine of the angle between the changes of both posts from their base; its control is 0",
            Control(
                std="standard deviation of that cosine where one of the changes has random directions",
                z="change_cosine / its standard deviation under the control",
            ),
            Shown.PAGE | Shown.OVER_PAIRS,
            picture="cosine",
            title="Cosine of the changes of two posts from their base: 1 the same way",
            caption="Cosine of the angle between the changes of two posts from their base, as vectors of all entries. "
            "1: they changed the same way; 0 is what chance gives, whatever the spectra of the changes, with the "
            "standard deviation of the band.",
        )
    ],
)


def beside_cosine(row: Mapping[str, Any], shape: tuple[int, ...]) -> dict[str, float]:
    """The control of change_cosine, in float64: it hangs on the shape alone."""
    std = 1 / math.sqrt(math.prod(shape))
    return {"change_cosine_null_std": std, "change_cosine_z": row["change_cosine"] / std}
