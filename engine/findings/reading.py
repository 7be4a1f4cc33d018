"""The reading: what happened, in a few plain sentences that follow from the numbers and the stated thresholds."""

from collections.abc import Iterable, Iterator

import pandas as pd

from polarax.findings.effects import (
    JUDGED,
    KINDS,
    THRESHOLDS,
    column,
    find_effects,
    judged_by,
    mostly_rounding,
    rows_that_count,
    without_control,
    z_limit_of_draws,
)
from polarax.findings.signature import FEWEST_LAYERS, Signature, output_signature
from polarax.loaders import ROLES
from polarax.metrics import status_kind

_NAMED = 3  # matrices of one kind that are named one by one; more are counted by role

# How the value of a metric is written.
_FORMATS = {
    "alpha": "{:.5g}",
    "coordination": "{:+.2f}",
    "budget_scaling": "{:.1%}",
    "budget_outside": "{:.1%}",
    "effective_rank_change": "{:.3g}",
    "nf": "{:.3g}",
}

# kind -> what is said of a matrix, and what the numbers behind it are.
PHRASES = {
    "scaled up": ("scaled up", "alpha"),
    "scaled down": ("scaled down", "alpha"),
    "uneven": ("singular values changed, each by a factor of its own", "share of the change"),
    "coordinated": ("coordinated", "coordination"),
    "discordant": ("discordant", "coordination"),
    "low rank": ("a change of low rank", "effective rank"),
    "outside": ("changed more outside the base's row or column space than by chance", "share"),
    "inside": ("changed less outside the base's row or column space than by chance", "share"),
    "turned apart": ("left and right vectors turned apart more than by chance", "nf"),
    "turned alike": ("left and right vectors turned apart less than by chance", "nf"),
}


def read_frame(frame: pd.DataFrame, draws: int = 0) -> list[str]:
    """Plain sentences on a table of matrices.

    Args:
        frame: `Run.frame()`; groups that were not measured are passed over.
        draws: How many draws the sampled controls are made of, if the frame has any.

    Returns:
        Where there is no more than drift; the output projections against the other roles; every kind of effect; what
        could not be judged; rows that say little; and the thresholds behind it. Nothing for an empty table.
    """
    effects = find_effects(frame, draws)
    signature = output_signature(frame, draws)
    sentences = [
        *_quiet(frame, effects),
        *_signature(signature),
        *(sentence for kind in KINDS for sentence in _effect(kind, effects[effects["kind"] == kind], frame)),
        *_unjudged(frame),
        *_flagged(frame),
    ]
    return [*sentences, _thresholds(draws)] if sentences else []


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
    if len(metrics) < len(JUDGED):
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
    phrase, numbers = PHRASES[kind]
    if len(effects) <= _NAMED:
        for effect in effects.itertuples():
            label = _possessive(frame.loc[effect.row])
            yield f"{label.replace('layer ', 'Layer ', 1)}: {phrase} ({numbers} {_beside_control(effect)})."
        return
    judged = frame[rows_that_count(frame)]
    farthest = effects.iloc[0]
    median = _FORMATS[farthest["metric"]].format(effects["value"].median())
    yield (
        f"{_by_role(frame.loc[effects['row']], judged, whole='all ')}: {phrase} ({numbers} {median} in the median; "
        f"farthest {_possessive(frame.loc[farthest['row']])}, {_beside_control(farthest)})."
    )


def _unjudged(frame):
    rough = without_control(frame)
    if rough.any():
        yield (
            f"nf can't be judged in {_matrices(int(rough.sum()))} ({_by_role(frame[rough], frame[rough], whole='')}): "
            "condition number times drift passes 1, where its closed-form control does not hold, and none was sampled."
        )


def _flagged(frame):
    """Rows that nothing is claimed of."""
    kinds = frame["status"].map(status_kind)
    changed = kinds.isin(["ok", "rank-deficient"])
    rounded = changed & mostly_rounding(frame)
    if rounded.any():
        yield (
            f"{_by_role(frame[rounded], frame[changed], whole='')}: mostly storage rounding, and nothing else is "
            f"claimed, in {_share(int(rounded.sum()), int(changed.sum()))}."
        )
    notes = []
    if (kinds == "unchanged").any():
        notes.append(f"{_matrices(int((kinds == 'unchanged').sum()))} did not change at all")
    broken = int(kinds.isin(["not finite", "zero"]).sum())
    if broken:
        notes.append(f"{_matrices(broken)} could not be read (zero, NaN or Inf)")
    if "rounding_share" in frame:
        unknown = int((changed & column(frame, "rounding_share").isna()).sum())
        if unknown:
            notes.append(f"how much of the change is quantisation is unknown in {_matrices(unknown)}")
    if notes:
        yield f"Of all {len(frame)} matrices: {'; '.join(notes)}."


def _thresholds(draws):
    size = THRESHOLDS
    sampled = f" ({z_limit_of_draws(draws):.3g} where it was sampled, for {draws} draws)" if draws else ""
    return (
        f"Thresholds: {size['z']:g} standard deviations of the control{sampled}, and also alpha {size['alpha']:.1%}, "
        f"coordination {size['coordination']:g}, shares of the change {100 * size['share']:g} points, nf a factor "
        f"{size['nf_factor']:g} from it; effective rank of the change {size['low_rank']:g} of a random one's; rounding "
        f"{size['rounding_share']:g} of the change."
    )


def _beside_control(effect):
    form = _FORMATS[effect.metric]
    value, control = form.format(effect.value), form.format(effect.control)
    if effect.metric == "coordination" and effect.control == 0:
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
    """How a matrix is called in a sentence: "layer 5's o", "embed", or its name where that is not enough."""
    if row["role"] == "other" or pd.isna(row["layer"]):
        return matrix_label(row)
    expert = "" if pd.isna(row["expert"]) else f" of expert {row['expert']}"
    return f"layer {row['layer']}'s {row['role']}{expert}"


def matrix_label(row: pd.Series) -> str:
    """How a matrix is called in a plot: "layer 5 o", or its name where that is not enough."""
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
