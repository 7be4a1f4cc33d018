"""Where an Orbax checkpoint keeps its tree: in the folder itself, in an item of it, in the latest of several steps.

Orbax writes a tree as a folder with a file ``_METADATA``. A CheckpointManager puts such a folder, named after the item,
into one named after the step; v1 names the item ``state`` (orbax/checkpoint/_src/path/step.py and
handlers/pytree_checkpoint_handler.py). What is complete has been renamed: on the way it has another name.

Orbax itself is not asked: to import it takes longer than to open a checkpoint (about a second), and what it tells of a
step (`orbax.checkpoint.path.step`) rests on the same names, for local folders and with the manager's options at hand.
"""

import os
import re
from collections.abc import Sequence

from polarax.loaders.checkpoint import CheckpointError
from polarax.loaders.formats.format import NoCheckpoint
from polarax.loaders.stores.store import Store, local_path

METADATA = "_METADATA"
UNFINISHED = "orbax-checkpoint-tmp"  # in the name of a folder until all of it is written

# Names of items, the ones that hold parameters alone first.
ITEMS = ("params", "default", "state", "model", "train_state", "items", "pytree")

_STEP = re.compile(r"(?:.*[_-])?([0-9]{1,18})")  # "1000", "checkpoint_1000", "step-1000"; never a temporary folder


def is_orbax(folder: str) -> bool:
    """Whether a local folder has an Orbax tree in it, as far as names tell."""
    return _tree_below(folder) is not None or any(_steps(folder))


def find_tree(source: str) -> str:
    """The folder of the tree behind a path or URL, which ends in a slash.

    Raises:
        NoCheckpoint: If there is none.
        CheckpointError: If there are several items and none that is known to hold parameters.
    """
    folder = local_path(source)
    if folder is None:
        return _find_by_url(source)
    tree = _tree_below(folder)
    if tree is None:
        steps = _steps(folder)
        tree = _tree_below(steps[-1]) if steps else None
    if tree is None:
        raise NoCheckpoint(folder, f"an Orbax {METADATA} in it, its items and steps")
    return tree.rstrip("/") + "/"


def _tree_below(folder: str) -> str | None:
    """The folder itself, or the item in it that has a tree."""
    if os.path.isfile(os.path.join(folder, METADATA)):
        return folder
    items = [name for name in _folders(folder) if os.path.isfile(os.path.join(folder, name, METADATA))]
    items = [name for name in items if not _STEP.fullmatch(name)]
    if not items:
        return None
    return os.path.join(folder, _choose(folder, items))


def _choose(folder: str, items: Sequence[str]) -> str:
    if len(items) == 1:
        return items[0]
    known = [name for name in ITEMS if name in items]
    if not known:
        raise CheckpointError(f"{folder}: has several Orbax items; name one of them: {', '.join(sorted(items)[:5])}")
    return known[0]


def _steps(folder: str) -> list[str]:
    """The finished steps of a CheckpointManager's folder, latest last."""
    steps = [(int(match[1]), name) for name in _folders(folder) if (match := _STEP.fullmatch(name)) is not None]
    paths = [os.path.join(folder, name) for _, name in sorted(steps)]
    return [path for path in paths if _tree_below(path) is not None]


def _folders(folder: str) -> list[str]:
    try:
        with os.scandir(folder) as entries:
            return sorted(entry.name for entry in entries if entry.is_dir())
    except OSError:
        return []


def _find_by_url(url: str) -> str:
    """Tries the folder and the items that are known: a store may not be able to list what it has."""
    url = url.rstrip("/")
    for place in (url, *(f"{url}/{item}" for item in ITEMS)):
        store = Store.of_url(place)
        if store.wait(store.read(METADATA, 0, 1), METADATA) is not None:
            return place + "/"
    raise NoCheckpoint(url, f"an Orbax {METADATA}")
