"""Power: how many matrices with a planted effect are named for it, by its size, the change around it, and r."""

import numpy as np

from benchmarks.cases import Case, Record
from benchmarks.judging import judge, plants
from benchmarks.judging.noise import Trial
from benchmarks.judging.request import Request
from benchmarks.judging.spectra import subjects

# r -> how many seeds are in a case. At the largest only the middle line is measured: it takes minutes.
_SEEDS_OF_CASE = {64: 100, 256: 50, 768: 20}
_ALL_LINES_UP_TO = 256


def cases(request: Request) -> list[Case]:
    """A case for each effect, line, r and some seeds; the smallest matrices first."""
    planned = [
        (plant, line, r, start, min(length, request.seeds - start))
        for r, length in _SEEDS_OF_CASE.items()
        for start in range(0, request.seeds, length)
        for plant in plants.PLANTS.values()
        for line in (plant.lines if r <= _ALL_LINES_UP_TO else plant.lines[1:2])
    ]
    labelled = [
        (f"{plant.name}, {plant.line.format(line)}, r {r}, {count} seeds from {start}", plant, line, r, start, count)
        for plant, line, r, start, count in planned
    ]
    return [
        Case(label, lambda label=label, about=about: _run(request, label, *about))
        for label, *about in labelled
        if label not in request.done
    ]


def _run(request, label, plant, line, r, start, count) -> list[Record]:
    square = [subject for subject in subjects(request.pairs, request.material) if subject.square]
    # Whatever the effect: the same bases and backgrounds.
    rng = np.random.default_rng([request.seed, r, start])
    chosen = [square[i % len(square)] for i in rng.integers(len(square), size=count)]
    stage = plants.stage(chosen, r, rng)
    base, records = stage.base, []
    for size in plant.sizes:
        post = base + plant.change(stage, size, line)
        sides = zip(base.astype(np.float32), post.astype(np.float32), chosen, strict=True)
        trials = [Trial(*pair, f"{subject.name}, {plant.name} {size:g}") for *pair, subject in sides]
        found = judge.judge(trials, expected=(plant.told,))
        kept = {name: found[name] for name in ("matrices", "judged", "named", "wrongly", "alarms")}
        about = {"part": "power", "plant": plant.name, "line": line, "r": r, "size": size}
        records.append({"label": label, **about, "told": found["named"].get(plant.told, 0), **kept})
    return records
