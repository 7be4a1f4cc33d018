"""What an edit that is under way has finished: a line for each matrix, written after its weights are on the disk."""

import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import IO, Any

from polarax.errors import UsageError
from polarax.results.files import jsonable, locked, replacing

_FILE = "journal.jsonl"
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
        with replacing(self.folder / _FILE, mode="w", encoding="utf-8") as file:
            file.write(json.dumps(self._asked) + "\n")

    def add(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Adds the rows of matrices whose weights are on the disk."""
        if self._file is None:
            self._file = open(self.folder / _FILE, "a", encoding="utf-8")
        self._file.writelines(json.dumps(row) + "\n" for row in rows)
        self._file.flush()
        self.rows.extend(map(dict, rows))

    def _read(self):
        """The rows that are there; none if nothing was prepared."""
        path = self.folder / _FILE
        if not path.is_file() or not self.drafts.is_dir():
            return []
        rows = []
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                rows.append(json.loads(line))
            except ValueError:  # the process ended while it was written
                break
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
