"""Opening a checkpoint, whichever format it is in and wherever it is."""

import os
import urllib.parse
from collections.abc import Callable
from typing import Any

from polarax.loaders import formats
from polarax.loaders.adapters import with_adapters
from polarax.loaders.checkpoint import Checkpoint, CheckpointError
from polarax.loaders.formats import Format, NoCheckpoint
from polarax.loaders.formats.foreign import listed, pickle_note, refuse_pickle
from polarax.loaders.formats.parameter_tree import ParameterTree
from polarax.loaders.hub_cache import resolve_hub_path
from polarax.loaders.scaled_checkpoint import with_scales
from polarax.loaders.stores.store import local_path


def open_checkpoint(source: Any) -> Checkpoint:
    """Opens a checkpoint: names, shapes and dtypes at once, data only when asked for.

    >>> import numpy as np
    >>> checkpoint = open_checkpoint({"dense": {"weight": np.eye(2, dtype=np.float32)}})
    >>> checkpoint.names()
    ('dense.weight',)
    >>> checkpoint.read("dense.weight", slice(0, 1)).result()
    array([[1., 0.]], dtype=float32)

    Args:
        source: A path or URL (http, https, s3, gs, file) of a safetensors file, of an index, or of
            a folder with either; of an Orbax checkpoint, an item or a step of one, or the folder of
            a CheckpointManager, of which the latest finished step is opened; the path of a GGUF file, of a file of
            `flax.serialization`, or of a folder with one; or parameters in memory: nested dicts, lists and
            registered pytrees of arrays, Flax Linen parameters, an `nnx.State` or `nnx.Module`. A `Checkpoint` is
            returned as it is.

    Returns:
        The checkpoint. Weights of one byte with scales beside them are read as float32, and their scales are not
        listed. So are weights with LoRA factors beside them, which are added; an adapter alone is listed as it is, and
        `on_base` adds it to its base.

    Raises:
        CheckpointError: If there is no checkpoint, or it is not what it says; nothing has been read
            but its headers.
    """
    return source if isinstance(source, Checkpoint) else with_adapters(with_scales(_open(source)))


def _open(source: Any) -> Checkpoint:
    if not isinstance(source, (str, bytes, os.PathLike)):
        format = formats.by_object(source)
        return ParameterTree(source) if format is None else format.open(source)  # the former says what was expected
    source = os.fsdecode(source)
    if not source:
        raise CheckpointError("the path of a checkpoint is empty")
    source = resolve_hub_path(source)
    path = local_path(source)
    if path is None:
        return _open_url(source)
    if os.path.isdir(path):
        format = formats.by_folder(path)
        if format is None:
            try:
                return _probe(path, lambda format: format.open_folder(source))
            except NoCheckpoint:
                _refuse_folder_of_checkpoints(path)
                raise
        return format.open_folder(source)
    if not os.path.exists(path):
        raise CheckpointError(f"{path}: no such file or folder")
    refuse_pickle(path, path)
    return (formats.by_file(path) or formats.FORMATS[0]).open(source)


def _refuse_folder_of_checkpoints(folder: str) -> None:
    """Refuses a folder whose folders hold checkpoints, as a trainer's has one for each step."""
    with os.scandir(folder) as entries:
        folders = {entry.name: entry.is_dir() for entry in entries}
    names = [name for name, is_folder in sorted(folders.items()) if is_folder and _holds(os.path.join(folder, name))]
    if names:
        found = f"{folder}: no checkpoint there, but in folders in it; name one of them: {listed(names)}"
        raise CheckpointError("; ".join(filter(None, (found, pickle_note(folders))))) from None


def _holds(folder: str) -> bool:
    try:
        return formats.by_folder(folder) is not None
    except CheckpointError:  # something is wrong with the one that is there
        return True


def _open_url(url: str) -> Checkpoint:
    name = urllib.parse.urlsplit(url).path
    refuse_pickle(name, url)
    format = formats.by_name(name)
    return _probe(url, lambda format: format.open(url)) if format is None else format.open(url)


def _probe(place: str, open_as: Callable[[Format], Checkpoint]) -> Checkpoint:
    """What the first format finds in a place of which no name tells what it holds."""
    failures: list[NoCheckpoint] = []
    for format in formats.FORMATS:
        if format.probed:
            try:
                return open_as(format)
            except NoCheckpoint as error:
                failures.append(error)
    looked_for = ", and for ".join(error.looked_for for error in failures)
    raise NoCheckpoint(place, looked_for, "; ".join(error.note for error in failures if error.note))
