"""Which matrices of two checkpoints are compared: matched by name or by what they are, none dropped in silence."""

import math
import re
import sys
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from polarax.loaders.checkpoint import Checkpoint, CheckpointError
from polarax.loaders.dtypes import is_floating, is_integer
from polarax.loaders.matching import match_names
from polarax.loaders.matrices import Inventory, RoleMapSource, View, identities, parse_role_map, take_inventory
from polarax.loaders.matrices.optimizer_state import OPTIMIZER
from polarax.loaders.quantisation import quantised
from polarax.loaders.roles import ROLE, Side

# Of two checkpoints whose names differ: the share of the smaller one's matrices that must be found in the other by
# layer and role, with the same shape. Below it they are two models, not two spellings of one.
_IDENTITY_SHARE = 0.5

_DIGITS = re.compile(r"[0-9]+")


class Pair(NamedTuple):
    """A matrix that both checkpoints have."""

    name: str  # the base's name of it: its tensor's, and in brackets which part of that it is
    layer: int | None
    role: str  # one of ROLES
    expert: int | None
    shape: tuple[int, ...]  # (out, in)
    dtype_base: np.dtype  # as it is read
    dtype_post: np.dtype
    name_post: str  # the post's name of it
    base: View  # where it is in the base, and how to read it
    post: View
    stored_base: str  # dtype in the store, in words: "bfloat16"; "Q4_1", "float8_e4m3fn, scaled" where it is decoded
    stored_post: str
    bytes_base: int  # in the store
    bytes_post: int


class Skipped(NamedTuple):
    """A tensor, or a matrix in one, that is not compared."""

    name: str  # the base's name of it, where the base has it
    reason: str


def pair_checkpoints(
    base: Checkpoint,
    post: Checkpoint,
    *,
    role_map: RoleMapSource = None,
    common_rows: bool = False,
) -> tuple[list[Pair], list[Skipped]]:
    """The matrices to compare, and every other tensor with the reason why it is not compared.

    Tensors are matched by name; where one side puts a constant prefix before its names ("bert.",
    "model."), without it; where names of two libraries meet, without ".weight" and ".kernel". Where
    no name is left in common, matrices are matched by layer, role and expert, as far as those are
    unique. What is compared is what both have as a floating-point matrix of one shape with at least
    one element; a tensor may hold several.

    Args:
        base: The checkpoint before training.
        post: The checkpoint after it.
        role_map: The user's own table of names, asked before polarax's: see `parse_role_map`.
        common_rows: Compare embeddings and heads of different vocabularies on the rows that both have.

    Returns:
        Pairs and skipped tensors, each in natural order of the base's names (layer 2 before layer
        10), followed by what only the post has.

    Raises:
        CheckpointError: If the two have nothing in common, or the role map cannot be used.
    """
    return Pairing(base, role_map=role_map, common_rows=common_rows).pair(post)


class Pairing:
    """Pairs several posts with one base, of which the inventory is taken once."""

    def __init__(self, base: Checkpoint, *, role_map: RoleMapSource = None, common_rows: bool = False):
        """Reads nothing yet.

        Args:
            base: The checkpoint before training.
            role_map: As for `pair_checkpoints`.
            common_rows: As for `pair_checkpoints`.

        Raises:
            CheckpointError: If the role map cannot be used.
        """
        self._base = base
        self._table = parse_role_map(role_map)
        self._common_rows = common_rows
        self._known: tuple[Mapping[str, Any] | None, _Side] | None = None  # and the post's configuration, if it counts

    def pair(self, post: Checkpoint) -> tuple[list[Pair], list[Skipped]]:
        """What `pair_checkpoints` gives for the base and a post, with the same errors."""
        base = self._base
        side_base = self._side_of_base(post)
        side_post = side_base if post is base else self._take(post, base.config if post.config is None else None)
        pairer = _Pairer(side_base, side_post, self._common_rows)
        matches = match_names(base.names(), post.names())
        if matches:
            return pairer.by_name(matches)
        paired = pairer.by_identity()
        if paired is None:
            raise CheckpointError(
                f"{base.location} and {post.location} have no tensor name in common: "
                f"the base has {_example(base)}, the post {_example(post)}"
            )
        return paired

    def _side_of_base(self, post: Checkpoint) -> "_Side":
        """What is in the base; taken anew only if that rests on a configuration which only the posts have."""
        config = post.config if self._base.config is None else None
        if self._known is None or self._known[0] != config:
            self._known = config, self._take(self._base, config)
        return self._known[1]

    def _take(self, checkpoint: Checkpoint, config: Mapping[str, Any] | None) -> "_Side":
        names = tuple(sorted(checkpoint.names(), key=natural))
        return _Side(checkpoint, take_inventory(checkpoint, self._table, config), quantised(checkpoint), names)


