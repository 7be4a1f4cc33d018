"""Names that differ in what stands before them: which prefix of one checkpoint is which of the other.

A library puts words before all names of a part of a model, or leaves them out: "model.layers.0.mlp.up" is called
"model.language_model.layers.0.mlp.up" by another, "visual.blocks.0" is "model.visual.blocks.0". No list of these words
is needed: two names of one tensor end alike, and the rest of both is the same for all of a part.

Names are looked at as patterns, with their numbers left out, of which even a large model has a few hundred.
"""

import os
import re
from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import NamedTuple, TypeAlias

_DIGITS = re.compile(r"[0-9]+")
_NUMBER = "#"
_LETTER = re.compile(r"[^\W\d_]")

_Shapes: TypeAlias = Mapping[str, tuple[int, ...]]
_Numbers: TypeAlias = tuple[str, ...]

# A prefix has to explain this share of the names that stand behind it on the side where those are fewer. Two models
# that end a name or two alike by chance stay well below.
_SHARE = 0.5
_MOST_CANDIDATES = 16  # an ending that more patterns have says nothing
_MOST_TRIED = 2_000_000  # rules times patterns, which takes about a second
_MOST_ROUNDS = 64


class _Rule(NamedTuple):
    """A prefix of the base's patterns, and what stands in its place in the post."""

    base: str
    post: str


class _Side:
    """The patterns of one checkpoint, and the names behind each."""

    def __init__(self, shapes: _Shapes, places: Mapping[str, Hashable]):
        self.shapes = shapes
        self.places = places
        self.names: dict[str, dict[_Numbers, str]] = {}
        for name in shapes:
            pattern = _DIGITS.sub(_NUMBER, name)
            self.names.setdefault(pattern, {})[tuple(_DIGITS.findall(name))] = name
        self._behind: Counter[str] = Counter()
        self._by_ending: dict[str, list[str]] = {}
        for pattern, names in self.names.items():
            for start in _starts(pattern):
                self._behind[pattern[:start]] += len(names)
                if _LETTER.search(pattern, start):
                    self._by_ending.setdefault(pattern[start:], []).append(pattern)

    def ending_alike(self, pattern: str) -> tuple[int, Sequence[str]]:
        """The longest ending of a pattern that some here have, by where it starts, and those; none if too many have."""
        for start in _starts(pattern):
            found = self._by_ending.get(pattern[start:])
            if found:
                return start, found if len(found) <= _MOST_CANDIDATES else ()
        return 0, ()

    def behind(self, prefix: str) -> int:
        """How many names without a partner stand behind a prefix."""
        return self._behind[prefix]

    def remove(self, pattern: str) -> None:
        """Takes a pattern out, if it is still there."""
        names = self.names.pop(pattern, {})
        for start in _starts(pattern):
            self._behind[pattern[:start]] -= len(names)


def match_endings(
    base: _Shapes,
    post: _Shapes,
    places_base: Mapping[str, Hashable],
    places_post: Mapping[str, Hashable],
) -> tuple[dict[str, str], tuple[dict[str, tuple[str, ...]], dict[str, tuple[str, ...]]]]:
    """Pairs names of which one is the other behind another prefix.

    A rule is supported by the names that agree in ending, numbers and shape; the best supported rule comes first.

    Args:
        base: Names in their plain form, with the shapes of their tensors.
        post: The other side's.
        places_base: Where in the model a tensor is, as far as that is known: names of different places are not paired.
        places_post: The same of the other side.

    Returns:
        The post's name for each of the base's that has one; and, of either side, the names that several others are
        equally like, with those.
    """
    matcher = _Matcher(_Side(base, places_base), _Side(post, places_post))
    rules = _candidates(matcher.base, matcher.post)
    for _ in range(_MOST_ROUNDS):
        if not rules or not matcher.settle(rules):
            break
    return matcher.matches, (matcher.unclear_base, matcher.unclear_post)


