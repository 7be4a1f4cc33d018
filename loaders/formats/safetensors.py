"""The format safetensors: one file, or shards with or without an index."""

import os
from collections.abc import Iterable
from concurrent.futures import Future
from typing import Any, TypeVar

from polarax.loaders.checkpoint import CheckpointError
from polarax.loaders.formats.format import Format
from polarax.loaders.formats.safetensors_checkpoint import SafetensorsCheckpoint
from polarax.loaders.formats.safetensors_folder import (
    INDEX_SUFFIX,
    SUFFIX,
    MissingFile,
    is_index,
    is_training_state,
    shard_set,
)
from polarax.loaders.formats.safetensors_header import (
    LENGTH_BYTES,
    MAX_HEADER_BYTES,
    Entry,
    Header,
    header_length,
    read_header,
)
from polarax.loaders.formats.safetensors_shards import Shards, find_shards

_T = TypeVar("_T")

# What a header's JSON takes besides names: for each tensor dtype, two or three sizes and two offsets (some 80 bytes,
# with spaces 90), and once what training code adds. A header that needs more takes a second request.
_ENTRY_BYTES = 128
_METADATA_BYTES = 4096


class SafetensorsFormat(Format):
    """Files of Hugging Face's safetensors library."""

    name = "safetensors"
    suffixes = (INDEX_SUFFIX, SUFFIX)
    probed = True

    def open(self, source: Any) -> SafetensorsCheckpoint:
        """Opens a file, an index, a folder or a URL."""
        return open_safetensors(source)

    def open_folder(self, source: str) -> SafetensorsCheckpoint:
        """Opens what a local folder holds; see `polarax.loaders.formats.safetensors_folder`."""
        return open_safetensors(source)

    def recognises_name(self, name: str) -> bool:
        """Whether it is a file of tensors or an index."""
        return super().recognises_name(name) or is_index(name)

    def recognises_folder(self, folder: str) -> bool:
        """Whether there is more in it than states of optimisers."""
        return any(not is_training_state(name) for name in self.files_in(folder))

    def is_generic(self, name: str) -> bool:
        """Whether it is an index, or a name that says nothing."""
        return name.endswith(".index.json") or is_index(name) or super().is_generic(name)

    def missing(self, path: str) -> tuple[str, ...]:
        """The shards that an index or their numbers promise and that are not there; see `Format.missing`."""
        try:
            shards = find_shards(path)
        except MissingFile as error:
            return (error.name,)
        except CheckpointError:  # whoever opens it says what is wrong with it
            return ()
        folder = path if os.path.isdir(path) else os.path.dirname(path)
        return tuple(file for file in shards.files if not os.path.isfile(os.path.join(folder, file)))


def open_safetensors(source: str) -> SafetensorsCheckpoint:
    """Opens a file, a folder, an index or a URL; reads headers and no data.

    Raises:
        CheckpointError: If there is no checkpoint, or its files are not what they say.
    """
    shards = find_shards(source)
    entries: dict[str, tuple[str, Entry]] = {}
    metadata: dict[str, str] = {}
    for file, header in zip(shards.files, _read_headers(shards), strict=True):
        metadata |= header.metadata
        for entry in header.entries:
            if entry.name in entries:
                raise _clash(shards, entry.name, entries[entry.name][0], file)
            entries[entry.name] = (file, entry)
    for name, file in shards.weight_map.items():
        if name not in entries or entries[name][0] != file:
            raise CheckpointError(
                f"{shards.store.path(file)}: has no tensor {name!r}, which {shards.index_file} says is there"
            )
    # A tensor that is another one too is left out by safetensors.torch.save_model, which writes down its name.
    aliases = {name: kept for name, kept in metadata.items() if name not in entries and kept in entries}
    return SafetensorsCheckpoint(source, shards.store, entries, shards.index_file, notes=shards.notes, aliases=aliases)


def _clash(shards: Shards, name: str, first: str, second: str) -> CheckpointError:
    """The error of two files that have one tensor: damaged, or of two models."""
    one_set = shard_set(first, [second])
    if shards.index_file is not None or (one_set is not None and second in one_set.files.values()):
        return CheckpointError(f"{shards.store.path(second)}: tensor {name!r} is also in {first}")
    return CheckpointError(
        f"{shards.store.location.rstrip('/')}: has several safetensors checkpoints; name one of them: "
        f"{first}, {second} (both have tensor {name!r})"
    )


def _read_headers(shards: Shards) -> list[Header]:
    """The checked headers of all files, each step for all files at once."""
    store, files = shards.store, shards.files
    known = [_size(shards, file) for file in files]
    futures = [store.read_head(file, count) for file, count in zip(files, _first_bytes(shards), strict=True)]
    heads = [_required(shards, future, file) for future, file in zip(futures, files, strict=True)]
    sizes = [head.size if size is None else size for head, size in zip(heads, known, strict=True)]
    lengths = [
        header_length(head.data[:LENGTH_BYTES], store.path(file), size)
        for file, head, size in zip(files, heads, sizes, strict=True)
    ]
    # Of most files the header came along with its length.
    rests = _read_all(
        shards,
        [
            (file, len(head.data), max(len(head.data), LENGTH_BYTES + length))
            for file, head, length in zip(files, heads, lengths, strict=True)
        ],
    )
    headers = [
        read_header((head.data + rest)[LENGTH_BYTES : LENGTH_BYTES + length], store.path(file), size)
        for file, head, rest, length, size in zip(files, heads, rests, lengths, sizes, strict=True)
    ]
    # Where the size is unknown, the last byte that the header promises must be there.
    last = [
        (file, header.entries[-1].stop - 1, header.entries[-1].stop)
        for file, header, size in zip(files, headers, sizes, strict=True)
        if size is None and header.entries
    ]
    _read_all(shards, last)
    return headers


def _first_bytes(shards: Shards) -> list[int]:
    """How much to ask of each file at first, in bytes, so that over a network its header comes with one request.

    As much as costs no more than a single byte there, or what the tensors that the index says are in the file need.
    """
    least = shards.store.head_bytes
    if shards.store.is_local:
        return [least] * len(shards.files)
    needed = dict.fromkeys(shards.files, LENGTH_BYTES + _METADATA_BYTES)
    for name, file in shards.weight_map.items():
        needed[file] += len(name) + _ENTRY_BYTES
    return [min(max(least, needed[file]), LENGTH_BYTES + MAX_HEADER_BYTES) for file in shards.files]


def _read_all(shards: Shards, ranges: Iterable[tuple[str, int, int]]) -> list[bytes]:
    """The bytes of several (file, start, stop), all asked for before the first is waited for."""
    futures = [(shards.store.read(file, start, stop) if stop > start else None, file) for file, start, stop in ranges]
    return [b"" if future is None else _required(shards, future, file).tobytes() for future, file in futures]


def _required(shards: Shards, future: "Future[_T | None]", file: str) -> _T:
    """What a read of a file gives, that must be there and long enough."""
    try:
        value = shards.store.wait(future, file)
    except EOFError as error:
        raise CheckpointError(f"{shards.store.path(file)}: is truncated: {error}") from None
    if value is None:
        raise _missing(shards, file)
    return value


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
