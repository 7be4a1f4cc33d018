"""Several processes on loopback: the same bytes as one, whatever fails in between, and what each says."""

import filecmp
import json
import pathlib
import re
import signal
import time

import numpy as np
import pytest

import polarax
from tests.engine.command import assert_one_line, shell
from tests.engine.conftest import write_checkpoint
from tests.engine.hosts.processes import SLOWLY, free_port, start
from tests.engine.planted import concentrated, model
from tests.simulated_devices import xla_flags

FLAGS = ("--noplots", "--metrics=change,scaling")


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    folder, rng = tmp_path_factory.mktemp("pair"), np.random.default_rng(0)
    base = {name: w.astype(np.float32) for name, w in model(rng).items()}
    post = {name: concentrated(1e-2)(rng, name, w).astype(np.float32) for name, w in base.items()}
    return [f"--base={write_checkpoint(folder / 'base', base, 2)}", f"--post={write_checkpoint(folder / 'post', post)}"]


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return f"--compilation_cache={tmp_path_factory.mktemp('cache')}"


@pytest.fixture(scope="module")
def alone(pair, cache, tmp_path_factory):
    """The folder of a run by one process."""
    out = tmp_path_factory.mktemp("alone") / "run"
    done = shell("compare", *pair, f"--out={out}", cache, *FLAGS)
    assert done.returncode == 0, done.stderr
    return out


def assert_same(run, other):
    """That two runs hold the same bytes, but for when they were made and how long they took."""
    files = [path.relative_to(other) for path in sorted(other.rglob("*")) if path.is_file()]
    assert files == [path.relative_to(run) for path in sorted(run.rglob("*")) if path.is_file()]
    equal, different, failed = filecmp.cmpfiles(run, other, files, shallow=False)
    assert not failed and different == [pathlib.Path("run.json")], different
    described = [json.loads((folder / "run.json").read_text()) for folder in (run, other)]
    for one in described:
        del one["started"], one["seconds"]
    assert described[0] == described[1]


@pytest.mark.parametrize("count", [2, 3])
def test_several_processes_write_what_one_writes(pair, cache, alone, tmp_path, count):
    out = tmp_path / "run"
    first, *others = start("compare", count, *pair, f"--out={out}", cache, *FLAGS).ends()
    assert first.code == 0, first.err
    assert f"Run: {out}" in first.out and "24 matrices to measure" in first.err
    measured = 0
    for number, done in enumerate(others, 1):
        assert done.code == 0 and done.out == "", done
        joined, ended = done.err.splitlines()
        assert joined.startswith(f"process {number} of {count} (") and joined.endswith("): joined")
        measured += int(ended.split("measured ")[1].split()[0])
    assert measured <= 24
    assert_same(out, alone)


def test_a_process_that_is_killed_ends_all_and_another_number_goes_on(pair, cache, alone, tmp_path):
    out = tmp_path / "run"
    running = start("compare", 3, *pair, f"--out={out}", cache, *FLAGS, program=SLOWLY)
    wait_for(lambda: len(list((out / "parts").glob("*/*.npz"))) >= 3, running)
    running.kill(0)
    begun = time.monotonic()
    first, *others = running.ends()
    assert first.code == -signal.SIGKILL
    assert time.monotonic() - begun < 60
    for number, done in enumerate(others, 1):
        assert done.code == 1
        assert done.err.splitlines()[-1].startswith(f"polarax: process {number} of 3 (")
        assert "process 0 (" in done.err.splitlines()[-1]
    kept = sum(map(matrices, (out / "parts").glob("*/*.npz")))
    done = shell("compare", *pair, f"--out={out}", cache, *FLAGS)
    assert done.returncode == 0, done.stderr
    # What was found is not measured again.
    assert 0 < kept < 24 and f"{24 - kept}/{24 - kept} matrices" in done.stderr
    assert not (out / "parts").exists()
    assert_same(out, alone)


def matrices(file):
    with np.load(file) as part:
        return len(json.loads(part["rows"].tobytes())[""])


def wait_for(happened, running, seconds=60):
    end = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < end and any(process.poll() is None for process in running.processes)
        time.sleep(0.05)


def test_a_process_that_does_not_start_is_named(pair, cache, tmp_path):
    running = start(
        "compare", 3, *pair, f"--out={tmp_path / 'run'}", cache, *FLAGS, "--initialization_timeout=5", numbers=[0, 2]
    )
    for number, done in zip((0, 2), running.ends(), strict=True):
        assert_one_line(done, f"process {number} of 3", "process 1 did not start within 5 s", code=1)


