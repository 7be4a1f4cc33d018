"""One base and one post, whose matrices are paired in one pass."""

import math
from collections import Counter
from collections.abc import Container, Iterable, Mapping
from typing import NamedTuple

from polarax.loaders import roles
from polarax.loaders.checkpoint import Checkpoint
from polarax.loaders.dtypes import is_floating, is_integer
from polarax.loaders.formats.foreign import listed
from polarax.loaders.matrices import Inventory, View
from polarax.loaders.matrices.optimizer_state import OPTIMIZER
from polarax.loaders.pairing.coverage import Account, Coverage, nearest_names
from polarax.loaders.pairing.names import Match, match_names
from polarax.loaders.pairing.places import match_places
from polarax.loaders.pairing.records import ALIAS, ROLE, Pair, Skipped
from polarax.loaders.pairing.tied import Ties


class Paired(NamedTuple):
    """What pairing two checkpoints gives."""

    pairs: list[Pair]
    skipped: list[Skipped]
    coverage: Coverage


class Side(NamedTuple):
    """A checkpoint and what is in it."""

    checkpoint: Checkpoint
    inventory: Inventory
    unread: Mapping[str, str]  # tensors that are not read, with the reason
    names: tuple[str, ...]  # of its tensors, in natural order
    ties: Ties


class _Half:
    """One side at work: what it holds, and what becomes of it."""

    def __init__(self, side: Side, word: str):
        self.word = word  # "base" or "post"
        self.checkpoint, self.inventory, self.unread = side.checkpoint, side.inventory, side.unread
        self.names = side.names
        self.tied, self.stand_ins = side.ties.tied, side.ties.stand_ins
        self.notes = tuple(f"{word}: {note}" for note in side.ties.notes)
        self.account = Account()
        for name in self.names:
            if self.inventory.reasons.get(name) != OPTIMIZER:
                self.account.add_tensor(name, self.checkpoint.shape(name))
            for view in () if name in self.unread else self.inventory.views.get(name, ()):
                if is_floating(self.checkpoint.dtype(name)):
                    self.account.matrix_weights += math.prod(view.shape)
                if view.layer is not None:
                    self.account.layers.add(view.layer)

    def views_without(self, partners: Iterable[str]) -> list[View]:
        """The matrices of all tensors but some, as far as they can be read."""
        taken = set(partners) | self.unread.keys() | self.tied.keys()
        return [view for name in self.names if name not in taken for view in self.inventory.views.get(name, ())]

    def places(self) -> dict[str, tuple[int | None, str]]:
        """Layer and role of the tensors that are one matrix of a known place."""
        single = {name: views[0] for name, views in self.inventory.views.items() if len(views) == 1}
        return {name: (view.layer, view.role) for name, view in single.items() if view.role != roles.OTHER}

    def is_tied(self, name: str) -> bool:
        """Whether a tensor is another one of the same checkpoint, or another one is it."""
        return name in self.tied or name in self.tied.values() or name in self.checkpoint.aliases.values()

    def why_unread(self, name: str) -> str | None:
        """Why a tensor is not compared, whatever the other side has; None if nothing is against it."""
        if name in self.unread:
            return self.unread[name]
        return OPTIMIZER if self.inventory.reasons.get(name) == OPTIMIZER else None

    def unpaired(self, weights: int) -> None:
        """Counts numbers in matrices that have no partner."""
        self.account.unpaired_weights += weights


