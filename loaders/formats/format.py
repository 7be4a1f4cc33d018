"""What a format of checkpoints says of itself, so that nobody else has to know it.

A format is one class. It says which names and folders it recognises, how its files end, which parts a checkpoint
lacks, and it opens one. An instance in `polarax.loaders.formats.FORMATS` makes it known everywhere: to
`open_checkpoint`, to the steps of a history, to the labels of posts, to the cache of the hub.
"""

import abc
import os
import re
from collections.abc import Sequence
from typing import Any, ClassVar

from polarax.loaders.checkpoint import Checkpoint, CheckpointError
from polarax.loaders.stores.store import local_path

_SHARD = re.compile(r"[0-9]-of-[0-9]+$")  # model-00001-of-00002, as all libraries number the files of one model


class NoCheckpoint(CheckpointError):
    """Nothing of a format is where it was looked for. Another format may be there: the next one is tried.

    Attributes:
        looked_for: The names that were looked for, in words.
        note: What else there is to say of the place; empty if there is nothing.
    """

    def __init__(self, place: str, looked_for: str, note: str = ""):
        super().__init__(f"{place}: no checkpoint there; looked for {looked_for}{note and '; '}{note}")
        self.looked_for = looked_for
        self.note = note


class Format(abc.ABC):
    """A way to keep a checkpoint.

    The defaults serve a format whose checkpoints are single files: `name`, `suffixes` and `open` are all it has to say.
    """

    name: ClassVar[str]
    """In words, as `Checkpoint.format` says it."""

    suffixes: ClassVar[tuple[str, ...]] = ()
    """How the names of its files end, the longest first."""

    probed: ClassVar[bool] = False
    """Whether to look for one in a folder, or below a URL, of which no name tells what it holds."""

    @abc.abstractmethod
    def open(self, source: Any) -> Checkpoint:
        """Opens a checkpoint: reads headers and no data.

        Args:
            source: The path or URL of a file that it recognises, or of a place that is probed; or an object.

        Raises:
            NoCheckpoint: If nothing of this format is there.
            CheckpointError: If what is there cannot be used.
        """

    def open_folder(self, source: str) -> Checkpoint:
        """Opens what a local folder holds, by default its only file.

        Raises:
            NoCheckpoint: If it has nothing of this format.
            CheckpointError: If it has several, or what is there cannot be used.
        """
        folder = local_path(source) or source
        files = self.files_in(folder)
        if not files:
            raise NoCheckpoint(folder, " and ".join(f"*{suffix}" for suffix in self.suffixes))
        if len(files) > 1:
            listed = ", ".join(files[:3])
            raise CheckpointError(f"{folder}: has several {self.name} checkpoints; name one of them: {listed}")
        return self.open(os.path.join(folder, files[0]))

    def recognises_object(self, source: Any) -> bool:
        """Whether something that is no path or URL is a checkpoint of this format."""
        return False

    def recognises_name(self, name: str) -> bool:
        """Whether a file, or the end of a URL, is of this format by its name."""
        return name.endswith(self.suffixes)

    def recognises_file(self, path: str) -> bool:
        """Whether a local file is of this format, by its name or by how it begins."""
        return self.recognises_name(os.path.basename(path))

    def recognises_folder(self, folder: str) -> bool:
        """Whether a local folder holds a checkpoint of this format, as far as names tell."""
        return bool(self.files_in(folder))

    def files_in(self, folder: str) -> list[str]:
        """The names in a local folder that are of this format, sorted, without hidden ones."""
        return sorted(name for name in os.listdir(folder) if name[0] != "." and self.recognises_name(name))

    def missing(self, path: str) -> tuple[str, ...]:
        """The files that a local checkpoint lacks, as after a download that stopped half-way.

        Args:
            path: A file or a folder that is recognised.
        """
        folder, files = os.path.split(path) if not os.path.isdir(path) else (path, None)
        names: Sequence[str] = self.files_in(folder) if files is None else [files]
        return () if any(os.path.isfile(os.path.join(folder, name)) for name in names) else tuple(names)

    def stem(self, name: str) -> str:
        """A name without the ending of this format."""
        return next((name.removesuffix(suffix) for suffix in self.suffixes if name.endswith(suffix)), name)

    def is_generic(self, name: str) -> bool:
        """Whether a name says nothing of the model, so that the folder around it has to."""
        return any(name in (suffix, suffix.lstrip(".")) for suffix in self.suffixes)

    def is_shard(self, name: str) -> bool:
        """Whether a file is one of several that make up a checkpoint, so that the number in its name is no step."""
        return _SHARD.search(self.stem(name)) is not None

    def is_unfinished(self, name: str) -> bool:
        """Whether a name is that of a checkpoint which was still being written."""
        return False

    def is_item(self, name: str) -> bool:
        """Whether a folder of this name may hold the parameters inside the folder of a step."""
        return False
