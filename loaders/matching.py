"""Which name of one checkpoint is which of the other: equal, with a prefix, or spelt as another library spells it."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping

from polarax.loaders.architectures import plain

# The share of the smaller checkpoint's names that a prefix must explain; two models that have a
# name or two in common by chance stay well below.
_PREFIX_SHARE = 0.5


def match_names(names_base: Iterable[str], names_post: Iterable[str]) -> Mapping[str, str]:
    """The post's name for each of the base's names that has one.

    Names are matched as they are, or without a constant prefix on one side; where that finds none, without ".weight",
    ".kernel" and the like, as Flax and PyTorch spell the names of one model.
    """
    base, post = set(names_base), set(names_post)
    matches = _match(base, post)
    if matches:
        return matches
    plain_base, plain_post = _by_plain_name(base), _by_plain_name(post)
    matches = _match(set(plain_base), set(plain_post))
    return {plain_base[name]: plain_post[name_post] for name, name_post in matches.items()}


def _by_plain_name(names: set[str]) -> dict[str, str]:
    """Names by their plain form, without those that share one."""
    counts = Counter(map(plain, names))
    return {plain(name): name for name in names if counts[plain(name)] == 1}


def _match(base: set[str], post: set[str]) -> Mapping[str, str]:
    exact = {name: name for name in base & post}
    prefixed = _match_without_prefix(base - post, post - base)
    # A prefix is a property of a whole model: it has to explain more names than are equal as they
    # stand.
    return {**exact, **prefixed} if len(prefixed) > len(exact) else exact


def _match_without_prefix(base: set[str], post: set[str]) -> Mapping[str, str]:
    """Matches by the one prefix, on one side, that explains most names; none where several do."""
    longer_post, longer_base = _prefixes(post, base), _prefixes(base, post)
    counts = [(count, prefix, "post") for prefix, count in longer_post.items()]
    counts += [(count, prefix, "base") for prefix, count in longer_base.items()]
    counts.sort(reverse=True)
    needed = _PREFIX_SHARE * min(len(base), len(post))
    if not counts or counts[0][0] < needed or (len(counts) > 1 and counts[1][0] == counts[0][0]):
        return {}
    _, prefix, longer = counts[0]
    if longer == "post":
        return {name: prefix + name for name in base if prefix + name in post}
    return {prefix + name: name for name in post if prefix + name in base}


def _prefixes(longer: set[str], shorter: set[str]) -> Counter[str]:
    """How many of the longer names each leading prefix turns into one of the shorter names."""
    counts: Counter[str] = Counter()
    for name in longer:
        for dot in re.finditer(r"\.", name):
            if name[dot.end() :] in shorter:
                counts[name[: dot.end()]] += 1
    return counts
