"""Orbax checkpoints: the tree is listed from its metadata, arrays are opened by tensorstore and read one by one.

Nothing is restored: neither Orbax nor the code that saved the tree is needed. An array is a zarr or zarr3 array named
after its keys, in a folder of its own or in the OCDBT database of the tree
(orbax/checkpoint/_src/serialization/ocdbt_utils.py, orbax/checkpoint/_src/metadata/tree.py).
"""

import json
import math
import os
from collections import Counter
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import tensorstore as ts

from polarax.loaders.checkpoint import Checkpoint, CheckpointError, Read, TensorInfo, brief_reason
from polarax.loaders.config import read_config
from polarax.loaders.dtypes import is_floating, is_integer
from polarax.loaders.formats.format import Format
from polarax.loaders.formats.orbax_folders import ITEMS, METADATA, UNFINISHED, find_tree, is_orbax
from polarax.loaders.formats.parameter_tree import is_kernel, name_of
from polarax.loaders.slices import Index, axis_slices
from polarax.loaders.stores.store import Store, local_path

# A tree's metadata takes some 500 bytes an array; this is enough for a million.
_LARGEST_METADATA = 2**29

_OCDBT_MANIFEST = "manifest.ocdbt"
_ARRAYS = ("jax.Array", "np.ndarray", "scalar")  # what Orbax stores as an array, by its name for it
_VALUE = "value"  # the key under which Flax NNX keeps a variable's array

# Data is read once: caching it only takes memory. The nodes of a database are read for every array in it.
_NODE_CACHE_BYTES = 64 * 2**20
_CONTEXT_SPEC = {
    "cache_pool": {"total_bytes_limit": 0},
    "cache_pool#nodes": {"total_bytes_limit": _NODE_CACHE_BYTES},
}


class _Leaf(NamedTuple):
    """One entry of a tree's metadata."""

    keys: tuple[str, ...]
    kind: str  # Orbax's name for what it is
    is_array: bool


class OrbaxCheckpoint(Checkpoint):
    """The arrays of one Orbax tree, under names that join its keys with dots.

    A `kernel` of rank 2 is shown transposed, as (out, in), and a top level key "params" left out, as in a
    `ParameterTree`; so is the key "value" that Flax NNX puts below every variable.
    """

    def __init__(self, location: str, folder: str, arrays: Mapping[str, Any], others: Mapping[str, str]):
        """Lists arrays that have been opened.

        Args:
            location: What the user gave, for messages.
            folder: The tree's path or URL, which ends in a slash.
            arrays: An open `tensorstore.TensorStore` for each name.
            others: Names of what is no array, with what it is.
        """
        infos = {name: _info(name, array) for name, array in arrays.items()}
        infos |= {name: TensorInfo((), None, kind, 0) for name, kind in others.items()}
        super().__init__(location, "Orbax", infos)
        self._folder = folder
        self._arrays = dict(arrays)

    @property
    def config(self) -> Mapping[str, Any] | None:
        """The object in config.json beside the tree; None if there is none."""
        return read_config(_store(self._folder))

    def is_transposed(self, name: str) -> bool:
        """Whether a tensor is a kernel of rank 2."""
        return is_kernel(name, self.shape(name))

    def read(self, name: str, index: Index = None) -> Read:
        """Starts to read a tensor, or part of it; see `Checkpoint.read`. Whole chunks are read from the store."""
        self._readable_dtype(name)
        array = self._arrays[name]
        slices = axis_slices(self.shape(name), index)
        transposed = is_kernel(name, array.shape)
        # Tensorstore knows no negative steps and no bounds outside the array, which NumPy clips.
        ranges = [range(*item.indices(size)) for item, size in zip(slices, self.shape(name), strict=True)]
        bounds = [_ascending(positions) for positions in ranges]
        turned = tuple(slice(None, None, -1 if positions.step < 0 else 1) for positions in ranges)
        wanted = tuple(reversed(bounds)) if transposed else tuple(bounds)
        future = array[wanted].read() if wanted else array.read()
        subject = f"{self._folder}: tensor {name!r}"

        def decode(stored: Any) -> np.ndarray:
            array = np.asarray(stored)
            return (array.T if transposed else array)[turned]

        return Read(future, decode, subject)


class OrbaxFormat(Format):
    """Trees that Orbax saved: by themselves, as items, as the steps of a CheckpointManager."""

    name = "Orbax"
    suffixes = (".orbax",)
    probed = True

    def open(self, source: Any) -> OrbaxCheckpoint:
        """Opens a tree by its metadata, its folder or its URL."""
        return open_orbax(os.path.dirname(source) or "." if os.path.basename(source) == METADATA else source)

    def open_folder(self, source: str) -> OrbaxCheckpoint:
        """Opens the tree of a folder, of an item in it, or of its latest step."""
        return open_orbax(source)

    def recognises_name(self, name: str) -> bool:
        """Whether it is the file with a tree's metadata, or a folder that says what it is."""
        return os.path.basename(name) == METADATA or super().recognises_name(name)

    def recognises_folder(self, folder: str) -> bool:
        """Whether the folder, an item or a step in it has a tree."""
        return is_orbax(folder)

    def is_unfinished(self, name: str) -> bool:
        """Whether Orbax had not renamed it yet, as it does with what is complete."""
        return UNFINISHED in name

    def is_item(self, name: str) -> bool:
        """Whether it is one of the names that a CheckpointManager gives to items."""
        return name in ITEMS


