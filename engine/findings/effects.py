"""What stands out of a table of matrices: effects that are large, and far outside what a random change shows.

An effect needs both: a size that matters, and a distance from its control that chance does not reach among all the
matrices and metrics of a run. A trained change is far from isotropic: a few directions carry most of it, and what a
random change of that spectrum shows spreads more than what isotropic noise shows. So distances rest on the sampled
control of the change's own spectrum in random directions where there is one, and otherwise on the closed forms, whose
deviations know that spectrum or are widened for its stable rank (docs/definitions.md, "Model level"). What an effect
is stands with its metric in the catalogue.
"""

import functools
import math

import pandas as pd

from polarax.findings.first_look import is_known
from polarax.metrics import Chance, Effect, Kind, Metric, effects_told, metric_of
from polarax.metrics.catalogue import DEVIATIONS
from polarax.metrics.change import MOSTLY_ROUNDING
from polarax.metrics.look import is_first
from polarax.metrics.relation import has_relation
from polarax.metrics.status import is_changed
from polarax.metrics.tables import column, constant, is_sampled, mean_of, null_of, spread_of

_COLUMNS = ["row", "kind", "metric", "value", "control", "control_std", "z"]


def thresholds() -> dict[str, float]:
    """Name -> number, of all that a reading rests on."""
    sizes = {metric.effect.threshold: metric.effect.size for metric in effects_told() if metric.effect is not None}
    return {"z": DEVIATIONS, **sizes, "rounding_share": MOSTLY_ROUNDING}


def kinds() -> dict[str, tuple[Kind, Metric]]:
    """Name of a kind of effect -> it and its metric, in the order in which they are told."""
    return {
        kind.name: (kind, metric)
        for metric in effects_told()
        if metric.effect is not None
        for kind in (metric.effect.above, metric.effect.below)
        if kind is not None
    }


def rows_that_count(frame: pd.DataFrame) -> pd.Series:
    """True for the rows that are judged: changed, readable, not mostly the rounding of what they are stored in.

    And trained: of a post that is something else than the base, it is said what.
    """
    return is_changed(frame) & ~mostly_rounding(frame) & ~has_relation(frame)


def mostly_rounding(frame: pd.DataFrame) -> pd.Series:
    """True for the rows whose change is for more than half what rounding to the stored dtype makes by itself."""
    return column(frame, "rounding_share") > MOSTLY_ROUNDING


def chance_of(frame: pd.DataFrame, metric: str) -> Chance:
    """What a metric is judged by: random changes with the change's own spectrum, drawn or in closed form.

    Args:
        frame: `Run.frame()`, or some of its rows.
        metric: One that has effects.
    """
    record = metric_of(metric)
    if record.effect is not None and record.effect.chance is not None:
        return record.effect.chance(frame)
    mean = mean_of(frame, metric, null_of(frame, record))
    return Chance(mean, mean, spread_of(frame, metric, column(frame, record.null_std or "")))


def z_limit(frame: pd.DataFrame, metric: str, draws: int) -> pd.Series:
    """Standard deviations of its control that a metric must be away; more where they are estimated from few draws."""
    return constant(frame, DEVIATIONS).mask(is_sampled(frame, metric), z_limit_of_draws(draws))


@functools.cache
def z_limit_of_draws(draws: int) -> float:
    """The limit that keeps the false alarms of `DEVIATIONS` with a control sampled by this many draws.

    A distance over the population deviation of N draws is Student's t with N - 1 degrees of freedom times
    sqrt((N + 1) / (N - 1)).
    """
    if draws < 2:
        return math.inf
    from scipy import special  # not at the top: it takes a tenth of a second, and few runs have draws

    student = -special.stdtrit(draws - 1, special.ndtr(-DEVIATIONS))
    return float(student) * math.sqrt((draws + 1) / (draws - 1))


def find_effects(frame: pd.DataFrame, draws: int = 0) -> pd.DataFrame:
    """The effects that stand out, one row each; a matrix may have several.

    Args:
        frame: `Run.frame()`; what was not measured is not judged.
        draws: How many draws the sampled controls are made of, if the frame has any.

    Returns:
        Columns row (label in `frame`), kind (a name of `kinds`), metric, value, control (the nearer end), control_std,
        z; in the order of `kinds`, and within one the farthest from its control first.
    """
    rows = frame[rows_that_count(frame)]
    told = may_be_told(frame)
    by_metric = {metric.name: _effects(rows, metric, draws) for metric in told}
    named = {
        name: {row for effects in of_kind.values() for row in effects.index} for name, of_kind in by_metric.items()
    }
    ordered = []
    for metric in told:
        assert metric.effect is not None
        explained = set().union(*(named.get(other, set()) for other in metric.effect.unless))
        for kind, effects in by_metric[metric.name].items():
            effects = effects[~effects.index.isin(explained)]
            distance = (effects["value"] - effects["control"]).abs().sort_values(ascending=False, kind="stable")
            ordered.append(effects.loc[distance.index].assign(kind=kind).rename_axis("row").reset_index())
    ordered = [effects for effects in ordered if len(effects)]
    return pd.concat(ordered, ignore_index=True)[_COLUMNS] if ordered else pd.DataFrame(columns=_COLUMNS)


