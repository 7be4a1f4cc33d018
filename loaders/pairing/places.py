"""Matrices that belong together by their place in the model: layer, role and expert.

This is how a matrix finds its partner where names don't help: between libraries that name everything otherwise, and
between parts of tensors that one library stores fused or stacked and the other one by one.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from polarax.loaders.architectures import Identity, recognise
from polarax.loaders.matrices import View, identities

# Two checkpoints whose names differ are spellings of one model if this share of the smaller one's matrices is found in
# the other by its place, with the same shape. Below it they are two models.
_SHARE = 0.5


class ByPlace(NamedTuple):
    """What the places of matrices say."""

    partners: dict[str, View]  # the post's matrix, by the name of the base's
    ambiguous: dict[str, str]  # the reason why a matrix of either side has none, by its name


def match_places(base: Iterable[View], post: Iterable[View]) -> ByPlace:
    """Pairs matrices whose place in the model is the same, where it is of one matrix on either side.

    Two parts of one model may have the same places, such as its two decoders. Each is then paired with the part of the
    other side that has most matrices in common with it, if there is one.

    Args:
        base: Matrices that have no partner by name.
        post: The other side's.
    """
    of_base, of_post = identities(base), identities(post)
    common = [identity for identity in of_base if identity in of_post]
    single = [identity for identity in common if len(of_base[identity]) == len(of_post[identity]) == 1]
    pairs = [(of_base[identity][0], of_post[identity][0]) for identity in single]
    several = [identity for identity in common if len(of_base[identity]) > 1 or len(of_post[identity]) > 1]
    by_part, unclear = _by_part(several, of_base, of_post) if several else ([], [])
    pairs += by_part
    smaller = min(sum(map(len, of_base.values())), sum(map(len, of_post.values())))
    alike = sum(view.shape == view_post.shape for view, view_post in pairs)
    if not alike or alike < _SHARE * smaller:
        return ByPlace({}, {})
    taken = {view.name for view, _ in by_part} | {view_post.name for _, view_post in by_part}
    ambiguous = {
        view.name: f"ambiguous: several matrices are {_words(identity)}"
        for identity in unclear
        for view in (*of_base[identity], *of_post[identity])
        if view.name not in taken
    }
    return ByPlace({view.name: view_post for view, view_post in pairs}, ambiguous)


def _by_part(
    places: Sequence[Identity], base: Mapping[Identity, Sequence[View]], post: Mapping[Identity, Sequence[View]]
) -> tuple[list[tuple[View, View]], list[Identity]]:
    """Pairs within the parts of two models that have most in common; and the places that this leaves unclear."""
    of_base, of_post = ({place: _parts_of(side[place]) for place in places} for side in (base, post))
    alike: Counter[tuple[str, str]] = Counter()
    for place in places:
        for part, view in of_base[place].items():
            for part_post, view_post in of_post[place].items():
                if view is not None and view_post is not None and view.shape == view_post.shape:
                    alike[part, part_post] += 1
    chosen: dict[str, str] = {}
    for (part, part_post), count in alike.most_common():
        rivals = [other for other in alike if (other[0] == part) != (other[1] == part_post) and alike[other] == count]
        free = part not in chosen and part_post not in chosen.values()
        if free and not any(one not in chosen and two not in chosen.values() for one, two in rivals):
            chosen[part] = part_post
    pairs: list[tuple[View, View]] = []
    unclear: list[Identity] = []
    for place in places:
        found = [
            (view, of_post[place].get(chosen.get(part, "")))
            for part, view in of_base[place].items()
            if view is not None
        ]
        pairs += [(view, view_post) for view, view_post in found if view_post is not None]
        if any(view_post is None for _, view_post in found) or None in of_base[place].values():
            unclear.append(place)
    return pairs, unclear


def _parts_of(views: Sequence[View]) -> dict[str, View | None]:
    """Matrices by the part of the model that they are in: what stands before the table's names; None where several."""
    parts: dict[str, View | None] = {}
    for view in views:
        part = recognise(view.tensor).prefix + "|"
        parts[part] = view if part not in parts else None
    return parts


def _words(identity: Identity) -> str:
    """A place in a model, in words: "layer 3 q"."""
    layer, role, expert = identity
    return (
        (f"layer {layer} " if layer is not None else "") + role + (f" of expert {expert}" if expert is not None else "")
    )
