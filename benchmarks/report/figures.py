"""Figures derived from records: peaks, rates and their share of the peak, ratios, totals, exponents."""

import statistics
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from benchmarks.cases import Record
from benchmarks.shapes import CONFIGS, distinct_shapes
from benchmarks.timing import Ratio, quartiles, ratio

# Points that a judged exponent needs: two always lie on a line.
_LEAST_POINTS = 3


class Fit(NamedTuple):
    """A power law fitted to times, time ~ size^exponent."""

    exponent: float
    last: float  # between the two largest sizes, where fixed costs weigh least
    spread: float  # standard deviation of log(time) about the line: 0.1 is about 10%
    points: int


class Total(NamedTuple):
    """Seconds of one layer of a model, added up over its shapes."""

    contestant: str
    seconds: float
    ratio: Ratio  # to polarax, over rounds of the sums
    measured: int  # matrices
    in_layer: int  # matrices the seconds stand for


class Verdict(NamedTuple):
    """A target of the project beside what was measured."""

    target: str
    wanted: str
    measured: str
    met: bool | None  # None if this run did not measure it


def of_suite(records: Sequence[Record], suite: str) -> list[Record]:
    """The records of a suite."""
    return [record for record in records if record["suite"] == suite]


def timed(records: Sequence[Record]) -> list[Record]:
    """The records that have times."""
    return [record for record in records if record.get("samples")]


def median_seconds(record: Record) -> float:
    """Seconds of the median round."""
    return statistics.median(record["samples"])


def spread(record: Record) -> float:
    """Interquartile range of the rounds over their median."""
    low, high = quartiles(record["samples"])
    return (high - low) / median_seconds(record)


def peaks(records: Sequence[Record]) -> dict[str, float]:
    """The floor: operand dtype -> operations per second, "bandwidth" -> bytes per second.

    The median of the fastest library and size counts.
    """
    best: dict[str, float] = {}
    for record in timed(of_suite(records, "floor")):
        what = record.get("operand", "bandwidth")
        amount = record.get("operations") or record.get("bytes") or 0.0
        best[what] = max(best.get(what, 0.0), amount / median_seconds(record))
    return best


def rate(record: Record) -> float | None:
    """Nominal operations per second."""
    return record["operations"] / median_seconds(record) if record.get("operations") else None


def share_of_peak(record: Record, peak: dict[str, float]) -> float | None:
    """The rate over the peak of products in the working dtype; None if either is unknown."""
    own, floor = rate(record), peak.get(record.get("dtype", ""))
    return own / floor if own and floor else None


def groups(records: Sequence[Record], key: str = "case") -> Iterator[tuple[str, list[Record]]]:
    """Records by the value of a key, in order of first appearance."""
    found: dict[str, list[Record]] = {}
    for record in records:
        found.setdefault(record.get(key, ""), []).append(record)
    yield from found.items()


def ratio_to_reference(record: Record, case: Sequence[Record]) -> Ratio | None:
    """How many times the time of the case's reference a record takes; None if either has no times."""
    reference = next((other for other in case if other.get("reference")), None)
    if reference is None or not record.get("samples") or not reference.get("samples"):
        return None
    if len(record["samples"]) != len(reference["samples"]):
        return None
    return ratio(record["samples"], reference["samples"])


def layer_totals(records: Sequence[Record]) -> dict[str, list[Total]]:
    """Model -> seconds of an average layer by contestant, from the pairs suite; polarax first.

    A stack that holds only part of a layer's matrices is scaled to all of them. Only contestants
    that have times at every shape are added up; a peer that was not timed for a shape because it
    would be the same program as another (the careful script) has the other's times there.
    """
    totals = {}
    pairs = [record for record in timed(of_suite(records, "pairs")) if "in_layer" in record]
    for model, of_model in groups(pairs, "model"):
        cases = [case for _, case in groups(of_model)]
        layers = len({record["layer"] for record in of_model})
        names = dict.fromkeys(record["contestant"] for record in of_model)
        sums = {name: _sum_over(cases, name, layers) for name in names}
        reference = next((name for name in names if _is_reference(of_model, name)), None)
        expected = layers * len(distinct_shapes(CONFIGS[model]))
        if reference is None or sums[reference] is None or len(cases) != expected:
            continue  # a case was left out: what is there is no layer
        against = sums[reference]
        totals[model] = [
            Total(name, statistics.median(own[0]), _ratio_of_sums(own[0], against[0]), *own[1:])
            for name, own in sums.items()
            if own is not None
        ]
    return totals


