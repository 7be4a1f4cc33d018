"""Runs in a bucket: what is there, in which order it came, who may write it, and what is said when it cannot be."""

import json
import os
import subprocess
import sys
import time

import numpy as np
import pytest

import polarax
from polarax.results.remote import lock, uploads
from polarax.results.run_directory import RunWriter
from polarax.results.shelf import Shelf
from tests.engine.command import NO_CACHE, assert_one_line

MATRICES = 5


@pytest.fixture(scope="module")
def pair(tmp_path_factory, write):
    """Matrices of one shape, each of which is a stack of its own; paths of base and post."""
    rng = np.random.default_rng(4)
    names = [f"model.layers.{layer}.self_attn.q_proj.weight" for layer in range(MATRICES)]
    base = {name: rng.normal(size=(24, 16)).astype(np.float32) for name in names}
    post = {name: (w + 0.1 * rng.normal(size=w.shape)).astype(np.float32) for name, w in base.items()}
    folder = tmp_path_factory.mktemp("pair")
    return write(folder / "base.safetensors", base), write(folder / "post.safetensors", post)


def compare(pair, out, **options):
    return polarax.compare(*pair, out, metrics="change", memory_gib=1e-6, progress=False, **options)


@pytest.fixture(scope="module")
def local(pair, tmp_path_factory):
    """The run on a file system."""
    return compare(pair, tmp_path_factory.mktemp("local") / "run")


def numbers(files):
    """name -> content of the files that say no time."""
    return {name: content for name, content in files.items() if not name.endswith((".lock", "run.json"))}