class _Side(NamedTuple):
    """A checkpoint and what is in it."""

    checkpoint: Checkpoint
    inventory: Inventory
    quantised: Mapping[str, str]  # tensors that are not read, with what each is
    names: tuple[str, ...]  # of its tensors, in natural order


class _Pairer:
    """One base and one post, whose matrices are paired in one pass."""

    def __init__(self, base: _Side, post: _Side, common_rows: bool):
        self._base, self._post = base.checkpoint, post.checkpoint
        self._in_base, self._in_post = base.inventory, post.inventory
        self._names_base, self._names_post = base.names, post.names
        self._quantised_base, self._quantised_post = base.quantised, post.quantised
        self._common_rows = common_rows
        self._pairs: list[Pair] = []
        self._skipped: list[Skipped] = []

    def by_name(self, matches: Mapping[str, str]) -> tuple[list[Pair], list[Skipped]]:
        """Pairs the matrices of tensors that are matched by name."""
        for name in self._names_base:
            if name in matches:
                self._pair_tensors(name, matches[name])
            else:
                self._skip_one_sided(name, "base")
        matched = set(matches.values())
        for name in self._names_post:
            if name not in matched:
                self._skip_one_sided(name, "post")
        return self._pairs, self._skipped

    def by_identity(self) -> tuple[list[Pair], list[Skipped]] | None:
        """Pairs matrices by layer, role and expert; None if that does not show the two to be one model."""
        base, post = (
            identities(view for views in inventory.views.values() for view in views)
            for inventory in (self._in_base, self._in_post)
        )
        unique = {
            identity: (views[0], post[identity][0])
            for identity, views in base.items()
            if len(views) == 1 and len(post.get(identity, ())) == 1
        }
        alike = sum(view.shape == view_post.shape for view, view_post in unique.values())
        smaller = min(sum(map(len, base.values())), sum(map(len, post.values())))
        if not alike or alike < _IDENTITY_SHARE * smaller:
            return None
        partners = {view.name: view_post for view, view_post in unique.values()}
        taken = {view_post.name for view_post in partners.values()}
        ambiguous = {
            view.name: f"ambiguous: several matrices are {_words(identity)}"
            for side, other in ((base, post), (post, base))
            for identity, views in side.items()
            if identity in other and (len(views) > 1 or len(other[identity]) > 1)
            for view in views
        }
        for name in self._names_base:
            self._pair_views(name, partners, ambiguous)
        for name in self._names_post:
            self._skip_views(name, "post", self._in_post, taken, ambiguous)
        return self._pairs, self._skipped

    def _pair_views(self, name: str, partners: Mapping[str, View], ambiguous: Mapping[str, str]) -> None:
        for view in self._in_base.views.get(name, ()):
            if view.name in partners:
                partner = partners[view.name]
                reason = self._reason(name, partner.tensor) or self._obstacle(view, partner)
                if reason is None:
                    self._add(view, partner)
                else:
                    self._skipped.append(Skipped(view.name, reason))
        self._skip_views(name, "base", self._in_base, set(partners), ambiguous)

    def _skip_views(
        self, name: str, side: str, inventory: Inventory, taken: set[str], ambiguous: Mapping[str, str]
    ) -> None:
        """A row for each matrix that has no partner: one for the tensor where none of its matrices has."""
        kinds = self._quantised_base if side == "base" else self._quantised_post
        views = inventory.views.get(name, ())
        alone = [view for view in views if view.name not in taken]
        if name in inventory.reasons:
            reason = f"quantised: {kinds[name]}" if name in kinds else inventory.reasons[name]
            self._skipped.append(Skipped(name, reason))
        elif len(alone) == len(views) and not any(view.name in ambiguous for view in alone):
            self._skip_one_sided(name, side)
        else:
            rows = [Skipped(view.name, ambiguous.get(view.name, f"only in {side}")) for view in alone]
            self._skipped += rows

    def _skip_one_sided(self, name: str, side: str) -> None:
        inventory = self._in_base if side == "base" else self._in_post
        kind = (self._quantised_base if side == "base" else self._quantised_post).get(name)
        reason = f"only in {side}"
        if kind:
            reason = f"quantised: {kind}; only in {side}"
        elif inventory.reasons.get(name) == OPTIMIZER:
            reason = OPTIMIZER
        elif name in inventory.tied:
            reason = f"tied to {inventory.tied[name]}"
        self._skipped.append(Skipped(name, reason))

    def _pair_tensors(self, name: str, name_post: str) -> None:
        """Pairs the matrices of two tensors, or says why not: in one row where it is the same for all."""
        reason = self._reason(name, name_post)
        views, views_post = self._in_base.views.get(name, ()), self._in_post.views.get(name_post, ())
        of_post = {view.label: view for view in views_post}
        if reason is None and {view.label for view in views} != of_post.keys():
            shape, shape_post = self._base.shape(name), self._post.shape(name_post)
            reason = f"shapes differ: base {shape}, post {shape_post}"
            if shape == shape_post:
                reason = f"split differently: base {_labels(views)}, post {_labels(views_post)}"
        if reason is not None:
            self._skipped.append(Skipped(name, reason))
            return
        obstacles = [self._obstacle(view, of_post[view.label]) for view in views]
        if len(views) > 1 and None not in obstacles and len(set(obstacles)) == 1:
            self._skipped.append(Skipped(name, str(obstacles[0])))
            return
        for view, obstacle in zip(views, obstacles, strict=True):
            if obstacle is None:
                self._add(view, of_post[view.label])
            else:
                self._skipped.append(Skipped(view.name, obstacle))

    def _reason(self, name: str, name_post: str) -> str | None:
        """Why no matrix of two tensors can be compared; None if nothing is against it but perhaps their shapes."""
        kind = self._quantised_base.get(name) or self._quantised_post.get(name_post)
        if kind:
            return f"quantised: {kind}"
        reason, reason_post = self._in_base.reasons.get(name), self._in_post.reasons.get(name_post)
        if reason is None and reason_post is None:
            tied = name in self._in_base.tied and name_post in self._in_post.tied
            return f"tied to {self._in_base.tied[name]}" if tied else None
        if reason == OPTIMIZER or reason_post == OPTIMIZER:
            return OPTIMIZER
        shape, shape_post = self._base.shape(name), self._post.shape(name_post)
        return f"shapes differ: base {shape}, post {shape_post}" if shape != shape_post else reason or reason_post

    def _obstacle(self, view: View, view_post: View) -> str | None:
        """Why two matrices cannot be compared; None if they can."""
        shape, shape_post = view.shape, view_post.shape
        if shape != shape_post:
            of_tokens = ROLE[view.role].rows is Side.TOKENS and shape[1] == shape_post[1]
            if not (self._common_rows and of_tokens):
                return f"shapes differ: base {shape}, post {shape_post}"
        dtype, dtype_post = self._base.dtype(view.tensor), self._post.dtype(view_post.tensor)
        if is_floating(dtype) and is_floating(dtype_post):
            return None
        known = all(is_floating(stored) or is_integer(stored) for stored in (dtype, dtype_post))
        problem = "not floating-point:" if known else "unsupported dtype"
        words, words_post = self._base.dtype_name(view.tensor), self._post.dtype_name(view_post.tensor)
        return f"{problem} {words}" if words == words_post else f"{problem} base {words}, post {words_post}"

    def _add(self, view: View, view_post: View) -> None:
        dtype, dtype_post = self._base.dtype(view.tensor), self._post.dtype(view_post.tensor)
        assert dtype is not None and dtype_post is not None  # else there were an obstacle
        if view.shape != view_post.shape:
            rows = min(view.shape[0], view_post.shape[0])
            view, view_post = view.first_rows(rows), view_post.first_rows(rows)
        # The two names of one matrix may be known to different tables, or one of them to none.
        known = view_post if view.role == "other" else view
        self._pairs.append(
            Pair(
                view.name,
                known.layer,
                known.role,
                known.expert,
                view.shape,
                dtype,
                dtype_post,
                view_post.name,
                view,
                view_post,
                self._base.dtype_name(view.tensor),
                self._post.dtype_name(view_post.tensor),
                _stored_bytes(self._base, view),
                _stored_bytes(self._post, view_post),
            )
        )


