"""What stands out of a table of matrices: effects that are large, and far outside what a random change shows.

An effect needs both: a size that matters, and a distance from its control that chance does not reach among all the
matrices and metrics of a run. A trained change is far from isotropic: a few directions carry most of it, and what a
random change of that spectrum shows spreads more than what isotropic noise shows. So distances rest on the sampled
control of the change's own spectrum in random directions where there is one, and otherwise on the closed forms,
widened for the stable rank of the change (docs/definitions.md, "Model level").
"""

import functools
import math
from typing import NamedTuple

import numpy as np
import pandas as pd

from polarax.metrics import status_kind

# An effect is named beyond these.
THRESHOLDS = {
    "z": 6.0,  # standard deviations of the control: by chance 2 in 10^9 comparisons
    "alpha": 0.005,  # outside of what noise of the same size gives, which is 1 to 1 + drift^2 / 2
    "coordination": 0.1,  # |coordination - control|
    "share": 0.1,  # of the change, on the diagonal or outside the base's space, beyond the control
    "nf_factor": 1.25,  # nf over its control, or the other way round
    "low_rank": 0.25,  # effective rank of the change over that of a random one
    "rounding_share": 0.5,  # of ||D||: more, and nothing is claimed of the matrix but that
}

# Kinds of effects, in the order in which they are told.
KINDS = (
    "scaled up", "scaled down", "uneven", "coordinated", "discordant", "low rank",
    "outside", "inside", "turned apart", "turned alike",
)  # fmt: skip

# What is judged, by the column that it is read from.
JUDGED = ("alpha", "budget_scaling", "coordination", "effective_rank_change", "budget_outside", "nf")

# A change that went there leaves less for the rest: nf and the share outside follow, and say nothing of their own.
_EXPLAIN_THE_REST = ("scaled up", "scaled down", "uneven", "coordinated", "discordant")


class Control(NamedTuple):
    """What chance gives of a metric, one value a matrix; NaN where it cannot be said."""

    low: pd.Series  # its mean is at least this
    high: pd.Series  # and at most this
    std: pd.Series


def rows_that_count(frame: pd.DataFrame) -> pd.Series:
    """True for the rows that are judged: changed, readable, and not mostly the rounding of what they are stored in."""
    return frame["status"].map(status_kind).isin(["ok", "rank-deficient"]) & ~mostly_rounding(frame)


def mostly_rounding(frame: pd.DataFrame) -> pd.Series:
    """True for the rows whose change is for more than half what rounding to the stored dtype makes by itself."""
    return column(frame, "rounding_share") > THRESHOLDS["rounding_share"]


def control_of(frame: pd.DataFrame, metric: str) -> Control:
    """The control that a metric is judged by: sampled from the change's own spectrum, else in closed form.

    Args:
        frame: `Run.frame()`, or some of its rows.
        metric: "alpha", "budget_scaling", "budget_outside", "coordination" or "nf".
    """
    closed = _closed_form(frame, metric)
    mean, std = (column(frame, f"{metric}_spectrum{suffix}") for suffix in ("", "_std"))
    sampled = mean.notna() & (std > 0)
    return Control(
        mean.where(sampled, closed.low),
        mean.where(sampled, closed.high),
        std.where(sampled, closed.std),
    )


def z_limit(frame: pd.DataFrame, metric: str, draws: int) -> pd.Series:
    """Standard deviations of its control that a metric must be away; more where they are estimated from few draws.

    With N draws a distance over the deviation is Student's t with N - 1 degrees of freedom times sqrt((N+1)/(N-1)),
    whose quantile is taken by Wallace's approximation (Annals of Mathematical Statistics 30, 1959).
    """
    limit = pd.Series(THRESHOLDS["z"], frame.index)
    return limit.mask(column(frame, f"{metric}_spectrum_std") > 0, z_limit_of_draws(draws))


