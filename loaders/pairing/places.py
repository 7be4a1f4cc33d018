"""Matrices that belong together by their place in the model: layer, role and expert.

This is how a matrix finds its partner where names don't help: between libraries that name everything otherwise, and
between parts of tensors that one library stores fused or stacked and the other one by one.
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from polarax.loaders.architectures import recognise
from polarax.loaders.matrices import View
from polarax.loaders.roles import OTHER, ROLES

# Two checkpoints whose names differ are spellings of one model if this share of the smaller one's matrices is found in
# the other by its place, with the same shape. Below it they are two models.
_SHARE = 0.5

_LABEL = re.compile(r"\[(?:layer=([0-9]+)|expert=([0-9]+)|([a-z_]+))\]")


class _Place(NamedTuple):
    """What a matrix is in its model."""

    tower: bool  # for images or sound, beside the language model
    layer: int | None
    role: str
    expert: int | None

    def __str__(self) -> str:
        """In words: "layer 3 q"."""
        layer = f"layer {self.layer} " if self.layer is not None else ""
        tower = " of a tower" if self.tower else ""
        return layer + self.role + (f" of expert {self.expert}" if self.expert is not None else "") + tower


class ByPlace(NamedTuple):
    """What the places of matrices say."""

    partners: dict[str, View]  # the post's matrix, by the name of the base's
    ambiguous: dict[str, str]  # the reason why a matrix of either side has none, by its name


_Places = Mapping[_Place, Sequence[View]]


def match_places(base: Iterable[View], post: Iterable[View]) -> ByPlace:
    """Pairs matrices whose place in the model is the same, where it is of one matrix on either side.

    Two parts of one model may have the same places, such as its two decoders. Each is then paired with the part of the
    other side that has most matrices in common with it, if there is one.

    Args:
        base: Matrices that have no partner by name.
        post: The other side's.
    """
    of_base, of_post = _places(base), _places(post)
    common = [place for place in of_base if place in of_post]
    single = [place for place in common if len(of_base[place]) == len(of_post[place]) == 1]
    pairs = [(of_base[place][0], of_post[place][0]) for place in single]
    several = [place for place in common if len(of_base[place]) > 1 or len(of_post[place]) > 1]
    by_part: list[tuple[View, View]] = []
    unclear: list[_Place] = []
    if several:
        by_part, unclear = _by_part(several, _alike(common, of_base, of_post), of_base, of_post)
    pairs += by_part
    smaller = min(sum(map(len, of_base.values())), sum(map(len, of_post.values())))
    alike = sum(view.shape == view_post.shape for view, view_post in pairs)
    if not alike or alike < _SHARE * smaller:
        pairs, taken = [], set()
        unclear = several if len(several) >= _SHARE * len(common) else []
    else:
        taken = {view.name for view, _ in by_part} | {view_post.name for _, view_post in by_part}
    ambiguous = {
        view.name: f"ambiguous: several matrices are {place}"
        for place in unclear
        for view in (*of_base[place], *of_post[place])
        if view.name not in taken
    }
    return ByPlace({view.name: view_post for view, view_post in pairs}, ambiguous)


def place_of(view: View) -> _Place | None:
    """What a matrix is in its model, or in a tower of it; None if that is not known."""
    if view.role != OTHER:
        return _Place(False, view.layer, view.role, view.expert)
    found = recognise(view.tensor)
    if not found.tower:
        return None
    place = _Place(True, *found.identity)
    for layer, expert, role in _LABEL.findall(view.label):
        if layer:
            place = place._replace(layer=int(layer))
        elif expert:
            place = place._replace(expert=int(expert))
        elif role in ROLES:
            place = place._replace(role=role)
    return place if place.role != OTHER else None


def _places(views: Iterable[View]) -> dict[_Place, list[View]]:
    by_place: dict[_Place, list[View]] = {}
    for view in views:
        place = place_of(view)
        if place is not None:
            by_place.setdefault(place, []).append(view)
    return by_place


def _alike(places: Iterable[_Place], base: _Places, post: _Places) -> Counter[tuple[str, str]]:
    """How many matrices of equal place and shape a part of one side and one of the other have."""
    alike: Counter[tuple[str, str]] = Counter()
    for place in places:
        for view in base[place]:
            for view_post in post[place]:
                if view.shape == view_post.shape:
                    alike[_part(view), _part(view_post)] += 1
    return alike


def _by_part(
    places: Iterable[_Place], alike: Counter[tuple[str, str]], base: _Places, post: _Places
) -> tuple[list[tuple[View, View]], list[_Place]]:
    """Pairs within the parts of two models that have most in common; and the places that this leaves unclear."""
    chosen: dict[str, str] = {}
    for (part, part_post), count in alike.most_common():
        if part in chosen or part_post in chosen.values():
            continue
        rivals = [
            other
            for other, as_many in alike.items()
            if as_many == count and (other[0] == part) != (other[1] == part_post)
        ]
        if not any(one not in chosen and two not in chosen.values() for one, two in rivals):
            chosen[part] = part_post
    pairs: list[tuple[View, View]] = []
    unclear: list[_Place] = []
    for place in places:
        parts, parts_post = _by_name_of_part(base[place]), _by_name_of_part(post[place])
        found = [
            (views[0], parts_post[chosen[part]][0])
            for part, views in parts.items()
            if len(views) == 1 and len(parts_post.get(chosen.get(part, ""), ())) == 1
        ]
        chosen_views = {one.name for pair in found for one in pair}
        shapes = {view.shape for view, _ in found}
        if any(view.name not in chosen_views and view.shape in shapes for view in (*base[place], *post[place])):
            found = []  # another one is as good
        pairs += found
        if len(found) < max(len(base[place]), len(post[place])):
            unclear.append(place)
    return pairs, unclear


def _by_name_of_part(views: Iterable[View]) -> dict[str, list[View]]:
    parts: dict[str, list[View]] = {}
    for view in views:
        parts.setdefault(_part(view), []).append(view)
    return parts


def _part(view: View) -> str:
    """The part of the model that a matrix is in: what stands before its place in the name."""
    found = recognise(view.tensor)
    return f"{found.prefix}|{found.layers}"
