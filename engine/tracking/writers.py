"""Where the numbers go: one JSON object a line, for what has no writer of its own."""

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

import jax

from polarax.errors import UsageError


class JsonlWriter:
    """Appends scalars to a file, one line a step, which is on disk when the call returns.

    A run that starts again appends to the same file, behind the last line that is whole; `read_jsonl` keeps the last
    line of each step. Every process of a
    run may make a writer and write: process 0 does, the others leave no trace. The file is open only while a line is
    added, so that there is nothing to flush or close.

    Example:
        >>> writer = JsonlWriter("spectra.jsonl")
        >>> writer.write(100, {"spectra/q/layer_00/nf": 0.25})
        >>> read_jsonl("spectra.jsonl")
        {100: {'spectra/q/layer_00/nf': 0.25}}
    """

    def __init__(self, path: str | os.PathLike, *, every_process: bool = False):
        """Takes a file to append to, made with its folder at the first line if it is not there.

        Args:
            path: The file.
            every_process: Write on every process, not on process 0 alone, for processes that each train a model of
                their own. Give each a path of its own.
        """
        self._path = Path(path)
        self._every_process = every_process
        self._begun = False

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """Adds a line; NaN and infinity, which JSON lacks, become null. Writes nothing if there are no scalars.

        Which process this is is asked here, when JAX has started: it may start after the writer is made.
        """
        if not scalars or not (self._every_process or jax.process_index() == 0):
            return
        self._path.parent.mkdir(parents=True, exist_ok=True)
        numbers = {name: float(value) if math.isfinite(value) else None for name, value in scalars.items()}
        with open(self._path, "ab+") as file:
            if not self._begun:
                _cut_unfinished_line(file)
                self._begun = True
            file.write((json.dumps({"step": int(step), **numbers}) + "\n").encode())


def _cut_unfinished_line(file: BinaryIO) -> None:
    """Leaves out what a process that was stopped had written of a line."""
    file.seek(0)
    file.truncate(file.read().rfind(b"\n") + 1)


def read_jsonl(path: str | os.PathLike) -> dict[int, dict[str, float]]:
    """What `JsonlWriter` wrote: step -> name -> number, NaN where it was not finite.

    Raises:
        UsageError: The file is not there, or a line of it cannot be read; a last line cut short is left out.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").split("\n")
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror}.") from error
    found = {}
    for number, line in enumerate(lines[:-1], start=1):  # what stands behind the last line break is unfinished
        try:
            row = json.loads(line)
            step = int(row.pop("step"))
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise UsageError(f"{path}: line {number} is no line of scalars.") from error
        found[step] = {name: math.nan if value is None else value for name, value in row.items()}
    return found