def files_of(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def objects_of(s3, folder):
    return {key: s3.get(folder + key) for key in s3.keys(folder)}


class Stopped(BaseException):
    """What ends a run that is not an error of it."""


@pytest.fixture
def counted(monkeypatch):
    """The stacks that were measured; another one after that many ends the run."""
    written, most = [], []
    write_stack = RunWriter.write_stack

    def count(self, stack, *arguments):
        if most and len(written) == most[0]:
            raise Stopped
        written.append(stack.label)
        write_stack(self, stack, *arguments)

    monkeypatch.setattr(RunWriter, "write_stack", count)
    count.written, count.most = written, most
    return count


class TestAWholeRun:
    def test_the_bucket_holds_what_a_folder_holds(self, pair, local, s3):
        run = compare(pair, "s3://models/some/run 1")
        objects = objects_of(s3, "some/run 1/")
        assert numbers(objects) == numbers(files_of(local.path))
        assert json.loads(objects["run.json"])["state"] == "finished"
        assert ".lock" not in objects
        assert run.location == "s3://models/some/run 1" and "s3://models/some/run 1" in repr(run)
        assert numbers(files_of(run.path)) == numbers(files_of(local.path))

    def test_it_is_opened_by_its_url(self, pair, local, s3):
        compare(pair, "s3://models/run")
        run = polarax.Run.open("s3://models/run/")
        assert run.frame().equals(local.frame())
        for name in local.frame().name:
            np.testing.assert_array_equal(run.spectra(name), local.spectra(name))
        folder = run.path
        assert folder.is_dir()
        del run
        assert not folder.exists()

    def test_several_posts(self, pair, s3):
        base, post = pair
        posts = {"sft": post, "rl": base}
        runs = polarax.compare(base, posts, "s3://models/runs", metrics="change", progress=False)
        opened = polarax.Runs.open("s3://models/runs")
        assert opened.labels == ("sft", "rl") and opened.frame().equals(runs.frame())
        assert opened["rl"].location == "s3://models/runs/rl"
        assert opened.between("sft", "rl").finished
        assert polarax.Run.open("s3://models/runs/sft").frame().equals(runs["sft"].frame())
        folder, alone = opened.path, opened["sft"]
        del opened
        assert len(alone.frame()) == MATRICES and folder.is_dir()  # kept by one of its runs

    def test_a_look_closer(self, pair, s3):
        compare(pair, "s3://models/look", quick=True)
        polarax.compare(*pair, "s3://models/look", layers="1", metrics="change", progress=False)
        looks = polarax.Run.open("s3://models/look").frame().look.tolist()
        assert looks.count("full") == 1 and looks.count("first") == MATRICES - 1
        assert polarax.Run.open("s3://models/look").first_command[1] == "s3://models/look"

    def test_the_commands(self, pair, s3, cli):
        base, post = pair
        flags = [f"--base={base}", f"--post={post}", "--metrics=change", NO_CACHE]
        done = cli("compare", *flags, "--out=s3://models/run", "--noplots")
        assert done.code == 0 and "Run: s3://models/run (" in done.out
        done = cli("report", "--run=s3://models/run")
        assert done.code == 0 and "Report: s3://models/run/report.html" in done.out
        assert "Plot: s3://models/run/plots/scaling.png" in done.out
        assert {"report.html", "plots/scaling.png", "plots/scaling.svg"} <= set(s3.keys("run/"))
        done = cli("compare", *flags, "--out=s3://models/run", "--overwrite", "--noplots")
        assert done.code == 0 and not {"report.html", "plots/scaling.png"} & set(s3.keys("run/"))


class TestInterrupted:
    def test_another_machine_goes_on_with_what_is_finished(self, pair, local, s3, counted):
        counted.most.append(2)
        with pytest.raises(Stopped):
            compare(pair, "s3://models/run")
        assert json.loads(s3.get("run/run.json"))["state"] == "running"
        assert len(polarax.Run.open("s3://models/run").frame()) == 2
        counted.most.clear()
        done = list(counted.written)
        compare(pair, "s3://models/run")
        assert len(counted.written) == MATRICES == len(set(counted.written)) and counted.written[:2] == done
        assert numbers(objects_of(s3, "run/")) == numbers(files_of(local.path))

    @pytest.mark.parametrize("count", [0, 1, 2, 3, 6, 8, 11, 20, 34])
    def test_whatever_came_last(self, pair, local, s3, counted, monkeypatch, count):
        """A bucket that takes no more after any number of objects holds a run that is resumed to the same end."""
        put, left = Shelf.put, [count]

        def until(self, key, data):
            left[0] -= 1
            if left[0] < 0:
                raise polarax.RunError("the bucket is gone.")
            put(self, key, data)

        monkeypatch.setattr(uploads, "_SIDE_BY_SIDE", 1)
        with monkeypatch.context() as gone:
            gone.setattr(Shelf, "put", until)
            with pytest.raises(polarax.RunError, match="the bucket is gone"):
                compare(pair, "s3://models/run")
        whole = [key for key in s3.keys("run/") if key.endswith("names.json")]
        kept = len(polarax.Run.open("s3://models/run").frame()) if "matrices.csv" in s3.keys("run/") else 0
        assert kept <= len(whole) <= kept + 1
        counted.written.clear()
        compare(pair, "s3://models/run")
        assert len(counted.written) == MATRICES - kept
        assert numbers(objects_of(s3, "run/")) == numbers(files_of(local.path))

    def test_what_the_plan_has_no_longer_is_removed(self, pair, local, s3):
        compare(pair, "s3://models/run")
        for key in s3.keys("run/arrays/0000-24x16/"):
            s3.put(f"run/arrays/9999-24x16/{key}", s3.get(f"run/arrays/0000-24x16/{key}"))
        compare(pair, "s3://models/run")
        assert numbers(objects_of(s3, "run/")) == numbers(files_of(local.path))


DYING = """
import os, signal, sys
import polarax
from polarax.results.run_directory import RunWriter
def die(*arguments):
    os.kill(os.getpid(), signal.SIGKILL)
RunWriter.write_stack = die
polarax.compare(*sys.argv[1:], "s3://models/run", metrics="change", memory_gib=1e-6, progress=False)
"""


class TestTheLock:
    @pytest.fixture(autouse=True)
    def soon(self, monkeypatch):
        monkeypatch.setattr(lock, "BEAT_SECONDS", 0.1)
        monkeypatch.setattr(lock, "PATIENCE_SECONDS", 1.5)

    def locked(self, lost=lambda error: None, say=False):
        return lock.remotely_locked(Shelf.open("s3://models/run"), lost, say=say)

    def test_two_writers_at_once(self, pair, s3, cli):
        base, post = pair
        with self.locked():
            done = cli("compare", f"--base={base}", f"--post={post}", "--out=s3://models/run", NO_CACHE)
            waits, error = done.err.splitlines()
            assert done.code == 1 and f"locked by process {os.getpid()} on " in waits
            assert error.startswith("polarax: Another process is writing the run at s3://models/run: process ")
            assert error.endswith("delete s3://models/run/.lock.")
        assert s3.keys() == []
        assert compare(pair, "s3://models/run").finished

    def test_a_killed_process_of_this_machine_leaves_nothing_to_wait_for(self, pair, s3, monkeypatch):
        done = subprocess.run([sys.executable, "-c", DYING, *pair], capture_output=True, text=True, timeout=100)
        assert done.returncode == -9, done.stderr
        assert ".lock" in s3.keys("run/")
        monkeypatch.setattr(lock, "PATIENCE_SECONDS", 1e9)
        assert compare(pair, "s3://models/run").finished

    @pytest.mark.parametrize("content", [b"{}", b"\xff", b'{"process": 1, "host": "elsewhere", "machine": "another"}'])
    def test_a_lock_that_nobody_changes_is_taken_over(self, s3, content):
        s3.put("run/.lock", content)
        with self.locked(say=True):
            assert json.loads(s3.get("run/.lock"))["process"] == os.getpid()
        assert s3.keys("run/") == []

    def test_a_lock_that_goes_away_meanwhile(self, s3):
        s3.put("run/.lock", b"{}")
        waiting = []
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(
                lock.time,
                "sleep",
                lambda seconds: waiting or waiting.append(s3.client.delete_object(Bucket="models", Key="run/.lock")),
            )
            with self.locked():
                assert waiting

    def test_a_writer_whose_lock_was_taken_over_ends(self, pair, s3, counted, monkeypatch):
        write_stack = RunWriter.write_stack

        def slowly(self, *arguments):
            s3.put("run/.lock", b'{"process": 7, "host": "elsewhere", "since": "today"}')
            write_stack(self, *arguments)
            time.sleep(0.5)

        monkeypatch.setattr(RunWriter, "write_stack", slowly)
        with pytest.raises(polarax.RunError, match="was taken away by process 7 on elsewhere, since today"):
            compare(pair, "s3://models/run")
        assert len(counted.written) < MATRICES
        assert json.loads(s3.get("run/.lock"))["process"] == 7  # that of the other one stays


class TestRefused:
    def flags(self, pair, out):
        base, post = pair
        return ["compare", f"--base={base}", f"--post={post}", f"--out={out}", NO_CACHE]

    def test_something_else_there(self, pair, s3, cli):
        s3.put("model/weights", b"mine")
        done = cli(*self.flags(pair, "s3://models/model"), "--overwrite")
        assert_one_line(done, "Output s3://models/model is not empty and is not a run of polarax")
        assert s3.keys() == ["model/weights"]

    def test_a_run_of_something_else(self, pair, s3, cli):
        compare(pair, "s3://models/run")
        before = objects_of(s3, "run/")
        done = cli(*self.flags(pair, "s3://models/run"))
        assert_one_line(done, "Output s3://models/run holds a run of something else", "--overwrite it")
        assert objects_of(s3, "run/") == before

    def test_overwrite_removes_the_run_alone(self, pair, s3):
        base, post = pair
        polarax.compare(base, {"a": post, "b": base}, "s3://models/run", metrics="change", progress=False)
        s3.put("run/mine", b"mine")
        polarax.compare(base, base, "s3://models/run", metrics="change", overwrite=True, progress=False)
        assert {key.split("/")[0] for key in s3.keys("run/")} == {
            "arrays", "matrices.csv", "mine", "run.json", "skipped.csv", "summary.json"
        }  # fmt: skip

    def test_a_bucket_that_is_not_there(self, pair, s3, cli):
        done = cli(*self.flags(pair, "s3://no-such-bucket/run"))
        assert_one_line(done, "s3://no-such-bucket/run", "no such bucket", "check the name of the bucket")
        done = cli("report", "--run=s3://no-such-bucket/run")
        assert_one_line(done, "s3://no-such-bucket/run", "no such bucket")

    def test_no_permission_to_write(self, pair, s3, cli, monkeypatch):
        monkeypatch.setattr(Shelf, "list", lambda self, prefix="": [])  # may be read all the same
        monkeypatch.delenv("AWS_ACCESS_KEY_ID")
        monkeypatch.setenv("AWS_CONFIG_FILE", "/nonexistent")
        monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent")
        done = cli(*self.flags(pair, "s3://models/run"))
        assert_one_line(done, "s3://models/run/.lock cannot be", "no permission", "list, read, write and delete")

    def test_no_server(self, pair, s3, cli, monkeypatch):
        monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
        assert_one_line(cli(*self.flags(pair, "s3://models/run")), "s3://models/run cannot be listed", "the network")

    def test_other_urls(self, pair, cli):
        assert_one_line(cli(*self.flags(pair, "https://u:secret@host/run")), "expected a path, or a gs or s3 URL")
        assert_one_line(cli("report", "--run=hf://owner/run"), "expected a path, or a gs or s3 URL")

    def test_no_run_there(self, s3, cli):
        s3.put("model/weights", b"mine")
        assert_one_line(cli("report", "--run=s3://models/model"), "Run s3://models/model is not a run of polarax")