def judged_by(frame: pd.DataFrame) -> list[str]:
    """The metrics with effects that at least one of the rows has, with a control."""
    return [metric.name for metric in may_be_told(frame) if not _unjudged(frame, metric).all()]


def may_be_told(frame: pd.DataFrame) -> list[Metric]:
    """The metrics whose effects can be said of such rows.

    Some are of first looks alone, and some stand for another one, where the run does not have that.
    """
    first = bool(is_first(frame).any())
    return [
        metric
        for metric in effects_told()
        if metric.effect is not None and (first or not metric.effect.first_look) and metric.stands_for not in frame
    ]


def could_be_judged_by(frame: pd.DataFrame) -> list[str]:
    """The metrics that would be judged of such rows, if everything had been measured."""
    return [metric.name for metric in may_be_told(frame) if not metric.stands_for]


def without_control(frame: pd.DataFrame) -> pd.Series:
    """True for the rows that have a metric, of those judged, whose control does not hold for it."""
    lacking = constant(frame, 0.0) > 0
    for _, rows in _lacking(frame):
        lacking |= rows
    return lacking


def lacking_control(frame: pd.DataFrame) -> list[str]:
    """The metrics whose control does not hold for some rows that have them."""
    return [name for name, rows in _lacking(frame) if rows.any()]


def _lacking(frame):
    """(metric, True for the rows without its control), of those with effects that are of first order in some runs."""
    judged = rows_that_count(frame)
    for metric in may_be_told(frame):
        if metric.control is not None and metric.control.limited:
            yield metric.name, judged & column(frame, metric.name).notna() & _unjudged(frame, metric)


def sizes_of(effects: pd.DataFrame) -> list[float]:
    """How large each effect is over the size from which on it counts.

    Args:
        effects: What `find_effects` returned.
    """
    return [_size(row) for row in effects.itertuples()]


def _size(row):
    effect = metric_of(row.metric).effect
    assert effect is not None
    value, control = float(row.value), float(row.control)
    if effect.measure == "difference":
        return abs(value - control) / effect.size
    ratio = value / control if control else math.inf
    if effect.measure == "factor":
        return abs(math.log(ratio)) / math.log(effect.size) if 0 < ratio < math.inf else math.inf
    return effect.size / ratio if ratio else math.inf


def _effects(rows: pd.DataFrame, metric: Metric, draws: int) -> dict[str, pd.DataFrame]:
    """Name of a kind -> the rows that are beyond the control on its side."""
    effect, chance, value = metric.effect, chance_of(rows, metric.name), column(rows, metric.name)
    assert effect is not None
    can_be_said = is_known(rows, metric.name)
    if effect.first_look:
        can_be_said &= is_first(rows)
    if effect.where is not None:
        can_be_said &= effect.where(rows)
    effects = {}
    for kind, end, sign in ((effect.above, chance.high, 1), (effect.below, chance.low, -1)):
        if kind is None:
            continue
        z = (value - end) / chance.std.where(chance.std > 0)
        beyond = _beyond(effect, value, end, sign) & can_be_said
        if effect.by_deviations:
            beyond &= sign * z > z_limit(rows, metric.name, draws) * chance.tail
        table = {"metric": metric.name, "value": value, "control": end, "control_std": chance.std, "z": z}
        effects[kind.name] = pd.DataFrame(table, index=rows.index)[beyond]
    return effects


def _beyond(effect: Effect, value: pd.Series, end: pd.Series, sign: int) -> pd.Series:
    """Whether a metric is far enough above (sign 1) or below its control, in size."""
    if effect.measure == "difference":
        return sign * (value - end) > effect.size
    if effect.measure == "factor":
        return value / end > effect.size if sign > 0 else value / end < 1 / effect.size
    return value < effect.size * end


def _unjudged(frame: pd.DataFrame, metric: Metric) -> pd.Series:
    lacking, effect = column(frame, metric.name).isna(), metric.effect
    if effect is not None:
        for name in effect.needs:
            lacking |= column(frame, name).isna()
        if effect.by_deviations:
            lacking |= chance_of(frame, metric.name).std.isna()
    return lacking
