"""`python -m benchmarks` from the root of the repository."""

import json

import pytest

from benchmarks.options import SUITES


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--suites=speed", "Unknown --suites 'speed'. Expected some of floor, accuracy"),
        ("--models=gpt-2", "Unknown --models 'gpt-2'. Expected some of qwen2.5-0.5b"),
        ("--peers=matlab", "Unknown --peers 'matlab'. Expected some of torch, numpy"),
        ("--methods=magic", "Unknown --methods 'magic'. Expected some of auto"),
        ("--layers=few", "--layers='few' is neither a number nor all"),
        ("--layers=0", "--layers must be at least 1. Got 0"),
        ("--repeats=0", "--repeats must be at least 1. Got 0"),
        ("--threads=100000", "--threads=100000 is more than the"),
        ("--suites=", "--suites is empty"),
        ("--nonsense", "Unknown command line flag 'nonsense'"),
        ("nonsense", "Unexpected argument 'nonsense'"),
        ("compare", "compare takes two files"),
    ],
)
def test_bad_flags_end_with_one_line(run_benchmarks, flag, message):
    done = run_benchmarks(flag)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith(f"benchmarks: {message}")


def test_help_lists_the_flags(run_benchmarks):
    done = run_benchmarks("--help")
    assert done.returncode == 0
    for flag in ("short", "suites", "models", "layers", "repeats", "threads", "peers", "out"):
        assert f"\n  --{flag}" in done.stdout
    assert "compare OLD.json NEW.json" in done.stdout


def test_results_that_cannot_be_compared(run_benchmarks, tmp_path):
    done = run_benchmarks("compare", tmp_path / "old.json", tmp_path / "new.json")
    assert done.returncode == 2
    assert done.stderr == f"benchmarks: {tmp_path / 'old.json'} cannot be read: No such file or directory.\n"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("suites", "seconds", "least"),
    [
        pytest.param(SUITES, 60, 3, marks=pytest.mark.exhaustive, id="all"),
        pytest.param(("floor", "kernels", "batch"), 60, 3, id="three"),
        pytest.param(("floor", "tracking"), 1, 0, id="no time"),
    ],
)
def test_short_form_runs_end_to_end(run_benchmarks, tmp_path, suites, seconds, least):
    """The smallest form there is: what has no time is left out and named; nothing may fail."""
    done = run_benchmarks(
        "--short",
        f"--seconds={seconds}",
        f"--suites={','.join(suites)}",
        "--shrink=64",
        "--repeats=1",
        "--methods=lapack",
        "--peers=",
        f"--out={tmp_path}",
    )
    assert done.returncode == 0, done.stdout + done.stderr
    text = (tmp_path / "results.md").read_text()
    assert done.stdout.startswith(text)
    results = json.loads((tmp_path / "results.json").read_text())
    measured = {record["suite"] for record in results["records"]}
    left_out = {problem["suite"] for problem in results["problems"]}
    assert measured | left_out == set(suites)
    assert len(measured) >= least
    assert results["command"].startswith(f"python -m benchmarks --short --seconds={seconds}")
    assert str(tmp_path) not in json.dumps(results)
    assert results["environment"]["backend"] == "cpu"

    same = run_benchmarks("compare", *[tmp_path / "results.json"] * 2)
    assert same.returncode == 0
    assert " times are within their spread" in same.stdout
