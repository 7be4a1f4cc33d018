"""Parameters divided over devices stay divided: read off the compiled program, on simulated devices."""

import json
import math
import os
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest

from polarax.tracking.readings import FRAME_TOLERANCE
from tests.engine.tracking import sharded_run, trees
from tests.simulated_devices import xla_flags

HERE = pathlib.Path(__file__).resolve().parent
SMALLEST, LARGEST = 96 * 64, 160 * 96  # entries of the smallest and the largest parameter
TIMEOUT = 240
_CACHE = ("JAX_COMPILATION_CACHE_DIR", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS")


# Divided or alone, sums are taken in another order, and now and then subspace iteration takes a cycle more or fewer.
# Values end within 1e-6 of s_1; what they and the norms tell, and overlaps, whose errors are squares of the vectors',
# stay within 2e-4. What is read of the change in the frame of the base's vectors errs by as much as they do, which is
# FRAME_TOLERANCE on each side.
TOLERANCE = 2e-4


def _leading_tolerance():
    """Of `leading_coordination`: what two frames that are each off by FRAME_TOLERANCE may differ by, at most."""
    base = sharded_run.parameters()
    pairs = zip(*(jax.tree.leaves(params) for params in (base, sharded_run.moved(base))), strict=True)
    slopes = [trees.coordination_slope(*(x.astype(np.float64) for x in pair), sharded_run.K) for pair in pairs]
    return 2 * FRAME_TOLERANCE * max(slopes)


def _run(*arguments):
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("JAX_", "XLA_"))}
    # Optimised as users have it, unlike in the other tests; what is read off the program is then run without compiling
    # it again.
    environment |= {key: value for key, value in os.environ.items() if key in _CACHE}
    environment |= {"XLA_FLAGS": xla_flags(8), "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, HERE / "sharded_run.py", *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("layout", "axes"),
    [
        ("fsdp", "Auto"),
        pytest.param("tensor", "Auto", marks=pytest.mark.exhaustive),  # "both" divides that side too
        pytest.param("both", "Auto", marks=pytest.mark.exhaustive),  # the budget's test has this pair too
        ("both", "Explicit"),
    ],
)
def test_no_parameter_is_gathered(layout, axes):
    seen = _run(layout, "change,scaling,shape,overlap,leading", axes)
    assert seen["gathered"] or layout != "fsdp"  # the columns that are iterated on: the test does see gathers
    assert not [dims for dims in seen["gathered"] if math.prod(dims) >= SMALLEST]
    assert seen["programs"] == 1
    assert max(seen["shards"]) <= 0.5  # what is kept of the parameters is divided as they are
    sharded, alone = seen["sharded"], seen["alone"]
    leading = {name for name in alone if name.endswith("leading_coordination")}
    assert len(leading) == 10
    others = alone.keys() - leading
    assert {n: sharded[n] for n in others} == pytest.approx(
        {n: alone[n] for n in others}, rel=TOLERANCE, abs=TOLERANCE, nan_ok=True
    )
    assert {n: sharded[n] for n in leading} == pytest.approx({n: alone[n] for n in leading}, abs=_leading_tolerance())


@pytest.mark.slow
@pytest.mark.parametrize("axes", [pytest.param("Auto", marks=pytest.mark.exhaustive), "Explicit"])
def test_the_budget_and_nf_gather_one_matrix_at_a_time(axes):
    seen = _run("both", "change,budget,rotation", axes)
    assert max(math.prod(dims) for dims in seen["gathered"]) <= LARGEST
    assert seen["sharded"] == pytest.approx(seen["alone"], rel=1e-3, abs=1e-4, nan_ok=True)
