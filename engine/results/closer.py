"""Full analyses of some matrices of a first look: where they are, and how their rows and arrays take its place.

They are ordinary runs in numbered folders within that of the first look, so whatever interrupts one, both are as whole
as any interrupted run. Of several posts, such a folder has one for each post again. Nothing else says that they are
there: what a first look shows is put together from both whenever it is read.
"""

import contextlib
import os
import pathlib
from collections.abc import Mapping

from polarax.errors import UsageError
from polarax.results.directory import (
    CLOSER_FOLDER,
    MATRICES_FILE,
    RUN_FILE,
    SKIPPED_FILE,
    another_run,
    differences,
    is_first_look,
    read_run_file,
)
from polarax.results.files import write_csv, writing
from polarax.results.remote.staging import location_of
from polarax.results.tables import Table, laid_over, read_table

# What a full analysis may be asked for otherwise than the first look.
_FREE = frozenset(
    {"quick", "include", "exclude", "roles", "layers", "metrics", "top_k", "dtype", "method", "memory_gib",
     "control_draws", "seed"}
)  # fmt: skip
_NOT_SELECTED = "not selected by"
_SIDES = ("base", "post")


def closer_folder(path: str | os.PathLike, description: Mapping) -> pathlib.Path | None:
    """Where a full analysis is written of matrices that the run at `path` has had a first look at.

    Args:
        path: The folder that was given for the run.
        description: What its run.json would say.

    Returns:
        A folder within: that of the same analysis if it was begun before. None where there is no first look, or the
        run is to be one itself.

    Raises:
        UsageError: The first look was at something else.
    """
    path = pathlib.Path(path).expanduser()
    if is_first_look(description) or not is_first_look(read_run_file(path)):
        return None
    differs = differences(path, description, but=_FREE)
    if differs:
        raise another_run(path, differs)
    begun = dict(_numbered(path))
    for folder in begun.values():
        if not (folder / RUN_FILE).is_file() or not differences(folder, description):
            return folder
    return path / CLOSER_FOLDER / str(max(begun, default=0) + 1)


def check_within(path: pathlib.Path, names: Mapping[str, tuple[str, ...]]) -> None:
    """Checks that a full analysis asks for nothing that the first look was not to look at.

    Args:
        path: Folder of the first look.
        names: Folder within it -> the matrices that are asked for there.

    Raises:
        UsageError: It does.
    """
    for within, wanted in names.items():
        with contextlib.suppress(FileNotFoundError):
            skipped = dict(read_table(path / within / SKIPPED_FILE).rows)
            for name in wanted:
                if skipped.get(name, "").startswith(_NOT_SELECTED):
                    raise UsageError(
                        f"Output {location_of(path)} holds a first look without {name!r}. "
                        "Give another folder, or fewer matrices."
                    )


def full_runs(path: pathlib.Path, description: Mapping) -> list[tuple[pathlib.Path, Table]]:
    """The full analyses that continue a first look, each with its table, in the order in which they take its place.

    Of two that have the same matrix the one with more columns counts, and of equals the later one.

    Args:
        path: Folder of a run; that of one post, or of two of them, may be within that of several.
        description: What its run.json says.
    """
    if not is_first_look(description):
        return []
    runs = []
    for above in (path, *path.parents[:3]):
        for _, folder in _numbered(above):
            within = folder / path.relative_to(above)
            if _same_sides(read_run_file(within), description):
                with contextlib.suppress(FileNotFoundError):
                    runs.append((within, read_table(within / MATRICES_FILE)))
        if runs:
            break
    return sorted(runs, key=lambda run: len(run[1].columns))


def with_full_rows(table: Table, path: pathlib.Path, description: Mapping) -> Table:
    """The table of a first look with the rows of the full analyses in place of its own. Arguments: `full_runs`."""
    return laid_over(table, [full for _, full in full_runs(path, description)])


def table_of(path: pathlib.Path, description: Mapping) -> Table:
    """The table of a run, with the rows of the full analyses in place of a first look's. Arguments: `full_runs`.

    Raises:
        FileNotFoundError: There is neither.
    """
    full = [table for _, table in full_runs(path, description)]
    try:
        table = read_table(path / MATRICES_FILE)
    except FileNotFoundError:  # of a first look that was killed before it had a table
        if not any(one.rows for one in full):
            raise
        table = Table((), [])
    return laid_over(table, full)


def write_full_rows(path: pathlib.Path, description: Mapping) -> None:
    """Puts the rows of the full analyses into the matrices.csv of a first look. Arguments: `full_runs`.

    Raises:
        RunError: The file cannot be written.
    """
    with writing(path):
        write_csv(path / MATRICES_FILE, *table_of(path, description))


def _numbered(path):
    """(number, folder) of the full analyses in the folder of a first look."""
    found = [entry for entry in (path / CLOSER_FOLDER).glob("*") if entry.name.isdecimal()]
    return sorted((int(entry.name), entry) for entry in found)


def _same_sides(description, other):
    fingerprints = [[(one.get(side) or {}).get("fingerprint") for side in _SIDES] for one in (description, other)]
    return None not in fingerprints[0] and fingerprints[0] == fingerprints[1]
