"""Writes a checkpoint like one that was read: some tensors replaced, every other byte the same.

The folder is written under a temporary name beside its final one, shard by shard, and renamed when all of it is on the
disk: under the final name there is a whole checkpoint or none. Nothing that exists is ever written to.

The reference library cannot do this: `safetensors.serialize_file` takes all tensors of a file at once, in memory, and
sorts them by dtype and name. It is the judge instead: tests read with it what is written here.
"""

import contextlib
import errno
import json
import os
import pathlib
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from typing import Any, BinaryIO

import numpy as np

from polarax.loaders import formats
from polarax.loaders.checkpoint import Checkpoint, CheckpointError
from polarax.loaders.dtypes import is_floating, spelling_of
from polarax.loaders.formats import foreign
from polarax.loaders.formats.safetensors_checkpoint import SafetensorsCheckpoint
from polarax.loaders.formats.safetensors_header import LENGTH_BYTES, Entry, parse_json_object
from polarax.loaders.scaled_checkpoint import ScaledCheckpoint
from polarax.loaders.stores.store import Store

Replacement = np.ndarray | Callable[[], Any]
"""An array, or what is called for it when its turn comes, so that one at a time is in memory."""

_CHUNK_BYTES = 16 << 20  # what is copied at a time; two of them are in memory
_ALIGNMENT = 8  # of the data, as the reference implementation pads its headers with spaces

# What goes with a model, where a store has no list of its files.
_COMPANIONS = (
    *("config.json", "generation_config.json", "preprocessor_config.json", "chat_template.jinja"),
    *("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json"),
    *("added_tokens.json", "vocab.json", "vocab.txt", "merges.txt"),
)


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
    _check_target(target, source)
    plan = {name: _dtype_for(source, name, dtype) for name in replacements}
    parent = target.parent
    with _disk_errors(target):
        parent.mkdir(parents=True, exist_ok=True)
        _check_space(source, plan, parent)
        temporary = pathlib.Path(tempfile.mkdtemp(prefix=f".{target.name}.partial-", dir=parent))
    try:
        with _disk_errors(target):
            _write_all(source, temporary, replacements, plan)
            temporary.chmod(0o777 & ~_umask())
            _sync(temporary)
            temporary.rename(target)  # fails if something else got there first
            _sync(parent)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return target


def _check_target(target: pathlib.Path, source: SafetensorsCheckpoint) -> None:
    """Refuses to write where something is, above all the source, whichever way its path leads there."""
    if not os.path.lexists(target):
        return
    folder = source.store.location
    if source.store.is_local and os.path.exists(target) and os.path.samefile(target, folder):
        raise CheckpointError(f"{target}: is where the checkpoint is read from; choose another folder")
    if target.is_symlink():
        raise CheckpointError(f"{target}: is a link; expected a new folder")
    if not target.is_dir():
        raise CheckpointError(f"{target}: is a file; expected a new folder")
    if any(target.iterdir()):
        raise CheckpointError(f"{target}: is not empty; expected a new folder")


def _dtype_for(source: SafetensorsCheckpoint, name: str, dtype: Any) -> np.dtype:
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


def _check_space(source: SafetensorsCheckpoint, plan: Mapping[str, np.dtype], folder: pathlib.Path) -> None:
    needed = sum(source.nbytes(name) for name in source.names() if name not in plan)
    for name, dtype in plan.items():
        needed += int(np.prod(source.shape(name), dtype=object)) * dtype.itemsize
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
        with _created(folder / file) as opened:
            change += _write_shard(source, file, entries, opened, replacements, plan)
    if source.index_file is not None:
        text = _whole(source.store, source.index_file)
        if text is None:
            raise CheckpointError(f"{source.store.path(source.index_file)}: the file is gone")
        with _created(folder / source.index_file) as opened:
            opened.write(_with_total_size(text, change) if change else text)
    _copy_companions(source, folder)


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
        header = _with_dtypes(header, entries, changed)
    opened.write(len(header).to_bytes(LENGTH_BYTES, "little") + header)
    position = LENGTH_BYTES + before if first is None else first
    grown = 0
    for entry in entries:
        if entry.name not in replaced:
            continue
        _copy(source, file, position, entry.start, opened)
        data = _bytes_for(source, entry, replacements[entry.name], replaced[entry.name])
        opened.write(data.data)
        grown += data.nbytes - (entry.stop - entry.start)
        position = entry.stop
        del data
    _copy(source, file, position, max((entry.stop for entry in entries), default=position), opened)
    return grown


