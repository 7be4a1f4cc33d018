"""Checkpoints in safetensors files: headers first, tensors by byte range."""

import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from polarax.loaders.checkpoint import Checkpoint, CheckpointError, Read, TensorInfo
from polarax.loaders.config import read_config
from polarax.loaders.dtypes import dtype_of
from polarax.loaders.safetensors_header import LENGTH_BYTES, Entry, header_length, parse_header
from polarax.loaders.safetensors_shards import Shards, find_shards
from polarax.loaders.slices import Index, Run, plan_run
from polarax.loaders.store import Store


class SafetensorsCheckpoint(Checkpoint):
    """The tensors of one or more safetensors files."""

    def __init__(self, location: str, store: Store, entries: dict[str, tuple[str, Entry]]):
        """Lists tensors whose headers have been read.

        Args:
            location: What the user gave, for messages.
            store: Holds the files.
            entries: File and header entry of each tensor.
        """
        infos = {name: _info(entry) for name, (_, entry) in entries.items()}
        super().__init__(location, "safetensors", infos)
        self._store = store
        self._entries = entries

    @functools.cached_property
    def config(self) -> Mapping[str, Any] | None:  # type: ignore[override]
        """The object in config.json beside the files; None if there is none, or it cannot be read."""
        return read_config(self._store)

    def read(self, name: str, index: Index = None) -> Read:
        """Starts to read a tensor, or part of it; see `Checkpoint.read`. The array is read-only."""
        dtype = self._readable_dtype(name)
        file, entry = self._entries[name]
        run = plan_run(entry.shape, index)
        start = entry.start + run.start * dtype.itemsize
        stop = entry.start + run.stop * dtype.itemsize
        subject = f"{self._store.path(file)}: tensor {name!r}"
        future = self._store.read(file, start, stop)
        return Read(future, _decoder(run, dtype, stop - start, subject), subject)


def open_safetensors(source: str) -> SafetensorsCheckpoint:
    """Opens a file, a folder, an index or a URL; reads headers and no data.

    Raises:
        CheckpointError: If there is no checkpoint, or its files are not what they say.
    """
    shards = find_shards(source)
    entries: dict[str, tuple[str, Entry]] = {}
    for file, header in zip(shards.files, _read_headers(shards), strict=True):
        for entry in header:
            if entry.name in entries:
                raise CheckpointError(
                    f"{shards.store.path(file)}: tensor {entry.name!r} is also in {entries[entry.name][0]}"
                )
            entries[entry.name] = (file, entry)
    for name, file in shards.weight_map.items():
        if name not in entries or entries[name][0] != file:
            raise CheckpointError(
                f"{shards.store.path(file)}: has no tensor {name!r}, which {shards.index_file} says is there"
            )
    return SafetensorsCheckpoint(source, shards.store, entries)


def _read_headers(shards: Shards) -> list[tuple[Entry, ...]]:
    """The checked headers of all files, each step for all files at once."""
    store, files = shards.store, shards.files
    sizes = [_size(shards, file) for file in files]
    stops = [LENGTH_BYTES if size is None else min(LENGTH_BYTES, size) for size in sizes]
    prefixes = _read_all(shards, zip(files, [0] * len(files), stops, strict=True))
    lengths = [
        header_length(prefix, store.path(file), size) for file, prefix, size in zip(files, prefixes, sizes, strict=True)
    ]
    stops = [LENGTH_BYTES + length for length in lengths]
    texts = _read_all(shards, zip(files, [LENGTH_BYTES] * len(files), stops, strict=True))
    headers = [parse_header(text, store.path(file), size) for file, text, size in zip(files, texts, sizes, strict=True)]
    # Where the size is unknown, the last byte that the header promises must be there.
    last = [
        (file, header[-1].stop - 1, header[-1].stop)
        for file, header, size in zip(files, headers, sizes, strict=True)
        if size is None and header
    ]
    _read_all(shards, last)
    return headers


def _read_all(shards: Shards, ranges: Iterable[tuple[str, int, int]]) -> list[bytes]:
    """The bytes of several (file, start, stop), all asked for before the first is waited for."""
    store = shards.store
    reads = [(store.read(file, start, stop), file, stop) for file, start, stop in ranges]
    values = []
    for future, file, stop in reads:
        try:
            value = store.wait(future, file)
        except EOFError:
            raise CheckpointError(f"{store.path(file)}: is truncated: expected at least {stop} bytes") from None
        if value is None:
            raise _missing(shards, file)
        values.append(value)
    return values


def _size(shards: Shards, file: str) -> int | None:
    try:
        return shards.store.size(file)
    except CheckpointError as error:
        if shards.index_file is None:
            raise
        raise CheckpointError(f"{error}; {shards.index_file} names it") from error


def _missing(shards: Shards, file: str) -> CheckpointError:
    named_by = f"; {shards.index_file} names it" if shards.index_file else ""
    return CheckpointError(f"{shards.store.path(file)}: no such file{named_by}")


def _info(entry: Entry) -> TensorInfo:
    dtype = dtype_of(entry.dtype)
    dtype_name = entry.dtype if dtype is None else dtype.name
    return TensorInfo(entry.shape, dtype, dtype_name, entry.stop - entry.start)


def _decoder(run: Run, dtype: np.dtype, nbytes: int, subject: str) -> Callable[[Any], np.ndarray]:
    """What turns the bytes of a run into the wanted array, without a copy."""

    def decode(result: Any) -> np.ndarray:
        if result.state == "missing":
            raise CheckpointError(f"{subject}: the file is gone")
        if len(result.value) != nbytes:
            raise CheckpointError(f"{subject}: expected {nbytes} bytes, got {len(result.value)}")
        if nbytes == 0:
            return np.empty(run.shape, dtype)
        return np.frombuffer(result.value, dtype).reshape(run.shape)[run.cut]

    return decode
