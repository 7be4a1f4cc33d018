"""The thinning of sweeps, and that nothing is thinned away for good."""

import itertools

import pytest

from tests import pairwise
from tests.pairwise import covering


def _product(**axes):
    return [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]


def _met(cases):
    return {pair for case in cases for pair in itertools.combinations(sorted(case.items()), 2)}


@pytest.mark.parametrize("compiled", [(), ("shape", "dtype", "method"), ("kind",)], ids=str)
def test_every_pair_is_met_by_few_cases(compiled):
    cases = _product(kind=range(16), shape=range(6), dtype="fd", method="alp")
    chosen = covering(cases, compiled)
    assert _met(cases[index] for index in chosen) == _met(cases)
    assert 16 * 6 <= len(chosen) < 1.3 * 16 * 6  # of 576; no fewer cases have all pairs of a kind and a shape
    assert chosen == covering(cases, compiled) == sorted(set(chosen))


def test_programs_are_few():
    cases = _product(kind=range(16), shape=range(6), dtype="fd", method="alp")
    chosen = [cases[index] for index in covering(cases, ("shape", "dtype", "method"))]
    assert len({(case["shape"], case["dtype"], case["method"]) for case in chosen}) <= 20  # of 36; 18 is the least


def test_of_two_axes_everything_is_needed():
    cases = _product(shape=range(4), dtype=range(3))
    assert covering(cases) == list(range(12))
    assert covering(cases[:4], ("shape",)) == [0, 1, 2, 3]


def test_one_axis_and_none():
    assert covering(_product(shape=range(3))) == [0, 1, 2]
    assert covering([]) == []


def test_pairs_that_only_other_programs_have():
    """Cases that are no full product: the third one alone has its pairs."""
    cases = [{"a": 0, "b": 0, "c": 0}, {"a": 0, "b": 0, "c": 1}, {"a": 0, "b": 1, "c": 1}]
    assert covering(cases, ("a",)) == [0, 1, 2]


SWEEP = """
import pytest

@pytest.mark.pairwise("x", "y")
@pytest.mark.parametrize("x", range(3))
@pytest.mark.parametrize("y", range(3))
class TestSweep:
    @pytest.mark.parametrize("z", range(3))
    def test_of_three_axes(self, x, y, z):
        pass

    def test_of_two_axes(self, x, y):
        pass

@pytest.mark.parametrize("x", range(3))
def test_unmarked(x):
    pass
"""


@pytest.fixture
def collected(tmp_path):
    """Names of the tests of a sweep that pytest chooses, given arguments."""
    path = tmp_path / "test_sweep.py"
    path.write_text(SWEEP)
    settings = [f"--rootdir={tmp_path}", "-c", "/dev/null", "--import-mode=importlib", "--collect-only"]
    settings += [f"-p no:{plugin}" for plugin in ("cacheprovider", "faulthandler", "xdist")]

    class Names:
        def pytest_collection_finish(self, session):
            self.names = [item.name for item in session.items]

    def collect(*arguments):
        names = Names()
        pytest.main([*settings, *arguments], plugins=[pairwise, names])
        return names.names

    return lambda *arguments, test="": collect(f"{path}{test}", *arguments)


def test_a_marked_sweep_is_thinned_by_its_mark_alone(collected):
    everything, thinned = collected(), collected("-m not exhaustive")
    assert len(everything) == 27 + 9 + 3
    assert set(thinned) < set(everything)
    by_test = {}
    for name in thinned:
        by_test.setdefault(name.partition("[")[0], []).append(name)
    assert 9 <= len(by_test["test_of_three_axes"]) < 18
    assert len(by_test["test_of_two_axes"]) == 9 and len(by_test["test_unmarked"]) == 3
    assert sorted(collected("-m exhaustive") + thinned) == sorted(everything)


def test_a_case_that_is_named_is_run(collected):
    (name,) = collected("-m exhaustive")[:1]
    assert collected("-m not exhaustive", test=f"::TestSweep::{name}") == [name]