class Pairer:
    """One base and one post."""

    def __init__(self, base: Side, post: Side, common_rows: bool):
        self._base, self._post = _Half(base, "base"), _Half(post, "post")
        self._common_rows = common_rows
        self._pairs: list[Pair] = []
        self._skipped: list[Skipped] = []
        self._alone: tuple[list[str], list[str]] = ([], [])  # matrices without a partner
        self._tie_notes: list[str] = []

    def pair(self) -> Paired:
        """Pairs what belongs together; every tensor that is not compared is in the rows that are skipped."""
        base, post = self._base, self._post
        matches = match_names(
            {name: base.checkpoint.shape(name) for name in base.names},
            {name: post.checkpoint.shape(name) for name in post.names},
            base.checkpoint.aliases,
            post.checkpoint.aliases,
            base.places(),
            post.places(),
        )
        matched = {match.name for match in matches.partners.values()}
        left, left_post = base.views_without(matches.partners), post.views_without(matched)
        places = match_places(left, left_post)
        taken = {view.name for view in places.partners.values()}
        alone = [view for view in left if view.name not in places.partners]
        tied_in_post = _stand_ins(alone, post)
        tied_in_base = _stand_ins([view for view in left_post if view.name not in taken], base)
        ambiguous = dict(places.ambiguous)
        for name, others in matches.ambiguous.items():
            ambiguous[name] = f"ambiguous: {listed(others)} {'are' if len(others) > 1 else 'is'} like it"
        for half, other, found in ((base, post, tied_in_base), (post, base, tied_in_post)):
            for view, stand_in in found.values():
                role = "head" if view.role == "head" else "embedding"
                self._tie_notes.append(
                    f"{half.word}: {stand_in.tensor} is its {role}, too: "
                    f"the {other.word}'s {view.tensor} is compared with it"
                )
        for name in base.names:
            match = matches.partners.get(name)
            if match is not None:
                self._pair_tensors(name, match)
            elif name in tied_in_post:
                self._add(*tied_in_post[name], ALIAS)
            else:
                self._pair_views(name, places.partners, ambiguous)
        for name in post.names:
            if name in tied_in_base:
                view_post, view = tied_in_base[name]
                self._add(view, view_post, ALIAS, name)
            elif name not in matched:
                self._skip_alone(post, name, taken, ambiguous)
        has_common = bool(matches.partners or places.partners or ambiguous)
        return Paired(self._pairs, self._skipped, self._coverage(has_common))

    def _coverage(self, has_common: bool) -> Coverage:
        sides = self._base.account.close(), self._post.account.close()
        matched_by = dict(Counter(pair.matched_by for pair in self._pairs))
        notes = (*self._base.notes, *self._post.notes, *self._tie_notes) if self._base.names else ()
        return Coverage(*sides, matched_by, tuple(dict.fromkeys(notes)), nearest_names(*self._alone), has_common)

    def _pair_tensors(self, name: str, match: Match) -> None:
        """Pairs the matrices of two tensors, or says why not: in one row where it is the same for all."""
        base, post = self._base, self._post
        reason = self._reason(name, match)
        views, views_post = base.inventory.views.get(name, ()), post.inventory.views.get(match.name, ())
        of_post = {view.label: view for view in views_post}
        if reason is None and {view.label for view in views} != of_post.keys():
            shape, shape_post = base.checkpoint.shape(name), post.checkpoint.shape(match.name)
            reason = f"shapes differ: base {shape}, post {shape_post}"
            if shape == shape_post:
                reason = f"split differently: base {_labels(views)}, post {_labels(views_post)}"
            self._count_unpaired(views, views_post)
        if reason is not None:
            self._leave_out(reason, name, match.name)
            return
        obstacles = [self._obstacle(view, of_post[view.label]) for view in views]
        if len(views) > 1 and None not in obstacles and len(set(obstacles)) == 1:
            self._leave_out(str(obstacles[0]), name, match.name)
            return
        for view, obstacle in zip(views, obstacles, strict=True):
            if obstacle is None:
                self._add(view, of_post[view.label], match.matched_by)
            else:
                self._leave_out_views(obstacle, view, of_post[view.label])

    def _pair_views(self, name: str, partners: Mapping[str, View], ambiguous: Mapping[str, str]) -> None:
        """Pairs the matrices of a tensor of the base by their places."""
        for view in self._base.inventory.views.get(name, ()):
            if view.name in partners:
                partner = partners[view.name]
                obstacle = self._obstacle(view, partner)
                if obstacle is None:
                    self._add(view, partner, ROLE)
                else:
                    self._leave_out_views(obstacle, view, partner)
        self._skip_alone(self._base, name, partners, ambiguous)

    def _skip_alone(self, half: _Half, name: str, taken: Container[str], ambiguous: Mapping[str, str]) -> None:
        """A row for each matrix that has no partner: one for the tensor where none of its matrices has."""
        views = half.inventory.views.get(name, ())
        alone = [view for view in views if view.name not in taken]
        if views and not alone:
            return
        only = f"only in {half.word}"
        reason = half.why_unread(name)
        if reason is not None and reason != OPTIMIZER:
            reason = f"{reason}; {only}"
        elif reason is None and name in half.tied:
            reason = f"tied to {half.tied[name]}"
        elif reason is None:
            reason = half.inventory.reasons.get(name)
        if reason is None and is_floating(half.checkpoint.dtype(name)):
            half.unpaired(sum(math.prod(view.shape) for view in alone))
        if reason is None and alone:
            self._alone[half.word == "post"].append(name)
        if len(alone) == len(views) and not any(view.name in ambiguous for view in alone if view.name != name):
            self._skip(half, name, reason or ambiguous.get(name, only))
            return
        for view in alone:
            row = reason or ambiguous.get(view.name, only)
            self._skipped.append(Skipped(view.name, row))
            half.account.leave_out(name, row, math.prod(view.shape))

    def _skip(self, half: _Half, name: str, reason: str) -> None:
        self._skipped.append(Skipped(name, reason))
        if reason != OPTIMIZER:
            half.account.leave_out(name, reason)

    def _leave_out(self, reason: str, name: str, name_post: str) -> None:
        """Two tensors that belong together and are not compared."""
        self._skipped.append(Skipped(name, reason))
        if reason != OPTIMIZER:
            self._base.account.leave_out(name, reason)
            self._post.account.leave_out(name_post, reason)

    def _leave_out_views(self, reason: str, view: View, view_post: View) -> None:
        """Two matrices that belong together and are not compared."""
        self._skipped.append(Skipped(view.name, reason))
        self._base.account.leave_out(view.tensor, reason, math.prod(view.shape))
        self._post.account.leave_out(view_post.tensor, reason, math.prod(view_post.shape))

    def _count_unpaired(self, views: Iterable[View], views_post: Iterable[View]) -> None:
        for half, of_half in ((self._base, views), (self._post, views_post)):
            half.unpaired(sum(math.prod(view.shape) for view in of_half))

    def _reason(self, name: str, match: Match) -> str | None:
        """Why no matrix of two tensors can be compared; None if nothing is against it but perhaps their shapes."""
        base, post = self._base, self._post
        unread = base.why_unread(name), post.why_unread(match.name)
        if OPTIMIZER in unread:
            return OPTIMIZER
        if unread != (None, None):
            return unread[0] or unread[1]
        reason, reason_post = base.inventory.reasons.get(name), post.inventory.reasons.get(match.name)
        if reason is None and reason_post is None:
            if match.matched_by == ALIAS:
                tied = base.is_tied(name) and post.is_tied(match.name)
            else:
                tied = name in base.tied and match.name in post.tied
            return f"tied to {base.tied.get(name) or post.tied.get(match.name) or match.name}" if tied else None
        shape, shape_post = base.checkpoint.shape(name), post.checkpoint.shape(match.name)
        return f"shapes differ: base {shape}, post {shape_post}" if shape != shape_post else reason or reason_post

    def _obstacle(self, view: View, view_post: View) -> str | None:
        """Why two matrices cannot be compared; None if they can."""
        base, post = self._base.checkpoint, self._post.checkpoint
        shape, shape_post = view.shape, view_post.shape
        if shape != shape_post:
            of_tokens = roles.ROLE[view.role].rows is roles.Side.TOKENS and shape[1] == shape_post[1]
            if not of_tokens:
                self._count_unpaired([view], [view_post])
            if not (self._common_rows and of_tokens):
                return f"shapes differ: base {shape}, post {shape_post}"
        if view.row_order != view_post.row_order:
            side = base if view.row_order else post
            return f"rows of queries and keys are in another order: the heads of {side.location} are not known"
        dtype, dtype_post = base.dtype(view.tensor), post.dtype(view_post.tensor)
        if is_floating(dtype) and is_floating(dtype_post):
            return None
        known = all(is_floating(stored) or is_integer(stored) for stored in (dtype, dtype_post))
        problem = "not floating-point:" if known else "unsupported dtype"
        words, words_post = base.dtype_name(view.tensor), post.dtype_name(view_post.tensor)
        return f"{problem} {words}" if words == words_post else f"{problem} base {words}, post {words_post}"

    def _add(self, view: View, view_post: View, matched_by: str, name: str = "") -> None:
        """Adds a pair; `name` is for a matrix that the base has no name of its own for."""
        base, post = self._base, self._post
        dtype, dtype_post = base.checkpoint.dtype(view.tensor), post.checkpoint.dtype(view_post.tensor)
        assert dtype is not None and dtype_post is not None  # else there were an obstacle
        if view.shape != view_post.shape:
            rows = min(view.shape[0], view_post.shape[0])
            view, view_post = view.first_rows(rows), view_post.first_rows(rows)
        for half, of_half in ((base, view), (post, view_post)):
            half.account.compare(of_half.tensor, of_half.shape)
        # The two names of one matrix may be known to different tables, or one of them to none.
        known = view_post if name or view.role == roles.OTHER else view
        self._pairs.append(
            Pair(
                name or view.name,
                known.layer,
                known.role,
                known.expert,
                view.shape,
                dtype,
                dtype_post,
                view_post.name,
                view,
                view_post,
                base.checkpoint.dtype_name(view.tensor),
                post.checkpoint.dtype_name(view_post.tensor),
                _stored_bytes(base.checkpoint, view),
                _stored_bytes(post.checkpoint, view_post),
                matched_by,
            )
        )


def _stand_ins(alone: Iterable[View], other: _Half) -> dict[str, tuple[View, View]]:
    """Heads and embeddings that are the other side's only one of the two, by name; with that one."""
    found: dict[str, tuple[View, View]] = {}
    for view in alone if other.stand_ins else ():
        name = other.stand_ins.get(view.role)
        if name is None or view.layer is not None or name in other.unread or view.name in other.checkpoint:
            continue
        stand_in = other.inventory.views[name][0]
        if stand_in.shape == view.shape and is_floating(other.checkpoint.dtype(name)):
            found[view.name] = view, stand_in
    return found


def _stored_bytes(checkpoint: Checkpoint, view: View) -> int:
    """A matrix's share of the bytes of its tensor."""
    nbytes, shape = checkpoint.nbytes(view.tensor), checkpoint.shape(view.tensor)
    return nbytes if shape == view.shape else nbytes * math.prod(view.shape) // math.prod(shape)


def _labels(views: Iterable[View]) -> str:
    return listed([view.label or "one matrix" for view in views])