def _stored_bytes(checkpoint: Checkpoint, view: View) -> int:
    """A matrix's share of the bytes of its tensor."""
    nbytes, shape = checkpoint.nbytes(view.tensor), checkpoint.shape(view.tensor)
    return nbytes if shape == view.shape else nbytes * math.prod(view.shape) // math.prod(shape)


def _words(identity: tuple[int | None, str, int | None]) -> str:
    """A place in a model, in words: "layer 3 q"."""
    layer, role, expert = identity
    return (
        (f"layer {layer} " if layer is not None else "") + role + (f" of expert {expert}" if expert is not None else "")
    )


def _labels(views: Iterable[View]) -> str:
    labels = [view.label for view in views]
    shown = ", ".join(label or "one matrix" for label in labels[:3])
    return shown + (f" and {len(labels) - 3} more" if len(labels) > 3 else "")


def natural(name: str) -> str:
    """Sort key that puts numbers in a name in numerical order."""
    return _DIGITS.sub(_in_order, name)


def _in_order(digits: re.Match[str]) -> str:
    """A number as text that sorts by its size, before all letters: shorter ones first."""
    significant = digits[0].lstrip("0")
    return chr(min(len(significant), sys.maxunicode)) + significant


def _example(checkpoint: Checkpoint) -> str:
    names = checkpoint.names()
    return repr(min(names, key=natural)) if names else "no tensors"
