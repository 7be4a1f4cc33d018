"""Writes a checkpoint like one that was read: some tensors replaced, every other byte the same.

The folder is written under a temporary name beside its final one, shard by shard, and renamed when all of it is on the
disk: under the final name there is a whole checkpoint or none. Nothing that exists is ever written to.

The reference library cannot do this: `safetensors.serialize_file` takes all tensors of a file at once, in memory, and
sorts them by dtype and name. It is the judge instead: tests read with it what is written here.
"""

import os
import pathlib
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from typing import Any, BinaryIO

import numpy as np

from polarax.loaders.checkpoint import Checkpoint, CheckpointError
from polarax.loaders.dtypes import is_floating
from polarax.loaders.formats.safetensors_checkpoint import SafetensorsCheckpoint
from polarax.loaders.formats.safetensors_header import LENGTH_BYTES, Entry
from polarax.loaders.scaled_checkpoint import ScaledCheckpoint
from polarax.loaders.writing.companions import copy_companions, whole_file
from polarax.loaders.writing.files import check_target, created, disk_errors, sync, umask
from polarax.loaders.writing.headers import with_dtypes, with_total_size
from polarax.loaders.writing.rounding import rounded

Replacement = np.ndarray | Callable[[], Any]
"""An array, or what is called for it when its turn comes, so that one at a time is in memory."""

_CHUNK_BYTES = 16 << 20  # what is copied at a time; two of them are in memory


def write_checkpoint(
    source: Checkpoint,
    out: str | os.PathLike,
    replacements: Mapping[str, Replacement],
    dtype: Any = None,
) -> pathlib.Path:
    """Writes a copy of a safetensors checkpoint in which some tensors are replaced.

    Shards, index, metadata and the order of the tensors stay as they are, and so does every byte of the other
    tensors; configuration and tokenizer files in the folder of the source are copied. In memory are one replacement
    and a few chunks at a time.

    Args:
        source: What `open_checkpoint` gave for safetensors files, wherever they are.
        out: The folder to write: new, or empty. Folders above it are made.
        replacements: For each tensor to replace an array of its shape, or a function that gives it; it is
            called once, in file order.
        dtype: Type that replaced tensors are stored in; by default each keeps its own.

    Returns:
        The folder.

    Raises:
        CheckpointError: If the source has no such tensor or is no safetensors checkpoint, a tensor to replace is stored
            with a scale, `out` is taken, an array does not fit its place, the disk is full, or the source cannot be
            read. There is then nothing under the final name. Errors of the functions in `replacements` are passed on,
            with the same effect.
    """
    if isinstance(source, ScaledCheckpoint):
        for name in replacements:
            words = source.dtype_name(name)  # the names of scales raise here: they are part of their weights
            if source.is_scaled(name):
                raise CheckpointError(f"{source.location}: tensor {name!r} is {words}, which cannot be written")
        replacements = {source.stored_name(name): array for name, array in replacements.items()}
        source = source.stored
    if not isinstance(source, SafetensorsCheckpoint):
        raise CheckpointError(f"{source.location}: only safetensors checkpoints can be written; it is {source.format}")
    target = pathlib.Path(os.path.abspath(os.fspath(out)))
    check_target(target, source.store.location if source.store.is_local else None)
    plan = {name: dtype_for(source, name, dtype) for name in replacements}
    parent = target.parent
    with disk_errors(target):
        parent.mkdir(parents=True, exist_ok=True)
        check_space(source, plan, parent)
        temporary = pathlib.Path(tempfile.mkdtemp(prefix=f".{target.name}.partial-", dir=parent))
    try:
        with disk_errors(target):
            _write_all(source, temporary, replacements, plan)
            temporary.chmod(0o777 & ~umask())
            sync(temporary)
            temporary.rename(target)  # fails if something else got there first
            sync(parent)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return target


def dtype_for(source: Checkpoint, name: str, dtype: Any) -> np.dtype:
    """The type that a replaced tensor is stored in, of a type that was asked for or None."""
    stored = source.dtype(name)
    if stored is None:
        raise CheckpointError(
            f"{source.location}: tensor {name!r} is stored as {source.dtype_name(name)}, which cannot be written"
        )
    if dtype is None or not is_floating(stored):
        return stored
    chosen = np.dtype(dtype)
    if not is_floating(chosen):
        raise CheckpointError(f"dtype must be a floating-point type that checkpoints are stored in. Got {chosen}")
    return chosen


