"""Drafts of Orbax trees: the tree's folder is copied, and its arrays are written where they are.

A database (OCDBT) keeps the old values of what was written beside the new ones: the copy takes the space of both.
"""

import pathlib
import shutil
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import tensorstore as ts

from polarax.loaders.checkpoint import CheckpointError
from polarax.loaders.formats.orbax_checkpoint import OrbaxCheckpoint
from polarax.loaders.formats.orbax_tree import read_tree
from polarax.loaders.matrices import View
from polarax.loaders.slices import axis_slices
from polarax.loaders.stores.store import Store, local_path
from polarax.loaders.writing.draft import Draft


class OrbaxDraft(Draft):
    """A copy of a tree on this machine.

    Args:
        source: The tree.
        folder: To write into.
        edited: Arrays that are replaced, all or a part.

    Raises:
        CheckpointError: If the tree is elsewhere, or an array is in the file that describes the tree.
    """

    def __init__(self, source: OrbaxCheckpoint, folder: pathlib.Path, edited: Collection[str]):
        super().__init__(folder)
        path = local_path(source.folder)
        if path is None:
            raise CheckpointError(
                f"{source.location}: Orbax trees are written from this machine only; download it first"
            )
        self._source, self._path = source, pathlib.Path(path)
        self._tree = read_tree(Store.of_folder(path))
        for name in edited:
            if self._tree.leaves[name].array is None:
                raise CheckpointError(f"{source.location}: array {name!r} has no file of its own, and is not written")
        self._arrays: dict[str, Any] = {}

    def dtype(self, name: str) -> np.dtype:
        """As `Draft.dtype`."""
        dtype = self._source.dtype(name)
        assert dtype is not None
        return dtype

    def prepare(self) -> None:
        """As `Draft.prepare`."""
        shutil.copytree(self._path, self.folder)

    def put(self, view: View, matrix: np.ndarray) -> None:
        """As `Draft.put`; all the elements of the part that the view selects are written."""
        name = view.tensor
        transposed = self._source.is_transposed(name)
        array, shape = self._array(name), self._source.shape(name)
        index = axis_slices(shape, view.slices)
        index = tuple(slice(*cut.indices(size)) for cut, size in zip(index, shape, strict=True))
        stored = array[index[::-1] if transposed else index]
        if view.is_plain:
            part = matrix.reshape(view.read_shape(shape))
        else:
            whole = np.asarray(stored.read().result())
            part = np.array(whole.T if transposed else whole)
            view.place(matrix, part)
        stored.write(np.ascontiguousarray(part.T if transposed else part)).result()

    def sync(self) -> None:
        """Nothing is left to be done: tensorstore returns when what it wrote is there."""

    def finish(self, files: Mapping[str, bytes]) -> None:
        """As `Draft.finish`."""
        self._arrays.clear()
        super().finish(files)

    def _array(self, name: str) -> Any:
        if name not in self._arrays:
            array, path = self._tree.leaves[name].array, str(self.folder) + "/"
            store: dict[str, Any] = {"driver": "file", "path": f"{path}{array}/"}
            if self._tree.ocdbt:
                store = {"driver": "ocdbt", "base": {"driver": "file", "path": path}, "path": f"{array}/"}
            spec = {"driver": self._tree.driver, "kvstore": store}
            self._arrays[name] = ts.open(spec, open=True, read=True, write=True).result()
        return self._arrays[name]
