"""Model level: the distribution of every metric over the matrices of a role, and the reading."""

import re
from collections import Counter
from typing import Any

import numpy as np
import pandas as pd

from polarax.loaders import ROLES
from polarax.metrics import CONTROL_COLUMNS, IDENTITY_COLUMNS, status_kind
from polarax.report.reading import THRESHOLDS, read_frame


def summarise(frame: pd.DataFrame, skipped: pd.DataFrame) -> dict:
    """Summary of a run, JSON-ready up to NaN.

    Args:
        frame: `Run.frame()`.
        skipped: `Run.skipped()`.

    Returns:
        matrices: how many; status: how many of each; skipped: how many for each reason; roles: role -> metric -> count,
        mean, std (population), min, median, max of those finite among its matrices, with `matrices` and `out_of_range`
        (how many of them have a closed-form control that is only rough); reading: sentences; thresholds: what they rest
        on.
    """
    present = set(frame["role"])
    kinds = frame["status"].map(status_kind)
    return {
        "matrices": len(frame),
        "status": dict(Counter(kinds)),
        "skipped": dict(Counter(re.sub(r"\(.*", "", reason).strip() for reason in skipped["reason"])),
        "roles": {role: _describe(frame[frame["role"] == role]) for role in ROLES if role in present},
        "reading": read_frame(frame),
        "thresholds": THRESHOLDS,
    }


def _describe(rows):
    metrics = [c for c in rows.columns if c not in IDENTITY_COLUMNS and c not in CONTROL_COLUMNS]
    described: dict[str, Any] = {
        "matrices": len(rows),
        "out_of_range": int((rows["control"] == "out of range").sum()),
    }
    for metric in metrics:
        values = rows[metric].astype(float)
        values = values[np.isfinite(values)]  # the drift of a base that is all zeros is infinite
        described[metric] = {
            "count": len(values),
            "mean": values.mean(),
            "std": values.std(ddof=0),
            "min": values.min(),
            "median": values.median(),
            "max": values.max(),
        }
    return described
