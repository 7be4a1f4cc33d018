"""Sweeps over several parameters, thinned to cases in which any two values still meet.

A test that is parametrised along several axes and marked `pairwise` is run for every combination by `make test-all`.
Faults depend on one parameter or on two that meet, seldom on three (Kuhn, Wallace and Gallo, "Software fault
interactions and implications for software testing", 2004), so `make test` takes combinations that cover every pair of
values of two axes. The others are marked `exhaustive`.

A combination of a new shape or dtype often has to be compiled, another matrix of a known shape has not. The mark can
name the axes that decide on the program: `@pytest.mark.pairwise("shape", "dtype")` keeps their combinations few.
"""

import itertools
from collections.abc import Hashable, Mapping, Sequence

import pytest


def covering(cases: Sequence[Mapping[str, Hashable]], compiled: Sequence[str] = ()) -> list[int]:
    """Cases in which every two values meet that meet in any case, chosen greedily.

    Args:
        cases: Axis -> value, all of the same axes. Of a single axis, every value is covered.
        compiled: Axes whose combinations are to be few: those that cover the pairs of these axes come first, and
            others are taken only for pairs that these cannot cover.

    Returns:
        Indices into `cases`, ascending; the same ones for the same cases.
    """
    pairs = [set(itertools.combinations(case.items(), min(2, len(case)))) for case in cases]
    missing = set().union(*pairs)
    chosen = []
    for candidates in (_of_few_programs(cases, compiled), range(len(cases))):
        while missing and candidates:
            best = max(candidates, key=lambda index: len(pairs[index] & missing))
            if not pairs[best] & missing:
                break
            chosen.append(best)
            missing -= pairs[best]
    return sorted(chosen)


def _of_few_programs(cases: Sequence[Mapping[str, Hashable]], compiled: Sequence[str]) -> list[int]:
    programs = [tuple((axis, case[axis]) for axis in compiled) for case in cases]
    distinct = list(dict.fromkeys(programs))
    kept = {distinct[index] for index in covering([dict(program) for program in distinct])} if compiled else {()}
    return [index for index, program in enumerate(programs) if program in kept]


@pytest.hookimpl(tryfirst=True)  # before `-m "not exhaustive"` chooses
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks the cases of each `pairwise` test that `make test` can do without."""
    sweeps: dict[str, list[pytest.Function]] = {}
    for item in items:
        if isinstance(item, pytest.Function) and item.get_closest_marker("pairwise"):
            sweeps.setdefault(item.nodeid.partition("[")[0], []).append(item)
    for sweep in sweeps.values():
        compiled = sweep[0].get_closest_marker("pairwise").args
        # The values of a sweep are the same objects in all its cases, and not all of them can be hashed.
        cases = [{axis: id(value) for axis, value in item.callspec.params.items()} for item in sweep]
        kept = set(covering(cases, compiled))
        for index, item in enumerate(sweep):
            if index not in kept:
                item.add_marker(pytest.mark.exhaustive)
