"""Whether a head is the embedding: config.json may say so, but where both are stored the bytes decide."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from polarax.loaders.architectures import recognise
from polarax.loaders.checkpoint import Checkpoint
from polarax.loaders.matrices import Inventory
from polarax.loaders.matrices.heads import language_model

_SAMPLES = 64  # places in a matrix
_PAGE = 4096  # bytes of each
_ENDS = ("head", "embed")
_CHUNK = 1 << 24  # bytes at a time, where all is read


def find_ties(
    checkpoint: Checkpoint, inventory: Inventory, config: Mapping[str, Any], word: str
) -> tuple[dict[str, str], list[str]]:
    """The tensors that are another one of the same checkpoint, by their bytes.

    Args:
        checkpoint: Which is looked into.
        inventory: Its matrices, and what its configuration says is tied.
        config: The configuration; empty if there is none.
        word: What to call the checkpoint.

    Returns:
        The other tensor, by name; and a line for each contradiction of configuration and bytes.

    Raises:
        CheckpointError: If the store fails.
    """
    tied: dict[str, str] = {}
    notes: list[str] = []
    for name, other in inventory.tied.items():
        if same_bytes(checkpoint, name, other):
            tied[name] = other
        else:
            notes.append(
                f"{word}: {name} is stored apart from {other}, to which config.json ties it: both are compared"
            )
    if language_model(config).get("tie_word_embeddings") is False:
        roles = {view.role: view for views in inventory.views.values() for view in views if view.role in _ENDS}
        head, embedding = (roles.get(role) for role in _ENDS)
        if head is not None and embedding is not None and head.tensor not in tied and head.tensor in checkpoint:
            if head.tensor != embedding.tensor and same_bytes(checkpoint, head.tensor, embedding.tensor):
                notes.append(
                    f"{word}: {head.tensor} is {embedding.tensor}, though config.json does not tie them: "
                    "both are compared"
                )
    return tied, notes


def find_stand_ins(checkpoint: Checkpoint, inventory: Inventory, config: Mapping[str, Any]) -> dict[str, str]:
    """The tensor that is head and embedding at once, by the one of the two roles under which it is not stored.

    Args:
        checkpoint: Which is looked into; no tensor is read.
        inventory: Its matrices.
        config: The configuration; empty if there is none.
    """
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
        architecture = recognise(stored[embed][0]).architecture
        default = architecture is not None and architecture.tied and "model_type" in config
        if language_model(config).get("tie_word_embeddings", default) is True:
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
