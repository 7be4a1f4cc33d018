"""What one process has found of a run that several are at: a file for each piece of a stack, put whole or not at all.

parts/N/0003-1536x1536+4.npz    found by process N: of stack 0003 the matrices from the fifth on, all their runs

A file has the rows of each run as text and its arrays. Process 0 joins them into run directories that one process
would have written.
"""

import io
import json
import zipfile
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from polarax.errors import RunError
from polarax.planning.stacks import Stack
from polarax.results.directory import PARTS_FOLDER
from polarax.results.shelf import Shelf

_ROWS = "rows"


class Found(NamedTuple):
    """What was found of a piece for one run."""

    rows: list[dict[str, str]]  # column -> text, for each matrix
    arrays: dict[str, np.ndarray]  # name -> (matrices, ...)


class Parts:
    """The pieces that are there.

    Args:
        run: The folder of the run.
        process: The number of this process.
    """

    def __init__(self, run: Shelf, process: int):
        self._shelf, self._process = run.within(PARTS_FOLDER), process
        self._index: dict[tuple[str, str], tuple[str, int]] = {}  # (run, matrix) -> its file, and where in it
        self._open: dict[str, Mapping[str, Found]] = {}  # the file that was read last

    def put(self, piece: Stack, found: Mapping[str, Found]) -> None:
        """Keeps a piece; `found` is by the folder of each run.

        Raises:
            RunError: It cannot be written.
        """
        packed: dict[str, np.ndarray] = {}
        rows = {}
        for run, (of_run, arrays) in found.items():
            rows[run] = of_run
            packed |= {f"{run}|{name}": np.asarray(values) for name, values in arrays.items()}
        packed[_ROWS] = np.frombuffer(json.dumps(rows).encode(), np.uint8)
        file = io.BytesIO()
        np.savez(file, **packed)  # type: ignore[arg-type]  # of NumPy 2.3: a flag it has beside the arrays
        self._shelf.put(f"{self._process}/{piece.label}+{piece.start}.npz", file.getvalue())

    def look(self) -> None:
        """Finds all that is there, of whichever process.

        Raises:
            RunError: The folder cannot be read.
        """
        self._index.clear()
        for key in self._shelf.list():
            for run, found in self._read(key).items():
                for place, row in enumerate(found.rows):
                    self._index[run, row["name"]] = key, place

    @property
    def any(self) -> bool:
        """Whether `look` has found anything."""
        return bool(self._index)

    def has(self, run: str, name: str) -> bool:
        """Whether a matrix of a run is there."""
        return (run, name) in self._index

    def of(self, run: str, names: Sequence[str]) -> Found:
        """What was found of some matrices, in this order.

        Raises:
            RunError: It cannot be read any longer.
        """
        rows: list[dict[str, str]] = []
        arrays: dict[str, list[np.ndarray]] = {}
        for name in names:
            key, place = self._index[run, name]
            found = self._read(key)[run]
            rows.append(found.rows[place])
            for array, values in found.arrays.items():
                arrays.setdefault(array, []).append(values[place])
        return Found(rows, {array: np.stack(values) for array, values in arrays.items()})

    def clear(self) -> None:
        """Removes all: what was joined is kept elsewhere."""
        self._shelf.delete("")
        self._index.clear()
        self._open.clear()

    def _read(self, key):
        if key not in self._open:
            self._open = {key: self._unpacked(key)}
        return self._open[key]

    def _unpacked(self, key):
        data = self._shelf.get(key)
        try:
            with np.load(io.BytesIO(data or b""), allow_pickle=False) as packed:
                rows = json.loads(packed[_ROWS].tobytes())
                arrays = {name: packed[name] for name in packed.files if name != _ROWS}
        except (ValueError, OSError, KeyError, zipfile.BadZipFile) as error:
            raise RunError(f"{self._shelf.location}/{key} is not a part of a run: {error}. Remove it.") from error
        return {
            run: Found(of_run, {_array(name): values for name, values in arrays.items() if name.startswith(f"{run}|")})
            for run, of_run in rows.items()
        }


def _array(name: str) -> str:
    return name.rpartition("|")[2]