def check_space(
    source: SafetensorsCheckpoint, plan: Mapping[str, np.dtype], folder: pathlib.Path, copies: int = 1
) -> None:
    """Refuses to write so many copies where there is no room for them."""
    needed = sum(source.nbytes(name) for name in source.names() if name not in plan)
    for name, dtype in plan.items():
        needed += int(np.prod(source.shape(name), dtype=object)) * dtype.itemsize
    needed *= copies
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise CheckpointError(f"{folder}: {needed} bytes are needed, {free} are free")


def _write_all(
    source: SafetensorsCheckpoint,
    folder: pathlib.Path,
    replacements: Mapping[str, Replacement],
    plan: Mapping[str, np.dtype],
) -> None:
    change = 0
    for file, entries in source.shards().items():
        with created(folder / file) as opened:
            change += _write_shard(source, file, entries, opened, replacements, plan)
    if source.index_file is not None:
        text = whole_file(source.store, source.index_file)
        if text is None:
            raise CheckpointError(f"{source.store.path(source.index_file)}: the file is gone")
        with created(folder / source.index_file) as opened:
            opened.write(with_total_size(text, change) if change else text)
    copy_companions(source.store, folder)


def _write_shard(
    source: SafetensorsCheckpoint,
    file: str,
    entries: Sequence[Entry],
    opened: BinaryIO,
    replacements: Mapping[str, Replacement],
    plan: Mapping[str, np.dtype],
) -> int:
    """Writes one file; returns by how many bytes its data grew."""
    first = min((entry.start for entry in entries), default=None)
    header = source.header(file)
    replaced = {entry.name: plan[entry.name] for entry in entries if entry.name in plan}
    changed = {name: dtype for name, dtype in replaced.items() if dtype != source.dtype(name)}
    before = len(header)
    if changed:
        header = with_dtypes(header, entries, changed)
    opened.write(len(header).to_bytes(LENGTH_BYTES, "little") + header)
    position = LENGTH_BYTES + before if first is None else first
    grown = 0
    for entry in entries:
        if entry.name not in replaced:
            continue
        copy_bytes(source, file, position, entry.start, opened)
        data = _bytes_for(source, entry, replacements[entry.name], replaced[entry.name])
        opened.write(data.data)
        grown += data.nbytes - (entry.stop - entry.start)
        position = entry.stop
        del data
    copy_bytes(source, file, position, max((entry.stop for entry in entries), default=position), opened)
    return grown


def _bytes_for(source: SafetensorsCheckpoint, entry: Entry, replacement: Replacement, dtype: np.dtype) -> np.ndarray:
    """A replacement as the bytes that are stored."""
    array = np.asarray(replacement() if callable(replacement) else replacement)
    subject = f"tensor {entry.name!r} of {source.location}"
    if array.shape != entry.shape:
        raise CheckpointError(f"{subject}: expected a replacement of shape {entry.shape}. Got {array.shape}")
    if array.dtype != dtype and not (is_floating(array.dtype) and is_floating(dtype)):
        raise CheckpointError(f"{subject}: expected a replacement of type {dtype}. Got {array.dtype}")
    stored = np.ascontiguousarray(rounded(array, dtype))
    if array.dtype != dtype and not np.array_equal(np.isfinite(array), np.isfinite(stored)):
        raise CheckpointError(f"{subject}: its replacement has entries too large for {dtype}")
    return stored.reshape(-1).view(np.uint8)


def copy_bytes(source: SafetensorsCheckpoint, file: str, start: int, stop: int, opened: BinaryIO) -> None:
    """Copies bytes of a file, reading the next chunk while one is written."""
    buffers = [np.empty(min(_CHUNK_BYTES, max(0, stop - start)), np.uint8) for _ in range(2)]

    def begin(position: int, buffer: np.ndarray) -> tuple[Future, np.ndarray] | None:
        if position >= stop:
            return None
        part = buffer[: min(_CHUNK_BYTES, stop - position)]
        return source.store.fill(file, position, [part.data]), part

    coming, turn = begin(start, buffers[0]), 0
    while coming is not None:
        future, part = coming
        try:
            there = source.store.wait(future, file)
        except EOFError as error:
            raise CheckpointError(f"{source.store.path(file)}: {error}") from None
        if not there:
            raise CheckpointError(f"{source.store.path(file)}: the file is gone")
        start, turn = start + len(part), 1 - turn
        coming = begin(start, buffers[turn])
        opened.write(part.data)
