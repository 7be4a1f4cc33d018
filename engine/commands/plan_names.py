"""What `plan` says of names: which matrix is compared with which, how they were matched, and what is left out."""

import re
from collections import Counter
from collections.abc import Iterable, Iterator

from polarax.loaders import Pair, Skipped, short_name

_NUMBER = re.compile(r"(?<![A-Za-z0-9])[0-9]+(?![A-Za-z0-9])")
_NUMBER_IN_NAME = re.compile(r"(?<=[._/=])[0-9]+(?![A-Za-z0-9])")  # in a reason: neither "2-D" nor a shape
_MOST_PATTERNS = 40  # lines of each kind; --names has them all
_WIDEST = 72  # column of names that what follows is aligned to
_LONGEST_NAME = 300


def pair_patterns(pairs: Iterable[Pair]) -> Iterator[str]:
    """A line for all matrices whose names differ by numbers alone: the names of both sides, how many, matched how."""
    counts: Counter[tuple[str, str]] = Counter()
    for pair in pairs:
        name = _pattern(pair.name)
        other = name if pair.name_post == pair.name else _pattern(pair.name_post)
        counts[_both(name, other), pair.matched_by] += 1
    yield from _aligned(
        [(names, f"{count} {'matrix' if count == 1 else 'matrices'}, {way}") for (names, way), count in counts.items()]
    )


def skipped_patterns(skipped: Iterable[Skipped]) -> Iterator[str]:
    """A line for all tensors whose names and reasons differ by numbers alone."""
    counts = Counter((_pattern(row.name), short_name(_NUMBER_IN_NAME.sub("*", row.reason))) for row in skipped)
    yield from _aligned([(name, f"{count} x {reason}") for (name, reason), count in counts.items()])


def pair_line(pair: Pair) -> str:
    """The name of a matrix; with its partner's name where that differs, and how they were matched if not by name."""
    names = _both(short_name(pair.name, _LONGEST_NAME), short_name(pair.name_post, _LONGEST_NAME))
    return names if pair.matched_by == "name" else f"{names}  {pair.matched_by}"


def skipped_line(row: Skipped) -> str:
    """The name of a tensor, and why it is skipped."""
    return f"{short_name(row.name, _LONGEST_NAME)}: {short_name(row.reason, _LONGEST_NAME)}"


def _pattern(text: str) -> str:
    return short_name(_NUMBER.sub("*", text))


def _both(name: str, name_post: str) -> str:
    return name if name == name_post else f"{name} -> {name_post}"


def _aligned(rows: list[tuple[str, str]]) -> Iterator[str]:
    shown = rows[:_MOST_PATTERNS]
    width = min(_WIDEST, max((len(names) for names, _ in shown), default=0))
    for names, said in shown:
        yield f"{names:<{width}}  {said}"
    if len(rows) > len(shown):
        yield f"and {len(rows) - len(shown)} more kinds of names (--names lists all)"
