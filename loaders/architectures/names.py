"""Looking a tensor's name up in the tables."""

import functools
import re
from collections.abc import Mapping

from polarax.loaders.architectures.any_prefix import names_after_any_prefix
from polarax.loaders.architectures.recognised import EXPERT, UNKNOWN, Recognised, in_layer
from polarax.loaders.architectures.rules import Architecture, Identity, plain

__all__ = ["EXPERT", "UNKNOWN", "Recognised", "recognise_in"]

_NUMBER = re.compile(r"([0-9]{1,6})\.")


def recognise_in(architectures: tuple[Architecture, ...], name: str) -> Recognised:
    """What the tables say of a name.

    The first one decides that has a rule for the name after one of its own prefixes; else the first of which it is in a
    layer; else the one that has the longest name for its end, whatever the prefix.
    """
    name = plain(name)
    in_a_layer = None
    for architecture, prefix in _by_first_word(architectures).get(name.partition(".")[0], ()):
        if name.startswith(prefix):
            found = _recognise(architecture, prefix, name[len(prefix) :])
            if found is not None and found.rule is not None:
                return found
            in_a_layer = in_a_layer or found
    return in_a_layer or names_after_any_prefix(architectures).recognise(name) or UNKNOWN


@functools.lru_cache(64)
def _by_first_word(architectures: tuple[Architecture, ...]) -> Mapping[str, list[tuple[Architecture, str]]]:
    """The tables, each with one of its prefixes, that have names beginning with a word; in order."""
    by_word: dict[str, list[tuple[Architecture, str]]] = {}
    for architecture in architectures:
        for prefix in architecture.prefixes:
            names = (*architecture.outside, *architecture.layers) if not prefix else ("",)
            for word in {(prefix + name).partition(".")[0] for name in names}:
                by_word.setdefault(word, []).append((architecture, prefix))
    return by_word


def _recognise(architecture: Architecture, prefix: str, name: str) -> Recognised | None:
    """What one table makes of a name without its prefix; None if it is none of its own."""
    rule = architecture.outside.get(name)
    if rule is not None:
        return Recognised(Identity(None, rule.role, None), rule, architecture, prefix)
    for layers in architecture.layers:
        if not name.startswith(layers):
            continue
        number = _NUMBER.match(name, len(layers))
        inside = name[number.end() if number else len(layers) :]
        expert = EXPERT.search(inside)
        if expert is not None:
            inside = inside[: expert.start(1)] + "{expert}" + inside[expert.end(1) :]
        rule = architecture.in_layer.get(inside)
        if number is not None or rule is not None:
            numbers = int(number[1]) if number else None, int(expert[1]) if expert else None
            return in_layer(architecture, rule, prefix, layers, *numbers)
    return None
