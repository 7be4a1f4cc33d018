"""Figures, results on disk, pages and comparisons, from made-up records."""

import dataclasses
import json
import math

import numpy as np
import pytest

from benchmarks.report import figures
from benchmarks.report.comparison import comparison
from benchmarks.report.page import page, seconds, table
from benchmarks.report.plots import write_plots
from benchmarks.report.results import Results, ResultsError, gathered, read, write
from benchmarks.steps import Problem

ENVIRONMENT = {
    "versions": {"python": "3.11.0", "jax": "0.10.0"},
    "platform": "Linux",
    "processor": "a processor",
    "memory_gib": 16.0,
    "cores": 2,
    "backend": "cpu",
    "devices": ["cpu"],
    "variables": {},
    "blas": [{"file": "libblas.so", "version": "1.0", "num_threads": 2}],
}


def _timed(suite, case, contestant, samples, **more):
    return {
        "suite": suite,
        "case": case,
        "contestant": contestant,
        "reference": contestant == "polarax",
        "dtype": "float64",
        "rows": 8,
        "cols": 8,
        "count": 1,
        "compile_seconds": 1.0,
        "first_seconds": 2.0,
        "samples": samples,
        "calls": 1,
        **more,
    }


def _records():
    floor = [
        _timed("floor", "product", "jax", [0.5], operand="float64", operations=100.0),
        _timed("floor", "product", "torch", [0.25], operand="float64", operations=100.0),
        _timed("floor", "copy", "jax", [0.5], bytes=40.0),
    ]
    pairs = [
        _timed("pairs", "8x8", "polarax", [1.0, 2.0, 1.0], operations=100.0),
        _timed("pairs", "8x8", "torch", [4.0, 6.0, 4.0], operations=100.0, dtype="float32"),
        {"suite": "pairs", "case": "8x8", "contestant": "jnp", "reference": False, "error": "no"},
    ]
    growth = [_timed("growth", f"svd n={n}", "polarax svd", [1e-9 * n**3], size=n) for n in (64, 128, 256)]
    accuracy = [
        {
            "suite": "accuracy",
            "case": f"geometric {dtype}",
            "class": "geometric",
            "contestant": "polarax auto",
            "what": "svd",
            "dtype": dtype,
            "reconstruction": 0.5,
            "left": 1.0,
            "right": math.nan,
            "ordered": True,
            "value_error_of_largest": 2.0,
            "value_error": 1e-7,
            "target": 0.1,
        }
        for dtype in ("float32", "float64")
    ]
    return gathered([*floor, *pairs, *growth, *accuracy])


def _results(records=None, **changed):
    results = Results(
        command="python -m benchmarks --short",
        started="2026-01-01T00:00:00Z",
        seconds=12.5,
        options={"threads": 2, "shrink": 1, "short": True, "layers": 1, "missing": ["torch"]},
        environment=ENVIRONMENT,
        load=(0.1, 0.5),
        records=_records() if records is None else records,
        problems=(Problem("pairs", "8x8", "killed after 90 s", True),),
    )
    return dataclasses.replace(results, **changed)


@pytest.mark.parametrize("exponent", [1.0, 2.7, 3.0])
def test_fit_recovers_an_exponent(exponent):
    sizes = [64, 256, 128, 1024, 512]
    fit = figures.fit_exponent(sizes, [3e-9 * size**exponent for size in sizes])
    assert fit.exponent == pytest.approx(exponent)
    assert fit.last == pytest.approx(exponent)
    assert fit.spread == pytest.approx(0, abs=1e-9)
    assert fit.points == 5


def test_fit_with_noise_and_a_fixed_cost():
    sizes = 2.0 ** np.arange(6, 13)
    noise = 0.1 * np.array([1, -1, 1, 0, 1, -1, 1])  # symmetric: the slope stays
    fit = figures.fit_exponent(sizes, sizes**3 * np.exp(noise))
    assert fit.exponent == pytest.approx(3)
    assert fit.spread == pytest.approx(np.std(noise))
    fixed = figures.fit_exponent(sizes, 1e9 + sizes**3)
    assert fixed.exponent < fixed.last < 3


