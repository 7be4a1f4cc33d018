"""Files of a local folder, read by `preadv` straight into the buffers that they are wanted in.

Of the ways to read a local file this is the fastest (about 6 GB/s warm, where tensorstore's key-value layer, which
hands out bytes of its own, reached 0.4), because nothing is copied twice.
"""

import os
import stat
from collections.abc import Sequence
from typing import NamedTuple

from polarax.loaders.stores.files import CHANGED, LARGEST_LOAD, Head, StoreError, unfilled

_MOST_BUFFERS = 1024  # IOV_MAX of Linux: what one call of preadv takes


class _Version(NamedTuple):
    """What tells two versions of a file apart without reading it."""

    size: int
    modified: int  # ns
    inode: int

    @classmethod
    def of(cls, status: os.stat_result) -> "_Version":
        return cls(status.st_size, status.st_mtime_ns, status.st_ino)


class LocalFiles:
    """The files of a folder, by its absolute path."""

    threads = 4  # enough to keep a disk busy; one thread saturates the page cache
    head_bytes = 8  # a second read of a local file costs nothing

    def __init__(self, folder: str):
        self._folder = folder
        self._versions: dict[str, _Version] = {}  # as they were first seen

    def names(self) -> tuple[str, ...]:
        """See `Files`."""
        try:
            return tuple(sorted(name for name in os.listdir(self._folder) if name[0] != "."))
        except OSError as error:
            raise StoreError(f"cannot be listed: {error.strerror}") from error

    def size(self, key: str) -> int:
        """See `Files`."""
        try:
            status = os.stat(self._path(key))
        except (OSError, ValueError) as error:
            raise StoreError("no such file") from error
        if stat.S_ISDIR(status.st_mode):
            raise StoreError("expected a file, found a folder")
        if not stat.S_ISREG(status.st_mode):
            raise StoreError("expected a regular file")
        self._check(key, status)
        return status.st_size

    def head(self, key: str, count: int) -> Head | None:
        """See `Files`."""
        size = self.size(key)
        data = bytearray(min(count, size))
        found = self.fill(key, 0, [memoryview(data)])
        return Head(bytes(data), size) if found else None

    def load(self, key: str) -> bytes | None:
        """See `Files`."""
        if not os.path.exists(self._path(key)):
            return None
        size = self.size(key)
        if size > LARGEST_LOAD:
            raise StoreError(f"{size} bytes are too many (limit {LARGEST_LOAD})")
        head = self.head(key, size)
        return None if head is None else head.data

    def fill(self, key: str, start: int, buffers: Sequence[memoryview]) -> bool:
        """See `Files`."""
        try:
            file = os.open(self._path(key), os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # a pipe is not waited for
        except FileNotFoundError:
            return False
        except (OSError, ValueError) as error:
            raise StoreError(_reason(error)) from error
        try:
            self._check(key, os.fstat(file))
            total, done = sum(map(len, buffers)), 0
            while done < total:
                rest = [view for _, view in zip(range(_MOST_BUFFERS), unfilled(buffers, done), strict=False)]
                count = os.preadv(file, rest, start + done)
                if count == 0:
                    raise EOFError(f"ends at byte {start + done}, expected {start + total}")
                done += count
            self._check(key, os.fstat(file))
        except OSError as error:
            raise StoreError(_reason(error)) from error
        finally:
            os.close(file)
        return True

    def _path(self, key: str) -> str:
        return os.path.join(self._folder, key)

    def _check(self, key: str, status: os.stat_result) -> None:
        """Refuses a file that is not the one first seen under this name."""
        version = _Version.of(status)
        if self._versions.setdefault(key, version) != version:
            raise StoreError(CHANGED)


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)
