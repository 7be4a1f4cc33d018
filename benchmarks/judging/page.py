"""The results as a page: what was named of pure noise, and from which size on planted effects are."""

import collections
from collections.abc import Sequence
from typing import Any

from benchmarks.judging.judge import merged, spread
from benchmarks.judging.noise import KINDS
from benchmarks.judging.picture import curves
from benchmarks.judging.plants import PLANTS
from benchmarks.steps import Problem

# Of what was named wrongly of one kind of noise.
_SHOWN = 5


def page(records: Sequence[dict[str, Any]], problems: Sequence[Problem]) -> str:
    """The page as Markdown."""
    alarms = [record for record in records if record["part"] == "false_alarms"]
    planted = [record for record in records if record["part"] == "power"]
    parts = [*(_false_alarms(alarms) if alarms else []), *(_power(planted) if planted else [])]
    if problems:
        parts += ["## Not measured", *(f"- {p.suite}: {p.case}: {p.what}" for p in problems)]
    return "\n".join(parts) + "\n"


def by_kind(records: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Kind of noise -> what was counted of all its batches."""
    return {
        kind: merged(batches) for kind in KINDS if (batches := [record for record in records if record["kind"] == kind])
    }


def _false_alarms(records):
    kinds = by_kind(records)
    yield "## False alarms"
    yield ""
    yield "| noise | matrices | judged | named wrongly | named |"
    yield "|---|---:|---:|---:|---|"
    for kind, found in kinds.items():
        said = [f"{count} {name}" for name, count in {**found["named"], **found["relations"]}.items()]
        if found["signature"]:
            said.append(f"{found['signature']} distinct output projections")
        yield (f"| {kind} | {found['matrices']} | {found['judged']} | {found['wrongly']} | {', '.join(said)} |")
    for field, title in (
        ("z", "Distances from the control in its standard deviations: spread, largest (how many beyond 6)"),
        ("beyond", "Outside of what the reading takes for chance: spread, largest (how many beyond 6)"),
    ):
        metrics = list(dict.fromkeys(name for found in kinds.values() for name in found[field]))
        yield ""
        yield f"### {title}"
        yield ""
        yield f"| noise | {' | '.join(metrics)} |"
        yield f"|---|{'---:|' * len(metrics)}"
        for kind, found in kinds.items():
            yield f"| {kind} | {' | '.join(_cell(found[field].get(name)) for name in metrics)} |"
    shown = [(kind, alarm) for kind, found in kinds.items() for alarm in found["alarms"][:_SHOWN]]
    if shown:
        yield ""
        yield "### What was named"
        yield ""
    for kind, alarm in shown:
        numbers = ", ".join(
            f"{name} {alarm[name]:.4g}"
            for name in ("value", "control", "control_std", "z")
            if alarm.get(name) is not None
        )
        yield f"- {kind}: {alarm['about']}: {alarm['kind']} ({alarm['metric']}: {numbers})"
    yield ""


def _power(records):
    yield "## Power"
    for plant in PLANTS.values():
        found = curves(records, plant)
        if not found:
            continue
        yield ""
        yield f"### {plant.name.capitalize()}: share named {plant.told}, over: {plant.axis}"
        yield ""
        yield f"| | {' | '.join(f'{size:.3g}' for size in plant.sizes)} |"
        yield f"|---|{'---:|' * len(plant.sizes)}"
        for (r, line), points in found.items():
            shares = {size: share for size, share, _ in points}
            cells = [f"{shares[size]:.0%}" if size in shares else "" for size in plant.sizes]
            yield f"| r {r}, {plant.line.format(line)} | {' | '.join(cells)} |"
        others: collections.Counter[str] = collections.Counter()
        matrices = 0
        for record in records:
            if record["plant"] == plant.name:
                matrices += record["matrices"]
                others.update({kind: count for kind, count in record["named"].items() if kind != plant.told})
        if others:
            yield ""
            yield f"Named otherwise, of {matrices}: {', '.join(f'{count} {kind}' for kind, count in others.items())}."
    yield ""


def _cell(sums):
    if sums is None:
        return ""
    far = f" ({sums['far']})" if sums["far"] else ""
    return f"{spread(sums)[1]:.2f}, {sums['largest']:.1f}{far}"
