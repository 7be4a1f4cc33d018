"""Trees of Flax in one msgpack file: ``flax_model.msgpack``, or ``checkpoint_1000`` of flax.training.checkpoints."""

import os
import re
from collections.abc import Iterator, Mapping
from typing import Any

from polarax.loaders.checkpoint import CheckpointError
from polarax.loaders.config import read_config
from polarax.loaders.formats.format import Format
from polarax.loaders.formats.msgpack_files import is_msgpack, read_msgpack
from polarax.loaders.formats.parameter_tree import ParameterTree
from polarax.loaders.stores.addresses import redact_location
from polarax.loaders.stores.store import Store, local_path

# What flax.training.checkpoints calls a file, whatever is in it; the number is the step.
_STEP_FILE = re.compile(r"checkpoint(?:_[0-9]+(?:\.[0-9]+)?)?")
# What stands there for an array that was spread over several hosts and has a folder of its own.
_ELSEWHERE = "//GDAPlaceholder:"


class MsgpackCheckpoint(ParameterTree):
    """The arrays of a file, which is in memory as a whole, under names that join its keys with dots."""

    def __init__(self, location: str, tree: Mapping[str, Any], config: Mapping[str, Any] | None):
        """Lists what has been read.

        Args:
            location: What the user gave, for messages.
            tree: What is in the file.
            config: The object in config.json beside it.
        """
        super().__init__(tree)
        self.location = redact_location(location)
        self.format = MsgpackFormat.name
        self._config = config

    @property
    def config(self) -> Mapping[str, Any] | None:
        """The object in config.json beside the file; None if there is none."""
        return self._config


class MsgpackFormat(Format):
    """Files that `flax.serialization` wrote."""

    name = "Flax msgpack"
    suffixes = (".msgpack",)

    def open(self, source: Any) -> MsgpackCheckpoint:
        """Reads a file."""
        return open_msgpack(source)

    def recognises_file(self, path: str) -> bool:
        """Whether it ends as these files do, or has the name of one without an ending and begins like one."""
        name = os.path.basename(path)
        return self.recognises_name(name) or (_STEP_FILE.fullmatch(name) is not None and is_msgpack(path))

    def files_in(self, folder: str) -> list[str]:
        """The files in a local folder, with those that have no ending."""
        names = (name for name in os.listdir(folder) if name[0] != ".")
        return sorted(name for name in names if self.recognises_file(os.path.join(folder, name)))


def open_msgpack(source: str) -> MsgpackCheckpoint:
    """Reads a local file.

    Raises:
        CheckpointError: If it is not on this machine, is one of several parts, or holds no tree.
    """
    path = local_path(source)
    if path is None:
        raise CheckpointError(f"{source}: msgpack is read from local files only; download it first")
    folder, name = os.path.split(path)
    if MsgpackFormat().is_shard(name):
        raise CheckpointError(f"{path}: is one of several files, which are not put together; convert it to safetensors")
    store = Store.of_folder(folder)
    tree = read_msgpack(store, name)
    array = next(_elsewhere(tree), None)
    if array is not None:
        raise CheckpointError(
            f"{path}: array {array!r} is not in it, but in a folder that several hosts wrote: not read"
        )
    return MsgpackCheckpoint(source, tree, read_config(store))


def _elsewhere(node: Any) -> Iterator[str]:
    """The names of arrays that are not in a file."""
    if isinstance(node, dict):
        for child in node.values():
            yield from _elsewhere(child)
    elif isinstance(node, str) and node.startswith(_ELSEWHERE):
        yield node.removeprefix(_ELSEWHERE)