def test_flags_that_differ_end_all(pair, cache, tmp_path):
    running = start("compare", 2, *pair, f"--out={tmp_path / 'run'}", cache, *FLAGS, each={1: ["--top_k=3"]})
    first, second = running.ends()
    assert_one_line(first, "process 1 (", "--top_k is 3 here, 16 there", code=1)
    assert_one_line(second, "--top_k is 3 here, 16 there")


def test_a_number_that_is_there_twice_ends_all(pair, cache, tmp_path):
    port, out = free_port(), f"--out={tmp_path / 'run'}"
    running = start("compare", 2, *pair, out, cache, *FLAGS, port=port, numbers=[0, 1, 1], program=SLOWLY)
    first, *others = running.ends()
    assert first.code == 1 and "--process_id=1 is there twice" in first.err
    assert sorted(done.code for done in others) in ([1, 2], [2, 2])
    assert all("--process_id=1 is there twice" in done.err for done in others)


def test_a_folder_that_is_not_shared_is_named(pair, cache, tmp_path):
    running = start(
        "compare",
        2,
        *pair,
        cache,
        *FLAGS,
        "--initialization_timeout=8",
        each={number: [f"--out={tmp_path / str(number)}"] for number in (0, 1)},
    )
    first, second = running.ends()
    assert first.code == 1
    assert_one_line(second, "does not see the folder", tmp_path / "1", "a file system that all hosts share")


def test_no_program_has_devices_talk_to_each_other(pair, alone, tmp_path):
    out, dump = tmp_path / "run", tmp_path / "programs"
    flags = f"{xla_flags(2)} --xla_dump_to={dump} --xla_dump_hlo_as_text"
    first, second = start(
        "compare", 2, *pair, f"--out={out}", "--compilation_cache=", *FLAGS, environment={"XLA_FLAGS": flags}
    ).ends()
    assert first.code == second.code == 0, first.err + second.err
    programs = [path.read_text() for path in dump.glob("*after_optimizations.txt")]
    assert any("custom-call" in program for program in programs)
    assert any("num_partitions=2" in program for program in programs)
    collective = re.compile(r"\b(all-reduce|all-gather|all-to-all|reduce-scatter|collective-\w+)(-start)?\(")
    assert not [found for program in programs if (found := collective.search(program))]
    assert polarax.Run.open(out).frame().shape == polarax.Run.open(alone).frame().shape


def test_several_processes_edit_what_one_edits(pair, cache, tmp_path):
    flags = ("--kind=keep-scaling", "--roles=q,o", "--nomeasure", cache)
    one, several = tmp_path / "one", tmp_path / "several"
    done = shell("edit", *pair, f"--out={one}", *flags)
    assert done.returncode == 0, done.stderr
    first, second = start("edit", 2, *pair, f"--out={several}", *flags).ends()
    assert first.code == second.code == 0, first.err + second.err
    assert f"Checkpoint: {several}" in first.out and second.out == ""
    files = sorted(path.name for path in one.iterdir())
    assert files == sorted(path.name for path in several.iterdir())
    assert filecmp.cmpfiles(one, several, files, shallow=False)[0] == files
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


class TestInABucket:
    def test_a_process_that_is_killed_and_another_number_that_goes_on(self, s3, pair, cache, alone, tmp_path):
        out = f"{s3.url}/runs/mine"
        running = start("compare", 2, *pair, f"--out={out}", cache, *FLAGS, program=SLOWLY)
        wait_for(lambda: sum(key.endswith(".npz") for key in s3.keys("runs/mine/parts/")) >= 3, running)
        running.kill(0)
        first, second = running.ends()
        assert first.code == -signal.SIGKILL and second.code == 1
        assert "process 0 (" in second.err.splitlines()[-1]
        kept = [key for key in s3.keys("runs/mine/parts/") if key.endswith(".npz")]
        first, *others = start("compare", 3, *pair, f"--out={out}", cache, *FLAGS).ends()
        assert first.code == 0, first.err
        assert all(done.code == 0 for done in others), others
        assert kept and not s3.keys("runs/mine/parts/")
        assert s3.get("runs/mine/matrices.csv") == (alone / "matrices.csv").read_bytes()
        arrays = s3.keys("runs/mine/arrays/")
        assert arrays and all(
            s3.get(f"runs/mine/arrays/{key}") == (alone / "arrays" / key).read_bytes() for key in arrays
        )
