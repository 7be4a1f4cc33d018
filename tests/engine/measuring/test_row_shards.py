"""Matrices whose rows are divided over devices: the numbers of undivided ones, on 4 simulated devices."""

import json
import math
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
import scipy.linalg

import polarax
from tests.engine.measuring.row_sharded_run import CASES, COLS, ROWS, matrices
from tests.simulated_devices import xla_flags

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parents[2]
DEVICES = 4

# Relative to the largest number of a reading. Sums are taken in another order, which moves the squares of singular
# values by eps s_1^2 times a small factor: small ones, and what is read of their vectors, by eps (s_1 / s)^2 of it.
PROMISED = 1e-9
# From here up the eigenvalues of a Gram matrix do not tell singular values apart: their vectors differ by what the
# second pass leaves of them, of which `polarax.kernels.gram` says 1e-7.
BLURRED = 1e-6
# Pictures are float32.
PICTURES = dict.fromkeys(("rotation_left", "rotation_right", "rotation_difference"), 2 * 2.0**-24)
# Of float64 matrices: the closed form of nf at a noise of 1e-16 is a difference of numbers near 1. Of polar factors:
# how far rounding leaves them from orthonormal.
UNTOLD = {"float64": {"nf_rounding"}, "by polar factors": {"polar_residual"}}


