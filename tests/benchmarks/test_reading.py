"""The suite "reading": whoever is raced reads."""

import pytest
from absl import flags

from benchmarks import options
from benchmarks.suites import reading


@pytest.fixture(scope="module")
def cases():
    values = flags.FlagValues()
    options.define_flags(values)
    values(["benchmarks", "--short", "--shrink=16", "--repeats=1", "--peers="])
    return {case.label: case for case in reading.cases(options.from_flags(values))}


@pytest.mark.parametrize("label", ["reading, warm", "reading, cold", "whole runs"])
def test_no_contestant_fails(cases, label):
    if label not in cases:
        pytest.skip("this system drops no pages on request")
    records = cases[label].run()
    assert len(records) >= 3
    assert [record.get("error") for record in records] == [None] * len(records)
    assert all(len(record["samples"]) == 1 for record in records)
