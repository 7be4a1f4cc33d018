"""Orbax checkpoints: the tree is listed from its metadata, arrays are opened by tensorstore and read one by one.

Nothing is restored: neither Orbax nor the code that saved the tree is needed. An array is a zarr or zarr3 array named
after its keys, in a folder of its own or in the OCDBT database of the tree
(orbax/checkpoint/_src/serialization/ocdbt_utils.py, orbax/checkpoint/_src/metadata/tree.py).
"""

import math
import os
from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorstore as ts

from polarax.loaders.checkpoint import Checkpoint, CheckpointError, Read, TensorInfo, brief_reason
from polarax.loaders.config import read_config
from polarax.loaders.dtypes import is_floating, is_integer
from polarax.loaders.formats.foreign import listed
from polarax.loaders.formats.format import Format, NoCheckpoint
from polarax.loaders.formats.orbax_folders import (
    ITEMS,
    METADATA,
    UNCOMMITTED,
    UNFINISHED,
    find_by_url,
    folders_in,
    is_uncommitted,
    look_into,
    unfinished_part,
)
from polarax.loaders.formats.orbax_steps import has_finished_step, steps_in
from polarax.loaders.formats.orbax_tree import OCDBT_MANIFEST, Tree, read_tree
from polarax.loaders.formats.parameter_tree import is_kernel
from polarax.loaders.slices import Index, axis_slices
from polarax.loaders.stores.store import Store, local_path

_OCDBT_DATA = "d"  # the folder of a database's nodes, beside its manifest

# Data is read once: caching it only takes memory. The nodes of a database are read for every array in it.
_NODE_CACHE_BYTES = 64 * 2**20
_CONTEXT_SPEC = {
    "cache_pool": {"total_bytes_limit": 0},
    "cache_pool#nodes": {"total_bytes_limit": _NODE_CACHE_BYTES},
}

# Bytes of an array that has files of its own: a database keeps values of up to 1 KiB in its nodes.
_PROBED_BYTES = 4096


class _ArraysMissing(CheckpointError):
    """A tree's metadata is there, but not all of its arrays are: the save was not finished, or the copy."""


