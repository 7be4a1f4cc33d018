"""The examples in docs/ run in small form, are stopped, go on, and leave what history reads."""

import math
import os
import pathlib
import subprocess
import sys

import pytest

import polarax
from polarax.tracking import read_jsonl

EXAMPLES = pathlib.Path(__file__).resolve().parents[3] / "docs/examples"
TIMEOUT = 280


def _run(script, folder, steps):
    command = [
        sys.executable,
        EXAMPLES / script,
        "--small",
        f"--steps={steps}",
        "--every=4",
        "--batch=2",
        "--length=16",
        "--learning_rate=0.01",
    ]
    command += [f"--checkpoints={folder / 'checkpoints'}", f"--metrics={folder / 'spectra.jsonl'}"]
    done = subprocess.run(
        command, env=os.environ | {"JAX_PLATFORMS": "cpu"}, capture_output=True, text=True, timeout=TIMEOUT, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("script", ["optax_loop.py", "nnx_finetuning.py"])
def test_example(script, tmp_path):
    printed = _run(script, tmp_path, 5)
    assert "14 matrices" in printed and "step 4: loss" in printed
    assert "step 4" not in _run(script, tmp_path, 9)  # goes on where it was
    found = read_jsonl(tmp_path / "spectra.jsonl")
    assert sorted(found) == [0, 4, 8]
    drifts = [found[step]["spectra/q/layer_01/drift"] for step in found]
    assert drifts[0] == 0 and drifts[0] < drifts[1] < drifts[2]
    assert all(math.isfinite(found[step]["loss"]) for step in found)
    assert all(math.isfinite(found[8][f"spectra/{role}/layer_00/alpha"]) for role in ("q", "k", "v", "o", "down"))
    # What was saved are checkpoints that can be compared: the same drift, seen from outside.
    steps = sorted(int(path.name) for path in (tmp_path / "checkpoints").iterdir() if path.name.isdigit())
    assert steps == [4, 5, 8, 9]
    run = polarax.compare(tmp_path / "checkpoints/4/params", tmp_path / "checkpoints/8/params", progress=False)
    frame = run.frame()
    assert sorted(frame["role"].unique()) == ["down", "embed", "gate", "k", "o", "q", "up", "v"]
    assert (frame["drift"] > 0).all()
