"""Which tensor of a model an adapter's module is, by its name: two libraries put other words before it."""

import difflib
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from polarax.loaders.adapters.factor_names import model_name_of
from polarax.loaders.architectures import plain

# How the weights of quantised modules end, of which none is called just "weight".
_QUANTISED = (".qweight", ".weight_packed", ".weight._data", ".weight_qdata")
_NEAREST = 3
_DIGIT = re.compile(r"[0-9]")


class Modules:
    """The weights of a model, to be looked up by what an adapter calls them."""

    def __init__(self, tensors: Iterable[tuple[str, str]]):
        """Lists them.

        Args:
            tensors: The name of each, or of the module that it is looked up by, and its name.
        """
        self._by_name: dict[str, list[str]] = {}
        self._by_ending: dict[str, list[str]] = {}
        self._by_words: dict[str, list[str]] = {}
        for name_of_module, name in tensors:
            module = _module(name_of_module)
            self._by_name.setdefault(module, []).append(name)
            for ending in _endings(module):
                self._by_ending.setdefault(ending, []).append(name)

    def find(self, module: str) -> Sequence[str]:
        """The tensors that a name can mean: one, or several that it fits equally well, or none.

        A name fits without what stands before it, as far as that has no numbers: those tell layers apart.

        Args:
            module: As the adapter spells it, with or without ".weight".
        """
        name = _module(model_name_of(module))
        if name in self._by_name:
            return self._by_name[name]
        for ending in _endings(name):
            found = self._by_ending.get(ending)
            if found:
                return found
        return self._find_by_words(name) if "." not in name else ()

    def choose(self, candidates: Mapping[str, Iterable[str]]) -> dict[str, list[str]]:
        """Of several tensors that each name can mean, those by whose prefix most of the other names are found too.

        Where that leaves several, those with more words of the name before what both end in.

        Args:
            candidates: For each of an adapter's modules.
        """
        if all(len(list(names)) < 2 for names in candidates.values()):
            return {module: list(names) for module, names in candidates.items()}
        prefixes = {
            (module, name): _prefixes(_module(model_name_of(module)), _module(name))
            for module, names in candidates.items()
            for name in names
        }
        counts = Counter(prefixes.values())
        chosen: dict[str, list[str]] = {}
        for module, names in candidates.items():
            ranks = {
                name: (counts[pair], _words_in_common(*pair))
                for name, pair in ((name, prefixes[module, name]) for name in names)
            }
            best = max(ranks.values(), default=None)
            chosen[module] = [name for name in names if ranks[name] == best]
        return chosen

    def nearest(self, module: str) -> list[str]:
        """The names that are most like one that is not there, for a message."""
        name = _module(model_name_of(module))
        last = name.rpartition(".")[2]
        alike = [other for other in self._by_name if other.rpartition(".")[2] == last] or list(self._by_name)
        return difflib.get_close_matches(name, alike[:1000], _NEAREST, 0.0)

    def _find_by_words(self, name: str) -> Sequence[str]:
        """The same of kohya's names, "lora_unet_down_blocks_0_attn_to_q", in which all dots are gone."""
        if not self._by_words:
            for module, names in self._by_name.items():
                self._by_words.setdefault(module.replace(".", "_"), []).extend(names)
        words = name.replace(".", "_").split("_")
        for start in range(min(4, len(words))):
            found = self._by_words.get("_".join(words[start:]))
            if found:
                return found
        return ()


def _module(name: str) -> str:
    """A module's name, from that of its weight or from itself."""
    for ending in _QUANTISED:
        name = name.removesuffix(ending)
    return plain(name)


def _prefixes(name: str, other: str) -> tuple[str, str]:
    """What stands before the words that two names end in alike."""
    words, others = name.split("."), other.split(".")
    while words and others and words[-1] == others[-1]:
        words.pop()
        others.pop()
    return ".".join(words), ".".join(others)


def _words_in_common(prefix: str, other: str) -> int:
    return (Counter(prefix.split(".")) & Counter(other.split("."))).total()


def _endings(name: str) -> Iterable[str]:
    """A name and its endings that begin with a whole word, as long as only words without numbers are left out."""
    digit = _DIGIT.search(name)
    place = -1
    while digit is None or place < digit.start():
        yield name[place + 1 :]
        place = name.find(".", place + 1)
        if place < 0:
            break