def run(*arguments):
    environment = os.environ | {
        "XLA_FLAGS": xla_flags(DEVICES),
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
    }
    done = subprocess.run(
        [sys.executable, *map(str, arguments)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def measured():
    """Case -> readings by all devices, and by one: of each post, then of each two."""
    return json.loads(run(HERE / "row_sharded_run.py", "numbers"))


@pytest.fixture(scope="module")
def programs():
    return json.loads(run(HERE / "row_sharded_run.py", "programs"))


@pytest.mark.parametrize("case", CASES)
def test_the_numbers_are_those_of_undivided_matrices(measured, case):
    divided, alone = measured[case]
    assert len(divided) == len(alone) == CASES[case].posts * (CASES[case].posts + 1) // 2
    tolerance = BLURRED if case == "blurred" else PROMISED
    for found, expected in zip(divided, alone, strict=True):
        assert found.keys() == expected.keys()
        for column, values in expected.items():
            if column not in UNTOLD.get(case, ()):
                largest = np.max(np.abs(values), where=np.isfinite(values), initial=0)
                atol = max(tolerance * largest, PICTURES.get(column, 0))
                np.testing.assert_allclose(found[column], values, rtol=0, atol=atol, err_msg=column)


def test_the_main_columns_are_those_of_a_reference_in_float64(measured):
    base, (post,) = (x if isinstance(x, list) else x.astype(np.float64) for x in matrices(CASES["everything"]))
    post = post.astype(np.float64)
    assert base.shape == (ROWS, COLS) and ROWS % DEVICES
    change, size = post - base, np.linalg.norm(post - base)
    left, values, right_t = scipy.linalg.svd(base, full_matrices=False)
    left_post, values_post, right_post_t = scipy.linalg.svd(post, full_matrices=False)
    in_frame = left.T @ change @ right_t.T
    diagonal, symmetric, skew = np.diag(in_frame), (in_frame + in_frame.T) / 2, (in_frame - in_frame.T) / 2
    polar, polar_post = left @ right_t, left_post @ right_post_t
    k = CASES["everything"].measurement.top_k
    expected = {
        "drift": size / np.linalg.norm(base),
        "alpha": values @ values_post / (values @ values),
        "nf": np.linalg.norm(polar_post.T @ polar - np.eye(COLS)) / math.sqrt(COLS),
        "budget_scaling": np.sum(diagonal**2) / size**2,
        "budget_coordinated": (np.sum(symmetric**2) - np.sum(diagonal**2)) / size**2,
        "budget_discordant": np.sum(skew**2) / size**2,
        "budget_outside": 1 - np.sum(in_frame**2) / size**2,
        "overlap_left": np.sum((left[:, :k].T @ left_post[:, :k]) ** 2) / k,
        "overlap_right": np.sum((right_t[:k] @ right_post_t[:k].T) ** 2) / k,
        "unchanged": np.mean(base == post),  # no zeros, so that values tell bits
    }
    (found,), _ = measured["everything"]
    for column, value in expected.items():
        # unchanged is a float32
        assert found[column][0] == pytest.approx(value, rel=1e-6 if column == "unchanged" else PROMISED), column


def test_what_is_not_finite_is_counted(measured):
    (found,), _ = measured["not finite"]
    assert (found["nonfinite_base"], found["nonfinite_post"]) == ([0], [1])
    assert np.isfinite(found["s_base"]).all() and np.isnan(found["s_post"]).all()


def test_polar_factors_are_iterated_where_the_rows_are(measured):
    divided, alone = measured["by polar factors"]
    for found, expected in zip(divided, alone, strict=True):
        assert found["polar_steps"] == expected["polar_steps"] and found["polar_steps"][0] > 0
        assert found["polar_residual"][0] < 1e-14 * COLS


def test_rows_are_summed_over_devices_and_never_gathered(programs):
    for platform in ("cuda", "tpu"):
        for name, program in programs[platform].items():
            assert set(program["collectives"]) <= {"all_reduce"}, name
    over_rows = {name for name, program in programs["cuda"].items() if program["collectives"]}
    assert over_rows >= {"_stored_gram", "_change_grams", "_change_rows", "_cosine_of_rows"}
    share = math.ceil(ROWS / DEVICES)
    assert max(programs["cpu"].values()) == share


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_programs_for_accelerators(programs, platform):
    calls = {name: program["calls"] for name, program in programs[platform].items()}
    assert not [name for name, of_it in calls.items() for call in of_it if "callback" in call or "lapack" in call]
    products = [line for program in programs[platform].values() for line in program["products"]]
    assert products and not [line for line in products if "precision = [HIGHEST, HIGHEST]" not in line]
    if platform == "tpu":
        assert not [name for name, program in programs["tpu"].items() if program["float64"]]
    else:  # eigenproblems are of one device
        solved = [name for name, of_it in calls.items() if any("syevd" in call for call in of_it)]
        assert set(solved) == {"_first_pass", "_second_pass"}
        assert not [name for name in solved if programs["cuda"][name]["collectives"]]


_COMPARE = """
import sys
import polarax.planning.request
from polarax.cli import main

folder, device_bytes = sys.argv[1:]
polarax.planning.request.device_bytes = lambda: int(device_bytes)
pair = [f"--base={folder}/base.safetensors", f"--post={folder}/post.safetensors"]
flags = ["--metrics=change,scaling,rotation,budget", "--noreport", "--compilation_cache="]
for command in (["plan", *pair, "--device=none"], ["compare", *pair, *flags, f"--out={folder}/run"]):
    assert main(command) == 0
"""


def test_compare_divides_what_a_device_has_no_room_for(tmp_path, write):
    """A tall matrix is, and a wide one; two small ones are not."""
    rng = np.random.default_rng(7)
    shapes = {"model.embed_tokens.weight": (150, 24), "lm_head.weight": (24, 130)}
    shapes |= {f"model.layers.{layer}.self_attn.q_proj.weight": (24, 24) for layer in range(2)}
    base, post = {}, {}
    for name, (rows, cols) in shapes.items():
        r = min(rows, cols)
        left, right = (np.linalg.qr(rng.normal(size=(side, r)))[0] for side in (rows, cols))
        base[name] = ((left * np.geomspace(1, 1e-2, r)) @ right.T).astype(np.float32)
        post[name] = (1.02 * base[name] + 1e-3 * rng.normal(size=(rows, cols))).astype(np.float32)
    for name, arrays in {"base": base, "post": post}.items():
        write(tmp_path / f"{name}.safetensors", arrays)
    out = run("-c", _COMPARE, tmp_path, 130_000)
    lines = [line for line in out.splitlines() if f"its rows are divided over {DEVICES}" in line]
    assert [name for name in shapes if any(name in line for line in lines)] == list(shapes)[:2]
    assert not any("q_proj" in line for line in lines)
    frame = polarax.Run.open(tmp_path / "run").frame().set_index("name")
    assert {*frame.index} == {*shapes} and set(frame.status) == {"ok"}
    for name in shapes:
        first, second = (x[name].astype(np.float64) for x in (base, post))
        values, values_post = (np.linalg.svd(x, compute_uv=False) for x in (first, second))
        assert frame.alpha[name] == pytest.approx(values @ values_post / (values @ values), rel=PROMISED)
        drift = np.linalg.norm(second - first) / np.linalg.norm(first)
        assert frame.drift[name] == pytest.approx(drift, rel=PROMISED)
        polars = [scipy.linalg.polar(x if x.shape[0] >= x.shape[1] else x.T)[0] for x in (first, second)]
        nf = np.linalg.norm(polars[1].T @ polars[0] - np.eye(24)) / math.sqrt(24)
        assert frame.nf[name] == pytest.approx(nf, rel=1e-8)
