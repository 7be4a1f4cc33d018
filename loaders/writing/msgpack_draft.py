"""Drafts of files of `flax.serialization`: a file is in memory as a whole, and is written when all is put."""

import importlib
import os
import pathlib
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from polarax.loaders.formats.msgpack_checkpoint import MsgpackCheckpoint
from polarax.loaders.formats.msgpack_files import read_msgpack
from polarax.loaders.formats.parameter_tree import is_kernel, name_of
from polarax.loaders.matrices import View
from polarax.loaders.slices import axis_slices
from polarax.loaders.stores.store import Store, local_path
from polarax.loaders.writing.companions import copy_companions
from polarax.loaders.writing.draft import Draft
from polarax.loaders.writing.files import created


class MsgpackDraft(Draft):
    """The tree of a file, read once more.

    Args:
        source: The file.
        folder: To write into.
        edited: Arrays that are replaced, all or a part.
    """

    lasts = False

    def __init__(self, source: MsgpackCheckpoint, folder: pathlib.Path, edited: Collection[str]):
        super().__init__(folder)
        path, self._name = os.path.split(str(local_path(source.location)))
        self._store, self._edited = Store.of_folder(path), set(edited)
        self._tree: dict[str, Any] = {}
        self._arrays: dict[str, np.ndarray] = {}

    def dtype(self, name: str) -> np.dtype:
        """As `Draft.dtype`."""
        return self._arrays[name].dtype

    def prepare(self) -> None:
        """As `Draft.prepare`."""
        self.folder.mkdir(parents=True, exist_ok=True)
        copy_companions(self._store, self.folder)
        self._tree = self._with_copies(read_msgpack(self._store, self._name), ())

    def put(self, view: View, matrix: np.ndarray) -> None:
        """As `Draft.put`."""
        array = self._arrays[view.tensor]
        array = array.T if is_kernel(view.tensor, array.shape) else array
        part = array[axis_slices(array.shape, view.slices)]
        view.place(matrix, part)

    def sync(self) -> None:
        """Nothing is on the disk before all is."""

    def finish(self, files: Mapping[str, bytes]) -> None:
        """As `Draft.finish`."""
        with created(self.folder / self._name) as opened:
            opened.write(importlib.import_module("flax.serialization").msgpack_serialize(self._tree, in_place=True))
        super().finish(files)

    def _with_copies(self, node: Any, keys: tuple[str, ...]) -> Any:
        """The tree with arrays that can be changed in the places of those that are edited."""
        if isinstance(node, dict):
            return {key: self._with_copies(child, (*keys, str(key))) for key, child in node.items()}
        name = name_of(keys)
        if name not in self._edited:
            return node
        self._arrays[name] = np.array(node)
        return self._arrays[name]
