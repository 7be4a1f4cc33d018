"""A run directory: what is in it, and how it is written while a run goes on.

run.json        inputs with fingerprints, flags, versions, device, state ("running" or "finished")
matrices.csv    one row per matrix; rows appear as their stack finishes, in model order once all have
skipped.csv     name, reason
summary.json    model level
arrays/NNNN-MxN/  spectra and principal angles of one stack (zarr3), and names.json: which row is whose
plots/          pictures
"""

import csv
import json
import math
import os
import pathlib
import shutil
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from polarax.arrays import write_array
from polarax.errors import RunError, UsageError
from polarax.loaders import Skipped
from polarax.plan import Stack

RUN_FILE = "run.json"
MATRICES_FILE = "matrices.csv"
SKIPPED_FILE = "skipped.csv"
SUMMARY_FILE = "summary.json"
ARRAYS_FOLDER = "arrays"
NAMES_FILE = "names.json"
PLOTS_FOLDER = "plots"

_CONTENTS = (MATRICES_FILE, SKIPPED_FILE, SUMMARY_FILE, ARRAYS_FOLDER, PLOTS_FOLDER, RUN_FILE)


def claim_directory(path: str | os.PathLike, *, overwrite: bool = False) -> pathlib.Path:
    """Checks that a run may be written at `path`, before any work is done; removes an old run if told to.

    Raises:
        UsageError: `path` is a file, holds a run that may not be overwritten, or holds something else.
    """
    path = pathlib.Path(path).expanduser()
    try:
        _make_way(path, overwrite)
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"Output {path} cannot be made: {error.strerror}.") from error
    return path


def _make_way(path, overwrite):
    if path.exists() and not path.is_dir():
        raise UsageError(f"Output {path} is a file. Expected a new or empty folder.")
    if not path.is_dir() or not any(path.iterdir()):
        return
    if not (path / RUN_FILE).is_file():
        raise UsageError(f"Output {path} is not empty and is not a run of polarax. Nothing was written.")
    if not overwrite:
        raise UsageError(f"Output {path} already holds a run. Give another folder, or --overwrite it.")
    for name in _CONTENTS:
        if (path / name).is_dir():
            shutil.rmtree(path / name)
        else:
            (path / name).unlink(missing_ok=True)


class RunWriter:
    """Writes one run as it goes on. A crash at any point leaves every finished stack readable.

    Args:
        path: A folder that `claim_directory` returned.
        description: What run.json says of the run; JSON-ready.
        columns: Columns of matrices.csv.
        skipped: What is left out.

    Raises:
        RunError: The folder cannot be written, in any method.
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
        self._rows: list[tuple[int, dict]] = []
        with _writing(path):
            self._write_json(RUN_FILE, {**self._description, "state": "running"})
            _write_csv(path / SKIPPED_FILE, Skipped._fields, ([row.name, row.reason] for row in skipped))
            _write_csv(path / MATRICES_FILE, self._columns, [])

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
        with _writing(self.path):
            folder.mkdir(parents=True)
            for name, values in arrays.items():
                write_array(folder / name, values)
            self._write_json(folder.relative_to(self.path) / NAMES_FILE, [row["name"] for row in rows])
            with open(self.path / MATRICES_FILE, "a", newline="", encoding="utf-8") as file:
                csv.writer(file).writerows(self._cells(row) for row in rows)
        self._rows.extend(zip(places, map(dict, rows), strict=True))

    def finish(self, seconds: Mapping[str, float], summary: Mapping) -> None:
        """Puts the rows in model order, writes the summary and marks the run finished."""
        rows = [row for _, row in sorted(self._rows, key=lambda item: item[0])]
        with _writing(self.path):
            _write_csv(self.path / MATRICES_FILE, self._columns, map(self._cells, rows))
            self._write_json(SUMMARY_FILE, summary)
            self._write_json(RUN_FILE, {**self._description, "state": "finished", "seconds": dict(seconds)})

    def _cells(self, row):
        return [_cell(row.get(column)) for column in self._columns]

    def _write_json(self, name, content):
        _replace(self.path / name, json.dumps(jsonable(content), indent=1, allow_nan=False) + "\n")


class _writing:
    """Turns an OSError while writing below a folder (a full disk, say) into a RunError."""

    def __init__(self, path):
        self._path = path

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        if isinstance(error, OSError):
            raise RunError(f"Cannot write the run at {self._path}: {error.strerror or error}.") from error


def jsonable(content):
    """The same content with NumPy scalars as Python's and NaN or Inf, which JSON has not, as None."""
    if isinstance(content, Mapping):
        return {str(key): jsonable(value) for key, value in content.items()}
    if isinstance(content, (list, tuple)):
        return [jsonable(value) for value in content]
    if isinstance(content, np.generic):
        content = content.item()
    return None if isinstance(content, float) and not math.isfinite(content) else content


def _cell(value):
    """Text of a value that reads back exactly; nothing for None."""
    if value is None:
        return ""
    return repr(value) if isinstance(value, float) else str(value)


def _write_csv(path, header, rows):
    temporary = path.with_name(path.name + ".partial")
    with open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows(rows)
    os.replace(temporary, path)


def _replace(path, text):
    temporary = path.with_name(path.name + ".partial")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)
