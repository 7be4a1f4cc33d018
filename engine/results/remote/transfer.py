"""Runs between their bucket and a local folder: fetched to be read, and claimed to be written."""

import contextlib
import os
import pathlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeGuard

from polarax.errors import RunError, UsageError
from polarax.loaders.stores.store import is_url
from polarax.loaders.stores.threads import ReadThreads
from polarax.results.directory import (
    CONTENTS,
    LEFTOVERS,
    PLOTS_FOLDER,
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
def remote_run(url: str, *, overwrite: bool = False, progress: bool = True) -> Iterator[Staging]:
    """Claims a run in a bucket: a local folder with all that is there of it, and whatever is written there is uploaded.

    Args:
        url: Of a new or empty folder in a bucket, or of a run that is there.
        overwrite: Fetch only what tells that there is a run: the rest is to be removed.
        progress: Print a line on standard error where something is waited for.

    Raises:
        UsageError: The bucket cannot be read or written, or holds something else than a run there.
        RunError: Another process writes it; at the end, that something could not be uploaded.
    """
    with contextlib.ExitStack() as held:
        with _at_the_start():
            shelf = Shelf.open(url)
            keys = shelf.list()
        if RUN_FILE not in keys and not LEFTOVERS.issuperset(keys):
            raise UsageError(f"Output {shelf.location} is not empty and is not a run of polarax. Nothing was written.")
        staging = Staging(Shelf.open(url, _TRANSFER_SECONDS))
        with _at_the_start():
            held.enter_context(remotely_locked(shelf, staging.uploads.fail, say=progress))
        _fetch(staging, **{"only": _is_run_file} if overwrite else {})
        try:
            yield staging
        except BaseException:
            with contextlib.suppress(RunError):
                staging.uploads.flush()
            raise
        staging.uploads.flush()


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
    Shelf.open(url).list()  # by which a bucket that is not there is found in less time than a transfer may take
    staging = Staging(Shelf.open(url, _TRANSFER_SECONDS))
    _fetch(staging)
    return staging


def _fetch(staging: Staging, only: Callable[[str], bool] = lambda key: True) -> None:
    """Downloads what belongs to a run. Tables come first: what is in them is in the bucket before they are."""
    _get(staging, [RUN_FILE])
    within = folders_within(read_run_file(staging.path))
    for tables in (True, False):
        keys = _belonging(staging.shelf.list(), within)
        _get(staging, [key for key in keys if key.endswith(".csv") == tables and only(key)])


def _belonging(keys: Sequence[str], within: tuple[Iterable[str], Iterable[str]]) -> list[str]:
    """The objects of a run and of those within it, but its pictures, which are drawn again."""
    labels, others = within
    folders = {*(label for label in labels if f"{label}/{RUN_FILE}" in keys), *others}
    parts = {key: key.split("/") for key in keys}
    return [
        key
        for key, names in parts.items()
        if names[0] in {*CONTENTS, *folders} and not {"", ".", "..", PLOTS_FOLDER} & set(names)
    ]


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
