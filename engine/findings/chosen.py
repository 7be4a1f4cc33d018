"""Which matrices the report draws one by one: those that stand farthest from their controls, and one of each role."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from polarax.errors import UsageError
from polarax.findings.reading import THRESHOLDS
from polarax.report.plots.rows import best_z, changed_rows, known_roles, out_of_range

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
    """For each headline metric, the few rows that are farthest outside its control, farthest first."""
    sizes = {}
    if "coordination" in rows:
        sizes["coordination"] = rows["coordination"].abs(), THRESHOLDS["coordination"]
    if "nf_excess" in rows:
        excess = np.log(rows["nf_excess"].where((rows["nf_excess"] > 0) & ~out_of_range(rows))).abs()
        sizes["nf"] = excess, np.log(THRESHOLDS["nf_factor"])
    if "alpha_null" in rows:
        sizes["alpha"] = (rows["alpha"] - rows["alpha_null"]).abs(), THRESHOLDS["alpha"]
    for metric, (size, least) in sizes.items():
        z = best_z(rows, metric)
        outside = (size > least) & ((z.abs() > THRESHOLDS["z"]) if z is not None else True)
        yield size[outside].nlargest(_OF_EACH_METRIC)
