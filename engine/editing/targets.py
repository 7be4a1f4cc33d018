"""Which matrices are edited: pairs that were chosen, as far as the post's tensors can be written one by one."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from polarax.editing.settings import ALL_ROLES, EditSettings
from polarax.errors import UsageError
from polarax.loaders import Checkpoint, Pair, Pairing, RoleMap, Skipped, View, short_name
from polarax.loaders.matrices import take_inventory
from polarax.loaders.pairing.tied import find_ties
from polarax.planning.partners import refusal
from polarax.planning.selection import Selection

_SHAPES_DIFFER = "shapes differ"


class Targets(NamedTuple):
    """What is edited of a post."""

    pairs: tuple[Pair, ...]  # in model order
    left: tuple[Skipped, ...]  # what is not, and why
    copies: Mapping[str, tuple[str, ...]]  # tensors that repeat an edited one, which are written with it
    notes: tuple[str, ...]


def find_targets(
    base: Checkpoint,
    post: Checkpoint,
    selection: Selection,
    settings: EditSettings,
    role_map: RoleMap | None = None,
) -> Targets:
    """Pairs base and post and chooses; reads headers alone, and pages of a head that may be an embedding.

    Args:
        base: The checkpoint before training; the post itself for an edit of one model.
        post: The checkpoint after it, whose layout is written.
        selection: Which matrices to edit.
        settings: Of the edit, whose factors choose roles too.
        role_map: The user's own table of names.

    Raises:
        CheckpointError: The two have nothing in common, or too little.
        UsageError: A matrix that was chosen has two shapes, a role or layer that was asked for is not there, or
            nothing is left.
    """
    paired = Pairing(base, role_map=role_map).pair(post)
    problem = refusal(base, post, paired, allow_partial=True)
    if problem is not None:
        raise problem
    inventory = take_inventory(post, role_map, base.config if post.config is None else None)
    ties = find_ties(post, inventory, post.config or base.config or {})
    for role, name in ties.stand_ins.items():
        if role in selection.roles:
            other = "embed" if role == "head" else "head"
            raise UsageError(f"The post's {role} is {short_name(name)}, stored once: choose --roles={other}.")
    _refuse_shapes(base, paired.skipped, selection, role_map)
    chosen, left = selection.split(paired.pairs)
    pairs = []
    for pair in chosen:
        reason = _why_not(pair, ties.tied, settings)
        if reason is None:
            pairs.append(pair)
        else:
            left.append(Skipped(pair.name, reason))
    _refuse_missing(selection, settings, pairs, left)
    edited = {pair.post.tensor for pair in pairs}
    copies: dict[str, tuple[str, ...]] = {}
    for name, original in ties.tied.items():
        if original in edited:
            copies[original] = (*copies.get(original, ()), name)
    notes = [*ties.notes, *(f"{', '.join(names)}: tied to {name}, written with it" for name, names in copies.items())]
    return Targets(tuple(pairs), (*paired.skipped, *left), copies, tuple(notes))


def _why_not(pair: Pair, tied: Mapping[str, str], settings: EditSettings) -> str | None:
    if pair.post.tensor in tied:
        return f"tied to {tied[pair.post.tensor]} in the post: edited with it"
    if pair.post.role != pair.role and {pair.post.role, pair.role} == {"embed", "head"}:
        return f"the post's {pair.role} is {pair.post.tensor}: edited with it"
    if "factor" in settings.kind.options and settings.factor_of(pair.role) is None:
        return "no factor for its role"
    return None


def _refuse_shapes(
    base: Checkpoint, skipped: Sequence[Skipped], selection: Selection, role_map: RoleMap | None
) -> None:
    """Refuses a matrix that was chosen and whose two shapes differ."""
    differing = [row for row in skipped if row.reason.startswith(_SHAPES_DIFFER)]
    if not differing:
        return
    inventory = take_inventory(base, role_map)
    for row in differing:
        views = [
            view
            for name, views in inventory.views.items()
            for view in views
            if row.name in (name, view.name) and _is_chosen(view, selection)
        ]
        if views:
            raise UsageError(
                f"{short_name(row.name)}: {row.reason}. An edit needs both of one shape; leave it out with --exclude, "
                f"or choose --roles."
            )


def _is_chosen(view: View, selection: Selection) -> bool:
    try:
        selection.split([view])
    except UsageError:
        return False
    return True


def _refuse_missing(
    selection: Selection, settings: EditSettings, pairs: Sequence[Pair], left: Sequence[Skipped]
) -> None:
    """Refuses roles and layers that were asked for and of which there is no matrix."""
    there = {pair.role for pair in pairs}
    asked = {*selection.roles, *(role for role, _ in settings.factors if role != ALL_ROLES)}
    missing = sorted(asked - there)
    if missing:
        reasons = [row for row in left if "edited with it" in row.reason]
        why = f" {short_name(reasons[0].name)}: {reasons[0].reason}." if reasons else ""
        known = ", ".join(sorted(there)) or "none"
        raise UsageError(f"No matrix to edit has the role {', '.join(missing)}; there are roles {known}.{why}")
    layers = {pair.layer for pair in pairs}
    for asked_layers in selection.layers:
        if layers.isdisjoint(asked_layers):
            raise UsageError(f"No matrix to edit is in layers {asked_layers.start}-{asked_layers.stop - 1}.")
    if not pairs:
        raise UsageError(f"No matrix is left to edit. {short_name(left[0].name)}: {left[0].reason}.")
