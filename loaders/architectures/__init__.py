"""Which layer, role and expert a tensor's name means: one table per family of architectures.

A table says how a family names its tensors. Adding a family is adding a table to the `TABLES` of a module here, or a
module that has `TABLES`: nothing else needs to know of it. A name is looked up as it is, after the prefixes that its
family has, and then after any other prefix. Nothing is guessed: a name that no table knows gets role "other", and a
layer number only if it is inside the layers of a known family. The blocks of a tower for images or sound beside a
language model are not taken for decoder layers: its prefix says what it is, and its matrices get role "other".
"""

import functools
import importlib
import pkgutil
import re
from typing import NamedTuple

from polarax.loaders.architectures.flax_names import TABLES as FLAX
from polarax.loaders.architectures.names import recognise_in
from polarax.loaders.architectures.recognised import EXPERT, NOBODY, Recognised
from polarax.loaders.architectures.rules import Architecture, Identity, Rule, plain, without_variable, without_wrappers

__all__ = [
    "ARCHITECTURES",
    "NOBODY",
    "Architecture",
    "Identity",
    "Recognised",
    "Rule",
    "identify",
    "plain",
    "recognise",
    "without_variable",
    "without_wrappers",
]

# Where two tables know a name, the first one decides. The names of JAX code are the least specific.
_FIRST = ("encoders", "decoders", "gguf_names")
_LAST = ("flax_names",)


def _all_tables() -> tuple[Architecture, ...]:
    """The tables of all modules of this package that have some."""
    others = sorted({module.name for module in pkgutil.iter_modules(__path__)} - {*_FIRST, *_LAST})
    modules = [importlib.import_module(f"{__name__}.{name}") for name in (*_FIRST, *others, *_LAST)]
    return tuple(table for module in modules for table in getattr(module, "TABLES", ()))


ARCHITECTURES: tuple[Architecture, ...] = _all_tables()
"""The tables, in the order in which they are asked."""

_REMEMBERED = 8192  # names; the largest published models have some 2,000, experts aside
_NUMBER = re.compile(r"[._/]([0-9]{1,6})(?=[./])")  # in most names the layer's
_ALIKE = 5  # numbers that are looked up to tell whether those of all others mean the same; larger than any in a table


def identify(name: str) -> Identity:
    """The layer, role and expert of a tensor, from its name alone.

    >>> identify("model.layers.3.self_attn.o_proj.weight")
    Identity(layer=3, role='o', expert=None)
    >>> identify("vision_tower.encoder.layers.3.self_attn.q_proj.weight")
    Identity(layer=None, role='other', expert=None)
    >>> identify("student.model.layers.3.self_attn.o_proj.weight")
    Identity(layer=3, role='o', expert=None)
    """
    found = recognise(name)
    return NOBODY if found.tower else found.identity


def recognise(name: str, model_type: str | None = None) -> Recognised:
    """What the tables know of a tensor from its name, and from what config.json calls the model.

    The first table that has a rule for the name decides; if none has, the first of which it is in a layer; if there is
    none, the one that has a rule for the name's end. The tables of JAX code come first for a kernel, which is what Flax
    calls its weights.
    """
    # The experts of a layer differ in their number alone, and so do most layers: a large model has tens of thousands.
    expert = EXPERT.search(name)
    if expert is not None:
        name = f"{name[: expert.start(1)]}0{name[expert.end(1) :]}"
    number = _NUMBER.search(name)
    series = _series(name[: number.start(1)], name[number.end(1) :], model_type) if number is not None else None
    if number is None or series is None:
        found = _recognise(name, model_type)
        layer, role, of_expert = found.identity
    else:
        found = series.first
        layer, role, of_expert = found.identity
        layer = layer + series.step * int(number[1]) if layer is not None else None
    if expert is not None and of_expert is not None:
        of_expert = int(expert[1])
    return Recognised(Identity(layer, role, of_expert), *found[1:])


class _Series(NamedTuple):
    """Names that differ in their first number."""

    first: Recognised  # of number 0
    step: int  # from each number's layer to the next one's


@functools.lru_cache(_REMEMBERED)
def _series(before: str, after: str, model_type: str | None) -> _Series | None:
    """What names with any number between two strings are; None if it takes more than that to tell."""
    first, *others = (_recognise(f"{before}{number}{after}", model_type) for number in range(_ALIKE))
    layers = [found.identity.layer for found in (first, *others)]
    if any(found._replace(identity=found.identity._replace(layer=layers[0])) != first for found in others):
        return None
    if layers[0] is None or layers[1] is None:
        return _Series(first, 0) if set(layers) == {None} else None
    step = layers[1] - layers[0]
    return _Series(first, step) if layers == [layers[0] + step * number for number in range(_ALIKE)] else None


@functools.lru_cache(_REMEMBERED)
def _recognise(name: str, model_type: str | None) -> Recognised:
    named = [table for table in ARCHITECTURES if model_type in table.model_types] if model_type else []
    flax_first = FLAX if without_variable(name).endswith((".kernel", "/kernel")) else ()
    return recognise_in((*named, *flax_first, *ARCHITECTURES), name)