class _Matcher:
    """Two sides, of which names are taken out as they find their partners."""

    def __init__(self, base: _Side, post: _Side):
        self.base, self.post = base, post
        self.matches: dict[str, str] = {}
        self.unclear_base: dict[str, tuple[str, ...]] = {}
        self.unclear_post: dict[str, tuple[str, ...]] = {}

    def settle(self, rules: dict[_Rule, set[str]]) -> bool:
        """Applies rules that do not touch each other, the best supported first, and takes them out; False if none."""
        scores = {rule: _support(rule, patterns, self.base, self.post) for rule, patterns in rules.items()}
        for rule, score in scores.items():
            if not score:
                del rules[rule]
        of_prefix = _by_prefix(rules)
        settled: set[str] = set()
        settled_post: set[str] = set()
        for rule in sorted(rules, key=lambda rule: (-scores[rule], len(rule.base) + len(rule.post), rule)):
            patterns = [
                pattern
                for pattern in rules[rule]
                if pattern in self.base.names and _partner(rule, pattern) in self.post.names
            ]
            partners = [_partner(rule, pattern) for pattern in patterns]
            if not settled.isdisjoint(rules[rule]) or not settled_post.isdisjoint(
                _partner(rule, pattern) for pattern in rules[rule]
            ):
                continue  # its support has changed
            rivals = _rivals(rule, rules, of_prefix, scores)
            if rivals:
                self._set_aside([rule, *rivals], rules)
            elif _is_plausible(rule, scores[rule], patterns, self.base, self.post):
                for pattern in patterns:
                    self.matches |= _pairs(rule, pattern, self.base, self.post)
                    self.base.remove(pattern)
                    self.post.remove(_partner(rule, pattern))
            else:
                continue
            settled.update(patterns)
            settled_post.update(partners)
            del rules[rule]
        return bool(settled)

    def _set_aside(self, equal: Sequence[_Rule], rules: Mapping[_Rule, set[str]]) -> None:
        """Notes the names that several rules pair differently, and takes them out: none is chosen."""
        of_base: dict[str, set[str]] = {}
        of_post: dict[str, set[str]] = {}
        for rule in equal:
            for pattern in rules[rule]:
                for name, other in _pairs(rule, pattern, self.base, self.post).items():
                    of_base.setdefault(name, set()).add(other)
                    of_post.setdefault(other, set()).add(name)
        self.unclear_base |= {name: tuple(sorted(others)) for name, others in of_base.items()}
        self.unclear_post |= {name: tuple(sorted(others)) for name, others in of_post.items()}
        for rule in equal:
            for pattern in rules[rule]:
                self.base.remove(pattern)
                self.post.remove(_partner(rule, pattern))


def _partner(rule: _Rule, pattern: str) -> str:
    """What a rule makes of a pattern of the base."""
    return rule.post + pattern[len(rule.base) :]


def _starts(pattern: str) -> Iterable[int]:
    """Where the endings of a pattern start that begin with a whole word, the longest ending first."""
    yield 0
    place = pattern.find(".")
    while place >= 0:
        yield place + 1
        place = pattern.find(".", place + 1)


def _candidates(base: _Side, post: _Side) -> dict[_Rule, set[str]]:
    """Every rule by which a pattern's longest common ending has a partner, with the base's patterns."""
    rules: dict[_Rule, set[str]] = {}
    for pattern in base.names:
        start, others = post.ending_alike(pattern)
        length = len(pattern) - start
        for other in others:
            rules.setdefault(_Rule(pattern[:start], other[: len(other) - length]), set()).add(pattern)
    for other in post.names:
        start, patterns = base.ending_alike(other)
        length = len(other) - start
        for pattern in patterns:
            rules.setdefault(_Rule(pattern[: len(pattern) - length], other[:start]), set()).add(pattern)
    # A rule that some patterns suggest may hold for others, whose longest ending is common by chance.
    count = _MOST_TRIED // max(1, len(base.names))
    for rule in sorted(rules, key=lambda rule: -len(rules[rule]))[:count]:
        rules[rule].update(
            pattern for pattern in base.names if pattern.startswith(rule.base) and _partner(rule, pattern) in post.names
        )
    return rules


