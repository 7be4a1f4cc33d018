"""The directory of several posts of one base, or steps of a history: a run for each, and what puts them side by side.

run.json            inputs with fingerprints, flags, versions, device, state ("running" or "finished")
LABEL/              the run of the base and one post, as `polarax.results.run_directory` says
between/A/B/        the run of two posts, A in place of the base
closer/N/           of first looks: such a directory of full analyses of some matrices, whose rows replace theirs
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
from polarax.results.tables import joint_columns, read_table

if TYPE_CHECKING:
    from polarax.results.runs import Runs


class RunsWriter(DirectoryWriter):
    """Holds the directory of several posts while their runs are written, and puts them side by side in the end."""

    def finish(self, seconds: Mapping[str, float], runs: "Runs") -> None:
        """Writes the tables and the summary of finished runs, and marks the whole as finished."""
        write_side_by_side(runs)
        self._finished(seconds, runs.summary())


def write_side_by_side(runs: "Runs") -> None:
    """Writes the tables of several posts.

    Raises:
        RunError: A file cannot be written.
    """
    posts = [((label,), run.path) for label, run in runs.items()]
    between = [(pair, runs.between(*pair).path) for pair in runs.pairs if runs.has_begun(*pair)]
    with writing(runs.path):
        _join(runs.path / MATRICES_FILE, (runs.heading,), MATRICES_FILE, posts)
        _join(runs.path / SKIPPED_FILE, (runs.heading,), SKIPPED_FILE, posts)
        if between:
            _join(runs.path / BETWEEN_FILE, ("post", "other"), MATRICES_FILE, between)


def _join(path, heading, file, parts):
    """One table of the same file of several folders, each row with its folder's labels in front.

    Their columns differ where some matrices of some posts were looked at closer.
    """
    columns = joint_columns(dict.fromkeys(_header(folder / file) for _, folder in parts))

    def rows() -> Iterator[list[str]]:
        for labels, folder in parts:
            for row in read_table(folder / file).under(columns):
                yield [*labels, *row]

    write_csv(path, [*heading, *columns], rows())


def _header(path):
    with open(path, newline="", encoding="utf-8", errors="replace") as file:
        return tuple(next(csv.reader(file), ()))
