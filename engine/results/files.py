"""Files of run directories: written whole or not at all, by one process at a time."""

import contextlib
import csv
import fcntl
import json
import math
import os
import pathlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import IO, Any

import numpy as np

from polarax.errors import RunError
from polarax.results.remote.staging import location_of, share

LOCK_FILE = ".lock"
PARTIAL = ".partial"  # ends the name of a file until it is whole


def locked(path: pathlib.Path) -> IO:
    """An open file that keeps other processes from writing the run for as long as it is open, however it is closed."""
    file = open(path / LOCK_FILE, "a", encoding="utf-8")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise RunError(f"Another process is writing the run at {location_of(path)}.") from None
    return file


@contextlib.contextmanager
def writing(path: pathlib.Path) -> Iterator[None]:
    """Turns an OSError while writing the run at `path` (a full disk, say) into a RunError."""
    try:
        yield
    except OSError as error:
        raise RunError(f"Cannot write the run at {location_of(path)}: {error.strerror or error}.") from error


@contextlib.contextmanager
def replacing(path: pathlib.Path, **options: Any) -> Iterator[IO]:
    """A file to write, that takes the place of `path` when it is whole and on the disk; options as for `open`.

    Of a run in a bucket it is uploaded then.
    """
    temporary = path.with_name(path.name + PARTIAL)
    with open(temporary, **options) as file:
        yield file
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
    share(path)


def write_json(path: pathlib.Path, content: Mapping | Sequence) -> None:
    """Writes JSON; NaN and Inf, which it has not, are null."""
    with replacing(path, mode="w", encoding="utf-8") as file:
        file.write(json.dumps(jsonable(content), indent=1, allow_nan=False) + "\n")


def jsonable(content):
    """The same content with NumPy scalars as Python's and NaN or Inf, which JSON has not, as None."""
    if isinstance(content, Mapping):
        return {str(key): jsonable(value) for key, value in content.items()}
    if isinstance(content, (list, tuple)):
        return [jsonable(value) for value in content]
    if isinstance(content, np.generic):
        content = content.item()
    return None if isinstance(content, float) and not math.isfinite(content) else content


def cell(value: Any) -> str:
    """Text of a value that reads back exactly; nothing for None."""
    if value is None:
        return ""
    return repr(value) if isinstance(value, float) else str(value)


def write_csv(path: pathlib.Path, header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Writes a table of texts."""
    with replacing(path, mode="w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows(rows)
