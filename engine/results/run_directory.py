"""A run directory: what is in it, and how it is written while a run goes on.

run.json        inputs with fingerprints, flags, versions, device, state ("running" or "finished")
.lock           held by the process that writes the run
matrices.csv    one row per matrix; rows appear as their stack finishes, in model order once all have
skipped.csv     name, reason
summary.json    model level
arrays/NNNN-MxN/  spectra and principal angles of one stack (zarr3), and names.json: which row is whose
plots/          pictures
report.html     the run as a page

The directory of several posts holds such a directory for each: see `polarax.results.runs_directory`.
"""

import contextlib
import csv
import io
import json
import os
import pathlib
import shutil
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from polarax.errors import UsageError
from polarax.loaders import Skipped
from polarax.planning.stacks import Stack
from polarax.results.arrays import write_array
from polarax.results.files import LOCK_FILE, PARTIAL, cell, jsonable, locked, write_csv, write_json, writing

RUN_FILE = "run.json"
MATRICES_FILE = "matrices.csv"
SKIPPED_FILE = "skipped.csv"
SUMMARY_FILE = "summary.json"
ARRAYS_FOLDER = "arrays"
NAMES_FILE = "names.json"
PLOTS_FOLDER = "plots"
REPORT_FILE = "report.html"
# Of several posts: against each other.
BETWEEN_FOLDER = "between"
BETWEEN_FILE = "between.csv"

_CONTENTS = (
    MATRICES_FILE, BETWEEN_FILE, SKIPPED_FILE, SUMMARY_FILE, ARRAYS_FOLDER, PLOTS_FOLDER, REPORT_FILE, RUN_FILE
)  # fmt: skip
# What a run leaves that ended before it had a run.json, or while it replaced a file.
_LEFTOVERS = (LOCK_FILE, *(name + PARTIAL for name in _CONTENTS))


def claim_directory(
    path: str | os.PathLike, description: Mapping | None = None, *, overwrite: bool = False
) -> pathlib.Path:
    """Checks that a run may be written at `path`, before any work is done; removes an old run if told to.

    Args:
        path: A new or empty folder, or that of a run to go on with.
        description: What run.json will say; a run that is already there must say the same of inputs and flags.
        overwrite: Remove a run that is already there.

    Raises:
        UsageError: `path` is a file, or holds something else than a run, or a run of other inputs or flags.
        RunError: Another process writes the run that is to be removed.
    """
    path = pathlib.Path(path).expanduser()
    try:
        _make_way(path, description, overwrite)
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"Output {path} cannot be made: {error.strerror}.") from error
    return path


def _make_way(path, description, overwrite):
    if path.exists() and not path.is_dir():
        raise UsageError(f"Output {path} is a file. Expected a new or empty folder.")
    if not path.is_dir() or all(entry.name in _LEFTOVERS for entry in path.iterdir()):
        return
    if not (path / RUN_FILE).is_file():
        raise UsageError(f"Output {path} is not empty and is not a run of polarax. Nothing was written.")
    if not overwrite:
        differs = _differences(path, description)
        if differs:
            raise UsageError(
                f"Output {path} holds a run of something else: {differs}. Give another folder, or --overwrite it."
            )
        return
    with locked(path):
        for name in (*_runs_within(path), *_CONTENTS):
            if (path / name).is_dir():
                shutil.rmtree(path / name)
            else:
                (path / name).unlink(missing_ok=True)


def _runs_within(path):
    """Folders of the runs in the directory of several posts."""
    try:
        description = json.loads((path / RUN_FILE).read_text(encoding="utf-8"))
        labels = [label for label in description.get("posts", ()) if pathlib.PurePath(label).name == label != ".."]
    except (ValueError, AttributeError, TypeError):
        return []
    return [*(label for label in labels if (path / label / RUN_FILE).is_file()), BETWEEN_FOLDER]


def _differences(path, description):
    """In words, what a run that is there was asked for that differs from what is asked now; "" if nothing does."""
    try:
        there = _asked(json.loads((path / RUN_FILE).read_text(encoding="utf-8")))
    except (ValueError, AttributeError):
        return f"its {RUN_FILE} cannot be read"
    now = _asked(jsonable(description or {}))
    return "; ".join(
        f"{what} was {there.get(what)}, is {now.get(what)}" for what in now | there if there.get(what) != now.get(what)
    )


def _asked(description):
    """Name -> value of all that the numbers of a run depend on."""
    environment = description.get("environment", {})
    return {
        **{f"fingerprint of {side}": description.get(side, {}).get("fingerprint") for side in ("base", "post")},
        **{f"fingerprint of {label}": post.get("fingerprint") for label, post in description.get("posts", {}).items()},
        "posts": ", ".join(description.get("posts", ())),
        **{f"--{flag}": value for flag, value in description.get("flags", {}).items()},
        **{package: environment.get("versions", {}).get(package) for package in ("polarax", "jax")},
        "backend": environment.get("backend"),
    }


