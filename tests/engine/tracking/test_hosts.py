"""Parameters divided over two processes: what these read, alone and together, and that another number goes on."""

import json
import os
import pathlib
import socket
import subprocess
import sys

import numpy as np
import pytest

from polarax.tracking import read_jsonl
from tests.engine.tracking import hosts_run
from tests.simulated_devices import xla_flags

HERE = pathlib.Path(__file__).resolve().parent
TIMEOUT = 140
_CACHE = ("JAX_COMPILATION_CACHE_DIR", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "JAX_DISABLE_MOST_OPTIMIZATIONS")

# A sum of N terms of one sign, in any order, errs by N u of itself, u being half of float32's eps.
SUM = hosts_run.ROWS * hosts_run.COLUMNS * 2.0**-24
# A norm, as its root, by half of that; drift is a quotient of two.
DRIFT = 2 * SUM / 2
# Leading values end within 1e-6 of s_1 (`kernels.leading_svd`), of both spectra; alpha has each times one that is at
# most s_1, over ||W||^2, which is at least s_1^2, and the rest of the norm, which errs by no more than they do.
ALPHA = 2 * 2 * hosts_run.K * 1e-6 + SUM


@pytest.fixture(scope="module")
def alone():
    """Readings at every step in this process, which holds all parameters itself."""
    tracker, readings = hosts_run.tracker(), {}
    state = tracker.init(hosts_run.parameters(0))
    for step in hosts_run.STEPS:
        state, metrics = tracker.update(state, hosts_run.parameters(step), step)
        readings[step] = metrics.scalars()
    return readings


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """What each of the two processes saw, and their folder."""
    folder = tmp_path_factory.mktemp("hosts")
    hosts_run.save({step: hosts_run.parameters(step) for step in hosts_run.STEPS}, folder / "by_one")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("JAX_", "XLA_"))}
    environment |= {key: value for key, value in os.environ.items() if key in _CACHE}
    environment |= {"XLA_FLAGS": xla_flags(2), "JAX_PLATFORMS": "cpu"}
    processes = []
    for process in (0, 1):
        with (folder / f"{process}.out").open("w") as out, (folder / f"{process}.err").open("w") as err:
            arguments = [sys.executable, HERE / "hosts_run.py", address, str(process), folder]
            processes.append(subprocess.Popen(arguments, env=environment, stdout=out, stderr=err))
    try:
        codes = [process.wait(TIMEOUT) for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    assert codes == [0, 0], "\n".join((folder / f"{process}.err").read_text()[-3000:] for process in (0, 1))
    return [json.loads((folder / f"{process}.out").read_text().splitlines()[-1]) for process in (0, 1)], folder


def _same(seen, expected):
    """Asserts that readings are equal, but for what the order of sums makes of them."""
    assert seen.keys() == expected.keys()
    for name, value in expected.items():
        if name.endswith("alpha_z"):  # (alpha - its control) / its standard deviation
            std = expected[name.replace("_z", "_null_std")]
            tolerance = 3 * ALPHA / std if std else 0
        else:
            tolerance = 2 * (ALPHA if "alpha" in name else DRIFT * value)
        assert seen[name] == pytest.approx(value, abs=tolerance, rel=0, nan_ok=True), name


@pytest.mark.parametrize("kind", ["Explicit", "Auto", "monitor", "divided state", "restored"])
def test_both_processes_read_what_one_alone_does(both, alone, kind):
    (first, second), _ = both
    assert json.dumps(first[kind]) == json.dumps(second[kind])  # to the last digit, NaN and all
    for step, seen in first[kind].items():
        expected = alone[int(step)]
        if kind == "divided state":  # which follows a part of them
            expected = {name: value for name, value in expected.items() if "/k/" in name or name.count("/") == 1}
        _same(seen, expected)


@pytest.mark.parametrize("axes", ["Explicit", "Auto"])
def test_readings_as_numpy_has_them(both, axes):
    base = _weights(0)
    assert len(base) == 9
    for step, seen in both[0][0][axes].items():
        for name, post in _weights(int(step)).items():
            drift = np.linalg.norm(post - base[name]) / np.linalg.norm(base[name])
            assert seen[f"spectra/{name}/drift"] == pytest.approx(drift, rel=DRIFT)
            s_base, s_post = (np.linalg.svd(x, compute_uv=False) for x in (base[name], post))
            # What is not followed counts as scaled by one factor: too much by what Cauchy and Schwarz leave.
            rest_base, rest_post = s_base[hosts_run.K :], s_post[hosts_run.K :]
            excess = np.linalg.norm(rest_base) * np.linalg.norm(rest_post) - rest_base @ rest_post
            alpha = (s_base @ s_post + excess) / (s_base @ s_base)
            assert seen[f"spectra/{name}/alpha"] == pytest.approx(alpha, abs=ALPHA, rel=0)


def _weights(step):
    """Every matrix by its name among the readings, in float64."""
    found = {}
    tree = hosts_run.parameters(step)
    for layer, name in hosts_run.SHAPES:
        kernels = tree[layer][name]["kernel"]
        for index, kernel in enumerate(kernels if kernels.ndim == 3 else [kernels]):
            found[f"{name.removesuffix('_proj')}/layer_{index:02d}"] = kernel.astype(np.float64)
    return found


def test_one_process_goes_on_from_two(both, alone):
    parameters = {step: hosts_run.parameters(step) for step in hosts_run.STEPS}
    for step, seen in hosts_run.restored(parameters, both[1] / "by_two").items():
        _same(seen, alone[step])


def test_readings_are_read_and_written_alone(both, alone):
    folder = both[1]
    assert [path.name for path in (folder / "one").iterdir()] == ["0.jsonl"]  # the other left no trace
    for path in ("one/0.jsonl", "each/0.jsonl", "each/1.jsonl"):
        (line,) = read_jsonl(folder / path).items()
        assert line[0] == 0
        _same(line[1], alone[0])


def test_a_measurement_needs_both(both):
    assert [seen["early"] for seen in both[0]] == [None, False]
