"""Which matrices of two checkpoints are compared, and what becomes of everything else.

A matrix finds its partner by name (`names`, `prefixes`), or by its place in the model (`places`). What has none, or
cannot be compared, is listed with the reason and counted (`coverage`).
"""

from collections.abc import Mapping
from typing import Any

from polarax.loaders.checkpoint import Checkpoint, CheckpointError
from polarax.loaders.labels import short_name
from polarax.loaders.matrices import RoleMapSource, parse_role_map, take_inventory
from polarax.loaders.pairing.coverage import Coverage, LeftOut, SideCoverage
from polarax.loaders.pairing.names import Match, Matches, match_names
from polarax.loaders.pairing.pairer import Paired, Pairer, Side
from polarax.loaders.pairing.records import MATCHED_BY, Pair, Skipped, natural
from polarax.loaders.pairing.tied import find_ties
from polarax.loaders.quantisation import quantised

__all__ = [
    "MATCHED_BY",
    "Coverage",
    "LeftOut",
    "Match",
    "Matches",
    "Pair",
    "Paired",
    "Pairing",
    "SideCoverage",
    "Skipped",
    "match_names",
    "natural",
    "nothing_in_common",
    "pair_checkpoints",
]


def pair_checkpoints(
    base: Checkpoint,
    post: Checkpoint,
    *,
    role_map: RoleMapSource = None,
    common_rows: bool = False,
) -> tuple[list[Pair], list[Skipped]]:
    """The matrices to compare, and every other tensor with the reason why it is not compared.

    Tensors are matched by name: as it is, without words that tools wrap around modules, behind another prefix. What is
    left is matched by layer, role and expert, as far as those are unique, parts of fused and stacked tensors too. What
    is compared is what both have as a floating-point matrix of one shape with at least one element.

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
    paired = Pairing(base, role_map=role_map, common_rows=common_rows).pair(post)
    if not paired.coverage.has_common:
        raise CheckpointError(nothing_in_common(base, post))
    return paired.pairs, paired.skipped


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
        self._known: tuple[Mapping[str, Any] | None, Side] | None = None  # and the post's configuration, if it counts

    def pair(self, post: Checkpoint) -> Paired:
        """Pairs the base with a post, and says how much of either that covers, be it nothing.

        Raises:
            CheckpointError: If the store fails where bytes have to be looked at: of a head that may be the embedding.
        """
        base = self._base
        side_base = self._side_of_base(post)
        side_post = side_base if post is base else self._take(post, base.config if post.config is None else None)
        return Pairer(side_base, side_post, self._common_rows).pair()

    def _side_of_base(self, post: Checkpoint) -> Side:
        """What is in the base; taken anew only if that rests on a configuration which only the posts have."""
        config = post.config if self._base.config is None else None
        if self._known is None or self._known[0] != config:
            self._known = config, self._take(self._base, config)
        return self._known[1]

    def _take(self, checkpoint: Checkpoint, config: Mapping[str, Any] | None) -> Side:
        names = tuple(sorted(checkpoint.names(), key=natural))
        inventory = take_inventory(checkpoint, self._table, config)
        kinds = {name: f"quantised: {kind}" for name, kind in quantised(checkpoint).items()}
        ties = find_ties(checkpoint, inventory, config or checkpoint.config or {})
        return Side(checkpoint, inventory, kinds | dict(checkpoint.unusable), names, ties)


def nothing_in_common(base: Checkpoint, post: Checkpoint) -> str:
    """What is said of two checkpoints none of whose tensors belong together, with a name of each."""
    examples = f"the base has {_example(base)}, the post {_example(post)}"
    return f"{base.location} and {post.location} have no tensor in common: {examples}"


def _example(checkpoint: Checkpoint) -> str:
    names = checkpoint.names()
    return repr(short_name(min(names, key=natural))) if names else "no tensors"
