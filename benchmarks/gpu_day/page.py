"""The page of a day: the targets, met or missed, and every number."""

from collections.abc import Iterable, Mapping
from typing import Any

Record = Mapping[str, Any]

# The targets: times over torch.linalg.svd of both matrices on the same device, and seconds for an 8B pair.
PAIR_TIMES, HEADLINES_TIMES, MODEL_SECONDS = 5.0, 30.0, 120.0
_LAYERS = 32
_SHAPES_OF_LAYER = 4


def page(records: Iterable[Record]) -> str:
    """The records of a day as Markdown."""
    records = list(records)
    return "\n".join(["# A day on a GPU", "", *_machine(records), *_targets(records), *_parts(records), ""])


def _machine(records):
    for record in records:
        if record["case"] == "device" and "error" not in record:
            size = record.get("memory_bytes")
            memory = f", {size / 2**30:.0f} GiB" if size else ""
            return [f"{record['device']} ({record['backend']}{memory}), JAX {record['jax']}.", ""]
    return ["The device is not known: its part did not run.", ""]


def _targets(records):
    """Each target with what was measured."""
    square = _largest_square(records)
    svd = _seconds(r for r in records if r["case"] == "torch.linalg.svd" and r["rows"] == r["cols"] == square)
    rows = ["## Targets", "", "| target | measured | |", "|---|---|---|"]
    whole = _seconds(r for r in records if r["case"] == "pair, everything")
    quickest = _seconds(r for r in records if r["case"].startswith("headlines by products"))
    for what, taken, wanted in (
        ("whole pair", whole, PAIR_TIMES),
        ("headlines by products", quickest, HEADLINES_TIMES),
    ):
        target = f"{what} of {square} x {square}: {wanted:g} times as fast as torch.linalg.svd of both"
        if svd is None or taken is None:
            rows.append(f"| {target} | not measured | |")
        else:
            times = 2 * svd / taken
            rows.append(f"| {target} | {taken:.3g} s against {2 * svd:.3g} s: {times:.3g} | {_met(times >= wanted)} |")
    layer = [r["seconds"] for r in records if r["case"] == "layer" and "seconds" in r]
    target = f"Llama-3.1-8B, everything: {MODEL_SECONDS:g} s of computing"
    if len(layer) < _SHAPES_OF_LAYER:
        rows.append(f"| {target} | not measured: {len(layer)} of {_SHAPES_OF_LAYER} shapes | |")
    else:
        total = _LAYERS * sum(layer)
        rows.append(
            f"| {target} | {sum(layer):.3g} s a layer, {total:.3g} s for {_LAYERS} | {_met(total <= MODEL_SECONDS)} |"
        )
    return [*rows, "", *_accuracy(records)]


def _accuracy(records):
    lines = []
    for record in records:
        if "expected" not in record or "readings" not in record:
            continue
        lines += [f"{record['case'].capitalize()}, {record['rows']} x {record['cols']}:", ""]
        lines += ["| reading | measured | float64 on the host | difference |", "|---|---:|---:|---:|"]
        for name, value in record["readings"].items():
            expected = record["expected"][name]
            lines.append(f"| `{name}` | {value:.8g} | {expected:.8g} | {value - expected:.1e} |")
        lines.append("")
    return ["## Accuracy", "", *lines] if lines else []


def _parts(records):
    lines = ["## Every number", ""]
    for part in dict.fromkeys(record["part"] for record in records):
        lines += [
            f"### {part}",
            "",
            "| case | size | seconds | first | compile | more |",
            "|---|---|---:|---:|---:|---|",
        ]
        lines += [_row(record) for record in records if record["part"] == part]
        lines.append("")
    return lines


_TIMES = ("seconds", "first", "compile")
_LEFT_OUT = {"part", "case", "rows", "cols", "n", "count", "runs", "expected", "readings", *_TIMES}


def _row(record):
    sides = (record.get("rows", record.get("n")), record.get("cols", record.get("n")))
    size = "" if sides[0] is None else f"{sides[0]} x {sides[1]}"
    count = f"{record['count']} of " if record.get("count", 1) > 1 else ""
    times = [f"{record[name]:.4g}" if name in record else "" for name in _TIMES]
    more = ", ".join(f"{name} {_short(value)}" for name, value in record.items() if name not in _LEFT_OUT)
    return "| " + " | ".join([record["case"], count + size, *times, more.replace("|", "/")]) + " |"


def _short(value):
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _largest_square(records):
    sides = [r["rows"] for r in records if r["case"] == "pair, everything" and "rows" in r]
    return sides[0] if sides else 4096


def _seconds(records):
    """The least of the seconds of some records; None if there are none."""
    return min((r["seconds"] for r in records if "seconds" in r and "error" not in r), default=None)


def _met(is_met):
    return "met" if is_met else "**missed**"
