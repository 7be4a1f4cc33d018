"""What a place where files are kept must be able to do, and the errors that it tells apart."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol

from polarax.loaders.stores.addresses import redact

LARGEST_LOAD = 100_000_000
"""Bytes of the largest file that is loaded whole: as long as a safetensors header may be."""


class StoreError(Exception):
    """A file that cannot be read; the message is the reason alone: the caller knows which file."""

    def __init__(self, message: str):
        super().__init__(redact(message))


class Head(NamedTuple):
    """The beginning of a file."""

    data: bytes  # as many bytes as were asked for, or the whole file
    size: int | None  # bytes of the file, where the store tells


class Files(Protocol):
    """The files of one folder, by name. Every method may block, and may be called by any thread."""

    threads: int  # how many reads to keep under way
    head_bytes: int  # how many bytes to ask of an unknown file: as many as cost no more than one

    def names(self) -> tuple[str, ...] | None:
        """The files of the folder, sorted, without hidden ones; None if the store cannot list them."""

    def size(self, key: str) -> int | None:
        """Bytes of a file; None where that is not known before it is read.

        Raises:
            StoreError: If it is known that there is no such file, or that it is not a regular one.
        """

    def head(self, key: str, count: int) -> Head | None:
        """The first `count` bytes of a file; None if there is no such file."""

    def load(self, key: str) -> bytes | None:
        """A whole file of at most `LARGEST_LOAD` bytes; None if there is no such file."""

    def fill(self, key: str, start: int, buffers: Sequence[memoryview]) -> bool:
        """Fills buffers, one after the other, with the bytes of a file from `start` on.

        Returns:
            False if there is no such file.

        Raises:
            EOFError: If the file ends before the buffers are full.
            StoreError: If it cannot be read, or changed since it was first seen.
        """


def unfilled(buffers: Sequence[memoryview], done: int) -> Iterator[memoryview]:
    """What is left of buffers (of bytes) of which the first `done` bytes in all are filled."""
    for buffer in buffers:
        if done < len(buffer):
            yield buffer[done:] if done else buffer
        done = max(0, done - len(buffer))


CHANGED = "it changed since it was first read; wait until nobody writes to it"
"""Why a file is read no further."""
