"""What polarax says of a batch of trials: they are compared as a user's checkpoints are, and its judgement is counted.

The numbers of several batches of one kind add up (`merged`).
"""

import math
from collections.abc import Collection, Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd

import polarax
from benchmarks.judging.noise import Trial
from polarax.findings.effects import chance_of, find_effects, may_be_told, rows_that_count
from polarax.findings.mechanical import tell_apart
from polarax.metrics import every_metric
from polarax.metrics.catalogue import DEVIATIONS
from polarax.metrics.relation import has_relation
from polarax.metrics.status import is_changed, is_out_of_range
from polarax.metrics.tables import column, null_of

# Roles in which trials are laid out, so that what is said of roles and layers is judged as well.
_MODULES = (
    "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
    "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj",
)  # fmt: skip
# Of what was named, so many are written down with their numbers.
_MOST_ALARMS = 20


def judge(trials: Sequence[Trial], expected: Collection[str] = ()) -> dict[str, Any]:
    """Compares a batch as two checkpoints in memory, and counts what is named.

    Args:
        trials: One matrix each.
        expected: Kinds of effects that are so.

    Returns:
        matrices, judged: How many.
        named: Kind of effect -> matrices.
        wrongly: Matrices that are named for a kind that was not expected.
        relations: What posts are said to be but the base, trained -> matrices.
        signature: Whether output projections are said to be scaled distinctly.
        z: Metric -> sums of its distances from its control, in the control's standard deviations.
        beyond: The same of how far it is outside of what the reading takes for chance.
        alarms: What was named wrongly, the farthest first, with the numbers behind it.
        reading: Its sentences.
    """
    frame, run = _compared(trials)
    effects = tell_apart(frame).effects  # without those that weight decay, say, explains
    summary = run.summary()
    counts = rows_that_count(frame)
    alarms = effects[~effects["kind"].isin(expected)]
    alarms = alarms.loc[alarms["z"].abs().sort_values(ascending=False, kind="stable").index]
    related = frame.loc[is_changed(frame) & has_relation(frame), "relation"]
    return {
        "matrices": len(frame),
        "judged": int(counts.sum()),
        "named": {kind: int(rows["row"].nunique()) for kind, rows in effects.groupby("kind")},
        "wrongly": int(alarms["row"].nunique()),
        "relations": {name: int(count) for name, count in related.value_counts().items()},
        "signature": int(bool((summary["signature"] or {}).get("distinct"))),
        "z": {name: _sums(values) for name, values in _distances(frame[counts]) if len(values)},
        "beyond": {name: _sums(values) for name, values in _beyond(frame[counts]) if len(values)},
        "alarms": [
            {"about": trials[alarm.row].about, **_plain(alarm._asdict()), **_facts(frame.loc[alarm.row])}
            for alarm in alarms.itertuples(index=False)
        ][:_MOST_ALARMS],
        "reading": summary["reading"],
    }


def named(trials: Sequence[Trial]) -> list[set[str]]:
    """The kinds of effects that each matrix of a batch is named for."""
    frame, _ = _compared(trials)
    effects = find_effects(frame)
    return [set(effects.loc[effects["row"] == index, "kind"]) for index in range(len(trials))]


def _compared(trials):
    """The table of a comparison with its rows labelled by trial, and the run."""
    names = [f"model.layers.{i // len(_MODULES)}.{_MODULES[i % len(_MODULES)]}.weight" for i in range(len(trials))]
    sides = ({name: trial[side] for name, trial in zip(names, trials, strict=True)} for side in (0, 1))
    run = polarax.compare(*sides, progress=False)
    places = {name: index for index, name in enumerate(names)}
    frame = run.frame()
    frame.index = pd.Index([places[name] for name in frame["name"]])
    return frame, run


def merged(batches: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """The counts and sums of several batches as if they had been one; of the alarms the first ones."""
    total: dict[str, Any] = {}
    for batch in batches:
        for field in ("matrices", "judged", "wrongly", "signature"):
            total[field] = total.get(field, 0) + batch[field]
        for field in ("named", "relations"):
            counts = total.setdefault(field, {})
            for name, count in batch[field].items():
                counts[name] = counts.get(name, 0) + count
        for field in ("z", "beyond"):
            sums = total.setdefault(field, {})
            for name, added in batch[field].items():
                sums[name] = _added(sums[name], added) if name in sums else added
        total["alarms"] = [*total.get("alarms", []), *batch["alarms"]][:_MOST_ALARMS]
    return total


def spread(sums: dict[str, float]) -> tuple[float, float]:
    """Mean and population standard deviation of what was summed."""
    mean = sums["sum"] / sums["count"]
    return mean, math.sqrt(max(sums["squares"] / sums["count"] - mean**2, 0.0))


def _distances(frame):
    """Each metric with a control that has a deviation, and its distances from it where that control holds."""
    for metric in every_metric():
        if metric.null_std is not None and metric.name in frame:
            std = column(frame, metric.null_std)
            if metric.control.limited:
                std = std.where(~is_out_of_range(frame))
            yield metric.name, _finite((column(frame, metric.name) - null_of(frame, metric)) / std.where(std > 0))


def _beyond(frame):
    """Each metric that effects are told by in deviations, and how far it is outside of what chance gives."""
    for metric in may_be_told(frame):
        if metric.effect.by_deviations and metric.name in frame:
            chance, value = chance_of(frame, metric.name), column(frame, metric.name)
            outside = (value - chance.high).clip(lower=0) - (chance.low - value).clip(lower=0)
            yield metric.name, _finite(outside / chance.std.where(chance.std > 0))


def _finite(values):
    values = values.to_numpy(float)
    return values[np.isfinite(values)]


def _sums(values):
    sizes = np.abs(values)
    return {
        "count": len(values),
        "far": int((sizes > DEVIATIONS).sum()),
        "sum": float(values.sum()),
        "squares": float(values @ values),
        "largest": float(sizes.max()),
    }


def _added(first, second):
    return {name: max(first[name], second[name]) if name == "largest" else first[name] + second[name] for name in first}


def _plain(fields):
    return {name: value.item() if isinstance(value, np.generic) else value for name, value in fields.items()}


def _facts(row):
    """What an alarm is diagnosed by."""
    wanted = ("rows", "cols", "drift", "rounding_share", "stable_rank_change", "effective_rank_change", "control_reach")
    return {name: float(row[name]) for name in wanted if name in row}
