"""Parameters divided over devices stay divided: read off the compiled program, on simulated devices."""

import json
import math
import os
import pathlib
import subprocess
import sys

import pytest

HERE = pathlib.Path(__file__).resolve().parent
SMALLEST, LARGEST = 96 * 64, 160 * 96  # entries of the smallest and the largest parameter
TIMEOUT = 240
_CACHE = ("JAX_COMPILATION_CACHE_DIR", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS")


def _run(*arguments):
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("JAX_", "XLA_"))}
    # Compiled as users have it, unlike in the other tests; what is read off the program is then run without compiling
    # it again.
    environment |= {key: value for key, value in os.environ.items() if key in _CACHE}
    environment |= {"XLA_FLAGS": "--xla_force_host_platform_device_count=8", "JAX_PLATFORMS": "cpu"}
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
        ("tensor", "Auto"),
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
    assert seen["sharded"] == pytest.approx(seen["alone"], rel=2e-4, abs=2e-4, nan_ok=True)


@pytest.mark.slow
@pytest.mark.parametrize("axes", ["Auto", "Explicit"])
def test_the_budget_and_nf_gather_one_matrix_at_a_time(axes):
    seen = _run("both", "change,budget,rotation", axes)
    assert max(math.prod(dims) for dims in seen["gathered"]) <= LARGEST
    assert seen["sharded"] == pytest.approx(seen["alone"], rel=1e-3, abs=1e-4, nan_ok=True)
