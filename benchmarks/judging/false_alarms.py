"""False alarms: how many matrices that only noise has changed are named all the same."""

import math

import numpy as np

from benchmarks.cases import Case, Record
from benchmarks.judging import judge, noise
from benchmarks.judging.request import Request
from benchmarks.judging.spectra import subjects

# Matrices that are compared at once.
_BATCH = 500


def cases(request: Request) -> list[Case]:
    """A case for each batch of each kind: first one of all kinds, then the next; whole matrices last."""
    batches = math.ceil(request.matrices / _BATCH)
    small, whole = ([kind for kind in noise.KINDS.values() if kind.whole == which] for which in (False, True))
    planned = [*((kind, number) for number in range(batches) for kind in small), *((kind, 0) for kind in whole)]
    labelled = [(f"{kind.name}, batch {number + 1}", kind, number) for kind, number in planned]
    return [
        Case(label, lambda label=label, kind=kind, number=number: _run(request, label, kind, number))
        for label, kind, number in labelled
        if label not in request.done
    ]


def _run(request, label, kind, number) -> list[Record]:
    among = subjects(request.pairs, request.material)
    rng = np.random.default_rng([request.seed, list(noise.KINDS).index(kind.name), number])
    count = min(_BATCH, request.matrices - number * _BATCH)
    chosen = [among[i % len(among)] for i in range(len(among) if kind.whole else count)]
    trials = kind.make(chosen, number, None if kind.whole else request.size, rng)
    return [
        {
            "label": label,
            "part": "false_alarms",
            "kind": kind.name,
            "batch": number,
            **judge.judge(trials, kind.expected),
        }
    ]
