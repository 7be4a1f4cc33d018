"""Which matrices to analyse: regular expressions on names, roles, layers."""

import dataclasses
import re
from collections.abc import Iterable, Sequence
from typing import TypeVar

from polarax.errors import UsageError
from polarax.loaders import ROLES, Pair, Skipped, View, short_name

_Matrix = TypeVar("_Matrix", Pair, View)


@dataclasses.dataclass(frozen=True)
class Selection:
    """A filter on matrices; every condition that is given must hold.

    Attributes:
        include: Regular expressions searched in the name; one of them must match.
        exclude: Regular expressions searched in the name; none may match.
        roles: Roles to keep, as in `polarax.loaders.ROLES`.
        layers: Ranges of layer numbers to keep.
    """

    include: tuple[re.Pattern[str], ...] = ()
    exclude: tuple[re.Pattern[str], ...] = ()
    roles: frozenset[str] = frozenset()
    layers: tuple[range, ...] = ()

    @classmethod
    def parse(
        cls,
        include: str | Sequence[str] | None = None,
        exclude: str | Sequence[str] | None = None,
        roles: str | Iterable[str] | None = None,
        layers: str | int | Iterable[int] | None = None,
    ) -> "Selection":
        """Reads a selection as users give it.

        Args:
            include: A regular expression or several.
            exclude: A regular expression or several.
            roles: Roles, or one string with commas: "q,k".
            layers: Layer numbers, or one string: "0,3-5".

        Raises:
            UsageError: A regular expression, role or layer cannot be read.
        """
        return cls(
            _patterns(include, "include"),
            _patterns(exclude, "exclude"),
            frozenset(_roles(roles)),
            tuple(_layers(layers)),
        )

    def describe(self) -> dict[str, list[str]]:
        """The selection in words that `parse` reads; JSON-ready."""
        return {
            "include": [pattern.pattern for pattern in self.include],
            "exclude": [pattern.pattern for pattern in self.exclude],
            "roles": sorted(self.roles, key=ROLES.index),
            "layers": [f"{kept.start}-{kept.stop - 1}" for kept in self.layers],
        }

    def split(self, pairs: Sequence[_Matrix]) -> tuple[list[_Matrix], list[Skipped]]:
        """The pairs, or matrices of one checkpoint, that are selected, and a row for each that is not.

        Raises:
            UsageError: There are pairs but the selection leaves none.
        """
        chosen, skipped = [], []
        for pair in pairs:
            reason = self._reason_to_skip(pair)
            if reason is None:
                chosen.append(pair)
            else:
                skipped.append(Skipped(pair.name, f"not selected by {reason}"))
        if pairs and not chosen:
            roles = sorted({pair.role for pair in pairs}, key=ROLES.index)
            layers = sorted({pair.layer for pair in pairs if pair.layer is not None})
            spread = f"layers {layers[0]} to {layers[-1]}" if layers else "no numbered layers"
            raise UsageError(
                f"The selection leaves no matrix of {len(pairs)}: there are roles {', '.join(roles)}; "
                f"{spread}; names such as {short_name(pairs[0].name)!r}."
            )
        return chosen, skipped

    def _reason_to_skip(self, pair: Pair | View) -> str | None:
        if self.include and not any(pattern.search(pair.name) for pattern in self.include):
            return "include"
        if any(pattern.search(pair.name) for pattern in self.exclude):
            return "exclude"
        if self.roles and pair.role not in self.roles:
            return "roles"
        # None is asked for first: a range looks for what is no number by going through all of its own.
        if self.layers and (pair.layer is None or not any(pair.layer in kept for kept in self.layers)):
            return "layers"
        return None


def _patterns(given, option):
    if not given:
        return ()
    patterns = []
    for text in [given] if isinstance(given, str) else given:
        try:
            patterns.append(re.compile(text))
        except re.error as error:
            raise UsageError(f"{option}={text!r} is not a regular expression: {error}.") from error
    return tuple(patterns)


def _roles(given):
    roles = _words(given)
    for role in roles:
        if role not in ROLES:
            raise UsageError(f"Unknown role {role!r}. Expected one of {', '.join(ROLES)}.")
    return roles


def _layers(given):
    if given is None:
        return []
    if isinstance(given, int):
        given = [given]
    layers: list[range] = []
    for word in _words(given):
        match = re.fullmatch(r"(\d+)(?:-(\d+))?", str(word))
        if match is None:
            raise UsageError(f"layers={word!r} cannot be read. Expected numbers and ranges: 0,3-5.")
        first, last = int(match[1]), int(match[2] or match[1])
        if last < first:
            raise UsageError(f"layers={word!r} is an empty range. Expected the smaller number first.")
        layers.append(range(first, last + 1))
    return layers


def _words(given):
    """A list of what was given as an iterable or as one string with commas."""
    if given is None:
        return []
    if isinstance(given, str):
        return [word.strip() for word in given.split(",") if word.strip()]
    return list(given)