def test_fit_needs_two_sizes():
    with pytest.raises(ValueError, match="two sizes"):
        figures.fit_exponent([4, 4], [1.0, 2.0])


def test_floor_is_the_fastest_library_and_rates_are_shares_of_it():
    peak = figures.peaks(_records())
    assert peak == {"float64": 400.0, "bandwidth": 80.0}
    polarax, torch = figures.timed(figures.of_suite(_records(), "pairs"))
    assert figures.rate(polarax) == 100.0
    assert figures.share_of_peak(polarax, peak) == 0.25
    assert figures.share_of_peak(torch, peak) is None  # no float32 floor was measured


def test_ratio_to_the_reference_of_a_case():
    in_case = figures.of_suite(_records(), "pairs")
    assert figures.ratio_to_reference(in_case[1], in_case).median == 4.0
    assert figures.ratio_to_reference(in_case[2], in_case) is None


def test_layer_totals_add_up_shapes_and_scale_what_was_left_out():
    shapes = [(896, 896, 2, 2), (128, 896, 2, 2), (4864, 896, 1, 2), (896, 4864, 1, 1)]
    records = []
    for rows, cols, count, in_layer in shapes:
        more = {"model": "qwen2.5-0.5b", "layer": 0, "in_layer": in_layer, "count": count}
        case = f"{rows}x{cols}"
        records.append(_timed("pairs", case, "polarax", [1.0, 1.0], **more))
        records.append(_timed("pairs", case, "torch", [3.0, 5.0], **more))
        if rows < cols:
            records.append(_timed("pairs", case, "torch careful", [2.0, 2.0], **more))
    totals = {total.contestant: total for total in figures.layer_totals(records)["qwen2.5-0.5b"]}
    assert totals["polarax"].seconds == 5.0
    assert (totals["torch"].seconds, totals["torch"].ratio.median) == (20.0, 4.0)
    # Where the careful script is the plain one, it has the plain one's times.
    assert totals["torch careful"].seconds == pytest.approx(4.0 + 4.0 * 3)
    assert (totals["torch"].measured, totals["torch"].in_layer) == (6, 7)
    assert figures.layer_totals(records[:-3]) == {}  # a shape is missing: that is no layer


def test_what_is_not_a_number_is_the_worst():
    records = [{"case": "a", "error": 1.0}, {"case": "b", "error": None}, {"case": "c"}]
    assert figures.worst(records, "error") == (None, "b")
    assert figures.worst(records[:1], "error") == (1.0, "a")
    assert figures.worst(records, "other") is None


def test_results_read_back_as_they_were(tmp_path):
    results = _results()
    path = write(results, tmp_path)
    assert read(path) == results
    json.loads(path.read_text(), parse_constant=pytest.fail)  # strict JSON: no NaN


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("not json", "is not JSON"),
        ("[]", "is not a results file"),
        ('{"records": [], "format": 99}', "another format"),
        ('{"records": [], "format": 1}', "is not a results file"),
    ],
)
def test_other_files_are_refused_in_one_line(tmp_path, content, message):
    path = tmp_path / "results.json"
    path.write_text(content)
    with pytest.raises(ResultsError, match=message) as error:
        read(path)
    assert "\n" not in str(error.value)


def test_missing_file_is_refused(tmp_path):
    with pytest.raises(ResultsError, match="cannot be read"):
        read(tmp_path / "none.json")


def test_page_shows_every_section():
    text = page(_results(), ["growth.png"])
    for part in (
        "python -m benchmarks --short",
        "libblas.so: 1.0 2",
        "## Targets",
        "exponent of time in n, polarax svd | at most 3.0 | 3.00 | met",
        "## Floor",
        "## Accuracy",
        "not a number (geometric)",
        "## Whole analysis of a pair",
        "4.00 (3.50 to 4.00)",
        "jnp: no",
        "## Growth",
        "killed after 90 s",
        "torch | left out: not installed",
        "![growth.png](growth.png)",
    ):
        assert part in text, part


