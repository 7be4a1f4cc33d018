"""How much of two checkpoints finds a partner: whether that is enough to go on, and what a run keeps of it.

A comparison of the few matrices that two checkpoints happen to share, of many that were trained, is a false result. So
it is refused where most of either has no partner, unless it is asked for.
"""

import math
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from polarax.errors import UsageError
from polarax.loaders import Checkpoint, CheckpointError, Coverage, LeftOut, Pair, Paired, SideCoverage, View, short_name
from polarax.loaders.pairing import nothing_in_common

# The share of either model's matrix weights that may be without a partner before a comparison is refused.
MOST_UNPAIRED = 0.5

NOT_SELECTED = "not selected"
_NOT_IN_BOTH = "not in both, or not compared with the base"
_ONLY_IN = "only in"  # begins the kind of reason of what has no partner
_NEAREST = 3  # names that an error lists
_REASONS = 3  # tensors that an error lists with the reason
_LONGEST_REASON = 200
_MUCH = 0.05  # of a side's weights: what is left out for another reason is then said, too
_FIRST_WORDS = re.compile(r"(?<!-D)[:(]")
_WHERE = "polarax plan --base=BASE --post=POST --names lists both sides"


def refusal(
    base: Checkpoint, post: Checkpoint, paired: Paired, *, label: str = "", allow_partial: bool = False
) -> CheckpointError | UsageError | None:
    """The error that says why two checkpoints are not to be compared; None if enough of both is paired.

    Args:
        base: The checkpoint before training.
        post: The checkpoint after it.
        paired: What is in both.
        label: Of the post, if there are several.
        allow_partial: Whether it is enough that something is paired.
    """
    coverage = paired.coverage
    sides = f"{base.location} and {post.location}"
    if not coverage.has_common:
        return CheckpointError(f"{nothing_in_common(base, post)}. {_WHERE}.")
    if not paired.pairs:
        examples_of = {_FIRST_WORDS.split(row.reason)[0]: row for row in reversed(paired.skipped)}
        rows = list(reversed(examples_of.values()))[:_REASONS]
        reasons = "; ".join(f"{short_name(row.name)}: {short_name(row.reason, _LONGEST_REASON)}" for row in rows)
        of_post = f" of {label}" if label else ""
        return UsageError(
            f"No matrix{of_post} can be compared. All {len(paired.skipped)} tensors are skipped: {reasons}. {_WHERE}."
        )
    shares = {"base": _unpaired(coverage.base), "post": _unpaired(coverage.post)}
    if allow_partial or max(shares.values()) <= MOST_UNPAIRED:
        return None
    largest = sorted(shares, key=lambda side: -shares[side])
    return CheckpointError(
        f"{sides} are paired too little: {shares[largest[0]]:.0%} of the {largest[0]}'s matrix weights and "
        f"{shares[largest[1]]:.0%} of the {largest[1]}'s have no partner on the other side.{_nearest(coverage)}"
        f"{_left_out(coverage)} {_WHERE}; --allow_partial compares what is paired."
    )


def _unpaired(side: SideCoverage) -> float:
    return side.unpaired_weights / side.matrix_weights if side.matrix_weights else 0.0


def _nearest(coverage: Coverage) -> str:
    if not coverage.nearest:
        return ""
    names = [
        f"{short_name(name)!r} of the base and {short_name(name_post)!r} of the post"
        for name, name_post in coverage.nearest[:_NEAREST]
    ]
    return f" Nearest names without one: {'; '.join(names)}."


def _left_out(coverage: Coverage) -> str:
    """What much is left out for that is there, such as quantised weights."""
    much = [
        f"{rest.weights / side.weights:.0%} of the {word} is left out: {kind}"
        for word, side in (("base", coverage.base), ("post", coverage.post))
        for kind, rest in side.left_out.items()
        if not kind.startswith(_ONLY_IN) and rest.weights >= _MUCH * side.weights > 0
    ]
    return f" {'; '.join(much)}." if much else ""


def after_selection(coverage: Coverage, pairs: Sequence[Pair], chosen: Sequence[Pair]) -> Coverage:
    """The coverage of those of the pairs that were chosen: the others are left out as not selected."""
    if len(chosen) == len(pairs):
        return coverage
    kept = {pair.name for pair in chosen}
    dropped = [pair for pair in pairs if pair.name not in kept]
    return coverage._replace(
        base=_without(coverage.base, chosen, dropped, lambda pair: pair.base),
        post=_without(coverage.post, chosen, dropped, lambda pair: pair.post),
        matched_by=Counter(pair.matched_by for pair in chosen),
    )


def _without(
    side: SideCoverage, chosen: Sequence[Pair], dropped: Sequence[Pair], view_of: Callable[[Pair], View]
) -> SideCoverage:
    tensors = {view_of(pair).tensor for pair in dropped} - {view_of(pair).tensor for pair in chosen}
    weights = sum(math.prod(view_of(pair).shape) for pair in dropped)
    return side._replace(
        compared_tensors=side.compared_tensors - len(tensors),
        compared_weights=side.compared_weights - weights,
        left_out={**side.left_out, NOT_SELECTED: LeftOut(len(tensors), weights)},
    )


def coverage_between(first: Coverage, second: Coverage, pairs: Sequence[Pair]) -> Coverage:
    """The coverage of two posts that are compared with each other in what both have of the base.

    Args:
        first: Of the base and the first post.
        second: Of the base and the second one.
        pairs: What is compared: the first post in place of the base.
    """
    return Coverage(
        base=_in_both(first.post, [pair.base for pair in pairs]),
        post=_in_both(second.post, [pair.post for pair in pairs]),
        matched_by=Counter(pair.matched_by for pair in pairs),
        notes=(),
        nearest=(),
        has_common=True,
    )


def _in_both(side: SideCoverage, views: Sequence[View]) -> SideCoverage:
    tensors, weights = len({view.tensor for view in views}), sum(math.prod(view.shape) for view in views)
    rest = LeftOut(side.tensors - tensors, side.weights - weights)
    return side._replace(
        compared_tensors=tensors,
        compared_weights=weights,
        left_out={_NOT_IN_BOTH: rest} if rest.tensors or rest.weights else {},
    )


def describe_coverage(coverage: Coverage, base: Checkpoint, post: Checkpoint) -> dict[str, Any]:
    """What run.json says of the coverage, with what is remarkable of either checkpoint; JSON-ready."""
    notes = [
        *(f"base: {note}" for note in base.notes),
        *(f"post: {note}" for note in post.notes if post is not base),
        *coverage.notes,
    ]
    return {
        "base": _describe_side(coverage.base),
        "post": _describe_side(coverage.post),
        "matched_by": dict(coverage.matched_by),
        "notes": notes,
    }


def _describe_side(side: SideCoverage) -> dict[str, Any]:
    left_out: Mapping[str, LeftOut] = side.left_out
    return {**side._asdict(), "left_out": {kind: rest._asdict() for kind, rest in left_out.items()}}
