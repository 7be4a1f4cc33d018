"""The local folder of a run that is kept in a bucket: whatever is written there is uploaded too.

Code that writes and reads runs knows paths alone. What it has to know of buckets it asks here, by path: whether a file
is to be uploaded (`share`), and what to call it in a message (`location_of`).
"""

import os
import pathlib
import tempfile
import weakref

from polarax.results.remote.uploads import Uploads
from polarax.results.shelf import Shelf


class Staging:
    """A temporary folder that stands for one in a bucket. It is removed with the last reference to this object.

    Attributes:
        path: The folder.
        shelf: The folder in the bucket.
        uploads: What is on its way there.
    """

    def __init__(self, shelf: Shelf):
        self._temporary = tempfile.TemporaryDirectory(prefix="polarax-")
        self.path = pathlib.Path(self._temporary.name).resolve()
        self.shelf, self.uploads = shelf, Uploads(shelf)
        _stagings[self.path] = self

    def key(self, path: pathlib.Path) -> str:
        """The key of a file or folder within it."""
        return path.relative_to(self.path).as_posix()


_stagings: weakref.WeakValueDictionary[pathlib.Path, Staging] = weakref.WeakValueDictionary()  # by their folders


def staging_of(path: str | os.PathLike) -> Staging | None:
    """What a path lies in, if it is the local folder of a run in a bucket."""
    if not _stagings:
        return None
    path = pathlib.Path(path)
    return next((_stagings[folder] for folder in (path, *path.parents) if folder in _stagings), None)


def location_of(path: str | os.PathLike) -> str:
    """Where something is, for people: its path, or its URL if it is kept in a bucket."""
    staging = staging_of(path)
    if staging is None:
        return str(path)
    key = staging.key(pathlib.Path(path))
    return staging.shelf.location if key == "." else f"{staging.shelf.location}/{key}"


def shelf_of(path: str | os.PathLike) -> Shelf:
    """The shelf at a path: that in the bucket, if the path is the local folder of a run there."""
    staging = staging_of(path)
    if staging is None:
        return Shelf.open(path)
    key = staging.key(pathlib.Path(path))
    return staging.shelf if key == "." else staging.shelf.within(key)


def share(path: pathlib.Path) -> None:
    """Uploads a file, or the files of a folder, that was written, if it belongs to a run in a bucket.

    Of what was removed the object, or those of the folder, are deleted. All this happens later, in the order of calls.

    Raises:
        RunError: An earlier upload failed.
    """
    staging = staging_of(path)
    if staging is None:
        return
    if path.is_dir():
        staging.uploads.put({staging.key(file): file.read_bytes() for file in path.rglob("*") if file.is_file()})
    elif path.exists():
        staging.uploads.put({staging.key(path): path.read_bytes()})
    else:
        staging.uploads.delete(staging.key(path))


def settle(path: pathlib.Path) -> None:
    """Waits until all is uploaded of the run that a path lies in.

    Raises:
        RunError: An upload failed.
    """
    staging = staging_of(path)
    if staging is not None:
        staging.uploads.flush()
