"""How much of either model was compared, in words: the lines that come before every table, and the first sentence."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

# Below this share of either model's weights a reading says first what was not compared.
MOSTLY = 0.9
# Where less than this share of the weights is left out, and for few reasons, one line says all.
_LITTLE = 0.01
_FEW = 2
# Kinds of reason for tensors of which nothing can be missed: another one stands for them, or they are the base's own.
_NOTHING_MISSED = ("tied", "not adapted")
_SIDES = ("base", "post")

Lines = tuple[str, ...]


def account(coverage: Mapping[str, Any] | None, *, verb: str = "Compared") -> Lines:
    """What was compared and what happened to the rest, a line for each reason; one line where all is well.

    Args:
        coverage: What run.json says under "coverage"; None of a run that was written without.
        verb: What is, or is to be, done with the tensors.
    """
    if not coverage:
        return ()
    base, post = (coverage[side] for side in _SIDES)
    counts = [
        (side["compared_tensors"], side["tensors"], _share(side["compared_weights"], side["weights"]))
        for side in (base, post)
    ]
    if counts[0] == counts[1]:
        done, all_, share = counts[0]
        first = f"{verb}: {done} of {_tensors(all_)}, {share} of the weights of either side"
    else:
        (done, all_, share), (done_post, all_post, share_post) = counts
        first = (
            f"{verb}: {done} of {_tensors(all_)} of the base, {share} of its weights; "
            f"{done_post} of {all_post} of the post, {share_post} of its weights"
        )
    kinds = list(dict.fromkeys([*base["left_out"], *post["left_out"]]))
    kinds.sort(key=lambda kind: -max(_part(side, kind) for side in (base, post)))
    remarks = [*_layers(base, post), *_ways(coverage["matched_by"]), *coverage["notes"]]
    if not kinds:
        return (f"{first}.", *remarks)
    if len(kinds) <= _FEW and all(sum(_part(side, kind) for kind in kinds) < _LITTLE for side in (base, post)):
        rest = ", ".join(f"{_counts(base, post, kind)} x {kind}" for kind in kinds)
        return (f"{first}; the rest: {rest}.", *remarks)
    return (f"{first}.", *(f"  not compared: {_of_kind(base, post, kind)}" for kind in kinds), *remarks)


def not_compared(coverage: Mapping[str, Any] | None) -> str:
    """The sentence that a reading begins with where much of either model was not compared; "" where most was."""
    if not coverage:
        return ""
    lacking = {side: _lacking(coverage[side]) for side in _SIDES}
    sides = [side for side in _SIDES if lacking[side] > 1 - MOSTLY]
    if not sides:
        return ""
    parts = [f"{_percent(lacking[side])} of the {side}'s weights" for side in sides]
    reasons = dict.fromkeys(kind for side in sides for kind in _reasons(coverage[side]))
    return f"{' and '.join(parts)} were not compared ({'; '.join(reasons)})."


def accounts(coverages: Mapping[str, Mapping[str, Any] | None], *, heading: str = "", verb: str = "Compared") -> Lines:
    """The account of several posts: once for those of which it is the same.

    Args:
        coverages: By the label of the post, or by step.
        heading: "step" of steps, which are named with it.
        verb: As for `account`.
    """
    return tuple(_grouped({label: account(coverage, verb=verb) for label, coverage in coverages.items()}, heading))


def not_compared_of_steps(coverages: Mapping[str, Mapping[str, Any] | None]) -> list[str]:
    """`not_compared` of the steps of a history: once for those of which it is the same."""
    sentences = {step: not_compared(coverage) for step, coverage in coverages.items()}
    return list(_grouped({step: (sentence,) if sentence else () for step, sentence in sentences.items()}, "step"))


def _grouped(lines_of: Mapping[str, Sequence[str]], heading: str) -> Iterator[str]:
    groups: dict[tuple[str, ...], list[str]] = {}
    for label, lines in lines_of.items():
        groups.setdefault(tuple(lines), []).append(label)
    for lines, labels in groups.items():
        if len(groups) == 1:
            yield from lines
        elif lines:
            yield f"{_named(labels, heading)}: {lines[0]}"
            yield from (f"  {line}" for line in lines[1:])


def _named(labels, heading):
    if not heading:
        return ", ".join(labels)
    if len(labels) == 1:
        return f"{heading.capitalize()} {labels[0]}"
    return f"{len(labels)} {heading}s from {labels[0]} to {labels[-1]}"


def _lacking(side: Mapping[str, Any]) -> float:
    """The share of the weights of which something may have been missed."""
    if not side["weights"]:
        return 0.0
    nothing_missed = sum(rest["weights"] for kind, rest in side["left_out"].items() if kind in _NOTHING_MISSED)
    return 1 - (side["compared_weights"] + nothing_missed) / side["weights"]


def _reasons(side: Mapping[str, Any]) -> Iterable[str]:
    """The kinds of reason that most of what is lacking goes to."""
    kinds = [kind for kind in side["left_out"] if kind not in _NOTHING_MISSED and _part(side, kind) >= _LITTLE]
    return sorted(kinds, key=lambda kind: -_part(side, kind))


def _part(side: Mapping[str, Any], kind: str) -> float:
    rest = side["left_out"].get(kind)
    return rest["weights"] / side["weights"] if rest and side["weights"] else 0.0


def _counts(base, post, kind):
    """How many tensors a kind of reason holds for: one number where that is all."""
    counts = [side["left_out"].get(kind, {}).get("tensors", 0) for side in (base, post)]
    return " and ".join(dict.fromkeys(str(count) for count in counts if count)) or "0"


def _of_kind(base: Mapping[str, Any], post: Mapping[str, Any], kind: str) -> str:
    there = {
        name: (side["left_out"][kind], side)
        for name, side in zip(_SIDES, (base, post), strict=True)
        if kind in side["left_out"]
    }
    counts = {name: (rest["tensors"], _share(rest["weights"], side["weights"])) for name, (rest, side) in there.items()}
    if len(counts) == 2 and counts["base"] == counts["post"]:
        tensors, share = counts["base"]
        return f"{kind}: {_tensors(tensors)}, {share} of either side"
    texts = [f"{_tensors(tensors)}, {share} of the {name}" for name, (tensors, share) in counts.items()]
    return f"{kind}: {'; '.join(texts)}"


def _layers(base: Mapping[str, Any], post: Mapping[str, Any]) -> Iterator[str]:
    layers, layers_post = base["layers"], post["layers"]
    if layers and layers_post and layers != layers_post:
        yield f"The base has {_counted(layers, 'layer')}, the post {layers_post}."


def _ways(matched_by: Mapping[str, int]) -> Iterator[str]:
    """How matrices were matched that have other names on the other side."""
    others = [f"{_counted(count, 'matrix', 'matrices')} by {way}" for way, count in matched_by.items() if way != "name"]
    if others:
        yield f"Matched under other names: {', '.join(others)}."


def _counted(count: int, what: str, several: str = "") -> str:
    return f"{count} {what if count == 1 else several or what + 's'}"


def _tensors(count: int) -> str:
    return _counted(count, "tensor")


def _share(part: int, whole: int) -> str:
    return _percent(part / whole if whole else 0.0)


def _percent(share: float) -> str:
    """Never 0% of something, nor 100% of less than all."""
    if share in (0, 1):
        return f"{share:.0%}"
    if share < 0.001:
        return "under 0.1%"
    return f"{min(share, 0.999):.1%}"