class OrbaxCheckpoint(Checkpoint):
    """The arrays of one Orbax tree, under names that join its keys with dots.

    A `kernel` of rank 2 is shown transposed, as (out, in), and a top level key "params" left out, as in a
    `ParameterTree`; so is the key "value" that Flax NNX puts below every variable.
    """

    def __init__(
        self,
        location: str,
        folder: str,
        arrays: Mapping[str, Any],
        others: Mapping[str, str],
        notes: tuple[str, ...] = (),
    ):
        """Lists arrays that have been opened.

        Args:
            location: What the user gave, for messages.
            folder: The tree's path or URL, which ends in a slash.
            arrays: An open `tensorstore.TensorStore` for each name.
            others: Names of what is no array, with what it is.
            notes: What to say of steps that were passed over.
        """
        infos = {name: _info(name, array) for name, array in arrays.items()}
        infos |= {name: TensorInfo((), None, kind, 0) for name, kind in others.items()}
        super().__init__(location, "Orbax", infos)
        self._folder = folder
        self._arrays = dict(arrays)
        self._others = dict(others)
        self._notes = notes

    @property
    def folder(self) -> str:
        """Path or URL of the tree, which ends in a slash."""
        return self._folder

    @property
    def notes(self) -> tuple[str, ...]:
        """Which later steps were passed over, and why."""
        return self._notes

    @property
    def config(self) -> Mapping[str, Any] | None:
        """The object in config.json beside the tree; None if there is none."""
        return read_config(_store(self._folder))

    def why_no_array(self, name: str) -> str | None:
        """Of an entry that is no array, what Orbax calls it; None for an array."""
        kind = self._others.get(name)
        return None if kind is None else f"{kind}: not an array"

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
        """Opens the tree of a folder, of an item in it, or of its latest finished step."""
        return open_orbax(source)

    def recognises_name(self, name: str) -> bool:
        """Whether it is the file with a tree's metadata, or a folder that says what it is."""
        return os.path.basename(name) == METADATA or super().recognises_name(name)

    def recognises_folder(self, folder: str) -> bool:
        """Whether the folder, an item or a finished step in it has a tree, as far as names tell."""
        if unfinished_part(folder) is not None:
            return False
        found = look_into(folder)
        return not found.unfinished and (found.tree is not None or has_finished_step(folder))

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
        CheckpointError: If it was not finished, or its metadata or an array's header cannot be read.
    """
    folder = local_path(source)
    part = unfinished_part(source if folder is None else folder)
    if part is not None:
        raise CheckpointError(f"{folder or source}: is not finished: Orbax was still writing {part}")
    if folder is None:
        tree = find_by_url(source)
        return _open_tree(source, tree, (UNCOMMITTED,) if is_uncommitted(tree) else ())
    found = look_into(folder)
    if found.unfinished:
        raise CheckpointError(
            f"{folder}: is not finished: Orbax was still writing {listed(found.unfinished)}; name an item to open it"
        )
    return _open_latest(source, folder) if found.tree is None else _open_tree(source, found.tree)


def _open_latest(source: str, folder: str) -> OrbaxCheckpoint:
    """Opens the latest step that was finished."""
    passed: list[str] = []
    for step in steps_in(folder):
        problem = step.problem
        if step.tree is not None:
            try:
                return _open_tree(source, step.tree, _passed_over(step.name, passed))
            except _ArraysMissing as error:
                problem = str(error)
        passed.append(f"{step.name} {problem}" if step.tree is None else problem)
    if passed:
        raise NoCheckpoint(folder, f"an Orbax {METADATA} in it, its items and steps", listed(passed))
    raise NoCheckpoint(folder, f"an Orbax {METADATA} in it, its items and steps")


def _passed_over(chosen: str, passed: list[str]) -> tuple[str, ...]:
    return (f"{chosen} is the latest finished step: {listed(passed)}",) if passed else ()


def _open_tree(source: str, folder: str, notes: tuple[str, ...] = ()) -> OrbaxCheckpoint:
    """Opens the tree in a folder, which may end in a slash."""
    folder = folder.rstrip("/") + "/"
    tree = read_tree(_store(folder))
    _check_files(folder, tree)
    context = ts.Context(_CONTEXT_SPEC)
    # A chunk that is not there is one of zeros, unless all were written.
    options = {"fill_missing_data_reads": False} if tree.complete else {}
    arrays: dict[str, Any] = {}
    for name, leaf in tree.leaves.items():
        if leaf.value is not None:
            arrays[name] = ts.array(leaf.value)
        elif leaf.array is not None:
            spec = {"driver": tree.driver, "kvstore": _kvstore(folder, leaf.array, tree.ocdbt), **options}
            arrays[name] = ts.open(spec, open=True, read=True, context=context)
    for name, array in arrays.items():
        if isinstance(array, ts.Future):
            try:
                arrays[name] = array.result()
            except Exception as error:
                reason = brief_reason(error)
                kind = _ArraysMissing if "NOT_FOUND" in reason else CheckpointError
                raise kind(
                    f"{folder}: array {name!r}, which {tree.listed_by} lists, cannot be opened: {reason}"
                ) from error
    _probe(folder, tree, arrays)
    others = {name: leaf.kind for name, leaf in tree.leaves.items() if name not in arrays}
    return OrbaxCheckpoint(source, folder, arrays, others, notes)


def _check_files(folder: str, tree: Tree) -> None:
    """Refuses a local tree whose database has no nodes: of what is missing there tensorstore says other things."""
    path = local_path(folder)
    if path is None or not tree.ocdbt or not any(leaf.array is not None for leaf in tree.leaves.values()):
        return
    if not os.path.isfile(os.path.join(path, OCDBT_MANIFEST)):
        raise _ArraysMissing(f"{folder}: its arrays are not there: expected {OCDBT_MANIFEST}, as {METADATA} says")
    if _OCDBT_DATA not in folders_in(path):
        raise _ArraysMissing(f"{folder}: its arrays are not there: expected the folder {_OCDBT_DATA} of its database")


def _probe(folder: str, tree: Tree, arrays: Mapping[str, Any]) -> None:
    """Reads one element of the smallest array that has files of its own, of a local database.

    The nodes of a database may be there without the data, which each process wrote into a folder of its own.
    """
    if local_path(folder) is None or not tree.ocdbt:
        return
    sizes = {
        name: array.size * array.dtype.numpy_dtype.itemsize
        for name, array in arrays.items()
        if tree.leaves[name].array is not None
    }
    name = min((name for name, size in sizes.items() if size > _PROBED_BYTES), key=sizes.__getitem__, default=None)
    if name is None:
        return
    try:
        arrays[name][(0,) * arrays[name].ndim].read().result()
    except Exception as error:
        raise _ArraysMissing(
            f"{folder}: its arrays are not there: {name!r} cannot be read: {brief_reason(error)}"
        ) from error


def _store(folder: str) -> Store:
    path = local_path(folder)
    return Store.of_url(folder) if path is None else Store.of_folder(path)


def _kvstore(folder: str, array: str, ocdbt: bool) -> Any:
    path = local_path(folder)
    if not ocdbt:
        return {"driver": "file", "path": os.path.join(path, array) + "/"} if path is not None else f"{folder}{array}/"
    base: Any = {"driver": "file", "path": path + "/"} if path is not None else folder
    return {"driver": "ocdbt", "base": base, "path": array + "/", "cache_pool": "cache_pool#nodes"}


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
