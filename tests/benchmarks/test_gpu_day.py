"""`python -m benchmarks.gpu_day` in its smallest form, on whatever device there is."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

from benchmarks.gpu_day.page import page

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent


def run(folder, *arguments, python=()):
    """From the repository as it lies: polarax is not on the path."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(
        [sys.executable, *python, "-m", "benchmarks.gpu_day", f"--out={folder}", *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=170,
        check=False,
    )


def records_of(folder):
    return [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]


@pytest.mark.exhaustive
def test_what_the_targets_are_measured_by(tmp_path):
    done = run(tmp_path, "--smallest", "--parts=headlines,pair")
    assert done.returncode == 0, done.stderr
    by_case = {record["case"]: record for record in records_of(tmp_path)}
    for case in ("headlines by products, float32", "headlines by products, float64", "pair, everything"):
        assert by_case[case]["seconds"] > 0 and by_case[case]["compile"] > 0
    text = (tmp_path / "results.md").read_text()
    assert "| whole pair of 64 x 64: 5 times as fast as torch.linalg.svd of both | not measured | |" in text


@pytest.mark.slow
def test_accuracy(tmp_path):
    done = run(tmp_path, "--smallest", "--parts=device,accuracy")
    assert done.returncode == 0, done.stderr
    records = records_of(tmp_path)
    assert json.loads((tmp_path / "results.json").read_text()) == records
    by_case = {record["case"]: record for record in records}
    assert by_case["device"]["backend"]
    for case, limit in (
        ("accuracy of everything", 1e-9),
        ("accuracy of headlines by products, float64", 1e-9),
        ("accuracy of headlines by products, float32", 1e-5),
    ):
        record = by_case[case]
        for name, value in record["readings"].items():
            assert value == pytest.approx(record["expected"][name], abs=limit), name
    text = (tmp_path / "results.md").read_text()
    assert done.stdout.strip() == text.strip()


@pytest.mark.exhaustive
def test_whole_commands_and_compilers(tmp_path):
    done = run(tmp_path, "--smallest", "--parts=commands,compiling with Triton,compiling without Triton")
    assert done.returncode == 0, done.stderr
    records = records_of(tmp_path)
    assert [record for record in records if "error" in record] == []
    cases = [record["case"] for record in records if record["part"] == "commands"]
    assert {"polarax compare", "polarax compare --quick", "polarax compare, on the host's cores"} <= set(cases)


def test_a_part_that_is_cut_off_keeps_what_it_had(tmp_path):
    """The limit falls into the part: what was written before is there, and the next part is left out."""
    done = run(tmp_path, "--smallest", "--parts=device,kernels,jnp", "--seconds=17")
    assert done.returncode == 0, done.stderr
    whole = {record["part"]: record for record in records_of(tmp_path) if record["case"] == "whole part"}
    assert "error" not in whole["device"] and set(whole) == {"device", "kernels", "jnp"}
    assert whole["jnp"].get("error", "left out: no time") == "left out: no time"
    assert "### kernels" in (tmp_path / "results.md").read_text()


def test_unknown_part(tmp_path):
    done = run(tmp_path, "--parts=everything")
    assert done.returncode == 2
    assert done.stderr.startswith("gpu_day: Unknown part 'everything'. Expected some of device; headlines; torch")


def test_without_the_packages_that_only_stores_and_reports_need(tmp_path):
    """As on a machine that has JAX and NumPy and nothing of these."""
    blocked = "orbax pandas safetensors tensorstore threadpoolctl tqdm urllib3".split()
    code = f"""
import importlib.util, sys
real = importlib.util.find_spec
importlib.util.find_spec = lambda name, *more: None if name.split(".")[0] in {blocked} else real(name, *more)
from benchmarks.gpu_day import layout
layout.make_importable()
from polarax.measuring.program import measure_stack
from polarax.planning.measurement import Measurement
import numpy as np
stack = np.random.default_rng(0).normal(size=(1, 8, 8)).astype("float32")
found = measure_stack(stack, (2 * stack,), measurement=Measurement(("polar",), dtype="float32", by_products=True))
assert abs(float(found.posts[0]["nuclear_norm_ratio"][0]) - 2) < 1e-5
assert not [name for name in ("tensorstore", "pandas") if getattr(sys.modules[name], "__file__", None)]
"""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def _record(case, seconds, rows=4096, cols=4096, **more):
    return {"part": "x", "case": case, "rows": rows, "cols": cols, "seconds": seconds, **more}


def test_targets_are_met_or_missed():
    shapes = (4096, 4096), (1024, 4096), (14336, 4096), (4096, 14336)
    layer = [_record("layer", 0.5, *shape) for shape in shapes]
    records = [
        _record("torch.linalg.svd", 3.0),
        _record("torch.linalg.svd", 0.1, 1024, 1024),
        _record("pair, everything", 2.0),
        _record("headlines by products, float32", 0.25),
        _record("headlines by products, TF32 x3", 0.15),
        *layer,
    ]
    text = page(records)
    assert "| 2 s against 6 s: 3 | **missed** |" in text
    assert "| 0.15 s against 6 s: 40 | met |" in text
    assert "| 2 s a layer, 64 s for 32 | met |" in text
    assert "not measured: 3 of 4 shapes" in page(records[:-1])
