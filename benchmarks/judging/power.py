"""Power: how many matrices with a planted effect are named for it, by its size, the change around it, and r."""

import collections

import numpy as np

from benchmarks.cases import Case, Record
from benchmarks.judging import judge, plants
from benchmarks.judging.noise import Trial
from benchmarks.judging.request import Request
from benchmarks.judging.spectra import subjects

# r -> how many seeds are in a case. At the largest, where a matrix takes a third of a second, only the middle line and
# the middle half of the sizes are measured.
_SEEDS_OF_CASE = {64: 100, 256: 25, 768: 10}
_ALL_UP_TO = 256


def cases(request: Request) -> list[Case]:
    """A case for each effect, line, r and some seeds: first some of all, then more."""
    planned = [
        (plant, line, r, start, min(length, request.seeds - start))
        for r, length in _SEEDS_OF_CASE.items()
        for start in range(0, request.seeds, length)
        for plant in plants.PLANTS.values()
        for line in (plant.lines if r <= _ALL_UP_TO else plant.lines[1:2])
    ]
    planned.sort(key=lambda case: case[3])
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
    base = stage.base
    sizes = plant.sizes if r <= _ALL_UP_TO else plant.sizes[len(plant.sizes) // 4 : -len(plant.sizes) // 4]
    trials = [
        Trial(*(side.astype(np.float32) for side in pair), plant.name)
        for size in sizes
        for pair in zip(base, base + plant.change(stage, size, line), strict=True)
    ]
    named = judge.named(trials)
    about = {"label": label, "part": "power", "plant": plant.name, "line": line, "r": r, "matrices": count}
    by_size = [named[place : place + count] for place in range(0, len(named), count)]
    return [
        {**about, "size": size, "named": dict(collections.Counter(kind for kinds in of_size for kind in kinds))}
        for size, of_size in zip(sizes, by_size, strict=True)
    ]
