"""Files and folders that are written: new ones alone, on the disk when they are closed, errors in one line."""

import contextlib
import errno
import fcntl
import os
import pathlib
from collections.abc import Iterator
from typing import BinaryIO

from polarax.loaders.checkpoint import CheckpointError


def check_target(target: pathlib.Path, *folders: str | None) -> None:
    """Refuses to write where something is, above all a source, whichever way its path leads there.

    Args:
        target: The folder to be written.
        folders: Local files and folders that are read; None for what is elsewhere.
    """
    if not os.path.lexists(target):
        return
    for folder in folders:
        if folder is not None and os.path.exists(target) and os.path.exists(folder):
            if os.path.samefile(target, folder):
                raise CheckpointError(f"{target}: is where the checkpoint is read from; choose another folder")
    if target.is_symlink():
        raise CheckpointError(f"{target}: is a link; expected a new folder")
    if not target.is_dir():
        raise CheckpointError(f"{target}: is a file; expected a new folder")
    if any(target.iterdir()):
        raise CheckpointError(f"{target}: is not empty; expected a new folder")


@contextlib.contextmanager
def locked_range(descriptor: int, first: int, nbytes: int) -> Iterator[None]:
    """Keeps other processes from the same bytes of a file, those that ask in this way too; of threads, nobody."""
    fcntl.lockf(descriptor, fcntl.LOCK_EX, nbytes, first)
    try:
        yield
    finally:
        fcntl.lockf(descriptor, fcntl.LOCK_UN, nbytes, first)


@contextlib.contextmanager
def created(path: pathlib.Path) -> Iterator[BinaryIO]:
    """A new file, on the disk when it is closed. It is never one that exists."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("xb") as opened:
        yield opened
        opened.flush()
        os.fsync(opened.fileno())


@contextlib.contextmanager
def disk_errors(target: pathlib.Path) -> Iterator[None]:
    """Turns what the system says of the output into one line."""
    try:
        yield
    except OSError as error:
        full = "the disk is full: " if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) else ""
        reason = error.strerror or str(error)
        raise CheckpointError(f"{target}: cannot be written: {full}{reason}; nothing is left there") from error


def sync(folder: pathlib.Path) -> None:
    """Puts a folder's entries on the disk."""
    file = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)


def umask() -> int:
    """The process's mask of permissions; it cannot be asked for without being set."""
    mask = os.umask(0o022)
    os.umask(mask)
    return mask
