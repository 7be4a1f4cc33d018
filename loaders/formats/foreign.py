"""Weights in other formats than safetensors: they are not copied along with a checkpoint, and pickles never read."""

from collections.abc import Iterable

from polarax.loaders.checkpoint import CheckpointError

# Formats that unpickle: opening one may run any code, so none ever is.
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
_PICKLE_NOTE = "pickle files can run code and are never opened; convert it to safetensors"

SUFFIXES = (*PICKLES, ".h5", ".msgpack", ".onnx", ".onnx_data", ".npz", ".ot", ".tflite", ".mlmodel", ".index.json")
"""How the names of weights end in these formats, and of the indexes of their shards."""


def refuse_pickle(name: str, location: str) -> None:
    """Refuses what only unpickling would read.

    Raises:
        CheckpointError: If a file is a pickle by its name.
    """
    if name.endswith(PICKLES):
        raise CheckpointError(f"{location}: not opened: {_PICKLE_NOTE}")


def pickle_note(names: Iterable[str]) -> str:
    """What to say of the pickles in a folder in which no checkpoint is; empty if there are none."""
    pickles = [name for name in names if name.endswith(PICKLES)]
    return f"there is {listed(pickles)}, but {_PICKLE_NOTE}" if pickles else ""


def listed(names: Iterable[str]) -> str:
    """Some names for a message, the first three of them."""
    names = list(names)
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
