"""The reading: what happened, in a few plain sentences that follow from the numbers and the stated thresholds."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import pandas as pd

from polarax.findings.coverage import not_compared
from polarax.findings.effects import (
    DEVIATIONS,
    could_be_judged_by,
    find_effects,
    judged_by,
    kinds,
    may_be_told,
    metrics_of_first_order,
    mostly_rounding,
    rows_that_count,
    without_control,
    z_limit_of_draws,
)
from polarax.findings.first_look import read_first_look
from polarax.findings.signature import FEWEST_LAYERS, Signature, output_signature
from polarax.findings.strangers import NO_LAYERS, read_strangers
from polarax.loaders import ROLES, short_name
from polarax.metrics import Effect, metric_of
from polarax.metrics.change import MOSTLY_ROUNDING
from polarax.metrics.look import is_first
from polarax.metrics.status import Status, is_changed, is_meaningless, status_labels
from polarax.metrics.tables import column

_NAMED = 3  # matrices of one kind that are named one by one; more are counted by role


def read_frame(
    frame: pd.DataFrame,
    draws: int = 0,
    layers: Mapping[str, Any] = NO_LAYERS,
    coverage: Mapping[str, Any] | None = None,
    top_k: int = 0,
) -> list[str]:
    """Plain sentences on a table of matrices.

    Args:
        frame: `Run.frame()`; groups that were not measured are passed over.
        draws: How many draws the sampled controls are made of, if the frame has any.
        layers: `Run.moved_layers()`.
        coverage: How much of either model was compared, as run.json has it.
        top_k: Leading singular values that a first look was asked for; 0 if that is not known.

    Returns:
        What was not compared, if it is much; what a first look measured and what of it did not converge; what is not
        the base, trained; where there is no more than drift; the output projections against the other roles; every kind
        of effect; what could not be judged; rows that say little; and the thresholds behind it.
        Nothing for an empty table.
    """
    effects = find_effects(frame, draws)
    signature = output_signature(frame, draws)
    sentences = [
        *read_first_look(frame, top_k, lambda rows: _by_role(rows, frame, whole="")),
        *read_strangers(frame, layers, _possessive, lambda rows, among: _by_role(rows, among, whole="")),
        *_quiet(frame, effects),
        *_signature(signature),
        *(sentence for kind in kinds() for sentence in _effect(kind, effects[effects["kind"] == kind], frame)),
        *_unjudged(frame),
        *_flagged(frame),
    ]
    lacking = not_compared(coverage)
    if lacking and len(frame):
        sentences.insert(0, lacking)
    return [*sentences, _thresholds(draws, frame)] if sentences else []


def _quiet(frame, effects):
    """Where nothing exceeds what a random change shows."""
    metrics = judged_by(frame)
    judged = frame[rows_that_count(frame)]
    if judged.empty or not metrics:
        return
    quiet = judged[~judged.index.isin(effects["row"])]
    if quiet.empty:
        return
    limits = []
    if not set(could_be_judged_by(frame)) <= set(metrics):
        limits.append(f"by {_listed(metrics)}")
    if without_control(quiet).any():
        limits.append("as far as it can be judged")
    yield (
        f"{_by_role(quiet, judged, whole='')}: no more than drift in {_share(len(quiet), len(judged))}"
        f"{''.join(f', {limit}' for limit in limits)}."
    )


def _signature(signature: Signature | None) -> Iterator[str]:
    if signature is None:
        return
    over = f"{signature.layers} layer{'s' if signature.layers > 1 else ''}"
    spread, chance = _percent(signature.spread), _percent(signature.control_std)
    if signature.distinct:
        side = "above" if signature.difference > 0 else "below"
        yield (
            f"o: scaled {_percent(abs(signature.difference))} {side} the other roles of the same layers, "
            f"{abs(signature.z):.0f} standard deviations of the control (0 ± {chance}); spread {spread} over {over}."
        )
        return
    few = "" if signature.layers >= FEWEST_LAYERS else ", too few to judge"
    yield (
        f"o against the other roles: no distinct scaling (alpha {_percent(signature.difference, '+')}, control 0 ± "
        f"{chance}; spread {spread} over {over}{few})."
    )


def _effect(kind, effects, frame):
    """Sentences on one kind of effect: matrix by matrix if they are few, else by role."""
    if effects.empty:
        return
    said, metric = kinds()[kind]
    effect = metric.effect
    assert effect is not None
    if len(effects) <= _NAMED:
        for row in effects.itertuples():
            label = _possessive(frame.loc[row.row])
            yield f"{label.replace('layer ', 'Layer ', 1)}: {said.phrase} ({effect.numbers} {_beside_control(row)})."
        return
    judged = frame[rows_that_count(frame)]
    farthest = effects.iloc[0]
    median = effect.format.format(effects["value"].median())
    yield (
        f"{_by_role(frame.loc[effects['row']], judged, whole='all ')}: {said.phrase} "
        f"({effect.numbers} {median} in the median; farthest {_possessive(frame.loc[farthest['row']])}, "
        f"{_beside_control(farthest)})."
    )


def _unjudged(frame):
    rough = without_control(frame)
    if rough.any():
        metrics = _listed([metric.name for metric in metrics_of_first_order() if metric.name in frame])
        yield (
            f"{metrics} can't be judged in {_matrices(int(rough.sum()))} "
            f"({_by_role(frame[rough], frame[rough], whole='')}): condition number times drift passes 1, where its "
            "closed-form control does not hold, and none was sampled."
        )


def _flagged(frame):
    """Rows that nothing is claimed of."""
    changed = is_changed(frame)
    rounded = changed & mostly_rounding(frame)
    if rounded.any():
        yield (
            f"{_by_role(frame[rounded], frame[changed], whole='')}: mostly storage rounding, and nothing else is "
            f"claimed, in {_share(int(rounded.sum()), int(changed.sum()))}."
        )
    notes = []
    if unchanged := int((status_labels(frame) == Status.UNCHANGED.label).sum()):
        notes.append(f"{_matrices(unchanged)} did not change at all")
    broken = int(is_meaningless(frame).sum())
    if broken:
        notes.append(f"{_matrices(broken)} could not be read (zero, NaN or Inf)")
    if "rounding_share" in frame:
        unknown = int((changed & column(frame, "rounding_share").isna()).sum())
        if unknown:
            notes.append(f"how much of the change is quantisation is unknown in {_matrices(unknown)}")
    if notes:
        compared = "matrix" if len(frame) == 1 else f"{len(frame)} matrices"
        yield f"Of the {compared} compared: {'; '.join(notes)}."


def _thresholds(draws, frame):
    sampled = f" ({z_limit_of_draws(draws):.3g} where it was sampled, for {draws} draws)" if draws else ""
    told = [metric for metric in may_be_told(frame) if metric.name in frame or not is_first(frame).all()]
    effects = [metric.effect for metric in told if metric.effect is not None]
    beyond = _words(effect for effect in effects if effect.by_deviations)
    alone = _words(effect for effect in effects if not effect.by_deviations)
    return (
        f"Thresholds: {DEVIATIONS:g} standard deviations of the control{sampled}, and also {', '.join(beyond)}; "
        f"{'; '.join([*alone, f'rounding {MOSTLY_ROUNDING:g} of the change'])}."
    )


def _words(effects: Iterable[Effect]) -> list[str]:
    """What is said of their thresholds, once each: where the last one of them would be told."""
    return list(dict.fromkeys(effect.words for effect in reversed(list(effects))))[::-1]


def _beside_control(effect):
    metric = metric_of(effect.metric)
    assert metric.effect is not None
    form = metric.effect.format
    value, control = form.format(effect.value), form.format(effect.control)
    if metric.control is not None and metric.control.zero and effect.control == 0:
        control = "0"
    elif not control.strip("+-0.%"):
        control = control.lstrip("+-")  # a zero has no sign
    if pd.isna(effect.control_std):
        return f"{value}, of a random change {control}"
    std = f"{effect.control_std:.2g}" if "%" not in form else f"{effect.control_std:.1%}"
    return f"{value}, control {control} ± {std}"


def _by_role(rows, among, *, whole):
    """The roles of some rows, such as "q, k (5 of 6)", with how many of theirs where that is not all."""
    counts, totals = rows["role"].value_counts(), among["role"].value_counts()
    parts = [
        f"{role} ({counts[role]} of {totals[role]})" if counts[role] < totals[role] else f"{role}"
        for role in _in_order(counts.index)
    ]
    if whole and len(rows) == len(among):
        return f"{', '.join(parts)} ({whole}{len(rows)})"
    return ", ".join(parts)


def _in_order(roles: Iterable[str]) -> list[str]:
    return sorted(roles, key=lambda role: (ROLES.index(role) if role in ROLES else len(ROLES), role))


def _possessive(row):
    """The name of a matrix in a sentence: "layer 5's o", "embed", or its name where that is not enough."""
    if row["role"] == "other" or pd.isna(row["layer"]):
        return short_name(matrix_label(row))
    expert = "" if pd.isna(row["expert"]) else f" of expert {row['expert']}"
    return f"layer {row['layer']}'s {row['role']}{expert}"


def matrix_label(row: pd.Series) -> str:
    """The name of a matrix in a picture: "layer 5 o", or its name where that is not enough."""
    if row["role"] == "other":
        return row["name"]
    if pd.isna(row["layer"]):
        return row["role"]
    expert = "" if pd.isna(row["expert"]) else f" expert {row['expert']}"
    return f"layer {row['layer']} {row['role']}{expert}"


def _percent(share, sign=""):
    return f"{100 * share:{sign}.2g}%"


def _listed(words):
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def _share(part, whole):
    if whole == 1:
        return "the one matrix"
    return f"all {whole} matrices" if part == whole else f"{part} of {whole} matrices"


def _matrices(count):
    return "1 matrix" if count == 1 else f"{count} matrices"