def _pairs(rule: _Rule, pattern: str, base: _Side, post: _Side) -> dict[str, str]:
    """The names of a pattern that a rule gives a partner: their numbers are equal."""
    names = base.names.get(pattern, {})
    names_post = post.names.get(_partner(rule, pattern), {})
    skip, skip_post = _leading_numbers(rule)
    if not skip and not skip_post:
        found = {name: names_post[numbers] for numbers, name in names.items() if numbers in names_post}
        return {name: other for name, other in found.items() if not _contradict(name, other, base, post)}
    if len({numbers[:skip] for numbers in names}) > 1 or len({numbers[:skip_post] for numbers in names_post}) > 1:
        return {}
    by_rest = {numbers[skip_post:]: name for numbers, name in names_post.items()}
    found = {name: by_rest[numbers[skip:]] for numbers, name in names.items() if numbers[skip:] in by_rest}
    return {name: other for name, other in found.items() if not _contradict(name, other, base, post)}


def _contradict(name: str, other: str, base: _Side, post: _Side) -> bool:
    """Whether two names are known to be of different places in the model."""
    place, place_post = base.places.get(name), post.places.get(other)
    return place is not None and place_post is not None and place != place_post


def _leading_numbers(rule: _Rule) -> tuple[int, int]:
    """How many numbers at the start of either side's names are no layer's: a module's place in a list of modules."""
    counts = rule.base.count(_NUMBER), rule.post.count(_NUMBER)
    if counts[0] == counts[1]:
        return 0, 0
    return int(rule.base.startswith(f"{_NUMBER}.")), int(rule.post.startswith(f"{_NUMBER}."))


def _support(rule: _Rule, patterns: Iterable[str], base: _Side, post: _Side) -> int:
    """How many names a rule pairs with one of the same shape."""
    skip, skip_post = _leading_numbers(rule)
    if rule.base.count(_NUMBER) - skip != rule.post.count(_NUMBER) - skip_post:
        return 0
    return sum(
        base.shapes[name] == post.shapes[other]
        for pattern in patterns
        for name, other in _pairs(rule, pattern, base, post).items()
    )


def _is_plausible(rule: _Rule, score: int, patterns: Sequence[str], base: _Side, post: _Side) -> bool:
    """Whether a rule explains enough of the part of the model that it is about, and by more than a common word."""
    endings = [pattern[len(rule.base) :] for pattern in patterns]
    part = os.path.commonprefix(endings)
    part = part[: part.rfind(".") + 1]
    if score < _SHARE * min(base.behind(rule.base + part), post.behind(rule.post + part)):
        return False
    return (
        len(endings) > 1
        or not rule.base
        or not rule.post
        or any(_NUMBER in ending or "." in ending for ending in endings)
    )


def _by_prefix(rules: Iterable[_Rule]) -> dict[tuple[str, str], list[_Rule]]:
    """Rules by each of their two prefixes."""
    of_prefix: dict[tuple[str, str], list[_Rule]] = {}
    for rule in rules:
        of_prefix.setdefault((rule.base, "base"), []).append(rule)
        of_prefix.setdefault((rule.post, "post"), []).append(rule)
    return of_prefix


def _rivals(
    rule: _Rule,
    rules: Mapping[_Rule, set[str]],
    of_prefix: Mapping[tuple[str, str], Sequence[_Rule]],
    scores: Mapping[_Rule, int],
) -> list[_Rule]:
    """Other rules that are as well supported and would give the same patterns another partner."""
    patterns = rules[rule]
    partners = {_partner(rule, pattern) for pattern in patterns}
    return [
        other
        for other in (*of_prefix[rule.base, "base"], *of_prefix[rule.post, "post"])
        if other in rules
        and other != rule
        and scores[other] == scores[rule]
        and (
            not patterns.isdisjoint(rules[other])
            if other.base == rule.base
            else not partners.isdisjoint(_partner(other, pattern) for pattern in rules[other])
        )
    ]
