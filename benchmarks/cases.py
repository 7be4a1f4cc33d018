"""A case: the smallest piece of a suite that is run, limited and reported by itself."""

import math
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from benchmarks.options import Options
from benchmarks.timing import Contestant, OutOfTime, Timing, race

Record = dict[str, Any]

# `time.monotonic()` after which races begin nothing more; set by the process that runs the cases.
deadline = math.inf


class Case(NamedTuple):
    """One case of a suite. What a suite returns for the same options is the same in every process."""

    label: str
    run: Callable[[], list[Record]]
    patience: float = 1.0  # times --limit, the seconds it may take before its process is ended


def raced(contestants: Sequence[Contestant], options: Options, **common: Any) -> list[Record]:
    """Races contestants and makes a record of each.

    Args:
        contestants: The first is the one that ratios are taken to.
        options: Rounds and their time.
        **common: What all records say: case, rows, cols, count, operations (floating-point,
            nominal).

    Returns:
        Records with `contestant`, `reference` (whether it is the first), what the contestant says of
        itself, and `compile_seconds`, `first_seconds`, `samples`, `calls`; or `error`; or
        `left_out`.
    """
    timings = race(
        contestants,
        repeats=options.repeats,
        seconds=options.race_seconds,
        limit=deadline - time.monotonic(),
    )
    return [
        {
            **common,
            **contestant.about,
            "contestant": contestant.name,
            "reference": contestant is contestants[0],
            **_outcome(timings[contestant.name]),
            **_memory(contestant),
        }
        for contestant in contestants
    ]


def one_line(error: BaseException) -> str:
    """An exception as one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:500]


def _outcome(timing: Timing | Exception) -> Record:
    if isinstance(timing, OutOfTime):
        return {"left_out": str(timing)}
    if isinstance(timing, Exception):
        return {"error": one_line(timing)}
    if not timing.samples:
        return {"left_out": f"first run {timing.first:.3g} s, then no time"}
    return {
        "compile_seconds": timing.compile,
        "first_seconds": timing.first,
        "samples": list(timing.samples),
        "calls": timing.calls,
    }


def _memory(contestant):
    memory = getattr(contestant.call, "memory", None)
    return memory() if memory is not None else {}
