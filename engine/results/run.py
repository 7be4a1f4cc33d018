"""A finished or interrupted run, read from its directory."""

import functools
import json
import os
import pathlib
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from polarax.errors import UsageError
from polarax.metrics import TEXT_COLUMNS
from polarax.results.arrays import read_array
from polarax.results.closer import full_runs, table_of
from polarax.results.described import Described
from polarax.results.directory import (
    ARRAYS_FOLDER,
    LAYERS_FILE,
    NAMES_FILE,
    RUN_FILE,
    SKIPPED_FILE,
    read_run_file,
)
from polarax.results.remote.staging import location_of
from polarax.results.remote.transfer import local_run

if TYPE_CHECKING:
    import pandas as pd

    from polarax.findings.closer import Closer
    from polarax.report.notebook import RunPlots

_INTEGER = re.compile(r"-?[0-9]+")


class Run(Described):
    """What a comparison found.

    Example:
        >>> import numpy as np, polarax
        >>> w = np.random.default_rng(0).normal(size=(8, 4)).astype("float32")
        >>> run = polarax.compare({"q": w}, {"q": 1.1 * w}, progress=False)
        >>> round(float(run.frame().alpha[0]), 6)
        1.1
    """

    @classmethod
    def open(cls, path: str | os.PathLike) -> "Run":
        """Opens a run directory, at a path or in a bucket (`gs://`, `s3://`), from which it is fetched.

        Raises:
            UsageError: There is no run at `path`, or it cannot be read.
        """
        path, staging = local_run(path)
        if not (path / RUN_FILE).is_file():
            what = "is not a run of polarax (it has no run.json)" if path.exists() else "does not exist"
            raise UsageError(f"Run {location_of(path)} {what}.")
        run = cls(path, staging)
        if not isinstance(run.description, dict):
            raise UsageError(f"Run {run.location} has a {RUN_FILE} that is not an object.")
        if "posts" in run.description:
            raise UsageError(
                f"Run {run.location} is of several posts: open it with polarax.Runs.open, or one of its folders."
            )
        return run

    def frame(self) -> "pd.DataFrame":
        """One row per matrix measured so far, columns as in docs/definitions.md; numbers as they were computed."""
        import pandas as pd

        columns, rows = table_of(self.path, self.description)
        cells = zip(*rows, strict=True) if rows else [()] * len(columns)
        return pd.DataFrame({column: _typed(column, values) for column, values in zip(columns, cells, strict=True)})

    def skipped(self) -> "pd.DataFrame":
        """name and reason of every tensor that was not compared."""
        import pandas as pd

        return pd.read_csv(self.path / SKIPPED_FILE, dtype=str, keep_default_na=False)

    def moved_layers(self) -> dict:
        """moved: layers of the post that are other layers of the base, with `post`, `base`, `matrices` and `drift`.

        missing: layers of the base that are in no layer of the post. Both are empty where no layer has moved.
        """
        path = self.path / LAYERS_FILE
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {"moved": [], "missing": []}

    def spectra(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """(s_base, s_post) of one matrix, float64, (r,), descending.

        Raises:
            KeyError: No matrix of this name has been measured.
        """
        return self.array(name, "s_base"), self.array(name, "s_post")

    def array(self, name: str, kind: str) -> np.ndarray:
        """One matrix's array, float64: "s_base", "s_post", "s_change", "cosines_left" and so on.

        docs/run_directory.md lists them with their shapes.

        Raises:
            KeyError: No matrix of this name has been measured, or the run has no such array.
        """
        try:
            stack, row = self._rows[name]
        except KeyError:
            raise KeyError(f"No matrix {name!r} in the run at {self.location}.") from None
        if not (stack / kind).is_dir():
            raise KeyError(f"The run at {self.location} has no array {kind!r} for {name!r}.")
        return read_array(stack / kind, row).astype(np.float64)

    def arrays(self, kind: str) -> Iterator[tuple[str, np.ndarray]]:
        """(name, array) of every matrix that has this array, stack by stack; float64.

        Much faster than `array` for each name: a stack is read once.
        """
        of_stack: dict[pathlib.Path, list[tuple[str, int]]] = {}
        for name, (stack, row) in self._rows.items():
            of_stack.setdefault(stack, []).append((name, row))
        for stack, members in of_stack.items():
            if (stack / kind).is_dir():
                rows = read_array(stack / kind).astype(np.float64)
                yield from ((name, rows[row]) for name, row in members)

    def summary(self) -> dict:
        """Model level: per role every headline number beside its control, and what stands out in plain words."""
        from polarax.findings.summary import summarise

        return summarise(self.frame(), self.skipped(), self.draws, self.moved_layers(), self.coverage, self.top_k)

    def closer(self) -> "Closer":
        """Which matrices of a first look stand out and were not analysed in full, and the command that does it.

        `closer().include` selects them: `polarax.compare(base, post, out=run.location, include=run.closer().include)`.
        """
        from polarax.findings.closer import find_closer

        return find_closer([self.frame()], self.draws, *self.first_command)

    @property
    def top_k(self) -> int:
        """Leading singular values and vectors that were asked for; 0 if that is not known."""
        return self.description.get("flags", {}).get("top_k") or 0

    @property
    def draws(self) -> int:
        """How many draws the sampled controls are made of, 0 if there are none; of those of several runs the fewest."""
        folders = [folder for folder, _ in full_runs(self.path, self.description)]
        descriptions = [self.description, *map(read_run_file, folders)]
        draws = (one.get("flags", {}).get("control_draws") or 0 for one in descriptions)
        return min(filter(None, draws), default=0)

    @property
    def coverage(self) -> dict | None:
        """How much of either model was compared, and what was left out; None of a run that was written without.

        base, post: tensors and weights (numbers) in all and of those compared, and `left_out`, by kind of reason;
        matched_by: how many matrices were matched in which way; notes: what is remarkable of the two.
        """
        return self.description.get("coverage")

    def account(self) -> tuple[str, ...]:
        """What was compared and what happened to the rest: the lines before the table of the command line."""
        from polarax.findings.coverage import account

        return account(self.coverage)

    @functools.cached_property
    def _rows(self) -> dict[str, tuple[pathlib.Path, int]]:
        """Name -> the folder of its stack, and its place there."""
        rows = _rows_of(self.path)
        for folder, _ in full_runs(self.path, self.description):
            full = _rows_of(folder)
            rows = {name: place for name, place in rows.items() if name not in full} | full
        return rows

    @property
    def plot(self) -> "RunPlots":
        """Pictures as matplotlib figures: `run.plot.nf()`, `run.plot.scaling(role="q")` and so on."""
        from polarax.report.notebook import RunPlots

        return RunPlots(self)

    def _repr_html_(self) -> str:
        from polarax.report.notebook import run_html

        return run_html(self)

    def __repr__(self) -> str:
        state = "finished" if self.finished else "interrupted"
        return f"<polarax.Run {self.location!r}, {len(self._rows)} matrices, {state}>"


def _rows_of(path):
    """Name -> the folder of its stack, and its place there, of one run directory."""
    return {
        name: (names.parent, row)
        for names in sorted((path / ARRAYS_FOLDER).glob(f"*/{NAMES_FILE}"))
        for row, name in enumerate(json.loads(names.read_text(encoding="utf-8")))
    }


def _typed(column, cells):
    """The values of a column of matrices.csv. Names and roles may well read "nan" or "NA"."""
    import pandas as pd

    if column in ("layer", "expert"):
        return pd.array([int(cell) if cell else pd.NA for cell in cells], dtype="Int64")
    if column in TEXT_COLUMNS:
        return pd.Series(cells, dtype=str)
    if cells and all(map(_INTEGER.fullmatch, cells)):
        return np.array(cells, dtype=np.int64)
    return np.array([float(cell or "nan") for cell in cells], dtype=np.float64)
