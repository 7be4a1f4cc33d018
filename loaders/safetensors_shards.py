"""Which files make up a safetensors checkpoint: one, or shards with or without an index."""

import functools
import posixpath
import urllib.parse
from collections.abc import Sequence
from os import path as os_path
from typing import NamedTuple

from polarax.loaders.checkpoint import CheckpointError
from polarax.loaders.safetensors_header import MAX_HEADER_BYTES, parse_json_object
from polarax.loaders.store import Store, local_path

_SUFFIX = ".safetensors"
_INDEX_SUFFIX = ".safetensors.index.json"
_DEFAULT = "model" + _SUFFIX
_DEFAULT_INDEX = "model" + _INDEX_SUFFIX

# Formats that unpickle: opening one may run any code, so none ever is.
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
_PICKLE_NOTE = "pickle files can run code and are never opened; convert it to safetensors"


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
        CheckpointError: If there is no checkpoint, more than one, or an index that cannot be
            followed.
    """
    if not source:
        raise CheckpointError("the path of a checkpoint is empty")
    path = local_path(source)
    if path is None:
        return _find_by_url(source)
    if os_path.isdir(path):
        return _find_in_folder(Store.of_folder(path), path)
    if not os_path.exists(path):
        raise CheckpointError(f"{path}: no such file or folder")
    _refuse_pickle(path, path)
    folder, name = os_path.split(path)
    return _from_file(Store.of_folder(folder), name)


def _find_by_url(url: str) -> Shards:
    parts = urllib.parse.urlsplit(url)
    folder, name = posixpath.split(parts.path)
    _refuse_pickle(name, url)
    if name.endswith((_SUFFIX, _INDEX_SUFFIX)):
        store = Store.of_url(urllib.parse.urlunsplit(parts._replace(path=folder)))
        return _from_file(store, urllib.parse.unquote(name))
    store = Store.of_url(url)
    index = store.wait(store.read(_DEFAULT_INDEX), _DEFAULT_INDEX)
    if index is not None:
        return _from_index(store, _DEFAULT_INDEX, index.tobytes())
    if store.wait(store.read_head(_DEFAULT, 1), _DEFAULT) is not None:
        return Shards(store, (_DEFAULT,), None, {})
    found = store.files()
    if found is None:
        raise CheckpointError(f"{url}: no checkpoint there; looked for {_DEFAULT_INDEX} and {_DEFAULT}")
    return _among(store, url, found)


def _find_in_folder(store: Store, folder: str) -> Shards:
    return _among(store, folder, store.files() or ())


def _among(store: Store, folder: str, found: Sequence[str]) -> Shards:
    """The checkpoint among the files of a folder."""
    tensors = tuple(name for name in found if name.endswith(_SUFFIX))
    indexes = tuple(name for name in found if name.endswith(_INDEX_SUFFIX))
    if _DEFAULT_INDEX in indexes:
        return _from_file(store, _DEFAULT_INDEX)
    if _DEFAULT in tensors:
        return Shards(store, (_DEFAULT,), None, {})
    if len(indexes) == 1:
        return _from_file(store, indexes[0])
    if indexes:
        raise CheckpointError(f"{folder}: has several indexes; name one of them: {_listed(indexes)}")
    if tensors:
        return Shards(store, tensors, None, {})
    pickles = tuple(name for name in found if name.endswith(_PICKLES))
    note = f"; there is {_listed(pickles)}, but {_PICKLE_NOTE}" if pickles else ""
    raise CheckpointError(f"{folder}: no checkpoint there; looked for *{_INDEX_SUFFIX} and *{_SUFFIX}{note}")


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


def _refuse_pickle(name: str, location: str) -> None:
    if name.endswith(_PICKLES):
        raise CheckpointError(f"{location}: not opened: {_PICKLE_NOTE}")


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
