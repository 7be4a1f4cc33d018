"""Timing contestants against each other: compile time, first run and later runs told apart.

On a shared machine a time says less than a ratio taken in the same moment. Contestants therefore
take turns, every second round in reverse order, and a ratio is the median over rounds of the ratio
within a round.
"""

import contextlib
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

# Thread pools spin for a while after their work is done (OpenBLAS's for about 25 ms), on cores that the
# next contestant needs.
SETTLE_SECONDS = 0.05
# A sample spans at least this long, by calling a quick function several times: clocks tick in
# microseconds and interruptions take about a millisecond.
SAMPLE_SECONDS = 0.01
_MOST_CALLS = 1000


class Contestant(NamedTuple):
    """One way to do a piece of work."""

    name: str
    call: Callable[[], Any]  # does the work and returns when its result is there
    prepare: Callable[[], None] | None = None  # compiles; timed as compile time, before the first call
    about: Mapping[str, Any] = {}  # what the record says of it besides: dtype, method


class Timing(NamedTuple):
    """What one contestant took."""

    compile: float | None  # seconds; None where nothing is compiled ahead
    first: float  # seconds of the first call after that
    samples: tuple[float, ...]  # seconds per call, one for each round
    calls: int  # calls in each sample

    @property
    def median(self) -> float:
        """Seconds per call."""
        return statistics.median(self.samples)

    @property
    def spread(self) -> float:
        """Interquartile range over median; 0 for a single sample."""
        low, high = quartiles(self.samples)
        return (high - low) / self.median if self.median else 0.0


class OutOfTime(Exception):
    """A contestant was not begun for lack of time."""


class Ratio(NamedTuple):
    """How many times longer one contestant takes than another."""

    median: float
    low: float  # quartiles over the rounds
    high: float


def race(
    contestants: Sequence[Contestant],
    *,
    repeats: int,
    seconds: float = math.inf,
    limit: float = math.inf,
    clock: Callable[[], float] = time.perf_counter,
    sleep: Callable[[float], None] = time.sleep,
) -> dict[str, Timing | Exception]:
    """Runs contestants in turns.

    Args:
        contestants: Names must be distinct.
        repeats: Rounds, after the first call of each.
        seconds: No further round is begun when the rounds have taken this long together.
        limit: Seconds from the race's start in which it should end: nothing is begun after it, and no
            later call that, by its first one, would go on past it.
        clock: Seconds, monotonic.
        sleep: Waits for a number of seconds.

    Returns:
        Name -> its timing, or the exception it raised; who fails is out of the later rounds. Only
        whole rounds count; within the limit there may be none. `OutOfTime` for who was not begun.
    """
    began = clock()
    compiled: dict[str, float | None] = {}
    first: dict[str, float] = {}
    failed: dict[str, Exception] = {}
    samples: dict[str, list[float]] = {contestant.name: [] for contestant in contestants}
    if len(samples) < len(contestants):
        raise ValueError(f"Contestants need distinct names. Got {[c.name for c in contestants]}.")

    def timed(function, times=1):
        start = clock()
        for _ in range(times):
            function()
        return (clock() - start) / times

    def in_time(needed=0.0):
        return clock() - began + needed < limit

    for name, call, prepare, _ in contestants:
        with _failure_kept(failed, name):
            if not in_time():
                raise OutOfTime("left out: no time")
            compiled[name] = timed(prepare) if prepare else None
            sleep(SETTLE_SECONDS)
            first[name] = timed(call)
    calls = {name: _calls_needed(taken) for name, taken in first.items()}
    start = clock()
    for turn in range(repeats):
        for name, call, *_ in contestants if turn % 2 == 0 else reversed(contestants):
            if name not in failed and in_time(first[name] * calls[name]):
                with _failure_kept(failed, name):
                    sleep(SETTLE_SECONDS)
                    samples[name].append(timed(call, calls[name]))
        if clock() - start >= seconds or not in_time():
            break
    rounds = min((len(taken) for name, taken in samples.items() if name not in failed), default=0)
    timings = {
        name: Timing(compiled[name], first[name], tuple(samples[name][:rounds]), calls[name])
        for name in samples
        if name not in failed
    }
    return {name: timings.get(name) or failed[name] for name in samples}


def ratio(samples: Sequence[float], reference: Sequence[float]) -> Ratio:
    """How many times the reference's time the samples take, round by round.

    Raises:
        ValueError: The two were not measured in the same rounds.
    """
    if len(samples) != len(reference) or not samples:
        raise ValueError(f"Expected samples of the same rounds. Got {len(samples)}, {len(reference)}.")
    ratios = [mine / theirs for mine, theirs in zip(samples, reference, strict=True)]
    return Ratio(statistics.median(ratios), *quartiles(ratios))


def quartiles(samples: Sequence[float]) -> tuple[float, float]:
    """Lower and upper quartile, by linear interpolation within the samples."""
    if len(samples) < 2:
        return samples[0], samples[0]
    low, _, high = statistics.quantiles(samples, n=4, method="inclusive")
    return low, high


@contextlib.contextmanager
def _failure_kept(failed, name):
    try:
        yield
    except Exception as error:  # a peer that fails must not take the others' figures along
        failed[name] = error


def _calls_needed(seconds):
    if seconds <= 0:
        return _MOST_CALLS
    return max(1, min(_MOST_CALLS, math.ceil(SAMPLE_SECONDS / seconds)))
