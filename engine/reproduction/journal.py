"""The folder of a reproduction: what is finished is kept, and is not done again."""

import contextlib
import json
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import IO, Any

from polarax.errors import UsageError
from polarax.results.files import jsonable, locked, write_json, writing

REPRODUCTION_FILE = "reproduction.json"
_REQUEST_FILE = "request.json"
_FINISHED = "finished"


class Journal:
    """What is finished, a file for each part.

    Args:
        folder: Of the reproduction.
    """

    def __init__(self, folder: pathlib.Path):
        self.folder = folder

    def part(self, name: str, make: Callable[[], Mapping[str, Any]]) -> Mapping[str, Any]:
        """A part as it was finished before, or as it is made now and kept.

        Raises:
            RunError: It cannot be written.
        """
        path = self.folder / _FINISHED / f"{name}.json"
        if path.is_file():
            return json.loads(path.read_text(encoding="utf-8"))
        content = jsonable(make())
        with writing(self.folder):
            write_json(path, content)
        return content


@contextlib.contextmanager
def opened_journal(out: str | os.PathLike, request: Mapping[str, Any]) -> Iterator[Journal]:
    """The journal of a folder, which no other process may write meanwhile.

    Args:
        out: New, empty, or that of the same request.
        request: What all parts depend on; JSON-ready.

    Raises:
        UsageError: The folder holds something else, or cannot be made.
        RunError: Another process is writing it.
    """
    folder = pathlib.Path(out).expanduser()
    file: IO | None = None
    try:
        if folder.exists() and not folder.is_dir():
            raise UsageError(f"Output {folder} is a file. Expected a new or empty folder.")
        known = folder / _REQUEST_FILE
        if folder.is_dir() and any(folder.iterdir()) and not known.is_file():
            raise UsageError(f"Output {folder} is not empty and is no reproduction. Nothing was written.")
        if known.is_file():
            _check_same(folder, json.loads(known.read_text(encoding="utf-8")), jsonable(request))
        (folder / _FINISHED).mkdir(parents=True, exist_ok=True)
        file = locked(folder)
        write_json(known, request)
    except UsageError:
        raise
    except (OSError, ValueError) as error:
        raise UsageError(f"Output {folder} cannot be used: {error}.") from error
    try:
        yield Journal(folder)
    finally:
        file.close()


def _check_same(folder: pathlib.Path, known: Mapping[str, Any], request: Mapping[str, Any]) -> None:
    for name in request:
        if known.get(name) != request[name]:
            raise UsageError(
                f"Output {folder} holds a reproduction with another {name.replace('_', ' ')}: {known.get(name)!r}, not "
                f"{request[name]!r}. Give another folder."
            )