def fit_exponent(sizes: Sequence[float], seconds: Sequence[float]) -> Fit:
    """Fits time ~ size^exponent by least squares in log-log.

    Raises:
        ValueError: Fewer than two distinct sizes.
    """
    if len(set(sizes)) < 2:
        raise ValueError(f"An exponent needs two sizes at least. Got {list(sizes)}.")
    order = np.argsort(sizes)
    x, y = np.log(np.asarray(sizes, float)[order]), np.log(np.asarray(seconds, float)[order])
    slope, intercept = np.polyfit(x, y, 1)
    last = (y[-1] - y[-2]) / (x[-1] - x[-2]) if x[-1] > x[-2] else float("nan")
    residual = y - (slope * x + intercept)
    return Fit(float(slope), float(last), float(np.std(residual)), len(x))


def growth_series(records: Sequence[Record]) -> dict[tuple[str, str], list[tuple[int, float]]]:
    """("n" | "batch" | "devices", contestant) -> (size, median seconds), by size."""
    series: dict[tuple[str, str], list[tuple[int, float]]] = {}
    for record in timed(records):
        if record["suite"] == "growth":
            axis = "devices" if "devices" in record else "n"
        elif record["suite"] == "batch":
            axis = "batch"
        else:
            continue
        points = series.setdefault((axis, record["contestant"]), [])
        points.append((record["size"], median_seconds(record)))
    return {key: sorted(points) for key, points in series.items()}


def fits(records: Sequence[Record]) -> dict[tuple[str, str], Fit]:
    """The exponent of every series that has two sizes."""
    found = {}
    for key, points in growth_series(records).items():
        if len({size for size, _ in points}) >= 2:
            found[key] = fit_exponent(*zip(*points, strict=True))
    return found


def worst(records: Sequence[Record], key: str) -> tuple[float | None, str] | None:
    """The largest value of a key and its case; a value of None (not a number) is the worst.

    Returns None if no record has the key.
    """
    having = [record for record in records if key in record]
    if not having:
        return None
    missing = next((record for record in having if record[key] is None), None)
    record = missing or max(having, key=lambda record: record[key])
    return record[key], record.get("class") or record["case"]


def verdicts(records: Sequence[Record]) -> list[Verdict]:
    """The project's targets (ratios in one run) beside this run's figures."""
    found = []
    for what, script, wanted in (
        ("whole command against the torch script", "torch script", 1.6),
        ("whole command against the careful torch script", "torch careful script", 1.0),
        ("whole command against a careful torch script of every column", "torch full script", 1.4),
        ("whole command against the jnp script", "jnp script", 4.0),
    ):
        for case, in_case in groups(of_suite(records, "pairs")):
            if case.startswith("commands"):
                found += _speed(f"{what}, {case.removeprefix('commands ')}", in_case, script, wanted)
    for model, totals in layer_totals(records).items():
        for peer, wanted in (("torch", 3.0), ("torch careful", 2.0), ("jnp", 4.0)):
            for total in totals:
                if total.contestant == peer:
                    label = f"one layer against the {peer} script, warm, {model}"
                    found.append(_at_least(label, total.ratio.median, wanted))
    batches = of_suite(records, "batch")
    if len({record["count"] for record in batches}) > 1:
        largest = max(record["count"] for record in batches)
        in_case = [record for record in batches if record["count"] == largest]
        label = f"stack of {largest} against one at a time"
        found += _speed(label, in_case, "polarax one at a time", 3.0)
    for (axis, contestant), fit in fits(records).items():
        enough = fit.points >= _LEAST_POINTS
        if contestant.startswith("polarax") and axis != "devices" and enough:
            bound = 3.0 if axis == "n" else 1.0
            found.append(
                Verdict(
                    f"exponent of time in {axis}, {contestant}",
                    f"at most {bound:.1f}",
                    f"{fit.exponent:.2f}",
                    fit.exponent <= bound + 0.05,
                )
            )
    return found + _accuracy_verdicts(records) + _reading_verdicts(records)


