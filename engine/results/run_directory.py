"""A run directory: what is in it, and how it is written while a run is at work.

run.json        inputs with fingerprints, flags, versions, device, state ("running" or "finished")
.lock           held by the process that writes the run
matrices.csv    one row per matrix; rows appear as their stack finishes, in model order once all have
skipped.csv     name, reason
layers.json     layers of the post that are other layers of the base; only where there are any
summary.json    model level
arrays/NNNN-MxN/  spectra and principal angles of one stack (zarr3), and names.json: which row is whose
plots/          pictures
report.html     the run as a page
closer/N/       of a first look: runs of full analyses of some of its matrices, whose rows replace those of matrices.csv

The directory of several posts holds such a directory for each: see `polarax.results.runs_directory`.
"""

import csv
import json
import pathlib
import shutil
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from polarax.loaders import Skipped
from polarax.metrics.look import FIRST, LOOK
from polarax.metrics.relation import MovedLayer
from polarax.planning.stacks import Stack
from polarax.results.arrays import write_array
from polarax.results.closer import with_full_rows
from polarax.results.directory import (
    ARRAYS_FOLDER,
    LAYERS_FILE,
    MATRICES_FILE,
    NAMES_FILE,
    SKIPPED_FILE,
    DirectoryWriter,
)
from polarax.results.files import cell, write_csv, write_json, writing
from polarax.results.remote.staging import share
from polarax.results.tables import Table, read_table


class RunWriter(DirectoryWriter):
    """Writes one run stack by stack. After a crash at any point every finished stack is readable and is not redone.

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
        self._columns = tuple(columns)
        self._rows: list[tuple[int, list[str]]] = []
        self._found: dict[str, list[str]] = {}
        self._skipped = tuple(skipped)
        super().__init__(path, description)

    def _begin(self) -> None:
        self._found = self._whole_rows()
        write_csv(self.path / SKIPPED_FILE, Skipped._fields, ([row.name, row.reason] for row in self._skipped))
        if not self._found:
            write_csv(self.path / MATRICES_FILE, self._columns, [])

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
                    share(folder)
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
            share(folder)
            write_json(folder / NAMES_FILE, [row["name"] for row in rows])
            with open(self.path / MATRICES_FILE, "a", newline="", encoding="utf-8") as file:
                csv.writer(file).writerows(map(self._cells, rows))
            share(self.path / MATRICES_FILE)
        self._rows.extend(zip(places, map(self._cells, rows), strict=True))

    def relate(self, relations: Mapping[str, str], layers: Sequence[MovedLayer], missing: Sequence[int]) -> None:
        """Writes what was found when all had been measured; the rows of these matrices are written again.

        Args:
            relations: Name of a matrix -> what it is to the base.
            layers: Layers that are other layers of the base.
            missing: Layers of the base that are nowhere in the post.
        """
        name, relation = (self._columns.index(column) for column in ("name", "relation"))
        for _, cells in self._rows:
            cells[relation] = relations.get(cells[name], cells[relation])
        with writing(self.path):
            if relations:
                write_csv(self.path / MATRICES_FILE, self._columns, (cells for _, cells in self._rows))
            if layers:
                moved = [layer._asdict() for layer in layers]
                write_json(self.path / LAYERS_FILE, {"moved": moved, "missing": list(missing)})

    def finish(self, seconds: Mapping[str, float], summary: Mapping) -> None:
        """Puts the rows in model order, writes the summary, marks the run as finished and releases the lock."""
        rows = [cells for _, cells in sorted(self._rows, key=lambda item: item[0])]
        table = with_full_rows(Table(self._columns, rows), self.path, self._description)
        with writing(self.path):
            write_csv(self.path / MATRICES_FILE, *table)
        self._finished(seconds, summary)

    def _cells(self, row):
        return [FIRST if column == LOOK else cell(row.get(column)) for column in self._columns]

    def _whole_rows(self):
        """Name -> cells of the rows that are there; of a first look some may have been replaced by full ones."""
        try:
            table = read_table(self.path / MATRICES_FILE)
        except FileNotFoundError:
            return {}
        if not (table.columns == self._columns or {LOOK, *self._columns} <= {*table.columns}):
            return {}
        return {row[0]: row for row in table.under(self._columns)}
