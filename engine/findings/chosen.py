"""Which matrices the report draws one by one: those that stand farthest from their controls, and one of each role."""

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd

from polarax.errors import UsageError
from polarax.findings.effects import DEVIATIONS
from polarax.findings.rows import changed_rows, known_roles
from polarax.metrics import Shown, effects_told
from polarax.metrics.status import is_out_of_range
from polarax.metrics.tables import column, null_of

_CHOSEN = 10
_OF_EACH_METRIC = 3


def choose_matrices(frame: pd.DataFrame, wanted: Sequence[str] = ()) -> list[str]:
    """Names of the matrices to draw, the most remarkable first.

    Args:
        frame: `Run.frame()`.
        wanted: Names asked for; they are all that is drawn.

    Raises:
        UsageError: A name that was asked for is not in the run.
    """
    for name in wanted:
        if not (frame["name"] == name).any():
            raise UsageError(f"The run has no matrix {name!r}.")
    if wanted:
        return list(dict.fromkeys(wanted))
    rows = changed_rows(frame)
    chosen = [name for distance in _distances(rows) for name in rows.loc[distance.index, "name"]]
    for role in [*known_roles(rows), "other"]:
        of_role = rows.loc[rows["role"] == role, "name"].tolist()
        chosen += of_role[len(of_role) // 2 :][:1]
    chosen += frame["name"].tolist()[: 1 if not chosen else 0]  # nothing changed: any will do
    return list(dict.fromkeys(chosen))[:_CHOSEN]


def _distances(rows):
    """For each metric whose effect is drawn, the few rows that are farthest outside its control, farthest first."""
    for metric in effects_told():
        effect, control = metric.effect, metric.control
        if effect is None or control is None or metric.name not in rows or Shown.OVER_LAYERS not in metric.shown:
            continue
        value = column(rows, metric.name)
        mean = null_of(rows, metric)
        if effect.measure == "difference":
            size, least = (value - mean).abs(), effect.size
        else:
            ratio = column(rows, f"{metric.name}_excess") if control.excess else value / mean
            size, least = np.log(ratio.where((ratio > 0) & np.isfinite(ratio))).abs(), abs(math.log(effect.size))
        if control.limited:
            size = size.mask(is_out_of_range(rows))
        z = rows.get(f"{metric.name}_spectrum_z", rows.get(f"{metric.name}_z"))
        outside = (size > least) & ((z.abs() > DEVIATIONS) if z is not None else True)
        yield size[outside].nlargest(_OF_EACH_METRIC)
