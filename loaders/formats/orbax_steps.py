"""The steps of a CheckpointManager's folder, and which of them were finished.

Whether a step was finished is for Orbax to say (`orbax.checkpoint.utils.is_checkpoint_finalized`): by the name that it
has until it is renamed, in buckets by a file that is written last. Orbax is asked only when the latest of several steps
is looked for, since it takes a while to import. What it does not look at is whether the tree of a step is there: it was
not where a run was killed, or a copy cut short.
"""

import concurrent.futures
import importlib
import os
import re
from collections.abc import Iterator
from typing import NamedTuple

from polarax.loaders.checkpoint import CheckpointError
from polarax.loaders.formats.orbax_folders import COMMITTED, UNFINISHED, folders_in, look_into

_STEP = re.compile(r"(?:.*[_-])?([0-9]{1,18})")  # "1000", "checkpoint_1000", "step-1000"
_STAGING = re.compile(r"\.|_*tmp")  # how other tools begin the names of what they still write


class Step(NamedTuple):
    """A folder that is named after a step."""

    number: int
    name: str
    tree: str | None  # the folder of its tree; None if it cannot be used
    problem: str  # why not; empty if it can


def steps_in(folder: str) -> Iterator[Step]:
    """The steps in a local folder, the latest first, with those that were not finished."""
    named = [(number, name) for name in folders_in(folder) if (number := _number(name)) is not None]
    # Of one step the finished folder goes first.
    named.sort(key=lambda item: (item[0], UNFINISHED not in item[1], item[1]), reverse=True)
    committed = [os.path.isfile(os.path.join(folder, name, COMMITTED)) for _, name in named]
    for place, (number, name) in enumerate(named):
        try:
            tree, problem = _judge(os.path.join(folder, name))
        except CheckpointError as error:
            tree, problem = None, str(error)
        if tree is not None and not committed[place] and any(committed[place + 1 :]):
            tree, problem = None, f"has no {COMMITTED}, which an earlier step has"
        yield Step(number, name, tree, problem)


def has_finished_step(folder: str) -> bool:
    """Whether a local folder has a step that is whole by the names in it."""
    return any(step.tree is not None for step in steps_in(folder))


def _number(name: str) -> int | None:
    """The step that a folder is named after, finished or not."""
    if _STAGING.match(name):
        return None
    match = _STEP.fullmatch(name.partition(UNFINISHED)[0])
    return int(match[1]) if match is not None else None


def _judge(step: str) -> tuple[str | None, str]:
    """The tree of a step, or why there is none."""
    if UNFINISHED in os.path.basename(step):
        return None, "was still being written"
    tree, unfinished = look_into(step)
    if unfinished:
        return None, f"{unfinished[0]} in it was still being written"
    if tree is None:
        return None, "has no Orbax tree in it"
    if not _is_finalized(step):
        return None, "was not finished, says Orbax"
    return tree, ""


def _is_finalized(step: str) -> bool:
    """What Orbax says of a step; True if it cannot be asked: names have been looked at."""
    try:
        says = importlib.import_module("orbax.checkpoint.utils").is_checkpoint_finalized
    except (ImportError, AttributeError):
        return True
    # It runs an event loop, which it may not where one is running already, as in notebooks.
    with concurrent.futures.ThreadPoolExecutor(1) as executor:
        return bool(executor.submit(says, step).result())
