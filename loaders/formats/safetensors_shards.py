"""The files that make up a safetensors checkpoint: found behind a path or URL, and read if they are indexes."""

import functools
import posixpath
import urllib.parse
from collections.abc import Collection, Sequence
from os import path as os_path
from typing import NamedTuple

from polarax.loaders.checkpoint import CheckpointError
from polarax.loaders.formats.foreign import listed, pickle_note
from polarax.loaders.formats.format import NoCheckpoint
from polarax.loaders.formats.safetensors_folder import (
    INDEX_SUFFIX,
    STEMS,
    SUFFIX,
    choose,
    is_index,
    is_training_state,
    missing_part,
    shard_set,
    unfollowed,
)
from polarax.loaders.formats.safetensors_header import MAX_HEADER_BYTES, parse_json_object
from polarax.loaders.stores.store import Store, local_path

_DEFAULT = STEMS[0] + SUFFIX
_DEFAULT_INDEX = STEMS[0] + INDEX_SUFFIX


class Shards(NamedTuple):
    """The files of one checkpoint."""

    store: Store
    files: tuple[str, ...]  # in the order in which their tensors are listed
    index_file: str | None  # the index, if there is one
    weight_map: dict[str, str]  # tensor to file, as the index says; empty without one
    notes: tuple[str, ...] = ()  # what to say of the choice


def find_shards(source: str) -> Shards:
    """The files behind a path or URL: in a folder those that `choose` says, of a numbered file all of its set.

    Raises:
        NoCheckpoint: If there is none.
        MissingFile: If a part is not there.
        CheckpointError: If there are several, or an index cannot be followed.
    """
    path = local_path(source)
    if path is None:
        return _find_by_url(source)
    if os_path.isdir(path):
        store = Store.of_folder(path)
        return _among(store, path, store.files() or ())
    if not os_path.exists(path):
        raise CheckpointError(f"{path}: no such file or folder")
    folder, name = os_path.split(path)
    return _from_file(Store.of_folder(folder), name)


def _find_by_url(url: str) -> Shards:
    parts = urllib.parse.urlsplit(url)
    folder, name = posixpath.split(parts.path)
    if name.endswith(SUFFIX) or is_index(name):
        store = Store.of_url(urllib.parse.urlunsplit(parts._replace(path=folder)))
        return _from_file(store, urllib.parse.unquote(name))
    store = Store.of_url(url)
    files = _listed(store)
    if files:
        return _among(store, url, files)
    # Asked for together: the second answer costs no time.
    file, index = store.read_head(_DEFAULT, 1), store.read(_DEFAULT_INDEX)
    there, text = store.wait(file, _DEFAULT) is not None, store.wait(index, _DEFAULT_INDEX)
    if there:
        ignored = text is not None and _names_others(store, text.tobytes())
        return Shards(store, (_DEFAULT,), None, {}, (unfollowed(_DEFAULT_INDEX, _DEFAULT),) if ignored else ())
    if text is not None:
        return _from_index(store, _DEFAULT_INDEX, text.tobytes())
    files = store.files()
    if files is None:
        raise NoCheckpoint(url, f"{_DEFAULT} and {_DEFAULT_INDEX}")
    return _among(store, url, files)


def _names_others(store: Store, index: bytes) -> bool:
    """Whether an index names other files than the usual one; not if it is none, as some servers have a page for all."""
    try:
        return set(_from_index(store, _DEFAULT_INDEX, index).files) != {_DEFAULT}
    except CheckpointError:
        return False


def _listed(store: Store) -> Sequence[str] | None:
    """The files of a folder; None where there is no list of them, or none for this user."""
    try:
        return store.files()
    except CheckpointError:
        return None


def _among(store: Store, folder: str, files: Sequence[str]) -> Shards:
    """The checkpoint among the files of a folder."""
    read = functools.cache(lambda index: _read_index(store, index))

    def named_by(index: str) -> Collection[str]:
        return set(read(index).weight_map.values())

    choice = choose(store.location, files, named_by)
    if choice is None:
        states = [name for name in files if name.endswith(SUFFIX) and is_training_state(name)]
        note = f"{listed(states)} is no model" if states else pickle_note(files)
        raise NoCheckpoint(folder, f"*{INDEX_SUFFIX} and *{SUFFIX}", note)
    if choice.index_file is not None:
        return read(choice.index_file)._replace(notes=choice.notes)
    return Shards(store, choice.files, None, {}, choice.notes)


def _from_file(store: Store, name: str) -> Shards:
    """The checkpoint that one named file stands for: itself, all of its set, or what it lists if it is an index."""
    if is_index(name):
        return _read_index(store, name)
    given = shard_set(name)
    if given is None or int(given.total) <= 1:
        return Shards(store, (name,), None, {})
    files = _listed(store)
    if files is None:
        # Without a list, the two ends are asked for: they tell how the files are numbered.
        first, last = given.name(0), given.name(int(given.total))
        asked = [(name, store.read_head(name, 1)) for name in (first, last)]
        ends = {name for name, future in asked if store.wait(future, name) is not None}
        names = [given.name(number) for number in range(1, int(given.total))]
        shards = (first, *names, *sorted(ends - {first})) if first in ends else (*names, last)
    else:
        there = shard_set(name, files)
        assert there is not None
        if there.missing() is not None:
            raise missing_part(store.location, there)
        shards = there.ordered()
    return Shards(store, shards, None, {}, (f"{name} is one of {len(shards)} files, and all of them are read",))


def _read_index(store: Store, name: str) -> Shards:
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