class RunWriter:
    """Writes one run as it goes on. A crash at any point leaves every finished stack readable, and to go on from.

    Args:
        path: A folder that `claim_directory` returned.
        description: What run.json says of the run; JSON-ready.
        columns: Columns of matrices.csv.
        skipped: What is left out.

    Raises:
        RunError: The folder cannot be written, in any method, or another process writes it.
    """

    def __init__(
        self,
        path: pathlib.Path,
        description: Mapping,
        columns: Sequence[str],
        skipped: Iterable[Skipped],
    ):
        self.path = path
        self._description = dict(description)
        self._columns = tuple(columns)
        self._rows: list[tuple[int, list[str]]] = []
        with writing(path), contextlib.ExitStack() as on_failure:
            self._lock = on_failure.enter_context(locked(path))
            self._found = _whole_rows(path / MATRICES_FILE, self._columns)
            if (path / RUN_FILE).is_file():
                before = json.loads((path / RUN_FILE).read_text(encoding="utf-8"))
                self._description["started"] = before.get("started", self._description.get("started"))
            self._write_json(RUN_FILE, {**self._description, "state": "running"})
            write_csv(path / SKIPPED_FILE, Skipped._fields, ([row.name, row.reason] for row in skipped))
            if not self._found:
                write_csv(path / MATRICES_FILE, self._columns, [])
            on_failure.pop_all()  # whoever has the writer closes it

    def unfinished(self, stacks: Sequence[Stack], place: Mapping[str, int]) -> list[Stack]:
        """The stacks that are still to be measured; what an earlier process left of others is removed.

        Args:
            stacks: All stacks of the run.
            place: For each name, its place in the model.
        """
        done = {stack.label for stack in stacks if self._is_finished(stack)}
        with writing(self.path):
            for folder in (self.path / ARRAYS_FOLDER).glob("*"):
                if folder.name not in done:
                    shutil.rmtree(folder)
            names = [pair.name for stack in stacks if stack.label in done for pair in stack.pairs]
            self._rows = [(place[name], self._found[name]) for name in names]
            write_csv(self.path / MATRICES_FILE, self._columns, (cells for _, cells in self._rows))
        return [stack for stack in stacks if stack.label not in done]

    def _is_finished(self, stack):
        names = [pair.name for pair in stack.pairs]
        try:
            written = json.loads((self.path / ARRAYS_FOLDER / stack.label / NAMES_FILE).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return False
        return written == names and all(name in self._found for name in names)

    def write_stack(
        self,
        stack: Stack,
        rows: Sequence[Mapping],
        arrays: Mapping[str, np.ndarray],
        places: Sequence[int],
    ) -> None:
        """Writes a finished stack: arrays first, then the names that make them valid, then the rows.

        Args:
            stack: The stack.
            rows: One mapping of column to value for each of its pairs.
            arrays: Name -> (count, ...) for the pairs, without padding.
            places: For each row, its place in the model.
        """
        folder = self.path / ARRAYS_FOLDER / stack.label
        with writing(self.path):
            folder.mkdir(parents=True)
            for name, values in arrays.items():
                write_array(folder / name, values)
            self._write_json(folder.relative_to(self.path) / NAMES_FILE, [row["name"] for row in rows])
            with open(self.path / MATRICES_FILE, "a", newline="", encoding="utf-8") as file:
                csv.writer(file).writerows(map(self._cells, rows))
        self._rows.extend(zip(places, map(self._cells, rows), strict=True))

    def finish(self, seconds: Mapping[str, float], summary: Mapping) -> None:
        """Puts the rows in model order, writes the summary, marks the run finished and lets go of it."""
        rows = [cells for _, cells in sorted(self._rows, key=lambda item: item[0])]
        with writing(self.path):
            write_csv(self.path / MATRICES_FILE, self._columns, rows)
            self._write_json(SUMMARY_FILE, summary)
            self._write_json(RUN_FILE, {**self._description, "state": "finished", "seconds": dict(seconds)})
        self.close()

    def close(self) -> None:
        """Lets go of the folder; another process may go on with it."""
        self._lock.close()

    def _cells(self, row):
        return [cell(row.get(column)) for column in self._columns]

    def _write_json(self, name, content):
        write_json(self.path / name, content)


def _whole_rows(path, columns):
    """Name -> cells of the rows of matrices.csv that were written to their end; a killed process may leave a part."""
    try:
        text = path.read_bytes().decode("utf-8", errors="replace")
    except FileNotFoundError:
        return {}
    header, *rows = csv.reader(io.StringIO(text[: text.rfind("\n") + 1], newline="")) or [[]]
    if header != list(columns):
        return {}
    return {row[0]: row for row in rows if len(row) == len(columns)}
