"""Looking a tensor's name up in the tables."""

import re
from collections.abc import Iterable
from typing import NamedTuple

from polarax.loaders.architectures.rules import Architecture, Identity, Rule, plain
from polarax.loaders.roles import OTHER

_NUMBER = re.compile(r"([0-9]{1,6})\.")
EXPERT = re.compile(r"\b(?:experts|ffn_gate|ffn_up|ffn_down)\.([0-9]{1,6})(?=\.|$)")


class Recognised(NamedTuple):
    """What a name says of its tensor."""

    identity: Identity
    rule: Rule | None  # None if no table has one for it
    architecture: Architecture | None  # None if the name is in no table and in no layer of one
    prefix: str = ""  # what stood before the name in the table
    stacked: bool = False  # the tensor holds several layers
    layers: str = ""  # which of the table's `layers` it is in; "" outside of them
    first: int = 0  # of several layers: the number of the first
    step: int = 1  # and from one to the next


UNKNOWN = Recognised(Identity(None, OTHER, None), None, None)


def recognise_in(architectures: Iterable[Architecture], name: str) -> Recognised:
    """What the first table says that has a rule for a name; else the first of which it is in a layer."""
    name = plain(name)
    in_a_layer = None
    for architecture in architectures:
        for prefix in architecture.prefixes:
            if name.startswith(prefix):
                found = _recognise(architecture, prefix, name[len(prefix) :])
                if found is not None and found.rule is not None:
                    return found
                in_a_layer = in_a_layer or found
    return in_a_layer or UNKNOWN


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
        role, of_expert = rule.role if rule else OTHER, int(expert[1]) if expert else None
        turn, turns = rule.turn if rule else (0, 1)
        if number is None and rule is None:
            continue
        if number is None or layers in architecture.blocks:
            first = turn if number is None else int(number[1])
            return Recognised(Identity(None, role, of_expert), rule, architecture, prefix, True, layers, first, turns)
        identity = Identity(int(number[1]) * turns + turn, role, of_expert)
        return Recognised(identity, rule, architecture, prefix, layers=layers)
    return None
