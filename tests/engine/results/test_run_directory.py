"""Where a run may be written, and what happens when it cannot be."""

import subprocess
import sys

import numpy as np
import pytest

import polarax
import polarax.comparison
import polarax.results.arrays
import polarax.results.run_directory
from polarax.results.directory import claim_directory
from polarax.results.files import jsonable
from polarax.results.run_directory import RunWriter

# A limit on the size of files stands in for a full disk: both fail in the middle of a write.
FULL_DISK = """
import resource, signal, sys
import polarax
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[4]),) * 2)
try:
    polarax.compare(*sys.argv[1:4], metrics="change", progress=False)
except polarax.RunError as error:
    print(error)
    sys.exit(41)
"""


def files(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


class TestClaim:
    def test_a_new_folder_is_made_with_its_parents(self, tmp_path):
        path = claim_directory(tmp_path / "a" / "b")
        assert path.is_dir() and not list(path.iterdir())

    def test_an_empty_folder_is_taken(self, tmp_path):
        assert claim_directory(str(tmp_path)) == tmp_path

    def test_a_home_folder_is_expanded(self, tmp_path, monkeypatch):
        monkeypatch.setenv("HOME", str(tmp_path))
        assert claim_directory("~/run") == tmp_path / "run"

    @pytest.mark.parametrize("overwrite", [False, True])
    def test_a_file_is_refused_and_kept(self, tmp_path, overwrite):
        (tmp_path / "file").write_text("mine")
        with pytest.raises(polarax.UsageError, match=r"file is a file. Expected a new or empty"):
            claim_directory(tmp_path / "file", overwrite=overwrite)
        assert (tmp_path / "file").read_text() == "mine"

    @pytest.mark.parametrize("overwrite", [False, True])
    def test_a_folder_of_something_else_is_refused_and_kept(self, tmp_path, overwrite):
        (tmp_path / "matrices.csv").write_text("mine")
        (tmp_path / "plots").mkdir()
        with pytest.raises(polarax.UsageError, match="is not empty and is not a run"):
            claim_directory(tmp_path, overwrite=overwrite)
        assert (tmp_path / "matrices.csv").read_text() == "mine" and (tmp_path / "plots").is_dir()

    def test_a_run_of_something_else_is_refused_and_kept_unless_it_may_be_overwritten(self, tmp_path, small):
        out = tmp_path / "run"
        polarax.compare(small.base, small.post, out, metrics="change", progress=False)
        before = files(out)
        with pytest.raises(polarax.UsageError, match=r"something else: --top_k was 16, is 3\. Give"):
            polarax.compare(small.base, small.post, out, metrics="change", top_k=3, progress=False)
        with pytest.raises(polarax.UsageError, match=r"fingerprint of post was \w+, is \w+\. Give"):
            polarax.compare(small.base, small.base, out, metrics="change", progress=False)
        assert files(out) == before

    def test_a_run_that_another_process_writes_is_left_alone(self, tmp_path, small):
        out = tmp_path / "run"
        polarax.compare(small.base, small.post, out, metrics="change", progress=False)
        lock = "import fcntl, sys; file = open(sys.argv[1], 'a'); fcntl.flock(file, fcntl.LOCK_EX)"
        command = [sys.executable, "-c", f"{lock}; print(1, flush=True); input()", str(out / ".lock")]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
            other.stdout.readline()
            before = files(out)
            for overwrite in (False, True):
                with pytest.raises(polarax.RunError, match="Another process is writing"):
                    polarax.compare(small.base, small.post, out, metrics="change", overwrite=overwrite, progress=False)
            assert files(out) == before
            other.communicate("\n", timeout=30)
        assert polarax.compare(small.base, small.post, out, metrics="change", progress=False).finished

    def test_overwriting_leaves_nothing_of_the_old_run_and_all_else(self, tmp_path, small):
        out = tmp_path / "run"
        polarax.compare(small.base, small.post, out, metrics="change", progress=False)
        (out / "plots").mkdir()
        (out / "plots" / "old.png").write_text("old")
        (out / "notes.txt").write_text("mine")
        run = polarax.compare(
            small.base,
            small.post,
            out,
            metrics="change",
            layers="1",
            overwrite=True,
            progress=False,
        )
        assert run.finished and len(run.frame()) == 1
        assert (out / "notes.txt").read_text() == "mine"
        assert not (out / "plots").exists()
        with pytest.raises(KeyError):
            run.spectra("model.layers.0.self_attn.q_proj.weight")

    def test_a_bad_request_does_not_cost_the_run_that_is_there(self, tmp_path, small):
        out = tmp_path / "run"
        polarax.compare(small.base, small.post, out, metrics="change", progress=False)
        before = files(out)
        for options in ({"base": str(tmp_path / "gone")}, {"layers": "9"}, {"metrics": "speed"}):
            arguments = {"base": small.base, "metrics": "change"} | options
            with pytest.raises(ValueError):
                polarax.compare(post=small.post, out=out, overwrite=True, **arguments)
        assert files(out) == before

    @pytest.mark.parametrize("path", ["file/run", "x" * 300, "a/" + "x" * 300])
    def test_a_folder_that_cannot_be_made(self, tmp_path, path):
        (tmp_path / "file").write_text("mine")
        with pytest.raises(polarax.UsageError, match=r"^Output .* cannot be made: [A-Z].*\.$"):
            claim_directory(tmp_path / path)

    def test_a_folder_that_cannot_be_listed(self, tmp_path, monkeypatch):
        def refuse(_):
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(type(tmp_path), "iterdir", refuse)
        with pytest.raises(polarax.UsageError, match="Permission denied"):
            claim_directory(tmp_path)


class TestWriting:
    @pytest.mark.parametrize("name", ["run.json", "matrices.csv", "skipped.csv", "summary.json"])
    def test_what_cannot_be_written_is_a_run_error(self, tmp_path, small, monkeypatch, name):
        # A folder where a file should go, put there once the run has been claimed.
        claim = polarax.comparison.claim_directory

        def obstruct(*args, **options):
            path = claim(*args, **options)
            (path / name).mkdir()
            return path

        monkeypatch.setattr(polarax.comparison, "claim_directory", obstruct)
        with pytest.raises(polarax.RunError, match=r"Cannot write the run at .*run: "):
            polarax.compare(small.base, small.post, tmp_path / "run", metrics="change", progress=False)

    def test_a_run_that_could_not_begin_is_let_go_of(self, tmp_path):
        path = claim_directory(tmp_path / "run")
        (path / "skipped.csv").mkdir()
        with pytest.raises(polarax.RunError) as caught:
            RunWriter(path, {}, ["name"], [])
        (path / "skipped.csv").rmdir()
        RunWriter(path, {}, ["name"], []).close()
        del caught  # until here it held the traceback, and with it the writer that failed

    def test_a_full_disk_in_the_middle_keeps_what_is_finished(self, tmp_path, write):
        rng = np.random.default_rng(10)
        # The second stack has 8 KiB of singular values of each side, which do not compress.
        base = {"a": rng.normal(size=(2, 3))}
        base |= {f"b.{i}": rng.normal(size=(32, 32)) for i in range(32)}
        paths = [write(tmp_path / f"{side}.safetensors", base) for side in ("base", "post")]
        done = _with_full_disk(paths, tmp_path / "run", 6000)
        assert done.returncode == 41, done.stderr
        assert done.stdout.startswith(f"Cannot write the run at {tmp_path / 'run'}: ")
        assert done.stdout.count("\n") == 1
        run = polarax.Run.open(tmp_path / "run")
        assert not run.finished and run.frame()["name"].tolist() == ["a"]

    def test_a_full_disk_at_once(self, tmp_path, small):
        done = _with_full_disk([small.base, small.post], tmp_path / "run", 10)
        assert done.returncode == 41, done.stderr
        assert done.stdout.startswith("Cannot write the run at ")

    def test_a_failing_store_is_a_run_error(self, tmp_path, small, monkeypatch):
        def fail(*_):
            raise ValueError("RESOURCE_EXHAUSTED: No space left on device\n[source locations]")

        monkeypatch.setattr(polarax.results.arrays.ts.TensorStore, "write", fail, raising=False)
        with pytest.raises(polarax.RunError) as caught:
            polarax.compare(small.base, small.post, tmp_path / "run", metrics="change", progress=False)
        assert "No space left on device" in str(caught.value)

    def test_no_partial_files_stay(self, llama_run):
        assert not list(llama_run.path.rglob("*.partial"))
        assert {path.name for path in llama_run.path.iterdir()} >= {
            "run.json",
            "matrices.csv",
            "skipped.csv",
            "summary.json",
            "arrays",
        }

    def test_arrays_are_zarr3_that_tensorstore_opens(self, llama_run):
        import tensorstore

        stacks = sorted((llama_run.path / "arrays").iterdir())
        assert [path.name.split("-")[1] for path in stacks] == ["96x48", "48x24", "48x48"]
        for stack in stacks:
            store = tensorstore.open(
                {"driver": "zarr3", "kvstore": {"driver": "file", "path": f"{stack / 's_base'}/"}}
            ).result()
            assert store.ndim == 2 and store.dtype.numpy_dtype == np.float64
            assert (stack / "s_base" / "zarr.json").is_file()


def test_json_has_no_nan():
    content = {"a": [float("nan"), np.float32(0.5), np.int64(3)], 4: {"b": float("inf")}, "c": (1,)}
    assert jsonable(content) == {"a": [None, 0.5, 3], "4": {"b": None}, "c": [1]}


def _with_full_disk(paths, out, limit):
    return subprocess.run(
        [sys.executable, "-c", FULL_DISK, *paths, str(out), str(limit)],
        capture_output=True,
        text=True,
        timeout=240,
    )
