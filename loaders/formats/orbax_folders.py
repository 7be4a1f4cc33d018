"""Where an Orbax checkpoint keeps its tree: in the folder itself, in an item of it, in one of several steps.

Orbax writes a tree as a folder with a file ``_METADATA``, before that with a msgpack file ``checkpoint``. A
CheckpointManager puts such a folder, named after the item, into one named after the step; v1 names the item ``state``
(orbax/checkpoint/_src/path/step.py and handlers/pytree_checkpoint_handler.py). What is complete has been renamed: on
the way it has another name.
"""

import os
from collections.abc import Sequence
from typing import NamedTuple

from polarax.loaders.checkpoint import CheckpointError
from polarax.loaders.formats.format import NoCheckpoint
from polarax.loaders.formats.msgpack_files import is_msgpack
from polarax.loaders.stores.store import Store

METADATA = "_METADATA"
AGGREGATED = "checkpoint"  # the msgpack file of a tree's structure, and of the values in it that have no array
UNFINISHED = ".orbax-checkpoint-tmp"  # in the name of a folder until all of it is written; a number may follow
COMMITTED = "commit_success.txt"  # written last where folders cannot be renamed, and by newer releases everywhere

UNCOMMITTED = f"there is no {COMMITTED}, which Orbax writes last in a bucket: the save may not have been finished"

# Names of items, the ones that hold parameters alone first.
ITEMS = ("params", "default", "state", "model", "train_state", "items", "pytree")


class Folder(NamedTuple):
    """A local folder, as far as the names in it tell."""

    tree: str | None  # the folder of the tree, itself or an item; None if there is none
    unfinished: tuple[str, ...]  # items that were still being written, by their names on the way


def look_into(folder: str) -> Folder:
    """Finds the tree of a folder or of the items in it; of several items the one that is known to hold parameters.

    Raises:
        CheckpointError: If there are several items and none that is known.
    """
    if is_tree(folder):
        return Folder(folder, ())
    names = folders_in(folder)
    items = [name for name in names if UNFINISHED not in name and is_tree(os.path.join(folder, name))]
    items = [name for name in items if not _is_number(name)]
    unfinished = tuple(name for name in names if UNFINISHED in name and not _is_number(name.partition(UNFINISHED)[0]))
    # One that has been saved anew since is of no concern.
    unfinished = tuple(name for name in unfinished if name.partition(UNFINISHED)[0] not in items)
    return Folder(os.path.join(folder, _choose(folder, items)) if items else None, unfinished)


def is_tree(folder: str) -> bool:
    """Whether a local folder is that of a tree, by the files that tell its structure."""
    return os.path.isfile(os.path.join(folder, METADATA)) or is_msgpack(os.path.join(folder, AGGREGATED))


def unfinished_part(folder: str) -> str | None:
    """The folder that was still being written, of a path that leads to one or into it."""
    above, name = os.path.split(folder.rstrip("/"))
    return next((part for part in (os.path.basename(above), name) if UNFINISHED in part), None)


def folders_in(folder: str) -> list[str]:
    """The names of the folders in a local folder, sorted; none if it cannot be read."""
    try:
        with os.scandir(folder) as entries:
            return sorted(entry.name for entry in entries if entry.is_dir())
    except OSError:
        return []


def find_by_url(url: str) -> str:
    """The folder of the tree at a URL, which ends in a slash: tries those of the items that are known.

    A store may not be able to list what it has.

    Raises:
        NoCheckpoint: If there is none.
    """
    url = url.rstrip("/")
    for place in (url, *(f"{url}/{item}" for item in ITEMS)):
        store = Store.of_url(place)
        if store.wait(store.read(METADATA, 0, 1), METADATA) is not None:
            return place + "/"
    raise NoCheckpoint(url, f"an Orbax {METADATA}")


def is_uncommitted(url: str) -> bool:
    """Whether a tree in a bucket of Google lacks the file that Orbax writes last there, in its folder or its step's."""
    if not url.startswith("gs://"):
        return False
    places = (url, url.rstrip("/").rpartition("/")[0] + "/")
    stores = [Store.of_url(place) for place in places]
    return all(store.wait(store.read_head(COMMITTED, 1), COMMITTED) is None for store in stores)


def _choose(folder: str, items: Sequence[str]) -> str:
    if len(items) == 1:
        return items[0]
    known = [name for name in ITEMS if name in items]
    if not known:
        raise CheckpointError(f"{folder}: has several Orbax items; name one of them: {', '.join(sorted(items)[:5])}")
    return known[0]


def _is_number(name: str) -> bool:
    """Whether a folder is a step rather than an item."""
    return name.rpartition("_")[2].rpartition("-")[2].isdigit()
