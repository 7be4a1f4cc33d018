"""The reading: what happened, in a few plain sentences that follow from the numbers and the stated thresholds."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import pandas as pd

from polarax.findings.answers import Answer, answers
from polarax.findings.coverage import not_compared
from polarax.findings.effects import (
    DEVIATIONS,
    kinds,
    lacking_control,
    may_be_told,
    mostly_rounding,
    rows_that_count,
    without_control,
    z_limit_of_draws,
)
from polarax.findings.first_look import read_first_look
from polarax.findings.mechanical import Found, tell_apart
from polarax.findings.signature import FEWEST_LAYERS, Signature, output_signature
from polarax.findings.strangers import NO_LAYERS, read_strangers
from polarax.findings.words import at_start, by_role, listed, matrices, percent, plain, possessive, share_of
from polarax.metrics import Effect, metric_of
from polarax.metrics.change import MOSTLY_ROUNDING
from polarax.metrics.look import is_first
from polarax.metrics.status import is_changed
from polarax.metrics.tables import column

_NAMED = 3  # matrices of one kind that are named one by one; more are counted by role


class Reading(NamedTuple):
    """What is said of a table of matrices."""

    lacking: tuple[str, ...]  # what was not compared, if it is much
    answers: tuple[Answer, ...]  # how much, where, and whether it is more than chance
    details: tuple[str, ...]
    thresholds: tuple[str, ...]  # what it rests on

    @property
    def sentences(self) -> list[str]:
        """All of it, in this order."""
        return [*self.lacking, *(answer.sentence for answer in self.answers), *self.details, *self.thresholds]


def read_frame(
    frame: pd.DataFrame,
    draws: int = 0,
    layers: Mapping[str, Any] = NO_LAYERS,
    coverage: Mapping[str, Any] | None = None,
    top_k: int = 0,
    found: Found | None = None,
) -> Reading:
    """Plain sentences on a table of matrices.

    Args:
        frame: `Run.frame()`; groups that were not measured are passed over.
        draws: How many draws the sampled controls are made of, if the frame has any.
        layers: `Run.moved_layers()`.
        coverage: How much of either model was compared, as run.json has it.
        top_k: Leading singular values that a first look was asked for; 0 if that is not known.
        found: What stands out of the frame, if that is known already.

    Returns:
        The details are: what a first look measured and what of it did not converge; what is not the base, trained; what
        known mechanical effects explain; the output projections against the other roles; every kind of effect; what
        could not be judged; rows that say little. Nothing for an empty table.
    """
    if frame.empty:
        return Reading((), (), (), ())
    found = tell_apart(frame, draws) if found is None else found
    answered = tuple(answers(frame, found))
    effects = found.effects
    details = (
        *read_first_look(frame, top_k),
        *read_strangers(frame, layers),
        *(explanation.sentence for explanation in found.explained),
        *_signature(output_signature(frame, draws)),
        *(sentence for kind in kinds() for sentence in _effect(kind, effects[effects["kind"] == kind], frame)),
        *_unjudged(frame),
        *_flagged(frame),
    )
    lacking = not_compared(coverage)
    said = bool(answered or details or lacking)
    return Reading((lacking,) if lacking else (), answered, details, (_thresholds(draws, frame),) if said else ())


def _signature(signature: Signature | None) -> Iterator[str]:
    if signature is None:
        return
    over = f"{signature.layers} layer{'s' if signature.layers > 1 else ''}"
    spread, chance = percent(signature.spread), percent(signature.control_std)
    if signature.distinct:
        side = "above" if signature.difference > 0 else "below"
        yield (
            f"o: scaled {percent(abs(signature.difference))} {side} the other roles of the same layers, "
            f"{abs(signature.z):.0f} standard deviations of the control (0 ± {chance}); spread {spread} over {over}."
        )
        return
    few = "" if signature.layers >= FEWEST_LAYERS else ", too few to judge"
    yield (
        f"o against the other roles: no distinct scaling (alpha {percent(signature.difference, '+')}, control 0 ± "
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
            label = possessive(frame.loc[row.row])
            yield f"{at_start(label)}: {said.phrase} ({effect.numbers} {_beside_control(row)})."
        return
    judged = frame[rows_that_count(frame)]
    farthest = effects.iloc[0]
    median = _told(effect, effects["value"].median())
    yield (
        f"{by_role(frame.loc[effects['row']], judged, whole='all ')}: {said.phrase} "
        f"({effect.numbers} {median} in the median; farthest {possessive(frame.loc[farthest['row']])}, "
        f"{_beside_control(farthest)})."
    )


def _unjudged(frame):
    rough = without_control(frame)
    if rough.any():
        yield (
            f"{listed(lacking_control(frame))} can't be judged in {matrices(int(rough.sum()))} "
            f"({by_role(frame[rough])}): condition number times drift passes 1, where its first-order control does not "
            "hold, and none was sampled."
        )


def _flagged(frame):
    """Rows that nothing is claimed of."""
    changed = is_changed(frame)
    rounded = changed & mostly_rounding(frame)
    if rounded.any():
        yield (
            f"{by_role(frame[rounded], frame[changed])}: mostly storage rounding, and nothing else is "
            f"claimed, in {share_of(int(rounded.sum()), int(changed.sum()))}."
        )
    if "rounding_share" in frame:
        quantised = changed & column(frame, "rounding_share").isna()
        if quantised.any():
            which, count = by_role(frame[quantised], frame[changed]), share_of(int(quantised.sum()), int(changed.sum()))
            yield (
                f"{which}: stored quantised ({_types(frame[quantised])}) in {count}: how much of the change is "
                "quantisation is unknown."
            )


def _types(rows):
    """The stored types, such as "q4_0", or "float32 to q4_0" where base and post differ."""
    pairs = dict.fromkeys(zip(rows["dtype_base"], rows["dtype_post"], strict=True))
    return ", ".join(base if base == post else f"{base} to {post}" for base, post in pairs)


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
    record = metric_of(effect.metric)
    assert record.effect is not None
    value, control = (_told(record.effect, number) for number in (effect.value, effect.control))
    if pd.isna(effect.control_std):
        return f"{value}, of a random change {control}"
    return f"{value}, by chance {control} ± {_deviation(record.effect, effect.control_std)}"


def _told(effect: Effect, value: float) -> str:
    """A value in the unit of its effect."""
    number = value - effect.origin
    text = effect.format.format(number)
    if not text.strip("+-0.%"):  # a zero has no sign and no decimals, and what rounds to it is written finer
        sign = "+" if "+" in effect.format else ""
        return "0" if number == 0 else percent(number, sign) if text.endswith("%") else f"{plain(number)}"
    return f"{text.rstrip('%').rstrip('0').rstrip('.')}%" if text.endswith("%") and "." in text else text


def _deviation(effect: Effect, std: float) -> str:
    return percent(std) if effect.format.endswith("%}") else plain(std)
