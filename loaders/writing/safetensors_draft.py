"""Drafts of safetensors checkpoints: the same shards, each with the bytes of its source until they are replaced."""

import os
import pathlib
from collections.abc import Callable, Collection, Mapping
from typing import Any

import numpy as np

from polarax.loaders.checkpoint import CheckpointError
from polarax.loaders.formats.safetensors_checkpoint import SafetensorsCheckpoint
from polarax.loaders.formats.safetensors_header import LENGTH_BYTES
from polarax.loaders.matrices import View
from polarax.loaders.slices import plan_run
from polarax.loaders.writing.companions import copy_companions, whole_file
from polarax.loaders.writing.copies import check_space, copy_bytes, dtype_for
from polarax.loaders.writing.draft import Draft
from polarax.loaders.writing.files import created, locked_range, sync
from polarax.loaders.writing.headers import with_dtypes, with_metadata, with_total_size
from polarax.loaders.writing.rounding import rounded

_CAST_BYTES = 16 << 20  # of rows that are turned into another type at a time


class SafetensorsDraft(Draft):
    """Files that are laid out like those of a source.

    Args:
        source: Whose files, metadata and companions are copied.
        folder: To write into.
        edited: Tensors that are replaced, all or a part.
        dtype: That these are stored in; by default each keeps its own.
        metadata: Strings to add to those of every file.
        stored_names: What the files call tensors that are listed under another name.
    """

    shared = True

    def __init__(
        self,
        source: SafetensorsCheckpoint,
        folder: pathlib.Path,
        edited: Collection[str],
        dtype: Any,
        metadata: Mapping[str, str],
        stored_names: Callable[[str], str] = str,
    ):
        super().__init__(folder)
        self._source, self._stored_name = source, stored_names
        self._dtypes = {stored: dtype_for(source, stored, dtype) for stored in map(stored_names, edited)}
        self._headers: dict[str, bytes] = {}
        self._places: dict[str, tuple[str, int]] = {}  # file and first byte of each tensor
        self._descriptors: dict[str, int] = {}
        for file, entries in source.shards().items():
            changed = {
                entry.name: self._dtypes[entry.name]
                for entry in entries
                if entry.name in self._dtypes and self._dtypes[entry.name] != source.dtype(entry.name)
            }
            header = source.header(file)
            header = with_metadata(with_dtypes(header, entries, changed) if changed else header, metadata)
            self._headers[file] = header
            position = LENGTH_BYTES + len(header)
            for entry in entries:
                self._places[entry.name] = file, position
                position += self._bytes_of(entry.name, entry.stop - entry.start)

    def check_space(self, folder: pathlib.Path, copies: int) -> None:
        """Raises CheckpointError if there is no room for so many drafts."""
        check_space(self._source, self._dtypes, folder, copies)

    def dtype(self, name: str) -> np.dtype:
        """As `Draft.dtype`."""
        return self._dtypes[self._stored_name(name)]

    def prepare(self) -> None:
        """As `Draft.prepare`."""
        source, grown = self._source, 0
        for file, entries in source.shards().items():
            with created(self.folder / file) as opened:
                opened.write(len(self._headers[file]).to_bytes(LENGTH_BYTES, "little") + self._headers[file])
                for entry in entries:
                    if self._bytes_of(entry.name, entry.stop - entry.start) == entry.stop - entry.start:
                        copy_bytes(source, file, entry.start, entry.stop, opened)
                        continue
                    grown += self._bytes_of(entry.name, 0) - (entry.stop - entry.start)
                    for rows in self._chunks(entry.name):
                        part = rounded(np.asarray(source.read(entry.name, rows).result()), self._dtypes[entry.name])
                        opened.write(np.ascontiguousarray(part).reshape(-1).view(np.uint8).data)
        if source.index_file is not None:
            text = whole_file(source.store, source.index_file)
            if text is None:
                raise CheckpointError(f"{source.store.path(source.index_file)}: the file is gone")
            with created(self.folder / source.index_file) as opened:
                opened.write(with_total_size(text, grown) if grown else text)
        copy_companions(source.store, self.folder)
        sync(self.folder)

    def put(self, view: View, matrix: np.ndarray) -> None:
        """As `Draft.put`; the bytes between the first and the last one of the matrix are written at once."""
        name = self._stored_name(view.tensor)
        shape, dtype = self._source.shape(name), self._dtypes[name]
        file, first = self._places[name]
        run = plan_run(shape, view.slices)
        first += run.start * dtype.itemsize
        descriptor = self._descriptor(file)
        nbytes = (run.stop - run.start) * dtype.itemsize
        # Between its bytes may lie those of others, which another process puts.
        with locked_range(descriptor, first, nbytes):
            if view.is_plain and len(matrix.reshape(-1)) == run.stop - run.start:
                data = np.ascontiguousarray(matrix).reshape(-1).view(np.uint8)
            else:
                data = np.empty(nbytes, np.uint8)
                _read_all(descriptor, data, first)
                view.place(matrix, data.view(dtype).reshape(run.shape)[run.cut])
            _write_all(descriptor, data, first)

    def sync(self) -> None:
        """As `Draft.sync`."""
        for descriptor in self._descriptors.values():
            os.fsync(descriptor)

    def finish(self, files: Mapping[str, bytes]) -> None:
        """As `Draft.finish`."""
        super().finish(files)
        self.close()
        sync(self.folder)

    def close(self) -> None:
        """Closes the files."""
        for descriptor in self._descriptors.values():
            os.fsync(descriptor)
            os.close(descriptor)
        self._descriptors.clear()

    def _bytes_of(self, name: str, otherwise: int) -> int:
        if name not in self._dtypes:
            return otherwise
        return int(np.prod(self._source.shape(name), dtype=object)) * self._dtypes[name].itemsize

    def _chunks(self, name: str) -> list[tuple[slice, ...]]:
        """Rows of a tensor that are read at a time; all at once where it has none."""
        shape = self._source.shape(name)
        if not shape:
            return [()]
        step = max(1, _CAST_BYTES * shape[0] // max(1, self._source.nbytes(name)))
        return [(slice(start, start + step),) for start in range(0, shape[0], step)]

    def _descriptor(self, file: str) -> int:
        if file not in self._descriptors:
            self._descriptors[file] = os.open(self.folder / file, os.O_RDWR)
        return self._descriptors[file]


def _read_all(descriptor: int, data: np.ndarray, position: int) -> None:
    view = data.data
    while view:
        count = os.preadv(descriptor, [view], position)
        if not count:
            raise OSError("the file that is being written is shorter than it was")
        view, position = view[count:], position + count


def _write_all(descriptor: int, data: np.ndarray, position: int) -> None:
    view = data.data
    while view:
        count = os.pwrite(descriptor, view, position)
        view, position = view[count:], position + count
