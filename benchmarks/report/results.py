"""Results on disk: one JSON file that holds everything a page or a comparison is made of."""

import dataclasses
import json
import math
import os
import pathlib
from collections.abc import Sequence
from typing import Any

from benchmarks.cases import Record
from benchmarks.steps import Problem

RESULTS_FILE = "results.json"
# Raised when a reader of older files would misread newer ones.
FORMAT = 1


class ResultsError(ValueError):
    """A file that is not a results file; the message is one line."""


@dataclasses.dataclass(frozen=True)
class Results:
    """One run of the benchmarks."""

    command: str  # as it was typed, without paths
    started: str  # UTC, ISO 8601
    seconds: float  # of the whole run
    options: dict[str, Any]
    environment: dict[str, Any]
    load: tuple[float | None, float | None]  # load average before and after
    records: tuple[Record, ...]
    problems: tuple[Problem, ...]


def gathered(records: Sequence[Record]) -> tuple[Record, ...]:
    """Records as they read back from JSON: numbers that are not finite become None."""
    return tuple(json.loads(json.dumps(_finite(record))) for record in records)


def write(results: Results, folder: pathlib.Path) -> pathlib.Path:
    """Writes results.json and returns its path."""
    path = folder / RESULTS_FILE
    content = {"format": FORMAT, **dataclasses.asdict(results)}
    content["problems"] = [problem._asdict() for problem in results.problems]
    content = _finite(content)
    path.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    return path


def read(path: str | os.PathLike) -> Results:
    """Reads a results file.

    Raises:
        ResultsError: There is none, or it is something else.
    """
    try:
        content = json.loads(pathlib.Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ResultsError(f"{path} cannot be read: {error.strerror}.") from error
    except ValueError as error:
        raise ResultsError(f"{path} is not JSON: {error}.") from error
    if not isinstance(content, dict) or "records" not in content:
        raise ResultsError(f"{path} is not a results file of the benchmarks.")
    if content.pop("format", None) != FORMAT:
        raise ResultsError(f"{path} is of another format. Expected format {FORMAT}.")
    try:
        content["problems"] = tuple(Problem(**problem) for problem in content["problems"])
        content["records"] = tuple(content["records"])
        content["load"] = tuple(content["load"])
        return Results(**content)
    except (TypeError, KeyError) as error:
        raise ResultsError(f"{path} is not a results file of the benchmarks: {error}.") from error


def _finite(value):
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(content) for key, content in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(content) for content in value]
    return value
