"""Names of the tables after a prefix that no table knows: "student.", "policy.", "PaliGemma.llm.", "thinker.model.".

A model may be a part of anything, and whoever puts it there chooses the prefix. So a name is also looked for at the end
of a longer one, from the beginning of one of its words. Less is taken for granted then:

- Layers are those that the name mentions first. What is in a layer of a layer is not looked for.
- A word that many models have, such as "head", "output" or "classifier", says nothing outside the layers.
- Where the prefix says that it is a tower for images or sound, or what connects one to the language model, the layers
  are not the language model's: the rule tells how the tensor lies, and no role and no number is given.

Two language models in one (a thinker and a talker, a policy and its reference) both have layers and roles; their
prefixes tell them apart.
"""

import functools
import re

from polarax.loaders.architectures.recognised import EXPERT, Recognised, in_layer
from polarax.loaders.architectures.rules import Architecture, Identity, Rule

_TOWER_WORDS = (
    *("vision", "visual", "image", "images", "img", "video", "vit", "clip", "siglip", "eva", "dino", "vpm", "pixel"),
    *("audio", "speech", "sound", "voice", "whisper", "apm", "code2wav", "token2wav"),
    *("projector", "connector", "resampler", "perceiver", "qformer", "aligner", "merger"),
)
_TOWER = re.compile(rf"(?:^|[._])(?:{'|'.join(_TOWER_WORDS)})[0-9]*(?=[._])", re.IGNORECASE)
_WORD = re.compile(r"[^.]+\.")
_OF_ONE_WORD = ("wte", "wpe", "shared")  # embeddings of GPT-2 and T5, the only ones of these names


class NamesAfterAnyPrefix:
    """The tables' names, by what a longer name may end with."""

    def __init__(self, architectures: tuple[Architecture, ...]):
        """Lists the names of some tables, of which the first ones go before the others."""
        self._outside: dict[str, tuple[Architecture, str, Rule]] = {}  # and the table's own prefix
        self._in_layer: dict[str, list[tuple[Architecture, Rule]]] = {}
        words: set[str] = set()
        for architecture in architectures:
            if not architecture.anywhere:
                continue
            words |= {layers.removesuffix(".").rpartition(".")[2] for layers in architecture.layers}
            for name, rule in architecture.in_layer.items():
                self._in_layer.setdefault(name, []).append((architecture, rule))
            for name, rule in architecture.outside.items():
                if "_" in name or "." in name or name in _OF_ONE_WORD:
                    for prefix in architecture.prefixes:
                        self._outside.setdefault(prefix + name, (architecture, prefix, rule))
        # "layers.0.": a block inside a block of layers ("layers.layers.0.") is one place of it.
        alternatives = "|".join(sorted(map(re.escape, words), key=len, reverse=True)) or "(?!)"
        self._layer = re.compile(rf"(?:^|\.)(?:{alternatives})\.(?:([0-9]{{1,6}})\.)?")

    def recognise(self, name: str) -> Recognised | None:
        """What the end of a name says; None if that is nothing."""
        first = self._layer.search(name)
        if first is None:
            return self._recognise_outside(name)
        while first is not None:
            found = self._recognise_in_layer(name, first)
            if found is not None or first[1] is not None:
                return found
            first = self._layer.search(name, first.end() - 1)
        return None

    def _recognise_outside(self, name: str) -> Recognised | None:
        for start in (0, *(word.end() for word in _WORD.finditer(name))):
            found = self._outside.get(name[start:])
            if found is not None:
                architecture, own, rule = found
                prefix = name[:start] + own
                identity = Identity(None, rule.role, None)
                return Recognised(identity, rule, architecture, prefix, tower=_TOWER.search(prefix) is not None)
        return None

    def _recognise_in_layer(self, name: str, place: re.Match[str]) -> Recognised | None:
        number = int(place[1]) if place[1] is not None else None
        before = name[: place.start(1)] if number is not None else name[: place.end()]
        inside = name[place.end() :]
        expert = EXPERT.search(inside)
        if expert is not None:
            inside = inside[: expert.start(1)] + "{expert}" + inside[expert.end(1) :]
        of_expert = int(expert[1]) if expert is not None else None
        for architecture, rule in self._in_layer.get(inside, ()):
            for layers in architecture.layers:
                prefix = before.removesuffix(layers)
                if len(prefix) == len(before) or prefix[-1:] not in ("", "."):
                    continue
                found = in_layer(architecture, rule, prefix, layers, number, of_expert)
                return found._replace(tower=_TOWER.search(prefix) is not None)
        return None


@functools.lru_cache(64)
def names_after_any_prefix(architectures: tuple[Architecture, ...]) -> NamesAfterAnyPrefix:
    """The names of some tables, listed once."""
    return NamesAfterAnyPrefix(architectures)
