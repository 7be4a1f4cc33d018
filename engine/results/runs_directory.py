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
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from polarax.results.directory import BETWEEN_FILE, MATRICES_FILE, SKIPPED_FILE, DirectoryWriter
from polarax.results.files import write_csv, writing

if TYPE_CHECKING:
    from polarax.results.runs import Runs


class RunsWriter(DirectoryWriter):
    """Holds the directory of several posts while their runs are written, and puts them side by side in the end."""

    def finish(self, seconds: Mapping[str, float], runs: "Runs") -> None:
        """Writes the tables and the summary of finished runs, and marks the whole as finished."""
        posts = [((label,), runs[label].path) for label in runs.labels]
        between = [(pair, runs.between(*pair).path) for pair in runs.pairs]
        with writing(self.path):
            _join(self.path / MATRICES_FILE, (runs.heading,), MATRICES_FILE, posts)
            _join(self.path / SKIPPED_FILE, (runs.heading,), SKIPPED_FILE, posts)
            if between:
                _join(self.path / BETWEEN_FILE, ("post", "other"), MATRICES_FILE, between)
        self._finished(seconds, runs.summary())


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