def _bytes_for(source: SafetensorsCheckpoint, entry: Entry, replacement: Replacement, dtype: np.dtype) -> np.ndarray:
    """A replacement as the bytes that are stored."""
    array = np.asarray(replacement() if callable(replacement) else replacement)
    subject = f"tensor {entry.name!r} of {source.location}"
    if array.shape != entry.shape:
        raise CheckpointError(f"{subject}: expected a replacement of shape {entry.shape}. Got {array.shape}")
    if array.dtype != dtype and not (is_floating(array.dtype) and is_floating(dtype)):
        raise CheckpointError(f"{subject}: expected a replacement of type {dtype}. Got {array.dtype}")
    with np.errstate(over="ignore", invalid="ignore"):
        stored = np.ascontiguousarray(array, dtype)
    if array.dtype != dtype and not np.array_equal(np.isfinite(array), np.isfinite(stored)):
        raise CheckpointError(f"{subject}: its replacement has entries too large for {dtype}")
    return stored.reshape(-1).view(np.uint8)


def _with_dtypes(header: bytes, entries: Sequence[Entry], dtypes: Mapping[str, np.dtype]) -> bytes:
    """A header in which some tensors have other dtypes, and all the offsets that follow from it."""
    table = json.loads(header)  # checked when it was read
    position = 0
    for entry in entries:
        item = table[entry.name]
        size = entry.stop - entry.start
        if entry.name in dtypes:
            dtype = dtypes[entry.name]
            item["dtype"] = spelling_of(dtype)
            size = int(np.prod(entry.shape, dtype=object)) * dtype.itemsize
        item["data_offsets"] = [position, position + size]
        position += size
    text = json.dumps(table, separators=(",", ":"), ensure_ascii=False).encode()
    return text + b" " * (-len(text) % _ALIGNMENT)


def _with_total_size(index: bytes, change: int) -> bytes:
    """An index whose total size, if it has one, is that of the new data."""
    table = parse_json_object(index, "index")
    metadata = table.get("metadata")
    if not isinstance(metadata, dict) or type(metadata.get("total_size")) is not int:
        return index
    metadata["total_size"] += change
    return json.dumps(table, indent=2, ensure_ascii=False).encode() + b"\n"


def _copy(source: SafetensorsCheckpoint, file: str, start: int, stop: int, opened: BinaryIO) -> None:
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


def _copy_companions(source: SafetensorsCheckpoint, folder: pathlib.Path) -> None:
    """Copies what else a model needs; of a local folder all but weights, of a remote one what is usual."""
    store = source.store
    if store.is_local:
        _copy_folder(pathlib.Path(store.location), folder)
        return
    listed = store.files()
    names = _COMPANIONS if listed is None else [name for name in listed if not _is_weights(name)]
    for name in names:
        if not (folder / name).exists():
            data = _whole(store, name)
            if data is not None:
                with _created(folder / name) as opened:
                    opened.write(data)


def _copy_folder(source: pathlib.Path, folder: pathlib.Path) -> None:
    """Copies the files beside a local checkpoint, and those of the folders in it that are not links or hidden."""
    for above, folders, files in os.walk(source):
        inside = pathlib.Path(above).relative_to(source)
        # Not what is being written, when that is inside the source.
        folders[:] = [
            name
            for name in folders
            if name[0] != "." and not os.path.islink(os.path.join(above, name)) and not _holds_weights(above, name)
        ]
        for name in files:
            path, copy = pathlib.Path(above, name), folder / inside / name
            if name[0] == "." or _is_weights(name) or not path.is_file() or copy.exists():
                continue
            with path.open("rb") as opened, _created(copy) as to:
                shutil.copyfileobj(opened, to)


def _is_weights(name: str) -> bool:
    """Whether a file has weights, in whichever format: those that are not the checkpoint's own are not copied along."""
    return name.endswith(foreign.SUFFIXES) or formats.by_name(name) is not None


def _holds_weights(above: str, name: str) -> bool:
    """Whether a folder is a checkpoint of its own, such as checkpoint-500 of a training run."""
    files = os.listdir(os.path.join(above, name))
    return any(file.endswith((".bin", ".pt")) or formats.by_name(file) is not None for file in files)


def _whole(store: Store, name: str) -> bytes | None:
    data = store.wait(store.read(name), name)
    return None if data is None else data.tobytes()


@contextlib.contextmanager
def _created(path: pathlib.Path) -> Iterator[BinaryIO]:
    """A new file, on the disk when it is closed. It is never one that exists."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("xb") as opened:
        yield opened
        opened.flush()
        os.fsync(opened.fileno())


@contextlib.contextmanager
def _disk_errors(target: pathlib.Path) -> Iterator[None]:
    """Turns what the system says of the output into one line."""
    try:
        yield
    except OSError as error:
        full = "the disk is full: " if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) else ""
        reason = error.strerror or str(error)
        raise CheckpointError(f"{target}: cannot be written: {full}{reason}; nothing is left there") from error


def _sync(folder: pathlib.Path) -> None:
    """Puts a folder's entries on the disk."""
    file = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)


def _umask() -> int:
    """The process's mask of permissions; it cannot be asked for without being set."""
    mask = os.umask(0o022)
    os.umask(mask)
    return mask
