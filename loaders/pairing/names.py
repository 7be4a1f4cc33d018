"""Which name of one checkpoint is which of the other: equal, spelt otherwise, or behind another prefix."""

from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import NamedTuple

from polarax.loaders.architectures import plain
from polarax.loaders.pairing.prefixes import match_endings
from polarax.loaders.pairing.records import ALIAS, NAME, PREFIX, SPELLING

Shapes = Mapping[str, tuple[int, ...]]


class Match(NamedTuple):
    """A name's partner."""

    name: str  # the post's
    matched_by: str  # one of MATCHED_BY


class Matches(NamedTuple):
    """What the names of two checkpoints say."""

    partners: dict[str, Match]  # by the base's name
    ambiguous: dict[str, tuple[str, ...]]  # names of either side that several of the other are like, with those


def match_names(
    base: Shapes,
    post: Shapes,
    aliases_base: Mapping[str, str] | None = None,
    aliases_post: Mapping[str, str] | None = None,
    places_base: Mapping[str, Hashable] | None = None,
    places_post: Mapping[str, Hashable] | None = None,
) -> Matches:
    """Finds the post's name for each of the base's names that has one.

    Names that are equal belong together. What is left is compared in its plain form, and then by the prefixes that
    explain most names, each for the part of the model that it stands before. A name that several are equally like has
    no partner.

    Args:
        base: The base's names, with the shapes of their tensors.
        post: The post's.
        aliases_base: Names that the base's files give to tensors that are stored under another name.
        aliases_post: The same of the post.
        places_base: Where in the model a tensor is, as far as that is known. Tensors that are known to be in different
            places are not paired because their names end alike.
        places_post: The same of the post.
    """
    given, given_post = _shapes_of(aliases_base or {}, base), _shapes_of(aliases_post or {}, post)
    if given or given_post:
        found = match_names({**base, **given}, {**post, **given_post}, None, None, places_base, places_post)
        return _without_aliases(found, given, given_post, aliases_base or {}, aliases_post or {})
    partners = {name: Match(name, NAME) for name in base if name in post}
    ambiguous: dict[str, tuple[str, ...]] = {}
    left_base = [name for name in base if name not in partners]
    left_post = [name for name in post if name not in partners]
    if not left_base:
        return Matches(partners, ambiguous)
    plain_base, plain_post = _by_plain_name(left_base), _by_plain_name(left_post)
    single: list[tuple[str, str]] = []
    for key in [key for key in plain_base if key in plain_post]:
        names, names_post = plain_base.pop(key), plain_post.pop(key)
        if len(names) == len(names_post) == 1:
            single.append((names[0], names_post[0]))
        else:
            ambiguous |= {name: tuple(names_post) for name in names} | {name: tuple(names) for name in names_post}
    partners |= {name: Match(name_post, SPELLING) for name, name_post in single}
    of_base = {key: names[0] for key, names in plain_base.items() if len(names) == 1}
    of_post = {key: names[0] for key, names in plain_post.items() if len(names) == 1}
    endings, unclear = match_endings(
        {key: base[name] for key, name in of_base.items()},
        {key: post[name] for key, name in of_post.items()},
        {key: places_base[name] for key, name in of_base.items() if name in places_base} if places_base else {},
        {key: places_post[name] for key, name in of_post.items() if name in places_post} if places_post else {},
    )
    partners |= {of_base[key]: Match(of_post[key_post], PREFIX) for key, key_post in endings.items()}
    ambiguous |= {of_base[key]: tuple(of_post[other] for other in others) for key, others in unclear[0].items()}
    ambiguous |= {of_post[key]: tuple(of_base[other] for other in others) for key, others in unclear[1].items()}
    return Matches(partners, {name: others for name, others in ambiguous.items() if name not in partners})


def _shapes_of(aliases: Mapping[str, str], stored: Shapes) -> Shapes:
    """The names that only metadata know, with the shapes of the tensors that they stand for."""
    return {alias: stored[name] for alias, name in aliases.items() if name in stored and alias not in stored}


def _without_aliases(
    found: Matches,
    given: Shapes,
    given_post: Shapes,
    aliases_base: Mapping[str, str],
    aliases_post: Mapping[str, str],
) -> Matches:
    """Matches of stored tensors, from those of the names that stand for some of them; their own names go first."""
    partners = {
        name: Match(aliases_post[match.name], ALIAS) if match.name in given_post else match
        for name, match in found.partners.items()
        if name not in given
    }
    for alias in given:
        match = found.partners.get(alias)
        if match is not None and match.name not in given_post and aliases_base[alias] not in partners:
            partners[aliases_base[alias]] = Match(match.name, ALIAS)
    ambiguous = {
        name: others for name, others in found.ambiguous.items() if name not in given and name not in given_post
    }
    return Matches(partners, ambiguous)


def _by_plain_name(names: Iterable[str]) -> dict[str, Sequence[str]]:
    """Names by their plain form, which several may share."""
    by_name: dict[str, list[str]] = {}
    for name in names:
        by_name.setdefault(plain(name), []).append(name)
    return dict(by_name)
