"""Columns of a table of matrices that metrics are judged from."""

import math
from typing import TYPE_CHECKING

import numpy as np

from polarax.metrics.status import is_drawn

if TYPE_CHECKING:
    import pandas as pd

    from polarax.metrics.catalogue import Metric


def column(frame: "pd.DataFrame", name: str) -> "pd.Series":
    """A column as numbers; NaN where the run has not measured it."""
    return frame[name].astype(float) if name in frame else constant(frame, math.nan)


def constant(frame: "pd.DataFrame", value: float) -> "pd.Series":
    """One number for every row."""
    import pandas as pd

    return pd.Series(value, frame.index, dtype=float)


def null_of(frame: "pd.DataFrame", metric: "Metric") -> "pd.Series":
    """Mean of a metric's control in closed form, 0 where that is so by symmetry; NaN where it was not measured."""
    return constant(frame, 0.0) if metric.null is None else column(frame, metric.null)


def is_sampled(frame: "pd.DataFrame", metric: str) -> "pd.Series":
    """True for the rows of which draws say how a metric spreads: one draw alone does not."""
    return is_drawn(frame) & (column(frame, f"{metric}_spectrum_std") > 0)


def mean_of(frame: "pd.DataFrame", metric: str, otherwise: "pd.Series") -> "pd.Series":
    """Mean of a metric over drawn changes with this one's singular values in random directions.

    Args:
        frame: Rows.
        metric: Its name.
        otherwise: Taken where nothing was drawn.
    """
    return column(frame, f"{metric}_spectrum").where(is_sampled(frame, metric), otherwise)


def spread_of(frame: "pd.DataFrame", metric: str, otherwise: "pd.Series") -> "pd.Series":
    """Standard deviation of a metric over changes with this one's singular values in random directions.

    Args:
        frame: Rows.
        metric: Its name.
        otherwise: Taken where the singular values of the change were not measured.
    """
    own = column(frame, f"{metric}_spectrum_std")
    return own.where(own > 0, otherwise)


def sides(frame: "pd.DataFrame") -> "tuple[pd.Series, pd.Series]":
    """The longer and the shorter side of each matrix."""
    rows, cols = column(frame, "rows"), column(frame, "cols")
    return np.maximum(rows, cols), np.minimum(rows, cols)


def directions(frame: "pd.DataFrame") -> "pd.Series":
    """How many directions carry the change, by its stable rank; one where that was not measured."""
    return column(frame, "stable_rank_change").fillna(1.0)
