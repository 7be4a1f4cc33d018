"""Runs between their bucket and a local folder: fetched to be read, and claimed to be written."""

import contextlib
import os
import pathlib
from collections.abc import Callable, Container, Iterable, Iterator
from typing import TypeGuard

from polarax.errors import RunError, UsageError
from polarax.loaders.stores.store import is_url
from polarax.loaders.stores.threads import ReadThreads
from polarax.results.directory import (
    CONTENTS,
    LEFTOVERS,
    PARTS_FOLDER,
    PLOTS_FOLDER,
    PROCESSES_FOLDER,
    RUN_FILE,
    folders_within,
    is_first_look,
    read_run_file,
)
from polarax.results.remote.lock import Locked, remotely_locked
from polarax.results.remote.staging import Staging, staging_of
from polarax.results.shelf import Shelf, is_bucket

# Of one file: as long as the largest arrays take over a slow line.
_TRANSFER_SECONDS = 600.0
_SIDE_BY_SIDE = 16

# What several processes have found is left to them.
_FETCHED = frozenset(CONTENTS) - {PARTS_FOLDER, PROCESSES_FOLDER}


def local_run(location: str | os.PathLike) -> tuple[pathlib.Path, Staging | None]:
    """The local folder of a run, and what keeps it if it was fetched from a bucket.

    Args:
        location: A path, or the URL of a bucket.

    Raises:
        UsageError: The bucket cannot be read.
    """
    if not is_remote(location):
        path = pathlib.Path(location).expanduser()
        return path, staging_of(path)
    with _at_the_start():
        staging = _fetched(location)
        description = read_run_file(staging.path)
        levels = pathlib.PurePath(description.get("within", "")).parts
        if is_first_look(description) and levels:  # the full analyses of its matrices are in that of all
            staging = _fetched(location.rstrip("/").rsplit("/", len(levels))[0])
            return staging.path.joinpath(*levels), staging
        return staging.path, staging


def is_remote(location: str | os.PathLike | None) -> TypeGuard[str]:
    """Whether a run is kept at a URL.

    Raises:
        UsageError: Runs cannot be kept at such URLs.
    """
    if not isinstance(location, str) or not is_url(location):
        return False
    if not is_bucket(location):
        raise UsageError(f"Run {location}: expected a path, or a gs or s3 URL.")
    return True


@contextlib.contextmanager
def run_folder(
    location: str | os.PathLike, *, overwrite: bool = False, progress: bool = True
) -> Iterator[pathlib.Path]:
    """The local folder in which a run is written.

    Of a run in a bucket it has what is there of it, and whatever is written there is uploaded.

    Args:
        location: A path, which is given back, or the URL of a new or empty folder in a bucket or of a run there.
        overwrite: Fetch only what tells that there is a run: the rest is to be removed.
        progress: Print a line on standard error where something is waited for.

    Raises:
        UsageError: The bucket cannot be read or written, or holds something else than a run there.
        RunError: Another process writes it; at the end, that something could not be uploaded.
    """
    if not is_remote(location):
        yield pathlib.Path(location).expanduser()
        return
    with contextlib.ExitStack() as held:
        with _at_the_start():
            _check_room(Shelf.open(location))
            staging = Staging(Shelf.open(location, _TRANSFER_SECONDS))
            held.enter_context(remotely_locked(Shelf.open(location), staging.uploads.fail, say=progress))
        _fetch(staging, _is_run_file if overwrite else None)
        try:
            yield staging.path
        except BaseException:
            with contextlib.suppress(RunError):
                staging.uploads.flush()
            raise
        staging.uploads.flush()


def _check_room(shelf: Shelf) -> None:
    keys = shelf.list()
    if RUN_FILE not in keys and not LEFTOVERS.issuperset(key.partition("/")[0] for key in keys):
        raise UsageError(f"Output {shelf.location} is not empty and is not a run of polarax. Nothing was written.")


@contextlib.contextmanager
def _at_the_start() -> Iterator[None]:
    """Before any work is done, a place that cannot be used is a wrong input."""
    try:
        yield
    except Locked:
        raise
    except RunError as error:
        raise UsageError(str(error)) from error


def _fetched(url: str) -> Staging:
    Shelf.open(url).list(RUN_FILE)  # which finds a bucket that is not there in less time than a transfer may take
    staging = Staging(Shelf.open(url, _TRANSFER_SECONDS))
    _fetch(staging)
    return staging


def _fetch(staging: Staging, wanted: Callable[[str], bool] | None = None) -> None:
    """Downloads what belongs to a run. Tables come first: what is in them is in the bucket before they are."""
    _get(staging, [RUN_FILE])
    if not (staging.path / RUN_FILE).is_file():
        return
    labels, others = folders_within(read_run_file(staging.path))
    for tables in (True, False):
        keys = set(staging.shelf.list())
        folders = {*_FETCHED, *others, *(label for label in labels if f"{label}/{RUN_FILE}" in keys)}
        keys = {key for key in keys if _is_in(folders, key) and key.endswith(".csv") == tables}
        _get(staging, filter(wanted, keys))


def _is_in(folders: Container[str], key: str) -> bool:
    """Whether an object is to be fetched: pictures are drawn again."""
    names = key.split("/")
    return names[0] in folders and not {"", ".", "..", PLOTS_FOLDER} & set(names)


def _is_run_file(key: str) -> bool:
    return key.rpartition("/")[2] == RUN_FILE


def _get(staging: Staging, keys: Iterable[str]) -> None:
    threads = ReadThreads(_SIDE_BY_SIDE)
    for got in [threads.submit(_get_one, staging, key) for key in keys]:
        got.result()


def _get_one(staging: Staging, key: str) -> None:
    data = staging.shelf.get(key)
    if data is not None:
        path = staging.path / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