def open_orbax(source: str) -> OrbaxCheckpoint:
    """Opens the tree behind a path or URL: its metadata, and the headers of its arrays.

    Raises:
        NoCheckpoint: If there is no tree.
        CheckpointError: If its metadata or an array's header cannot be read.
    """
    folder = find_tree(source)
    store = _store(folder)
    metadata = _read_metadata(store)
    leaves = _leaves(metadata, store.path(METADATA))
    names = _names(leaves, folder)
    ocdbt = metadata.get("use_ocdbt")
    if ocdbt is None:
        ocdbt = store.wait(store.read(_OCDBT_MANIFEST, 0, 1), _OCDBT_MANIFEST) is not None
    driver = "zarr3" if metadata.get("use_zarr3") else "zarr"
    context = ts.Context(_CONTEXT_SPEC)
    opened = {}
    for name, leaf in zip(names, leaves, strict=True):
        if leaf.is_array:
            spec = {"driver": driver, "kvstore": _kvstore(folder, ".".join(leaf.keys), bool(ocdbt))}
            opened[name] = ts.open(spec, open=True, read=True, context=context)
    arrays = {}
    for name, future in opened.items():
        try:
            arrays[name] = future.result()
        except Exception as error:
            reason = brief_reason(error)
            raise CheckpointError(
                f"{folder}: array {name!r}, which {METADATA} lists, cannot be opened: {reason}"
            ) from error
    others = {name: leaf.kind for name, leaf in zip(names, leaves, strict=True) if not leaf.is_array}
    return OrbaxCheckpoint(source, folder, arrays, others)


def _store(folder: str) -> Store:
    path = local_path(folder)
    return Store.of_url(folder) if path is None else Store.of_folder(path)


def _kvstore(folder: str, array: str, ocdbt: bool) -> Any:
    path = local_path(folder)
    if not ocdbt:
        return {"driver": "file", "path": os.path.join(path, array) + "/"} if path is not None else f"{folder}{array}/"
    base: Any = {"driver": "file", "path": path + "/"} if path is not None else folder
    return {"driver": "ocdbt", "base": base, "path": array + "/", "cache_pool": "cache_pool#nodes"}


def _read_metadata(store: Store) -> dict[str, Any]:
    location = store.path(METADATA)
    size = store.size(METADATA)
    if size is not None and size > _LARGEST_METADATA:
        raise CheckpointError(
            f"{location}: {size} bytes are too many for a tree's metadata (limit {_LARGEST_METADATA})"
        )
    text = store.wait(store.read(METADATA), METADATA)
    if text is None:
        raise CheckpointError(f"{location}: no such file")
    try:
        metadata = json.loads(text.tobytes())
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{location}: expected JSON: {error}") from error
    if not isinstance(metadata, dict) or not isinstance(metadata.get("tree_metadata"), dict):
        raise CheckpointError(f"{location}: expected tree_metadata, an object that lists the arrays")
    return metadata


def _leaves(metadata: Mapping[str, Any], location: str) -> list[_Leaf]:
    leaves = []
    for entry, content in metadata["tree_metadata"].items():
        try:
            keys = tuple(str(key["key"]) for key in content["key_metadata"])
            value = content["value_metadata"]
            kind, skipped = str(value["value_type"]), bool(value.get("skip_deserialize", False))
        except (KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(f"{location}: entry {entry!r}: expected key_metadata and value_metadata") from error
        if not keys or any(part in ("", ".", "..") for key in keys for part in key.split("/")):
            raise CheckpointError(f"{location}: entry {entry!r} has the keys {keys}; expected names inside the folder")
        leaves.append(_Leaf(keys, kind, kind in _ARRAYS and not skipped))
    return leaves


def _names(leaves: list[_Leaf], folder: str) -> list[str]:
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


def _info(name: str, array: Any) -> TensorInfo:
    shape = tuple(int(size) for size in array.shape)
    dtype = array.dtype.numpy_dtype
    shown = shape[::-1] if is_kernel(name, shape) else shape
    if not (is_floating(dtype) or is_integer(dtype) or dtype.kind in "fc"):
        return TensorInfo(shown, None, array.dtype.name, 0)
    return TensorInfo(shown, dtype, dtype.name, math.prod(shape) * dtype.itemsize)


def _ascending(positions: range) -> slice:
    """The slice of the same positions in ascending order."""
    if not positions:
        return slice(0, 0)
    low, high = min(positions[0], positions[-1]), max(positions[0], positions[-1])
    return slice(low, high + 1, abs(positions.step)) if len(positions) > 1 else slice(low, low + 1)
