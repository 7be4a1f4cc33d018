"""The folder of a run, of one post or of several: how it is claimed, locked and marked as running or finished."""

import json
import os
import pathlib
import shutil
from collections.abc import Container, Mapping
from typing import Any

from polarax.errors import UsageError
from polarax.results.files import LOCK_FILE, PARTIAL, jsonable, locked, write_json, writing
from polarax.results.remote.staging import location_of, share

RUN_FILE = "run.json"
MATRICES_FILE = "matrices.csv"
SKIPPED_FILE = "skipped.csv"
SUMMARY_FILE = "summary.json"
LAYERS_FILE = "layers.json"
ARRAYS_FOLDER = "arrays"
NAMES_FILE = "names.json"
PLOTS_FOLDER = "plots"
REPORT_FILE = "report.html"
# Of several posts: against each other.
BETWEEN_FOLDER = "between"
BETWEEN_FILE = "between.csv"
# Of a run that several processes are at: what each has found, and who of them is starting.
PARTS_FOLDER = "parts"
PROCESSES_FOLDER = "processes"
# Of a first look: the full analyses of some of its matrices, numbered.
CLOSER_FOLDER = "closer"

CONTENTS = (
    MATRICES_FILE, BETWEEN_FILE, SKIPPED_FILE, SUMMARY_FILE, LAYERS_FILE,
    ARRAYS_FOLDER, PLOTS_FOLDER, REPORT_FILE, PARTS_FOLDER, PROCESSES_FOLDER, RUN_FILE,
)  # fmt: skip
# What a run leaves that ended before it had a run.json, or while it replaced a file.
LEFTOVERS = frozenset({LOCK_FILE, PROCESSES_FOLDER, *(name + PARTIAL for name in CONTENTS)})


def claim_directory(
    path: str | os.PathLike, description: Mapping | None = None, *, overwrite: bool = False
) -> pathlib.Path:
    """Checks that a run may be written at `path`, before any work is done; removes an old run if told to.

    Args:
        path: A new or empty folder, or that of a run to resume.
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
        raise UsageError(f"Output {location_of(path)} cannot be made: {error.strerror}.") from error
    return path


def _make_way(path, description, overwrite):
    if path.exists() and not path.is_dir():
        raise UsageError(f"Output {location_of(path)} is a file. Expected a new or empty folder.")
    if not path.is_dir() or all(entry.name in LEFTOVERS for entry in path.iterdir()):
        return
    if not (path / RUN_FILE).is_file():
        raise UsageError(f"Output {location_of(path)} is not empty and is not a run of polarax. Nothing was written.")
    if not overwrite:
        differs = differences(path, description)
        if differs:
            raise another_run(path, differs)
        return
    with locked(path):
        for name in (*_runs_within(path), *CONTENTS):
            if (path / name).is_dir():
                shutil.rmtree(path / name)
            else:
                (path / name).unlink(missing_ok=True)
            share(path / name)


def another_run(path: pathlib.Path, differs: str) -> UsageError:
    """The error of a folder that holds another run, with what differs."""
    return UsageError(
        f"Output {location_of(path)} holds a run of something else: {differs}. Give another folder, or --overwrite it."
    )


def is_first_look(description: Mapping) -> bool:
    """Whether a run.json is that of a first look."""
    flags = description.get("flags")
    return isinstance(flags, Mapping) and bool(flags.get("quick"))


def read_run_file(path: pathlib.Path) -> dict:
    """What the run.json in a folder says; nothing where there is none, or none that can be read."""
    try:
        description = json.loads((path / RUN_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return description if isinstance(description, dict) else {}


def _runs_within(path):
    """Folders of the runs in the directory of several posts, and of those that continue a first look."""
    labels, others = folders_within(read_run_file(path))
    return [*(label for label in labels if (path / label / RUN_FILE).is_file()), *others]


def folders_within(description: Mapping) -> tuple[list[str], list[str]]:
    """Folders that may be in that of a run: those of its posts, each with a run of its own, and those of other runs."""
    try:
        labels = [label for label in description.get("posts", ()) if pathlib.PurePath(label).name == label != ".."]
        return labels, [BETWEEN_FOLDER, *[CLOSER_FOLDER] * is_first_look(description)]
    except (AttributeError, TypeError):
        return [], []


def differences(path: pathlib.Path, description: Mapping | None, but: Container[str] = ()) -> str:
    """In words, what a run that is there was asked for that differs from what is asked now; "" if nothing does.

    Args:
        path: Of the run.
        description: What its run.json would say now.
        but: Flags that may differ.
    """
    try:
        there = asked(json.loads((path / RUN_FILE).read_text(encoding="utf-8")), but)
    except (ValueError, AttributeError):
        return f"its {RUN_FILE} cannot be read"
    now = asked(jsonable(description or {}), but)
    return "; ".join(
        f"{what} was {there.get(what)}, is {now.get(what)}" for what in now | there if there.get(what) != now.get(what)
    )


def asked(description: Mapping, but: Container[str] = ()) -> dict[str, Any]:
    """Name -> value of all that the numbers of a run depend on, some flags left out."""
    environment = description.get("environment", {})
    return {
        **{f"fingerprint of {side}": description.get(side, {}).get("fingerprint") for side in ("base", "post")},
        **{f"fingerprint of {label}": post.get("fingerprint") for label, post in description.get("posts", {}).items()},
        "posts": ", ".join(description.get("posts", ())),
        **{f"--{flag}": value for flag, value in description.get("flags", {}).items() if flag not in but},
        **{package: environment.get("versions", {}).get(package) for package in ("polarax", "jax")},
        "backend": environment.get("backend"),
    }


class DirectoryWriter:
    """Holds a folder while a run is written into it.

    Args:
        path: A folder that `claim_directory` returned.
        description: What run.json says of the run; JSON-ready. Of a run that is resumed, `started` stays.

    Raises:
        RunError: The folder cannot be written, in any method, or another process writes it.
    """

    def __init__(self, path: pathlib.Path, description: Mapping):
        self.path, self._description = path, dict(description)
        with writing(path):
            self._lock = locked(path)
            try:
                if (path / RUN_FILE).is_file():
                    before = json.loads((path / RUN_FILE).read_text(encoding="utf-8"))
                    self._description["started"] = before.get("started", self._description.get("started"))
                self._write_state("running")
                self._begin()
            except BaseException:
                self.close()
                raise

    def close(self) -> None:
        """Releases the lock; another process may resume the run."""
        self._lock.close()

    def _begin(self) -> None:
        """Writes what a run begins with, under its lock."""

    def _finished(self, seconds: Mapping[str, float], summary: Mapping) -> None:
        """Writes the summary, marks the run as finished and releases the lock."""
        write_summary(self.path, summary)
        with writing(self.path):
            self._write_state("finished", seconds=dict(seconds))
        self.close()

    def _write_state(self, state: str, **more: Mapping) -> None:
        write_json(self.path / RUN_FILE, {**self._description, "state": state, **more})


def write_summary(path: pathlib.Path, summary: Mapping) -> None:
    """Writes the summary of a run.

    Raises:
        RunError: The file cannot be written.
    """
    with writing(path):
        write_json(path / SUMMARY_FILE, summary)