def z_limit_of_draws(draws: int) -> float:
    """The limit that keeps the false alarms of `THRESHOLDS["z"]` with a control sampled by this many draws."""
    if draws < 2:
        return math.inf
    freedom = draws - 1
    normal = THRESHOLDS["z"] * (8 * freedom + 3) / (8 * freedom + 1)
    exponent = normal**2 / freedom
    student = math.sqrt(freedom * math.expm1(exponent)) if exponent < 700 else math.inf
    return student * math.sqrt((draws + 1) / (draws - 1))


def find_effects(frame: pd.DataFrame, draws: int = 0) -> pd.DataFrame:
    """The effects that stand out, one row each; a matrix may have several.

    Args:
        frame: `Run.frame()`; what was not measured is not judged.
        draws: How many draws the sampled controls are made of, if the frame has any.

    Returns:
        Columns row (label in `frame`), kind (one of `KINDS`), metric, value, control (the nearer end), control_std, z;
        in the order of `KINDS`, and within one the farthest from its control first.
    """
    rows = frame[rows_that_count(frame)]
    found = {
        **_both_sides(rows, "alpha", draws, ("scaled up", "scaled down"), THRESHOLDS["alpha"]),
        **_both_sides(rows, "budget_scaling", draws, ("uneven", None), THRESHOLDS["share"]),
        **_both_sides(rows, "coordination", draws, ("coordinated", "discordant"), THRESHOLDS["coordination"]),
        **_both_sides(rows, "budget_outside", draws, ("outside", "inside"), THRESHOLDS["share"]),
        **_both_sides(rows, "nf", draws, ("turned apart", "turned alike"), 0.0),
        "low rank": _low_rank(rows),
    }
    for kind in ("coordinated", "discordant"):
        found[kind] = found[kind][_much_of_the_change(rows.loc[found[kind].index])]
    for kind in ("turned apart", "turned alike"):
        ratio = found[kind]["value"] / found[kind]["control"]
        factor = THRESHOLDS["nf_factor"]
        found[kind] = found[kind][(ratio > factor) | (ratio < 1 / factor)]
    one_factor = _one_factor(rows)
    found["uneven"] = found["uneven"][~one_factor[found["uneven"].index]]
    for kind in ("scaled up", "scaled down"):
        found[kind] = found[kind][one_factor[found[kind].index] | ~found[kind].index.isin(found["uneven"].index)]
    _drop(found, ("outside", "inside"), where=_EXPLAIN_THE_REST)
    _drop(found, ("turned apart", "turned alike"), where=(*_EXPLAIN_THE_REST, "outside", "inside"))
    ordered = [pd.DataFrame(columns=["row", "kind", "metric", "value", "control", "control_std", "z"])]
    for kind in (kind for kind in KINDS if len(found[kind])):
        effects = found[kind]
        distance = (effects["value"] - effects["control"]).abs().sort_values(ascending=False, kind="stable")
        ordered.append(effects.loc[distance.index].assign(kind=kind).rename_axis("row").reset_index())
    return pd.concat(ordered[1:], ignore_index=True)[ordered[0].columns] if ordered[1:] else ordered[0]


def judged_by(frame: pd.DataFrame) -> list[str]:
    """Those of `JUDGED` that at least one of the rows has, with a control."""
    return [metric for metric in JUDGED if not _unjudged(frame, metric).all()]


def without_control(frame: pd.DataFrame) -> pd.Series:
    """True for the rows that have an nf, but no control that holds for it."""
    return rows_that_count(frame) & column(frame, "nf").notna() & _unjudged(frame, "nf")


def column(frame: pd.DataFrame, name: str) -> pd.Series:
    """A column as numbers; NaN where the run has not measured it."""
    return frame[name].astype(float) if name in frame else pd.Series(math.nan, frame.index)


@functools.cache
def random_effective_rank(rows: int, cols: int) -> float:
    """Effective rank of a large Gaussian matrix, from the Marchenko-Pastur law of its singular values.

    Example:
        >>> round(random_effective_rank(1000, 1000))
        805
    """
    ratio = min(rows, cols) / max(rows, cols)
    low, high = 1 - math.sqrt(ratio), 1 + math.sqrt(ratio)
    edges = np.linspace(low, high, 20001)
    s = (edges[1:] + edges[:-1]) / 2
    density = np.sqrt((high**2 - s**2) * (s**2 - low**2)) / s
    density /= density.sum()
    mean = density @ s
    return min(rows, cols) * math.exp(math.log(mean) - density @ (s * np.log(s)) / mean)


