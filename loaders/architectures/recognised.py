"""What a tensor's name says of it."""

import re
from typing import NamedTuple

from polarax.loaders.architectures.rules import Architecture, Identity, Rule
from polarax.loaders.roles import OTHER

EXPERT = re.compile(r"\b(?:experts|ffn_gate|ffn_up|ffn_down)\.([0-9]{1,6})(?=\.|$)")


class Recognised(NamedTuple):
    """What a name says of its tensor."""

    identity: Identity  # within its tower, where it is in one
    rule: Rule | None  # None if no table has one for it
    architecture: Architecture | None  # None if the name is in no table and in no layer of one
    prefix: str = ""  # what stood before the name in the table
    stacked: bool = False  # the tensor holds several layers
    layers: str = ""  # which of the table's `layers` it is in; "" outside of them
    first: int = 0  # of several layers: the number of the first
    step: int = 1  # and from one to the next
    tower: bool = False  # the prefix says that it is of another model than the language model: one of images or sound


NOBODY = Identity(None, OTHER, None)
UNKNOWN = Recognised(NOBODY, None, None)


def in_layer(
    architecture: Architecture,
    rule: Rule | None,
    prefix: str,
    layers: str,
    number: int | None,
    expert: int | None,
) -> Recognised:
    """What a table says of a tensor in a layer.

    Args:
        architecture: The table.
        rule: For the name in the layer; None if it has none.
        prefix: What stands before `layers`.
        layers: One of the table's.
        number: Behind that; None if the tensor holds all layers.
        expert: In the name.
    """
    role, (turn, turns) = (rule.role, rule.turn) if rule is not None else (OTHER, (0, 1))
    if number is None or layers in architecture.blocks:
        first = turn if number is None else number
        return Recognised(Identity(None, role, expert), rule, architecture, prefix, True, layers, first, turns)
    identity = Identity(number * turns + turn, role, expert)
    return Recognised(identity, rule, architecture, prefix, layers=layers)
