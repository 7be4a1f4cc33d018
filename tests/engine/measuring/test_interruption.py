"""A run that is killed, runs out of disk or loses its input half-way: what it leaves, and the same command again."""

import contextlib
import itertools
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

import polarax
import polarax.comparison
from polarax.loaders import Skipped, open_checkpoint
from polarax.loaders.stores import http_client
from polarax.planning.comparison_plan import plan_posts
from polarax.planning.selection import Selection
from polarax.results.directory import claim_directory
from polarax.results.run_directory import RunWriter
from tests.engine.command import NO_CACHE, assert_one_line

MATRICES = 12
STACK = "{:04d}-24x16"

# Ends itself as `kill -9` does, just before something happens in the file system for the n-th time.
DYING = """
import os, signal, sys
from polarax.cli import main
event, path, left = sys.argv[1], sys.argv[2], int(sys.argv[3])
def watch(happening, arguments):
    global left
    if happening == event and str(arguments[event == "os.rename"]).endswith(path):
        if event == "os.rename" or arguments[1] == "a":
            left -= 1
            if not left:
                os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(watch)
sys.exit(main(sys.argv[4:]))
"""

# Runs a command on a disk that is too small, and again when there is room.
ON_A_SMALL_DISK = """
import shutil, subprocess, sys
from polarax.cli import main
disk, kept = sys.argv[1:3]
def mount(*options):
    subprocess.run(["mount", "-t", "tmpfs", "-o", *options, "none", disk], check=True)
mount("size=120k")
print("code", main(sys.argv[3:]), flush=True)
shutil.copytree(f"{disk}/run", f"{kept}/full")
mount("remount,size=16m")
print("code", main(sys.argv[3:]), flush=True)
shutil.copytree(f"{disk}/run", f"{kept}/run")
"""


@pytest.fixture(scope="module")
def pair(tmp_path_factory, write):
    """Matrices of one shape, each of which is a stack of its own; paths of base and post."""
    rng = np.random.default_rng(4)
    names = [f"model.layers.{layer}.self_attn.q_proj.weight" for layer in range(MATRICES)]
    base = {name: rng.normal(size=(24, 16)).astype(np.float32) for name in names}
    post = {name: (w + 0.1 * rng.normal(size=w.shape)).astype(np.float32) for name, w in base.items()}
    folder = tmp_path_factory.mktemp("pair")
    return write(folder / "base.safetensors", base), write(folder / "post.safetensors", post)


@pytest.fixture(scope="module")
def whole(pair, tmp_path_factory):
    """The run that nothing interrupts."""
    out = tmp_path_factory.mktemp("whole") / "run"
    return polarax.compare(*pair, out, metrics="change", memory_gib=1e-6, progress=False).path


def arguments(pair, out):
    base, post = pair
    given = {"base": base, "post": post, "out": out, "metrics": "change", "memory_gib": 1e-6}
    return ["compare", *(f"--{name}={value}" for name, value in given.items()), "--noplots", NO_CACHE]