def _closed_form(frame: pd.DataFrame, metric: str) -> Control:
    null = column(frame, f"{metric}_null")
    entries = column(frame, "rows") * column(frame, "cols")
    long, short = (pick(column(frame, "rows"), column(frame, "cols")) for pick in (np.maximum, np.minimum))
    directions = column(frame, "stable_rank_change").fillna(1.0)  # not measured: as if one carried all
    if metric == "alpha":
        # alpha - 1 = <D, W> / ||W||^2 + (drift^2 - nss^2) / 2, and nss is between 0 and drift.
        return Control(pd.Series(1.0, frame.index), null, column(frame, "alpha_null_std"))
    if metric == "coordination":
        zero = pd.Series(0.0, frame.index)
        return Control(zero, zero, column(frame, "coordination_null_std") * np.sqrt(1 + 3 / directions))
    if metric == "budget_scaling":
        return Control(null, null, np.sqrt(8 * null / entries))
    if metric == "budget_outside":
        rank = np.sqrt((1 - null).clip(lower=0) * entries)
        relative = sum(2 * (1 - rank / side) / rank for side in (long, short))
        return Control(null, null, (1 - null) * np.sqrt(relative.clip(lower=0) / directions))
    holds = (frame["control"] == "closed form") & (null > 0)
    std = column(frame, "nf_null_std") * np.sqrt(1 + short / directions)
    return Control(null.where(holds), null.where(holds), std.where(holds))


def _both_sides(rows, metric, draws, kinds, size):
    """Kind -> effects above and below the control of a metric; None for a side that is no effect."""
    control = control_of(rows, metric)
    value = column(rows, metric)
    found = {}
    for kind, end, sign in zip(kinds, (control.high, control.low), (1, -1), strict=True):
        distance = value - end
        z = distance / control.std.where(control.std > 0)
        effects = pd.DataFrame(
            {"metric": metric, "value": value, "control": end, "control_std": control.std, "z": z}, index=rows.index
        )
        if kind is not None:
            found[kind] = effects[(sign * distance > size) & (sign * z > z_limit(rows, metric, draws))]
    return found


def _low_rank(rows):
    value = column(rows, "effective_rank_change")
    shapes = zip(rows.get("rows", ()), rows.get("cols", ()), strict=True)
    random = pd.Series([random_effective_rank(*shape) for shape in shapes] or math.nan, rows.index, dtype=float)
    low = value < THRESHOLDS["low_rank"] * random
    low &= value < column(rows, "effective_rank_base") / 2  # or it is the base that is of low rank
    effects = pd.DataFrame({"metric": "effective_rank_change", "value": value, "control": random}, index=rows.index)
    return effects.assign(control_std=math.nan, z=math.nan)[low]


def _one_factor(rows):
    """True where one factor for all singular values makes more of their change than what differs between them."""
    by_one = ((column(rows, "alpha") - 1) / column(rows, "drift")) ** 2  # share of the change
    scaled = (column(rows, "alpha") - 1).abs() > THRESHOLDS["alpha"]
    return scaled & ~(by_one < column(rows, "budget_scaling") / 2)


def _much_of_the_change(rows):
    """False where the two rotations differ much, but both are a small part of the change."""
    differ = (column(rows, "budget_coordinated") - column(rows, "budget_discordant")).abs()
    by_chance = column(rows, "budget_coordinated_null") + column(rows, "budget_discordant_null")
    return ~(differ < THRESHOLDS["coordination"] * by_chance)


def _drop(found, kinds, *, where):
    """Drops the effects of these kinds of the matrices that have one of the others."""
    others = {row for kind in where for row in found[kind].index}
    for kind in kinds:
        found[kind] = found[kind][~found[kind].index.isin(others)]


def _unjudged(frame, metric):
    if metric == "effective_rank_change":
        return column(frame, metric).isna()
    return column(frame, metric).isna() | control_of(frame, metric).std.isna()
