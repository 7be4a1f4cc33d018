"""The checkpoints of one training run, by the step that each was saved at.

A CheckpointManager of Orbax, and most trainers, save a step into a folder named after it: "1000", "checkpoint-1000".
"""

import glob
import os
import re
from collections.abc import Mapping
from typing import Any

from polarax.loaders import formats
from polarax.loaders.checkpoint import Checkpoint, CheckpointError
from polarax.loaders.stores.store import local_path

_STEP = re.compile(r"(?:.*[^0-9])?([0-9]{1,18})")  # a name that ends in its step
_PATTERN = re.compile(r"[*?\[]")


def find_steps(checkpoints: Any) -> dict[int, Any]:
    """Step -> checkpoint, in the order of the steps; nothing is opened.

    Args:
        checkpoints: A folder with a folder or file for each step; a pattern such as "runs/checkpoint-*"; several
            patterns or paths of checkpoints; or a mapping of steps to checkpoints.

    Raises:
        CheckpointError: Nothing is there or matches, a name has no step, or two have the same.
    """
    if isinstance(checkpoints, Mapping):
        return {int(step): source for step, source in sorted(checkpoints.items(), key=lambda item: int(item[0]))}
    given = [checkpoints] if isinstance(checkpoints, (str, bytes, os.PathLike)) else list(checkpoints)
    sources: list[Any] = []
    for source in given:
        sources += [source] if isinstance(source, Checkpoint) else _expand(os.fsdecode(source), alone=len(given) == 1)
    if not sources:
        raise CheckpointError(f"{', '.join(map(str, given)) or 'no checkpoints'}: no checkpoint there")
    steps: dict[int, Any] = {}
    for source in sources:
        step = step_of(source.location if isinstance(source, Checkpoint) else source)
        if step is None:
            raise CheckpointError(f"{source}: expected a name that ends in its step, such as checkpoint-1000")
        if step in steps:
            raise CheckpointError(f"{source}: another checkpoint of step {step} is {steps[step]}")
        steps[step] = source
    return dict(sorted(steps.items()))


def step_of(location: str) -> int | None:
    """The step that a path ends in, or the folder of a file does; None if neither does.

    >>> step_of("runs/checkpoint-1000/model.safetensors"), step_of("runs/step_20.safetensors"), step_of("final")
    (1000, 20, None)
    """
    *parents, name = location.rstrip("/").split("/")
    step = _step(name)
    if step is None and parents and (_is_checkpoint(name) or any(format.is_item(name) for format in formats.FORMATS)):
        step = _step(parents[-1])
    return step


def _step(name: str) -> int | None:
    match = _STEP.fullmatch(formats.stem(name))
    return int(match[1]) if match is not None and not _is_shard(name) and not _is_unfinished(name) else None


def _is_checkpoint(name: str) -> bool:
    return formats.by_name(name) is not None


def _is_shard(name: str) -> bool:
    return any(format.is_shard(name) for format in formats.FORMATS)


def _is_unfinished(name: str) -> bool:
    return any(format.is_unfinished(name) for format in formats.FORMATS)


def _expand(source: str, *, alone: bool) -> list[str]:
    """The checkpoints that one path or pattern stands for."""
    path = local_path(source)
    if path is None:
        return [source]
    if _PATTERN.search(path) and not os.path.exists(path):
        matches = [match for match in glob.glob(path) if os.path.isdir(match) or _is_checkpoint(match)]
        matches = [match for match in matches if not _is_unfinished(os.path.basename(match))]
        if not matches:
            raise CheckpointError(f"{source}: matches no checkpoint")
        return matches
    if not os.path.isdir(path):
        if not os.path.exists(path):
            raise CheckpointError(f"{source}: no such file or folder")
        return [path]
    within = [
        entry.path
        for entry in os.scandir(path)
        if _step(entry.name) is not None and (entry.is_dir() or _is_checkpoint(entry.name))
    ]
    if alone and not within:
        raise CheckpointError(f"{source}: expected folders or files in it that are named after their step")
    return within if alone else [path]
