"""Which format a checkpoint is in: the one place that knows all of them."""

import os
from typing import Any

from polarax.loaders.checkpoint import Checkpoint
from polarax.loaders.parameter_tree import ParameterTree
from polarax.loaders.safetensors_checkpoint import open_safetensors
from polarax.loaders.stores.hub import resolve_hub_path


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
            a folder with either; or parameters in memory: nested dicts and lists of arrays, Flax
            Linen parameters, an `nnx.State` or `nnx.Module`. A `Checkpoint` is returned as it is.

    Raises:
        CheckpointError: If there is no checkpoint, or it is not what it says; nothing has been read
            but its headers.
    """
    if isinstance(source, Checkpoint):
        return source
    if isinstance(source, (str, bytes, os.PathLike)):
        return open_safetensors(resolve_hub_path(os.fsdecode(source)))
    return ParameterTree(source)
