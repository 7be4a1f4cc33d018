"""Files of `flax.serialization`: a tree of arrays in msgpack, as Flax, transformers and early Orbax save it.

A file is read whole: its arrays have no places that a header tells. Nothing is unpickled.
"""

import importlib
import os
from typing import Any

from polarax.loaders.checkpoint import CheckpointError, brief_reason
from polarax.loaders.stores.store import Store

# What a file of a nested dict begins with: a map of up to 15 entries, of up to 2**16, of up to 2**32
# (https://github.com/msgpack/msgpack/blob/master/spec.md).
_MAPS = {*range(0x80, 0x90), 0xDE, 0xDF}


def is_msgpack(path: str) -> bool:
    """Whether a local file can be a tree in msgpack, by its first byte."""
    try:
        if not os.path.isfile(path):  # a pipe would be waited for
            return False
        with open(path, "rb") as file:
            first = file.read(1)
    except OSError:
        return False
    return bool(first) and first[0] in _MAPS


def read_msgpack(store: Store, name: str) -> dict[str, Any]:
    """The nested dict in a file, its arrays as NumPy's.

    Raises:
        CheckpointError: If there is no such file, or it holds anything else.
    """
    location = store.path(name)
    size = store.size(name)
    data = store.wait(store.read(name, 0, size) if size else store.read(name), name)
    if data is None:
        raise CheckpointError(f"{location}: no such file")
    try:
        tree = importlib.import_module("flax.serialization").msgpack_restore(data.tobytes())
    except Exception as error:  # whatever the bytes happen to mean to it
        raise CheckpointError(
            f"{location}: is no msgpack of flax.serialization, or is damaged: {brief_reason(error)}"
        ) from error
    if not isinstance(tree, dict):
        raise CheckpointError(f"{location}: expected a nested dict of arrays. Got {type(tree).__name__}")
    return tree
