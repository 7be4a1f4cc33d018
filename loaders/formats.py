"""Which format a checkpoint is in: the one place that knows all of them."""

import os
import urllib.parse
from typing import Any

from polarax.loaders.checkpoint import Checkpoint, CheckpointError
from polarax.loaders.gguf_checkpoint import SUFFIX as GGUF_SUFFIX
from polarax.loaders.gguf_checkpoint import find_gguf, open_gguf
from polarax.loaders.orbax_checkpoint import open_orbax
from polarax.loaders.orbax_folders import METADATA, is_orbax
from polarax.loaders.parameter_tree import ParameterTree
from polarax.loaders.safetensors_checkpoint import open_safetensors
from polarax.loaders.scaled_checkpoint import with_scales
from polarax.loaders.store import local_path
from polarax.loaders.stores.hub import resolve_hub_path

_SAFETENSORS_SUFFIXES = (".safetensors", ".safetensors.index.json")


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
            a CheckpointManager, of which the latest step is opened; the path of a GGUF file, or of
            a folder with one; or parameters in memory: nested dicts and lists of arrays, Flax
            Linen parameters, an `nnx.State` or `nnx.Module`. A `Checkpoint` is returned as it is.

    Returns:
        The checkpoint. Weights of one byte with scales beside them are read as float32, and their scales are not
        listed.

    Raises:
        CheckpointError: If there is no checkpoint, or it is not what it says; nothing has been read
            but its headers.
    """
    return source if isinstance(source, Checkpoint) else with_scales(_open(source))


def _open(source: Any) -> Checkpoint:
    if not isinstance(source, (str, bytes, os.PathLike)):
        return ParameterTree(source)
    source = resolve_hub_path(os.fsdecode(source))
    path = local_path(source) if source else None
    if path is None and source:
        return _open_url(source)
    if path is not None and os.path.isdir(path):
        return _open_folder(source, path)
    if source.endswith(GGUF_SUFFIX):
        return open_gguf(source)
    if os.path.basename(source) == METADATA:
        return open_orbax(os.path.dirname(source) or ".")
    return open_safetensors(source)


def _open_folder(source: str, path: str) -> Checkpoint:
    """Opens what a folder holds; safetensors go before what else may lie beside them."""
    names = os.listdir(path)
    if not any(name.endswith(_SAFETENSORS_SUFFIXES) for name in names):
        if is_orbax(path):
            return open_orbax(source)
        gguf = find_gguf(path)
        if gguf is not None:
            return open_gguf(gguf)
    return open_safetensors(source)


def _open_url(url: str) -> Checkpoint:
    name = urllib.parse.urlsplit(url).path
    if name.endswith(GGUF_SUFFIX):
        return open_gguf(url)
    try:
        return open_safetensors(url)
    except CheckpointError as error:
        if name.endswith(_SAFETENSORS_SUFFIXES) or "no checkpoint there" not in str(error):
            raise
        try:
            return open_orbax(url)
        except CheckpointError as other:
            if "no checkpoint there" not in str(other):
                raise
            raise CheckpointError(f"{error}, and for an Orbax {METADATA}") from other
