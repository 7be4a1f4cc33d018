"""The checkpoints of one training run, by the step that each was saved at.

A CheckpointManager of Orbax, and most trainers, save a step into a folder named after it: "1000", "checkpoint-1000".
Beside these lie others with a step in their names that hold no checkpoint: what was still being written when a run was
killed, logs and evaluations of the step.
"""

import glob
import os
import re
from collections.abc import Iterable, Mapping
from typing import Any

from polarax.loaders import formats
from polarax.loaders.checkpoint import Checkpoint, CheckpointError
from polarax.loaders.opening import open_checkpoint
from polarax.loaders.stores.store import local_path

_STEP = re.compile(r"(?:.*[^0-9])?([0-9]{1,18})")  # a name that ends in its step
_PATTERN = re.compile(r"[*?\[]")

# Words in the names of what is still being written: "tmp-checkpoint-1000" of transformers, "step=1000-unfinished" of
# NeMo, ".step-1000.partial-x1" of polarax itself.
_TEMPORARY = re.compile(r"(?:.*[^a-z])?(?:tmp|partial|staging|unfinished|incomplete)(?:[^a-z].*)?")


def find_steps(checkpoints: Any, unusable: dict[str, str] | None = None) -> dict[int, Any]:
    """Step -> checkpoint, in the order of the steps; nothing is opened that may be whole.

    Args:
        checkpoints: A folder with a folder or file for each step; a pattern such as "runs/checkpoint-*"; several
            patterns or paths of checkpoints; or a mapping of steps to checkpoints.
        unusable: Takes what looks like a step in a folder or pattern and holds no whole checkpoint, with the reason: by
            its step, or by its name where the step has a checkpoint.

    Raises:
        CheckpointError: Nothing is there or matches, a name has no step, or two checkpoints have the same.
    """
    if isinstance(checkpoints, Mapping):
        return {int(step): source for step, source in sorted(checkpoints.items(), key=lambda item: int(item[0]))}
    unusable = {} if unusable is None else unusable
    given = [checkpoints] if isinstance(checkpoints, (str, bytes, os.PathLike)) else list(checkpoints)
    sources: list[Any] = []
    for source in given:
        alone = len(given) == 1
        sources += [source] if isinstance(source, Checkpoint) else _expand(os.fsdecode(source), alone, unusable)
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


def _expand(source: str, alone: bool, unusable: dict[str, str]) -> list[str]:
    """The checkpoints that one path or pattern stands for."""
    path = local_path(source)
    if path is None:
        return [source]
    if _PATTERN.search(path) and not os.path.exists(path):
        return _sorted_out(glob.glob(path), unusable, f"{source}: matches no checkpoint")
    if not os.path.isdir(path):
        if not os.path.exists(path):
            raise CheckpointError(f"{source}: no such file or folder")
        return [path]
    if not alone:
        return [path]
    entries = [entry.path for entry in os.scandir(path)]
    return _sorted_out(entries, unusable, f"{source}: expected folders or files in it that are named after their step")


def _sorted_out(paths: Iterable[str], unusable: dict[str, str], nothing: str) -> list[str]:
    """The checkpoints of steps among some folders and files.

    Args:
        paths: Of one folder, or the matches of a pattern.
        unusable: Takes what looks like one and is none, with the reason.
        nothing: What is wrong if none is left.
    """
    by_step: dict[int, list[str]] = {}
    left: dict[str, str] = {}
    for path in sorted(paths):
        name = os.path.basename(path)
        if not os.path.isdir(path) and formats.by_file(path) is None:
            continue
        step = _step(name)
        if _is_unfinished(name) or (_TEMPORARY.fullmatch(name.lower()) and re.search("[0-9]", name)):
            left[path] = f"{path}: its name is that of a checkpoint which was still being written"
        elif name.startswith("."):
            continue
        elif step is not None:
            by_step.setdefault(step, []).append(path)
        elif os.path.isdir(path) and _is_whole(path):
            left[path] = f"{path}: it holds a checkpoint, but its name does not end in a step"
    chosen: list[str] = []
    for step, candidates in by_step.items():
        whole = [path for path in candidates if _is_whole(path)]
        chosen += whole
        for path in candidates:
            if path not in whole:
                left[path] = _why_not(path)
        if not whole:
            unusable[str(step)] = left.pop(candidates[0])
    if not chosen:
        reasons = [*unusable.values(), *left.values()]
        raise CheckpointError("; ".join([nothing, *reasons[:1]]))
    unusable |= {_label(path): why for path, why in left.items()}
    return chosen


def _label(path: str) -> str:
    """What a folder is called among steps; a number alone would be taken for a step."""
    name = os.path.basename(path)
    return os.path.join(os.path.basename(os.path.dirname(path)), name) if name.isdigit() else name


def _is_whole(path: str) -> bool:
    """Whether a file or folder holds a checkpoint with all its files, as far as names tell."""
    try:
        format = formats.by_folder(path) if os.path.isdir(path) else formats.by_file(path)
        return format is not None and not format.missing(path)
    except CheckpointError:  # there is one, and opening it says what is wrong with it
        return True


def _why_not(path: str) -> str:
    """What is said of something that holds no whole checkpoint when it is opened."""
    try:
        open_checkpoint(path)
    except CheckpointError as error:
        return str(error)
    return f"{path}: holds no whole checkpoint"
