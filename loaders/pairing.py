"""Which tensors of two checkpoints are compared: matched by name, none dropped in silence."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np

from polarax.loaders.architectures import OTHER, Identity, identify
from polarax.loaders.checkpoint import Checkpoint, CheckpointError
from polarax.loaders.dtypes import is_floating, is_integer
from polarax.loaders.quantisation import quantised

# The share of the smaller checkpoint's names that a prefix must explain; two models that have a
# name or two in common by chance stay well below.
_PREFIX_SHARE = 0.5

_DIGITS = re.compile(r"([0-9]+)")


class Pair(NamedTuple):
    """A matrix that both checkpoints have."""

    name: str  # the base's name of it
    layer: int | None
    role: str  # one of ROLES
    expert: int | None
    shape: tuple[int, ...]  # (out, in)
    dtype_base: np.dtype
    dtype_post: np.dtype
    name_post: str  # the post's name of it; differs by a leading prefix at most


class Skipped(NamedTuple):
    """A tensor that is not compared."""

    name: str  # the base's name of it, where the base has it
    reason: str


def pair_checkpoints(base: Checkpoint, post: Checkpoint) -> tuple[list[Pair], list[Skipped]]:
    """The matrices to compare, and every other tensor with the reason why it is not compared.

    Tensors are matched by name; where one side puts a constant prefix before its names ("bert.",
    "model."), without it. What is compared is what both have as a floating-point matrix of one
    shape with at least one element.

    Returns:
        Pairs and skipped tensors, each in natural order of the base's names (layer 2 before layer
        10), followed by what only the post has.

    Raises:
        CheckpointError: If the two have no name in common.
    """
    matches = _match(base.names(), post.names())
    if not matches:
        raise CheckpointError(
            f"{base.location} and {post.location} have no tensor name in common: "
            f"the base has {_example(base)}, the post {_example(post)}"
        )
    quantised_base, quantised_post = quantised(base), quantised(post)
    pairs: list[Pair] = []
    skipped: list[Skipped] = []
    for name in sorted(base.names(), key=_natural):
        if name not in matches:
            skipped.append(Skipped(name, _one_sided(quantised_base.get(name), "base")))
            continue
        name_post = matches[name]
        kind = quantised_base.get(name) or quantised_post.get(name_post)
        reason = f"quantised: {kind}" if kind else _obstacle(base, name, post, name_post)
        dtype_base, dtype_post = base.dtype(name), post.dtype(name_post)
        if reason is not None or dtype_base is None or dtype_post is None:
            skipped.append(Skipped(name, reason or "unsupported dtype"))
            continue
        identity = _identity(name, name_post)
        shape = base.shape(name)
        pairs.append(Pair(name, *identity, shape, dtype_base, dtype_post, name_post))
    for name in sorted(set(post.names()) - set(matches.values()), key=_natural):
        skipped.append(Skipped(name, _one_sided(quantised_post.get(name), "post")))
    return pairs, skipped


def _match(names_base: Iterable[str], names_post: Iterable[str]) -> Mapping[str, str]:
    """The post's name for each of the base's names that has one."""
    base, post = set(names_base), set(names_post)
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


def _obstacle(base: Checkpoint, name: str, post: Checkpoint, name_post: str) -> str | None:
    """Why two tensors of one name cannot be compared; None if they can."""
    shape, shape_post = base.shape(name), post.shape(name_post)
    if shape != shape_post:
        return f"shapes differ: base {shape}, post {shape_post}"
    if len(shape) != 2:
        return f"{len(shape)}-D: not a matrix"
    if 0 in shape:
        return "empty"
    dtype, dtype_post = base.dtype(name), post.dtype(name_post)
    if is_floating(dtype) and is_floating(dtype_post):
        return None
    known = all(is_floating(one) or is_integer(one) for one in (dtype, dtype_post))
    problem = "not floating-point:" if known else "unsupported dtype"
    words, words_post = base.dtype_name(name), post.dtype_name(name_post)
    return f"{problem} {words}" if words == words_post else f"{problem} base {words}, post {words_post}"


def _one_sided(kind: str | None, side: str) -> str:
    return f"quantised: {kind}; only in {side}" if kind else f"only in {side}"


def _identity(name: str, name_post: str) -> Identity:
    """What a matrix is, from whichever of its two names is known."""
    identity = identify(name)
    return identify(name_post) if identity.role == OTHER and name != name_post else identity


def _natural(name: str) -> list[tuple[int, str]]:
    """Sort key that puts numbers in a name in numerical order."""
    parts = _DIGITS.split(name)  # text, digits, text, ...: alike at each place in every name
    parts[1::2] = [digits.lstrip("0") for digits in parts[1::2]]
    return [(len(part) if place % 2 else 0, part) for place, part in enumerate(parts)]


def _example(checkpoint: Checkpoint) -> str:
    names = checkpoint.names()
    return repr(min(names, key=_natural)) if names else "no tensors"
