"""The directory of several posts of one base, or steps of a history: a run for each, and what puts them side by side.

run.json            inputs with fingerprints, flags, versions, device, state ("running" or "finished")
LABEL/              the run of the base and one post, as `polarax.results.run_directory` says
between/A/B/        the run of two posts, A in place of the base
matrices.csv        the rows of all posts, with their label in a column `post`, or `step`, in front
between.csv         the rows of all two posts, with both labels in front
skipped.csv         post, name, reason
summary.json        the summaries of all runs
report.html, plots/ the posts as a page and as pictures
"""

import csv
import json
import os
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from polarax.results.files import locked, write_csv, write_json, writing
from polarax.results.run_directory import (
    BETWEEN_FILE,
    MATRICES_FILE,
    RUN_FILE,
    SKIPPED_FILE,
    SUMMARY_FILE,
    claim_directory,
)

if TYPE_CHECKING:
    from polarax.results.runs import Runs


class RunsWriter:
    """Holds the directory of several posts while their runs are written, and puts them side by side in the end.

    Args:
        path: A new or empty folder, or that of a run of the same posts to go on with.
        description: What run.json says; JSON-ready.
        overwrite: Remove a run that is already there.

    Raises:
        UsageError: The folder cannot be taken, as for `claim_directory`.
        RunError: It cannot be written, in any method, or another process writes it.
    """

    def __init__(self, path: str | os.PathLike, description: Mapping, *, overwrite: bool = False):
        self._description = dict(description)
        self.path = claim_directory(path, description, overwrite=overwrite)
        with writing(self.path):
            self._lock = locked(self.path)
            if (self.path / RUN_FILE).is_file():
                before = json.loads((self.path / RUN_FILE).read_text(encoding="utf-8"))
                self._description["started"] = before.get("started", self._description.get("started"))
            write_json(self.path / RUN_FILE, {**self._description, "state": "running"})

    def finish(self, seconds: Mapping[str, float], runs: "Runs") -> None:
        """Writes the tables and the summary of finished runs, and marks the whole as finished."""
        posts = [((label,), runs[label].path) for label in runs.labels]
        between = [(pair, runs.between(*pair).path) for pair in runs.pairs]
        with writing(self.path):
            _join(self.path / MATRICES_FILE, (runs.heading,), MATRICES_FILE, posts)
            _join(self.path / SKIPPED_FILE, (runs.heading,), SKIPPED_FILE, posts)
            if between:
                _join(self.path / BETWEEN_FILE, ("post", "other"), MATRICES_FILE, between)
            write_json(self.path / SUMMARY_FILE, runs.summary())
            write_json(self.path / RUN_FILE, {**self._description, "state": "finished", "seconds": dict(seconds)})
        self.close()

    def close(self) -> None:
        """Lets go of the folder; another process may go on with it."""
        self._lock.close()


def _join(path, heading, file, parts):
    """One table of the same file of several folders, each row with its folder's labels in front."""

    def rows() -> Iterator[list[str]]:
        for labels, folder in parts:
            for row in _rows(folder / file)[1]:
                yield [*labels, *row]

    header = _rows(parts[0][1] / file)[0]
    write_csv(path, [*heading, *header], rows())


def _rows(path):
    with open(path, newline="", encoding="utf-8", errors="replace") as file:
        header, *rows = csv.reader(file)
    return header, rows
