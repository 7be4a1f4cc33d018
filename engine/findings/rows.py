"""Which rows of a table a reader is shown, and the control that belongs to a metric, row by row."""

from typing import NamedTuple

import numpy as np
import pandas as pd

from polarax.errors import UsageError
from polarax.loaders import ROLES
from polarax.metrics import metric_of
from polarax.metrics.look import FIRST, LOOK
from polarax.metrics.status import is_changed, is_out_of_range

# Of each layer's values where it has many (experts): the line is their median, the band holds this share of them.
BAND = (0.1, 0.9)


class ControlOfRows(NamedTuple):
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
    return frame[is_changed(frame)]


def layered_rows(frame: pd.DataFrame, metric: str) -> pd.DataFrame:
    """Rows within the layers that have this metric, in order; none if the run has not measured it."""
    if metric not in frame:
        return frame.iloc[:0]
    finite = np.isfinite(frame[metric].astype(float))
    return frame[finite & frame["layer"].notna()].sort_values(["layer", "expert"], kind="stable")


def controls(rows: pd.DataFrame, metric: str) -> list[ControlOfRows]:
    """The controls that a run has: isotropic noise, then changes of this one's own spectrum in random directions.

    Readings rest on the last.
    """
    shown = []
    never = pd.Series(False, rows.index)
    record = metric_of(metric)
    control, std = record.control, rows.get(f"{metric}_null_std")
    if f"{metric}_null" in rows or (control is not None and control.zero and std is not None):
        mean = rows[f"{metric}_null"] if f"{metric}_null" in rows else pd.Series(0.0, rows.index)
        rough = is_out_of_range(rows) if control is not None and control.limited else never
        shown.append(ControlOfRows("isotropic control", mean, std, rough))
    if f"{metric}_spectrum" in rows:
        spread = rows.get(f"{metric}_spectrum_std")
        shown.append(ControlOfRows("same spectrum, random directions", rows[f"{metric}_spectrum"], spread, never))
    return shown


def norm_of_base(row: pd.Series, s_base: np.ndarray) -> float:
    """||W_b|| of a matrix, of which a first look has only the leading singular values.

    Args:
        row: Its row.
        s_base: The singular values that the run has of it.
    """
    if row.get(LOOK) == FIRST:
        return float(row.get("spectral_norm_base", np.nan) * np.sqrt(row.get("stable_rank_base", np.nan)))
    return float(np.linalg.norm(s_base))


def by_layer(rows: pd.DataFrame, values: pd.Series) -> tuple[np.ndarray, pd.DataFrame]:
    """(layers, their `low`, `median`, `high`) of the values, rows being sorted by layer."""
    grouped = values.astype(float).groupby(rows["layer"].astype(int))
    low, high = (grouped.quantile(q) for q in BAND)
    table = pd.DataFrame({"low": low, "median": grouped.median(), "high": high})
    return table.index.to_numpy(), table
