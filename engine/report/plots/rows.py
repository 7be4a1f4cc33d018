"""Which rows of a run a picture shows, and the control that belongs to a metric."""

from typing import NamedTuple

import numpy as np
import pandas as pd

from polarax.errors import UsageError
from polarax.loaders import ROLES
from polarax.metrics import CONTROL_REACH_LIMIT, status_kind

# Of each layer's values where it has many (experts): the line is their median, the band holds this share of them.
BAND = (0.1, 0.9)

# Metrics whose closed-form control fails where condition number times drift passes 1.
_FIRST_ORDER = ("nf", "ratio_cv")
# Metrics whose control is 0 by symmetry.
_ZERO_CONTROL = ("coordination", "change_cosine")


class Control(NamedTuple):
    """What a random change shows in place of a metric, row by row."""

    label: str
    mean: pd.Series
    std: pd.Series | None
    rough: pd.Series  # bool: the closed form is out of its range


def known_roles(frame: pd.DataFrame, role: str | None = None) -> list[str]:
    """The roles that the rows have, in the order of `polarax.loaders.ROLES`, without "other"; or the one asked for.

    Raises:
        UsageError: There is no such role.
    """
    if role is None:
        return [one for one in ROLES if one != "other" and (frame["role"] == one).any()]
    if role not in ROLES:
        raise UsageError(f"Unknown role {role!r}. Expected one of {', '.join(ROLES)}.")
    return [role] if (frame["role"] == role).any() else []


def changed_rows(frame: pd.DataFrame) -> pd.DataFrame:
    """Rows whose numbers say what a change did: neither unchanged, nor zero, nor with NaN or Inf."""
    return frame[frame["status"].map(status_kind).isin(["ok", "rank-deficient"])]


def layered_rows(frame: pd.DataFrame, metric: str) -> pd.DataFrame:
    """Rows within the layers that have this metric, in order; none if the run has not measured it."""
    if metric not in frame:
        return frame.iloc[:0]
    finite = np.isfinite(frame[metric].astype(float))
    return frame[finite & frame["layer"].notna()].sort_values(["layer", "expert"], kind="stable")


def controls(rows: pd.DataFrame, metric: str) -> list[Control]:
    """The controls that a run has: the closed form; if sampled, the change's own spectrum in random directions."""
    found = []
    never = pd.Series(False, rows.index)
    mean, std = f"{metric}_null", f"{metric}_null_std"
    if mean in rows or (metric in _ZERO_CONTROL and std in rows):
        centre = rows[mean] if mean in rows else pd.Series(0.0, rows.index)
        rough = out_of_range(rows) if metric in _FIRST_ORDER else never
        found.append(Control("isotropic control", centre, rows.get(std), rough))
    if f"{metric}_spectrum" in rows:
        spread = rows.get(f"{metric}_spectrum_std")
        found.append(Control("control with the change's spectrum", rows[f"{metric}_spectrum"], spread, never))
    return found


def best_z(frame: pd.DataFrame, metric: str) -> pd.Series | None:
    """The z that a reading of this metric rests on, as far as the run has one: against the change's own spectrum."""
    return frame.get(f"{metric}_spectrum_z", frame.get(f"{metric}_z"))


def out_of_range(rows: pd.DataFrame) -> pd.Series:
    """bool: the first-order closed forms (of nf and ratio_cv) are rough for the row."""
    if "control_reach" in rows:
        return rows["control_reach"] > CONTROL_REACH_LIMIT
    return rows["control"] == "out of range"


def by_layer(rows: pd.DataFrame, values: pd.Series) -> tuple[np.ndarray, pd.DataFrame]:
    """(layers, their `low`, `median`, `high`) of the values, rows being sorted by layer."""
    grouped = values.astype(float).groupby(rows["layer"].astype(int))
    low, high = (grouped.quantile(q) for q in BAND)
    table = pd.DataFrame({"low": low, "median": grouped.median(), "high": high})
    return table.index.to_numpy(), table
