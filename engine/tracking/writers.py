"""Where the numbers go: one JSON object a line, for what has no writer of its own."""

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path

from polarax.errors import UsageError


class JsonlWriter:
    """Appends scalars to a file, one line a step, which is on disk when the call returns.

    A run that starts again appends to the same file; `read_jsonl` keeps the last line of each step.

    Example:
        >>> writer = JsonlWriter("spectra.jsonl")
        >>> writer.write(100, {"spectra/q/layer_00/nf": 0.25})
        >>> read_jsonl("spectra.jsonl")
        {100: {'spectra/q/layer_00/nf': 0.25}}
    """

    def __init__(self, path: str | os.PathLike):
        """Takes a file to append to, made with its folder if it is not there."""
        self._path = Path(path)
        self._path.parent.mkdir(parents=True, exist_ok=True)

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """Adds a line; NaN and infinity, which JSON lacks, become null. Writes nothing if there are no scalars."""
        if not scalars:
            return
        numbers = {name: float(value) if math.isfinite(value) else None for name, value in scalars.items()}
        with open(self._path, "a", encoding="utf-8") as file:
            file.write(json.dumps({"step": int(step), **numbers}) + "\n")


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
