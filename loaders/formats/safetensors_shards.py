"""Which files make up a safetensors checkpoint: one, or shards with or without an index."""

import functools
import posixpath
import urllib.parse
from collections.abc import Sequence
from os import path as os_path
from typing import NamedTuple

from polarax.loaders.checkpoint import CheckpointError
from polarax.loaders.formats.foreign import listed, pickle_note
from polarax.loaders.formats.format import NoCheckpoint
from polarax.loaders.formats.safetensors_header import MAX_HEADER_BYTES, parse_json_object
from polarax.loaders.stores.store import Store, local_path

SUFFIX = ".safetensors"
INDEX_SUFFIX = ".safetensors.index.json"
_DEFAULT = "model" + SUFFIX
_DEFAULT_INDEX = "model" + INDEX_SUFFIX


class Shards(NamedTuple):
    """The files of one checkpoint."""

    store: Store
    files: tuple[str, ...]  # in the order in which their tensors are listed
    index_file: str | None  # the index, if there is one
    weight_map: dict[str, str]  # tensor to file, as the index says; empty without one


def find_shards(source: str) -> Shards:
    """The files behind a path or URL.

    In a folder these are tried in turn: ``model.safetensors.index.json``, ``model.safetensors``,
    the only other index, and all ``*.safetensors`` there are.

    Raises:
        NoCheckpoint: If there is none.
        CheckpointError: If there are several, or an index cannot be followed.
    """
    path = local_path(source)
    if path is None:
        return _find_by_url(source)
    if os_path.isdir(path):
        return _find_in_folder(Store.of_folder(path), path)
    if not os_path.exists(path):
        raise CheckpointError(f"{path}: no such file or folder")
    folder, name = os_path.split(path)
    return _from_file(Store.of_folder(folder), name)


def _find_by_url(url: str) -> Shards:
    parts = urllib.parse.urlsplit(url)
    folder, name = posixpath.split(parts.path)
    if name.endswith((SUFFIX, INDEX_SUFFIX)):
        store = Store.of_url(urllib.parse.urlunsplit(parts._replace(path=folder)))
        return _from_file(store, urllib.parse.unquote(name))
    store = Store.of_url(url)
    index = store.wait(store.read(_DEFAULT_INDEX), _DEFAULT_INDEX)
    if index is not None:
        return _from_index(store, _DEFAULT_INDEX, index.tobytes())
    if store.wait(store.read_head(_DEFAULT, 1), _DEFAULT) is not None:
        return Shards(store, (_DEFAULT,), None, {})
    files = store.files()
    if files is None:
        raise NoCheckpoint(url, f"{_DEFAULT_INDEX} and {_DEFAULT}")
    return _among(store, url, files)


def _find_in_folder(store: Store, folder: str) -> Shards:
    return _among(store, folder, store.files() or ())


def _among(store: Store, folder: str, files: Sequence[str]) -> Shards:
    """The checkpoint among the files of a folder."""
    tensors = tuple(name for name in files if name.endswith(SUFFIX))
    indexes = tuple(name for name in files if name.endswith(INDEX_SUFFIX))
    if _DEFAULT_INDEX in indexes:
        return _from_file(store, _DEFAULT_INDEX)
    if _DEFAULT in tensors:
        return Shards(store, (_DEFAULT,), None, {})
    if len(indexes) == 1:
        return _from_file(store, indexes[0])
    if indexes:
        raise CheckpointError(f"{folder}: has several indexes; name one of them: {listed(indexes)}")
    if tensors:
        return Shards(store, tensors, None, {})
    raise NoCheckpoint(folder, f"*{INDEX_SUFFIX} and *{SUFFIX}", pickle_note(files))


def _from_file(store: Store, name: str) -> Shards:
    """The checkpoint that one named file stands for: itself, or what it lists if it is an index."""
    if not name.endswith(".index.json"):
        return Shards(store, (name,), None, {})
    size = store.size(name)
    if size is not None and size > MAX_HEADER_BYTES:
        raise CheckpointError(f"{store.path(name)}: {size} bytes are too many for an index (limit {MAX_HEADER_BYTES})")
    text = store.wait(store.read(name), name)
    if text is None:
        raise CheckpointError(f"{store.path(name)}: no such file")
    return _from_index(store, name, text.tobytes())


def _from_index(store: Store, index: str, text: bytes) -> Shards:
    location = store.path(index)
    weight_map = parse_json_object(text, f"{location}: index").get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{location}: expected weight_map, an object of tensor names to files")
    for name, file in weight_map.items():
        if not isinstance(file, str) or not _stays_inside(file):
            raise CheckpointError(
                f"{location}: tensor {name!r} is said to be in {file!r}; expected a file in the folder of the index"
            )
    return Shards(store, tuple(sorted(set(weight_map.values()))), index, weight_map)


@functools.lru_cache(1024)  # an index names its few files once for each of very many tensors
def _stays_inside(file: str) -> bool:
    """Whether a file name from an index is a plain relative path that does not climb."""
    parts = file.split("/")
    return not any(part in ("", ".", "..") for part in parts) and not set(file) & {"\\", "\0"}