# A whole run, and what it does at the same time.
_OVERLAP = ("polarax.compare", "polarax.compare, weights in memory", "reading alone")


def _reading_verdicts(records):
    found = []
    for case, in_case in groups(timed(of_suite(records, "reading"))):
        own = {record["contestant"]: record for record in in_case}
        if own.keys() >= {"plain sequential reads", "polarax"}:
            share = ratio(own["plain sequential reads"]["samples"], own["polarax"]["samples"]).median
            found.append(Verdict(case, "at least 80% of plain reads", f"{100 * share:.0f}%", share >= 0.8))
        if own.keys() >= set(_OVERLAP):
            whole, *alone = (own[name]["samples"] for name in _OVERLAP)
            over = statistics.median(mine / max(others) for mine, *others in zip(whole, *alone, strict=True))
            found.append(Verdict(case, "at most 1.1 x the longer one alone", f"{over:.2f} x", over <= 1.1))
        if case.startswith("plan"):
            taken = median_seconds(in_case[0])
            found.append(Verdict(case, "under 5 s", f"{taken:.1f} s", taken < 5))
        for record in in_case:
            if "idle_bytes" in record:
                share = (record["peak_bytes"] - record["idle_bytes"]) / record["budget_bytes"]
                found.append(Verdict(case, "at most 110% of the budget", f"{100 * share:.0f}%", share <= 1.1))
    return found


def _accuracy_verdicts(records):
    pairs = [
        record
        for record in of_suite(records, "accuracy")
        if record["what"] == "pair" and record["contestant"].startswith("polarax auto")
    ]
    default = "float64" if any(record["dtype"] == "float64" for record in pairs) else "float32"
    pairs = [record for record in pairs if record["dtype"] == default]
    found = []
    for contestant, own in groups(pairs, "contestant"):
        for key, label, bound in (
            ("target", "worst singular value over 1e-6 s + 1e-9 s_1", 1.0),
            ("nf_error", "worst relative error of nf", 1e-6),
        ):
            value = worst(own, key)
            if value is not None:
                measured = "not a number" if value[0] is None else f"{value[0]:.1e}"
                met = value[0] is not None and value[0] <= bound
                found.append(Verdict(f"{label}, {contestant}", f"at most {bound:g}", measured, met))
    return found


def _speed(label, in_case, peer, wanted):
    record = next((record for record in in_case if record["contestant"] == peer), None)
    measured = ratio_to_reference(record, in_case) if record else None
    return [_at_least(label, measured.median, wanted)] if measured else []


def _at_least(label, measured, wanted):
    return Verdict(label, f"{wanted:g}x faster", f"{measured:.2f}x", measured >= wanted)


def _is_reference(records, name):
    return any(record["reference"] for record in records if record["contestant"] == name)


def _sum_over(cases, name, layers):
    """Seconds by round, matrices measured, matrices stood for; None if a shape is missing."""
    sums, measured, stood_for = None, 0, 0
    for case in cases:
        record = next((record for record in case if record["contestant"] == name), None)
        if record is None and name == "torch careful":
            record = next((record for record in case if record["contestant"] == "torch"), None)
        if record is None:
            return None
        scale = record["in_layer"] / record["count"] / layers
        scaled = [scale * sample for sample in record["samples"]]
        # A race that ran out of time has fewer rounds; sums are over the rounds all have.
        sums = scaled if sums is None else [one + two for one, two in zip(sums, scaled)]  # noqa: B905
        measured += record["count"]
        stood_for += record["in_layer"]
    return None if sums is None else (sums, measured // layers, stood_for // layers)


def _ratio_of_sums(own, reference):
    rounds = min(len(own), len(reference))
    return ratio(own[:rounds], reference[:rounds])
