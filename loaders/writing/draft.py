"""A checkpoint that is being written: all of a source, in which matrices are replaced one by one, in any order.

A draft lies in a folder of its own until it is finished. What has been put and synchronised survives the process, so
that a later one can go on where the first was ended.
"""

import abc
import pathlib
from collections.abc import Mapping

import numpy as np

from polarax.loaders.matrices import View


class Draft(abc.ABC):
    """One format's way to write.

    Attributes:
        lasts: Whether what was synchronised is there after the process ended; otherwise it has to be put again.
        shared: Whether several processes may put matrices into one that one of them has prepared.
    """

    lasts = True
    shared = False

    def __init__(self, folder: pathlib.Path):
        """Takes the folder to write into.

        Args:
            folder: Which does not exist before `prepare`.
        """
        self.folder = folder

    @abc.abstractmethod
    def prepare(self) -> None:
        """Writes all that stays as it is, and the place of what does not.

        Raises:
            CheckpointError: If the source cannot be read.
            OSError: If the folder cannot be written.
        """

    @abc.abstractmethod
    def dtype(self, name: str) -> np.dtype:
        """The type that a tensor is stored in."""

    @abc.abstractmethod
    def put(self, view: View, matrix: np.ndarray) -> None:
        """Puts a matrix into its place.

        Args:
            view: Of the source: which tensor, and where in it.
            matrix: (out, in), of the dtype that `dtype` says.

        Raises:
            OSError: If it cannot be written.
        """

    @abc.abstractmethod
    def sync(self) -> None:
        """Has on the disk what was put."""

    def finish(self, files: Mapping[str, bytes]) -> None:
        """Writes what is left to be written, and some more files.

        Raises:
            OSError: If that fails.
        """
        for name, content in files.items():
            (self.folder / name).write_bytes(content)