def files(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def assert_same_run(path, whole):
    """That every file is, to the byte, that of a run that was never interrupted."""
    found, expected = files(path), files(whole)
    descriptions = []
    for contents in (found, expected):
        description = json.loads(contents.pop("run.json"))
        assert description["state"] == "finished"
        descriptions.append({name: description[name] for name in ("flags", "matrices", "environment")})
        descriptions[-1]["fingerprints"] = [description[side]["fingerprint"] for side in ("base", "post")]
    assert found.keys() == expected.keys()  # nothing partial stays
    assert found == expected
    assert descriptions[0] == descriptions[1]


def assert_whole_so_far(path):
    """That what is there under a final name is whole; returns how many matrices there are."""
    run = polarax.Run.open(path)
    assert not run.finished
    for file in path.rglob("*.json"):
        json.loads(file.read_text())
    frame = run.frame()
    assert np.isfinite(frame["drift"]).all()
    for name in frame["name"]:
        for values in run.spectra(name):
            assert (values > 0).all()
    return len(frame)


class TestKilled:
    """By signal 9, as processes."""

    def test_again_and_again(self, pair, whole, cli, tmp_path):
        out = tmp_path / "run"
        command = arguments(pair, out)
        # Whenever it happens to be, once the second stack is begun.
        with subprocess.Popen([sys.executable, "-m", "polarax", *command], stderr=subprocess.DEVNULL) as process:
            limit = time.monotonic() + 120
            while not (out / "arrays" / STACK.format(1)).exists() and time.monotonic() < limit:
                assert process.poll() is None
                time.sleep(0.001)
            process.kill()
        assert process.wait(timeout=60) == -signal.SIGKILL
        first = assert_whole_so_far(out)
        assert 1 <= first < MATRICES
        stored = (out / "arrays" / STACK.format(0) / "s_base" / "c" / "0" / "0").stat().st_mtime_ns
        # The arrays of a stack are there, its rows are not; then all but the last word.
        moments = (("open", "run/matrices.csv", 3), ("os.rename", "run/run.json", 2))
        done = [first]
        for event, path, count in moments:
            dying = [sys.executable, "-c", DYING, event, path, str(count), *command]
            ended = subprocess.run(dying, timeout=120, capture_output=True, text=True)
            assert ended.returncode == -signal.SIGKILL, ended.stderr
            done.append(assert_whole_so_far(out))
        assert done[1:] == [first + 2, MATRICES]
        again = cli(*command)
        assert again.code == 0, again.err
        assert_same_run(out, whole)
        # What was finished is not measured again.
        assert (out / "arrays" / STACK.format(0) / "s_base" / "c" / "0" / "0").stat().st_mtime_ns == stored


class TestEveryMoment:
    """A run directory alone, whose writing ends at each step of it in turn; numbers are made up."""

    TREE = {"a": np.ones((6, 5)), "b": np.ones((4, 3)), "c": np.ones(3)}

    @pytest.fixture(autouse=True)
    def quick(self, monkeypatch):
        monkeypatch.setattr(os, "fsync", lambda file: None)  # for the loss of power alone

    @classmethod
    def write_run(cls, path, kind="new", overwrite=False):
        checkpoint = open_checkpoint(cls.TREE)
        plan = plan_posts(checkpoint, {"": checkpoint}, Selection(), memory_bytes=0)
        description = {"flags": {"kind": kind}, "started": "today"}
        path = claim_directory(path, description, overwrite=overwrite)
        columns, place = ["name", "drift"], {"a": 1, "b": 0}
        with contextlib.closing(RunWriter(path, description, columns, [Skipped("c", "1-D")])) as writer:
            for stack in writer.unfinished(plan.stacks, place):
                rows = [{"name": pair.name, "drift": 1 / (3 + stack.number)} for pair in stack.pairs]
                arrays = {"s_base": np.full((1, 3), stack.number + 1.0)}
                writer.write_stack(stack, rows, arrays, [place[pair.name] for pair in stack.pairs])
            writer.finish({}, {"matrices": 2})

    def test_the_same_again_gives_the_same(self, tmp_path, crashes):
        self.write_run(tmp_path / "whole")
        for step in itertools.count(1):
            out = tmp_path / f"run-{step}"
            if not crashes(step, self.write_run, out):
                break
            if (out / "run.json").exists():
                self.assert_numbers_have_arrays(out)
            self.write_run(out)
            assert files(out) == files(tmp_path / "whole"), f"after the end at step {step}"
        assert step > 25  # of them were tried

    def test_the_same_again_over_an_old_run(self, tmp_path, crashes):
        self.write_run(tmp_path / "whole")
        self.write_run(tmp_path / "old", kind="old")
        (tmp_path / "old" / "plots").mkdir()
        (tmp_path / "old" / "plots" / "nf.png").write_bytes(b"a picture")
        for step in itertools.count(1):
            out = tmp_path / f"run-{step}"
            shutil.copytree(tmp_path / "old", out)
            assert crashes(step, self.write_run, out, overwrite=True)
            gone = not (out / "run.json").exists()
            self.write_run(out, overwrite=True)
            assert files(out) == files(tmp_path / "whole"), f"after the end at step {step}"
            if gone:  # from here on it is a run in a new folder
                break
        assert step > 10

    @staticmethod
    def assert_numbers_have_arrays(path):
        if (path / "matrices.csv").exists():
            run = polarax.Run.open(path)
            for name, drift in run.frame().to_numpy():
                np.testing.assert_array_equal(run.array(name, "s_base"), [1 / drift - 2] * 3)


class TestFullDisk:
    def test_a_disk_that_is_full(self, pair, whole, tmp_path, small_disk):
        out = small_disk.path / "run"
        done = subprocess.run(
            [*small_disk.prefix, sys.executable, "-c", ON_A_SMALL_DISK, small_disk.path, tmp_path]
            + arguments(pair, out),
            timeout=240,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        lines = [line for line in done.stderr.splitlines() if not line.startswith("polarax: ")]
        errors = [line for line in done.stderr.splitlines() if line.startswith("polarax: ")]
        assert errors == [f"polarax: Cannot write the run at {out}: No space left on device."]
        left = MATRICES - assert_whole_so_far(tmp_path / "full")
        assert 0 < left < MATRICES and lines[-1].startswith(f"{left}/{left} matrices")
        codes = [line for line in done.stdout.splitlines() if line.startswith("code")]
        assert codes == ["code 1", "code 0"] and done.stdout.startswith("code 1\n")
        assert_same_run(tmp_path / "run", whole)

    def test_files_that_may_not_grow(self, pair, whole, tmp_path, cli):
        """The same without a disk of one's own: the longest file of this run is the table."""
        out = tmp_path / "run"
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        limit = (whole / "matrices.csv").stat().st_size * 2 // 3
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
        try:
            done = cli(*arguments(pair, out))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert_one_line(done, f"Cannot write the run at {out}: File too large.", code=1)
        assert 0 < assert_whole_so_far(out) < MATRICES
        assert cli(*arguments(pair, out)).code == 0
        assert_same_run(out, whole)


@pytest.fixture
def after_three_stacks(monkeypatch):
    """Does something when the third stack has been written, once."""

    def arrange(action):
        write_stack = polarax.comparison.RunWriter.write_stack
        count = itertools.count(1)

        def write_and_act(self, *args):
            write_stack(self, *args)
            if next(count) == 3:
                action()

        monkeypatch.setattr(polarax.comparison.RunWriter, "write_stack", write_and_act)

    return arrange


@pytest.fixture
def impatient(monkeypatch):
    patience = http_client.Patience(tries=2, first_pause=0.01, longest_pause=0.05, idle=0.3, slowest=1 << 20)
    monkeypatch.setattr(http_client, "PATIENCE", patience)


class TestInputThatGoes:
    """After three stacks; one that was read ahead may still be finished."""

    @pytest.mark.parametrize(
        ("fault", "problem"),
        [
            ("drop", "dropped after"),
            ("trickle", "slower than"),
            ("length", "were announced"),
            ("403", "no permission"),
        ],
    )
    def test_a_server_that_fails(
        self, pair, whole, web, cli, tmp_path, monkeypatch, after_three_stacks, fault, problem
    ):
        patience = http_client.Patience(tries=2, first_pause=0.01, longest_pause=0.05, idle=0.3, slowest=1 << 20)
        monkeypatch.setattr(http_client, "PATIENCE", patience)
        for path in pair:
            shutil.copy(path, web.root)
        urls = [web.url + os.path.basename(path) for path in pair]
        after_three_stacks(lambda: web.faults.update({"/post.safetensors": [fault] * 50}))
        out = tmp_path / "run"
        done = cli(*arguments(urls, out))
        assert_one_line(done, "part-way", f"{urls[1]}: tensor 'model.layers.", problem, code=1)
        assert 3 <= assert_whole_so_far(out) < MATRICES
        web.faults.clear()
        assert cli(*arguments(urls, out)).code == 0
        assert_same_run(out, whole)

    @pytest.mark.parametrize("change", ["truncated", "replaced", "written to", "removed"])
    def test_a_file_that_changes(self, pair, whole, cli, tmp_path, after_three_stacks, change):
        base, post = pair[0], tmp_path / "post.safetensors"
        shutil.copy(pair[1], post)
        content = post.read_bytes()

        def meddle():
            if change == "truncated":
                os.truncate(post, len(content) - 8)
            elif change == "replaced":
                (tmp_path / "other").write_bytes(content)
                os.replace(tmp_path / "other", post)
            elif change == "written to":
                with post.open("r+b") as file:
                    file.seek(-8, os.SEEK_END)
                    file.write(bytes(8))
            else:
                post.unlink()

        after_three_stacks(meddle)
        out = tmp_path / "run"
        done = cli(*arguments((base, post), out))
        problem = "the file is gone" if change == "removed" else "it changed since it was first read"
        assert_one_line(done, "part-way", f"{post}: tensor 'model.layers.", problem, code=1)
        assert 3 <= assert_whole_so_far(out) < MATRICES
        post.write_bytes(content)
        assert cli(*arguments((base, post), out)).code == 0
        assert_same_run(out, whole)