def test_page_without_records():
    assert "## Floor" not in page(_results(records=()))


def test_busy_machines_and_trials_are_marked():
    options = {**_results().options, "shrink": 16}
    text = page(_results(load=(5.0, 5.0), options=options))
    assert "The machine was busy" in text
    assert "divided by 16" in text
    assert "The machine was busy" not in page(_results())


def test_plots_are_drawn(tmp_path):
    pytest.importorskip("matplotlib")
    drawn = write_plots(_records(), tmp_path)
    assert {path.name for path in drawn} == {"ratios.png", "growth.png", "accuracy.png", "floor.png"}
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in drawn)
    assert write_plots((), tmp_path) == []


def test_comparison_of_a_run_with_itself_is_quiet():
    text = comparison(_results(), _results())
    assert "8 times are within" in text
    assert "new / old" not in text
    assert "differs" not in text


def test_comparison_shows_what_changed():
    new = [dict(record) for record in _records()]
    for record in new:
        if record["contestant"] == "polarax":
            record["samples"] = [sample / 4 for sample in record["samples"]]
        if record["case"] == "geometric float64":
            record["value_error_of_largest"] = None
    gone = [record for record in new if record["contestant"] != "jax"]
    environment = {**ENVIRONMENT, "versions": {"python": "3.11.0", "jax": "0.11.0"}}
    text = comparison(_results(), _results(records=tuple(gone), environment=environment))
    assert "pairs: 8x8 | polarax | 1 s | 250 ms | 0.25" in text
    assert "value_error_of_largest | 2 | not a number" in text
    assert "**versions differs**: {'jax': '0.10.0'} and {'jax': '0.11.0'}" in text
    assert "Only in the old file: product, jax; copy, jax." in text


def test_seconds_in_words():
    assert [seconds(value) for value in (12.3456, 0.0123456, 1.2e-5, None)] == [
        "12.3 s",
        "12.3 ms",
        "12 us",
        "",
    ]


def test_table():
    assert table(("a", "b"), [("1", "2")]) == "| a | b |\n| --- | ---: |\n| 1 | 2 |\n"


def test_reading_is_judged_within_rounds():
    # The disk is three times slower in the second round; reading is always 0.9 of the plain rate.
    records = [
        _timed("reading", "warm", "polarax", [1.0, 3.0], bytes=8.0),
        _timed("reading", "warm", "plain sequential reads", [0.9, 2.7], bytes=8.0),
        _timed("reading", "whole", "polarax.compare", [4.0, 4.4]),
        _timed("reading", "whole", "polarax.compare, weights in memory", [3.0, 4.0]),
        _timed("reading", "whole", "reading alone", [4.0, 1.0]),
        _timed("reading", "memory", "polarax compare", [9.0], idle_bytes=100, peak_bytes=325, budget_bytes=200),
    ]
    records.append(_timed("reading", "plan of 9 tensors", "polarax plan", [4.0, 6.0, 3.0]))
    rate, overlap, memory, plan = figures.verdicts(gathered(records))
    assert (rate.measured, rate.met) == ("90%", True)
    assert (overlap.measured, overlap.met) == ("1.05 x", True)  # 1 x and 1.1 x
    assert (memory.measured, memory.met) == ("112%", False)
    assert (plan.measured, plan.met) == ("4.0 s", True)
    text = page(_results(gathered(records)))
    assert "| warm | at least 80% of plain reads | 90% | met |" in text
    assert "## Reading and memory" in text


def test_reading_is_not_judged_where_a_contestant_failed():
    records = [
        {"suite": "reading", "case": "warm", "contestant": "polarax", "reference": True, "error": "no"},
        _timed("reading", "warm", "plain sequential reads", [0.9, 2.7], bytes=8.0),
        _timed("reading", "whole", "polarax.compare", [4.0, 4.4]),
        {"suite": "reading", "case": "whole", "contestant": "reading alone", "reference": False, "error": "no"},
    ]
    assert figures.verdicts(gathered(records)) == []
    assert "## Reading and memory" in page(_results(gathered(records)))
