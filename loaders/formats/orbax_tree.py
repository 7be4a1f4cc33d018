"""What an Orbax tree says of itself: its entries, and how their arrays are stored.

The file ``_METADATA`` lists them (orbax/checkpoint/_src/metadata/tree.py). Older releases kept the structure in the
msgpack file ``checkpoint`` instead, or besides: values that were saved with ``aggregate=True`` are in it, all others
stand there by the name of their array.
"""

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from polarax.loaders.checkpoint import CheckpointError
from polarax.loaders.formats.msgpack_files import read_msgpack
from polarax.loaders.formats.orbax_folders import AGGREGATED, METADATA
from polarax.loaders.formats.parameter_tree import name_of
from polarax.loaders.stores.store import Store

# A tree's metadata takes some 500 bytes an array; this is enough for a million.
_LARGEST_METADATA = 2**29

OCDBT_MANIFEST = "manifest.ocdbt"

_ARRAYS = ("jax.Array", "np.ndarray", "scalar")  # what Orbax stores as an array, by its name for it
_VALUE = "value"  # the key under which Flax NNX keeps a variable's array
_PLACEHOLDERS = ("PLACEHOLDER://", "AGGREGATED://")  # what stands in msgpack before the name of an array


class Leaf(NamedTuple):
    """One entry of a tree."""

    keys: tuple[str, ...]
    kind: str  # Orbax's name for what it is
    array: str | None = None  # the name of its stored array; None if there is none
    value: np.ndarray | None = None  # what stands in the msgpack file itself


class Tree(NamedTuple):
    """What a tree says of itself."""

    leaves: Mapping[str, Leaf]  # by the names that they are shown under
    listed_by: str  # the file that says so
    ocdbt: bool  # whether its arrays are in a database
    driver: str  # that of tensorstore
    complete: bool  # whether every chunk was written, even one of zeros


def read_tree(store: Store) -> Tree:
    """Reads what a tree says of itself.

    Raises:
        CheckpointError: If that is damaged, or two entries get one name.
    """
    metadata = _read_metadata(store)
    ocdbt = None if metadata is None else metadata.get("use_ocdbt")
    if ocdbt is None:
        ocdbt = store.wait(store.read(OCDBT_MANIFEST, 0, 1), OCDBT_MANIFEST) is not None
    if metadata is None:
        leaves, listed_by = _msgpack_leaves(store), AGGREGATED
    else:
        leaves, listed_by = _leaves(metadata, store), METADATA
    metadata = metadata or {}
    return Tree(
        dict(zip(_names(leaves, store.location), leaves, strict=True)),
        listed_by,
        bool(ocdbt),
        "zarr3" if metadata.get("use_zarr3") else "zarr",
        bool(metadata.get("store_array_data_equal_to_fill_value")),
    )


def _read_metadata(store: Store) -> dict[str, Any] | None:
    """The object in a tree's metadata; None if it has none and a msgpack file instead."""
    location = store.path(METADATA)
    text = None
    if not store.is_local or METADATA in (store.files() or ()):
        size = store.size(METADATA)
        if size is not None and size > _LARGEST_METADATA:
            raise CheckpointError(
                f"{location}: {size} bytes are too many for a tree's metadata (limit {_LARGEST_METADATA})"
            )
        text = store.wait(store.read(METADATA), METADATA)
    if text is None:
        if AGGREGATED in (store.files() or ()):
            return None
        raise CheckpointError(f"{location}: no such file")
    try:
        metadata = json.loads(text.tobytes())
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{location}: expected JSON: {error}") from error
    if not isinstance(metadata, dict) or not isinstance(metadata.get("tree_metadata"), dict):
        raise CheckpointError(f"{location}: expected tree_metadata, an object that lists the arrays")
    return metadata


def _leaves(metadata: Mapping[str, Any], store: Store) -> list[Leaf]:
    location = store.path(METADATA)
    leaves = []
    for entry, content in metadata["tree_metadata"].items():
        try:
            keys = tuple(str(key["key"]) for key in content["key_metadata"])
            value = content["value_metadata"]
            kind, skipped = str(value["value_type"]), bool(value.get("skip_deserialize", False))
        except (KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(f"{location}: entry {entry!r}: expected key_metadata and value_metadata") from error
        if not keys or not all(map(_stays_inside, keys)):
            raise CheckpointError(f"{location}: entry {entry!r} has the keys {keys}; expected names inside the folder")
        leaves.append(Leaf(keys, kind, ".".join(keys) if kind in _ARRAYS and not skipped else None))
    if any(leaf.array is None and leaf.kind in _ARRAYS for leaf in leaves) and AGGREGATED in (store.files() or ()):
        aggregated = {leaf.keys: leaf for leaf in _msgpack_leaves(store)}
        leaves = [aggregated.get(leaf.keys, leaf) if leaf.array is None else leaf for leaf in leaves]
    return leaves


def _msgpack_leaves(store: Store) -> list[Leaf]:
    location = store.path(AGGREGATED)
    leaves = []
    for keys, value in _flattened(read_msgpack(store, AGGREGATED), ()):
        if isinstance(value, str) and value.startswith(_PLACEHOLDERS):
            array = value.partition("://")[2]
            if not _stays_inside(array):
                raise CheckpointError(f"{location}: entry {keys} is in {array!r}; expected a name inside the folder")
            leaves.append(Leaf(keys, "jax.Array", array))
        elif isinstance(value, (np.ndarray, np.generic, bool, int, float)):
            leaves.append(Leaf(keys, "np.ndarray", value=np.asarray(value)))
        elif value is not None:
            leaves.append(Leaf(keys, type(value).__name__))
    return leaves


def _flattened(node: Any, keys: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    if not isinstance(node, (dict, list, tuple)):
        yield keys, node
        return
    for key, child in node.items() if isinstance(node, dict) else enumerate(node):
        yield from _flattened(child, (*keys, str(key)))


def _stays_inside(name: str) -> bool:
    """Whether a name is a plain relative path that does not climb."""
    return not any(part in ("", ".", "..") for part in name.split("/"))


def _names(leaves: list[Leaf], folder: str) -> list[str]:
    """A name for each leaf; of an NNX variable the one of the variable."""
    children = Counter(leaf.keys[:-1] for leaf in leaves)
    names = []
    for leaf in leaves:
        alone = len(leaf.keys) > 1 and leaf.keys[-1] == _VALUE and children[leaf.keys[:-1]] == 1
        names.append(name_of(leaf.keys[:-1] if alone else leaf.keys))
    if len(set(names)) < len(names):
        name = Counter(names).most_common(1)[0][0]
        raise CheckpointError(f"{folder}: two arrays are named {name!r}")
    return names
