"""Whether a head is the embedding: config.json may say so, but where both are stored the bytes decide."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from polarax.loaders.architectures import recognise
from polarax.loaders.checkpoint import Checkpoint
from polarax.loaders.matrices import Inventory
from polarax.loaders.matrices.heads import language_model, ties_embeddings

_SAMPLES = 64  # places in a matrix
_PAGE = 4096  # bytes of each
_ENDS = ("head", "embed")
_CHUNK = 1 << 24  # bytes at a time, where all is read


class Ties(NamedTuple):
    """Heads and embeddings of one checkpoint that are one matrix."""

    tied: Mapping[str, str]  # stored tensors whose bytes are those of another one, with that one
    stand_ins: Mapping[str, str]  # the only tensor of the two, by the role under which it is not stored
    notes: tuple[str, ...]  # a line for each contradiction of configuration and bytes


def find_ties(checkpoint: Checkpoint, inventory: Inventory, config: Mapping[str, Any]) -> Ties:
    """What is tied in a checkpoint; of two that are both stored, their bytes are looked at.

    Args:
        checkpoint: Which is looked into.
        inventory: Its matrices, and what its configuration says is tied.
        config: The configuration; empty if there is none.

    Raises:
        CheckpointError: If the store fails.
    """
    config = language_model(config)
    tied: dict[str, str] = {}
    notes: list[str] = []
    for name, other in inventory.tied.items():
        if same_bytes(checkpoint, name, other):
            tied[name] = other
        else:
            notes.append(f"{name} is stored apart from {other}, to which config.json ties it: both are compared")
    if config.get("tie_word_embeddings") is False:
        ends = {view.role: view.tensor for views in inventory.views.values() for view in views if view.role in _ENDS}
        head, embedding = (ends.get(role) for role in _ENDS)
        if head is not None and embedding is not None and head != embedding and head not in tied:
            if same_bytes(checkpoint, head, embedding):
                notes.append(f"{head} is {embedding}, though config.json does not tie them: both are compared")
    return Ties(tied, _stand_ins(checkpoint, inventory, config), tuple(notes))


def _stand_ins(checkpoint: Checkpoint, inventory: Inventory, config: Mapping[str, Any]) -> dict[str, str]:
    """The tensor that is head and embedding at once, by the one of the two roles under which it is not stored."""
    stored: dict[str, list[str]] = {role: [] for role in _ENDS}
    for name, views in inventory.views.items():
        if len(views) == 1 and views[0].role in stored and views[0].layer is None and name not in inventory.tied:
            stored[views[0].role].append(name)
    stand_ins: dict[str, str] = {}
    for alias, name in checkpoint.aliases.items():
        found = recognise(alias)
        role = found.identity.role
        if role in stored and not found.tower and not stored[role] and len(inventory.views.get(name, ())) == 1:
            stand_ins.setdefault(role, name)
    head, embed = _ENDS
    if not stored[head] and len(stored[embed]) == 1 and not any(name in inventory.tied for name in inventory.views):
        if ties_embeddings(config, recognise(stored[embed][0]).architecture):
            stand_ins.setdefault(head, stored[embed][0])
    return stand_ins


def same_bytes(checkpoint: Checkpoint, name: str, other: str) -> bool:
    """Whether two tensors hold the same values, from pages spread over them; from all if these say little.

    Rows at the end are among the pages: that is where tokens are added, and trained.

    Raises:
        CheckpointError: If they cannot be read.
    """
    shape = checkpoint.shape(name)
    if checkpoint.shares_values(name, other):
        return True
    if shape != checkpoint.shape(other) or checkpoint.dtype(name) != checkpoint.dtype(other) or 0 in shape:
        return False
    dtype = checkpoint.dtype(name)
    if dtype is None or not shape:
        return False
    rows = shape[0]
    columns = slice(0, max(1, _PAGE // dtype.itemsize)) if len(shape) > 1 else None
    places = sorted({*np.linspace(0, rows - 1, min(rows, _SAMPLES)).astype(int).tolist()})
    pages = [_index(slice(place, place + 1), columns) for place in places]
    middle = pages[len(pages) // 2]  # two tensors that differ mostly differ everywhere
    if not _equal(checkpoint.read(name, middle).result(), checkpoint.read(other, middle).result()):
        return False
    reads = [(checkpoint.read(name, page), checkpoint.read(other, page)) for page in pages]
    sampled = [(read.result(), read_other.result()) for read, read_other in reads]
    if not all(_equal(*pair) for pair in sampled):
        return False
    if any(one.size > 1 and np.any(one != one.flat[0]) for one, _ in sampled):
        return True
    step = max(1, _CHUNK // max(1, checkpoint.nbytes(name) // rows))
    parts = [slice(start, min(start + step, rows)) for start in range(0, rows, step)]
    return all(_equal(checkpoint.read(name, part).result(), checkpoint.read(other, part).result()) for part in parts)


def _index(rows: slice, columns: slice | None) -> tuple[slice, ...]:
    return (rows,) if columns is None else (rows, columns)


def _equal(one: np.ndarray, other: np.ndarray) -> bool:
    return np.ascontiguousarray(one).tobytes() == np.ascontiguousarray(other).tobytes()
