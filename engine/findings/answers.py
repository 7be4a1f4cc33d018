"""The first three sentences of a reading: how much changed, where, and whether it is more than chance."""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np
import pandas as pd

from polarax.findings.effects import (
    could_be_judged_by,
    judged_by,
    kinds,
    mostly_rounding,
    rows_that_count,
    without_control,
)
from polarax.findings.mechanical import Found
from polarax.findings.words import in_order, listed, matrices, numbers, percent, plain, share_of
from polarax.loaders import short_name
from polarax.metrics.relation import has_relation
from polarax.metrics.status import Status, is_changed, is_meaningless, status_labels
from polarax.metrics.tables import column

HOW_MUCH, WHERE, MORE_THAN_CHANCE = "How much", "Where", "More than chance"

# Roles, layers and matrices are told apart where the most and the least differ by this factor.
_FACTOR = 2.0
# Those within this factor of the most, or of the least, are named beside it; and at most so many.
_CLOSE = 1.25
_NAMED = 3


class Answer(NamedTuple):
    """A question and what is said to it."""

    question: str
    text: str

    @property
    def sentence(self) -> str:
        """Both."""
        return f"{self.question}: {self.text}."


def answers_of(summaries: Mapping[str, Mapping]) -> list[str]:
    """The answers of several runs, question by question: "How much, sft: the weights moved by 3.1% ...".

    Args:
        summaries: Label -> `Run.summary()`.
    """
    return [
        Answer(f"{question}, {label}", summary["answers"][question]).sentence
        for question in (HOW_MUCH, WHERE, MORE_THAN_CHANCE)
        for label, summary in summaries.items()
        if question in summary["answers"]
    ]


def details_of(summary: Mapping) -> list[str]:
    """The sentences of a reading without its answers and thresholds.

    Args:
        summary: `Run.summary()`.
    """
    answered = {Answer(*answer).sentence for answer in summary["answers"].items()}
    return [sentence for sentence in summary["reading"][:-1] if sentence not in answered]


def moved(frame: pd.DataFrame) -> dict[str, float] | None:
    """median, low, high of drift and how many matrices, of those that changed and are the base, trained."""
    drift = _drift(frame)
    if drift.empty:
        return None
    return {"matrices": len(drift), "median": drift.median(), "low": drift.min(), "high": drift.max()}


def answers(frame: pd.DataFrame, found: Found) -> Iterator[Answer]:
    """What can be said to each question; nothing to those of which nothing was measured.

    Args:
        frame: `Run.frame()`.
        found: What stands out of it.
    """
    for question, answer in (
        (HOW_MUCH, how_much(frame)),
        (WHERE, where(frame)),
        (MORE_THAN_CHANCE, more_than_chance(frame, found)),
    ):
        if answer:
            yield Answer(question, answer)


def how_much(frame: pd.DataFrame) -> str:
    """The drift in the median, and how many matrices did not change, are no training of the base, or say nothing."""
    notes = list(_notes(frame))
    size = moved(frame)
    if size is None:
        return "; ".join(notes)
    low, median, high = (percent(size[name]) for name in ("low", "median", "high"))
    count = matrices(int(size["matrices"]))
    if low == high:
        return "; ".join(
            [f"the weights moved by {median} ({'in ' if size['matrices'] == 1 else 'in each of '}{count})", *notes]
        )
    return "; ".join([f"the weights moved by {median} in the median ({low} to {high} over {count})", *notes])


def _notes(frame):
    changed = is_changed(frame)
    if unchanged := int((status_labels(frame) == Status.UNCHANGED.label).sum()):
        if unchanged < len(frame):
            yield f"{matrices(unchanged)} did not change at all"
        elif unchanged == 1:
            yield "the one matrix did not change at all"
        else:
            yield f"none of {unchanged} matrices changed at all"
    if broken := int(is_meaningless(frame).sum()):
        yield f"{matrices(broken)} could not be read (zero, NaN or Inf)"
    if strange := int((changed & has_relation(frame)).sum()):
        yield f"{matrices(strange)} {'is' if strange == 1 else 'are'} not the base, trained"


def _drift(frame):
    rows = frame[is_changed(frame) & ~has_relation(frame)]
    drift = column(rows, "drift")
    return drift[np.isfinite(drift)]


