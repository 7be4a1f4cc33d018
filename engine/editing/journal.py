"""What an edit that is under way has finished: a line for each matrix, written after its weights are on the disk."""

import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import IO, Any

from polarax.errors import UsageError
from polarax.results.files import jsonable, locked, replacing

_FILE = "journal.jsonl"
# What the other processes of an edit that several are at have finished.
_PARTS = "finished-{}.jsonl"
DRAFTS = "checkpoint"


class Journal:
    """The folder of an edit under way, held by one process; a context manager.

    Args:
        folder: Its folder, beside the one that is to be written.
        description: What is done; a journal that is there must be of the same.

    Raises:
        UsageError: The folder holds an edit of something else.
        RunError: Another process is at work on it.
    """

    def __init__(self, folder: pathlib.Path, description: Mapping[str, Any]):
        self.folder, self.drafts = folder, folder / DRAFTS
        self._asked = jsonable(description)
        folder.mkdir(parents=True, exist_ok=True)
        self._lock = locked(folder)
        try:
            self.rows = self._read()
        except BaseException:
            self._lock.close()
            raise
        self._file: IO | None = None

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()
        self._lock.close()

    @property
    def finished(self) -> set[str]:
        """Names of the matrices that are done."""
        return {row["name"] for row in self.rows}

    def begin(self) -> None:
        """Begins anew: with drafts that were just prepared."""
        self.rows = []
        for path in self.folder.glob(_PARTS.format("*")):
            path.unlink()
        with replacing(self.folder / _FILE, mode="w", encoding="utf-8") as file:
            file.write(json.dumps(self._asked) + "\n")

    def add(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Adds the rows of matrices whose weights are on the disk."""
        if self._file is None:
            self._file = open(self.folder / _FILE, "a", encoding="utf-8")
        self._file.writelines(json.dumps(row) + "\n" for row in rows)
        self._file.flush()
        self.rows.extend(map(dict, rows))

    def take_parts(self) -> None:
        """Adds what other processes have finished: each matrix once, however many have edited it."""
        there = {(row["name"], row["strength"]) for row in self.rows}
        for path in sorted(self.folder.glob(_PARTS.format("*"))):
            rows = {(row["name"], row["strength"]): row for row in _whole_lines(path)}
            new = [row for key, row in rows.items() if key not in there]
            there |= rows.keys()
            if new:
                self.add(new)

    def _read(self):
        """The rows that are there; none if nothing was prepared."""
        path = self.folder / _FILE
        if not path.is_file() or not self.drafts.is_dir():
            return []
        rows = _whole_lines(path)
        if not rows:
            return []
        asked, *rows = rows
        differs = [name for name in {*asked, *self._asked} if asked.get(name) != self._asked.get(name)]
        if differs:
            name = min(differs)
            raise UsageError(
                f"{self.folder} holds an unfinished edit of something else: {name} was {asked.get(name)}, is "
                f"{self._asked.get(name)}. Remove it, or give another --out."
            )
        return rows

    @property
    def prepared(self) -> bool:
        """Whether there are drafts that were prepared whole."""
        return (self.folder / _FILE).is_file() and self.drafts.is_dir()


class PartJournal:
    """What a process that is not the first has finished; a context manager.

    Args:
        folder: Of the edit under way, which the first process holds.
        process: Its number.
    """

    def __init__(self, folder: pathlib.Path, process: int):
        self.drafts = folder / DRAFTS
        self._path = folder / _PARTS.format(process)

    def __enter__(self) -> "PartJournal":
        self._file = open(self._path, "w", encoding="utf-8")  # what was there the first process has taken
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def add(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Adds the rows of matrices whose weights are on the disk."""
        self._file.writelines(json.dumps(row) + "\n" for row in rows)
        self._file.flush()
        os.fsync(self._file.fileno())


def _whole_lines(path: pathlib.Path) -> list[dict[str, Any]]:
    """The rows of a file; the process may have ended while the last one was written."""
    rows: list[dict[str, Any]] = []
    if not path.is_file():
        return rows
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            rows.append(json.loads(line))
        except ValueError:
            break
    return rows