def where(frame: pd.DataFrame) -> str:
    """Which roles and layers moved most and least, by the medians of drift; "alike" where no factor is between them."""
    drift = _drift(frame)
    rows = frame.loc[drift.index]
    if len(drift) < 2:
        return ""
    known = rows["role"] != "other"
    if not known.any():
        by_name = pd.Series(drift.to_numpy(), rows["name"].map(short_name))
        return _most_and_least(by_name) or f"alike in all {matrices(len(rows))} ({_within(by_name)})"
    of_role = drift.groupby(rows["role"]).median()
    of_role = of_role[in_order(of_role.index)]
    relative = drift / rows["role"].map(of_role)
    in_layers = rows["layer"].notna() & known & (drift > 0)
    of_layer = relative[in_layers].groupby(rows.loc[in_layers, "layer"].astype(int)).median()
    parts, alike = [], {}
    for name, values, said in (
        ("roles", of_role, _most_and_least(of_role)),
        ("layers", of_layer, _most_and_least_of_layers(of_layer)),
    ):
        if said:
            parts.append(said)
        elif len(values) > 1:
            alike[name] = values
    if alike:
        widest = max(alike.values(), key=lambda values: values.max() / values.min())
        parts.append(f"alike in all {' and '.join(alike)} ({_within(widest)})")
    return "; ".join(parts)


def _most_and_least(values):
    """The names with the most and the least, each with its size; "" where these are close."""
    if len(values) < 2 or not _differ(values):
        return ""
    values = values.sort_values(ascending=False, kind="stable")
    most = values[values * _CLOSE >= values.iloc[0]][:_NAMED]
    least = values[values <= _CLOSE * values.iloc[-1]][::-1][:_NAMED]
    named = (listed([f"{name} ({percent(value)})" for name, value in some.items()]) for some in (most, least))
    return "most in {}, least in {}".format(*named)


def _most_and_least_of_layers(values):
    """The layers that moved most and least, as multiples of what is usual; "" where these are close."""
    if len(values) < 2 or not _differ(values):
        return ""
    sides = {"most": values[values * _CLOSE >= values.max()], "least": values[values <= _CLOSE * values.min()]}
    usual = [_CLOSE * value > 1 > value / _CLOSE for value in (values.max(), values.min())]
    told = [
        f"{which} in {numbers(some.index, 'layer')} ({plain(some.median())} times the median of their roles)"
        for (which, some), is_usual in zip(sides.items(), usual, strict=True)
        if not is_usual
    ]
    return ", ".join(told)


def _differ(values):
    return values.max() > _FACTOR * values.min()


def _within(values):
    return f"within a factor of {plain(np.ceil(10 * values.max() / values.min()) / 10)}"


def more_than_chance(frame: pd.DataFrame, found: Found) -> str:
    """How many matrices show more than a random change would, of what kinds, and what known effects explain of that."""
    metrics, judged = judged_by(frame), frame[rows_that_count(frame)]
    if judged.empty or not metrics:
        only_rounding = is_changed(frame) & mostly_rounding(frame)
        return "that can't be told from storage rounding" if judged.empty and only_rounding.any() else ""
    named = set(found.effects["row"])
    standing = named | found.rows_explained
    limits = []
    if not set(could_be_judged_by(frame)) <= set(metrics):
        limits.append(f"judged by {listed(metrics)}")
    if without_control(judged[~judged.index.isin(standing)]).any():
        limits.append("as far as it can be judged")
    limit = "".join(f", {limit}" for limit in limits)
    than = "more than a random change of the same size and spectrum would"
    if not standing:
        who = "the one matrix does not show" if len(judged) == 1 else f"none of {len(judged)} matrices shows"
        return f"no, {who} {than}{limit}"
    if not named:
        causes = listed([one.name for one in found.explained])
        return f"only what {causes} explains, in {share_of(len(standing), len(judged))}{limit}"
    counts = found.effects["kind"].value_counts()
    told = ", ".join(f"{kind} {counts[kind]}" for kind in kinds() if kind in counts)
    explained = "".join(
        f"; {one.name} explains what else there is in {matrices(len(one.rows))}" for one in found.explained
    )
    verb = "shows" if len(named) == 1 else "show"
    return f"yes, {share_of(len(named), len(judged))} {verb} {than}{limit}: {told}{explained}"
