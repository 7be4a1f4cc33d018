"""Run: what a run directory says when it is read back, finished or not."""

import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest

import polarax
import polarax.comparison
from polarax.metrics import CONTROL_COLUMNS, GROUPS, IDENTITY_COLUMNS, own_spectrum_columns
from polarax.planning.comparison_plan import plan_posts
from polarax.planning.selection import Selection
from polarax.results.directory import claim_directory
from polarax.results.run_directory import RunWriter

# Three stacks of one matrix each, written in this order.
SHAPES = {"layers.0.self_attn.q_proj": (6, 5), "layers.1.self_attn.q_proj": (4, 5), "x": (3, 5)}

# Kills itself, as the kernel would when memory runs out, right after the first stack is on disk.
KILLED = """
import os, signal, sys
import polarax, polarax.comparison
write_stack = polarax.comparison.RunWriter.write_stack
def write_and_die(self, *args):
    write_stack(self, *args)
    os.kill(os.getpid(), signal.SIGKILL)
polarax.comparison.RunWriter.write_stack = write_and_die
polarax.compare(*sys.argv[1:4], metrics="scaling")
"""


@pytest.fixture
def three_stacks(tmp_path, write):
    rng = np.random.default_rng(8)
    base = {name: rng.normal(size=shape) for name, shape in SHAPES.items()}
    post = {name: 1.25 * w for name, w in base.items()}
    paths = [write(tmp_path / f"{side}.safetensors", arrays) for side, arrays in (("base", base), ("post", post))]
    return paths, base, post


def assert_holds(run, names, base):
    """That a run holds just these matrices, each with its numbers."""
    frame = run.frame()
    assert list(frame["name"]) == names
    np.testing.assert_allclose(frame["alpha"], 1.25)
    for name in names:
        values = np.linalg.svd(base[name], compute_uv=False)
        np.testing.assert_allclose(run.spectra(name), (values, 1.25 * values), rtol=1e-10)
    summary = run.summary()
    assert summary["matrices"] == len(names)
    assert sum(role["matrices"] for role in summary["roles"].values()) == len(names)


class TestFinished:
    def test_the_first_columns_are_those_of_the_design(self, llama_run):
        header = (llama_run.path / "matrices.csv").read_text(encoding="utf-8").splitlines()[0]
        identity = "name,layer,role,expert,rows,cols,dtype_base,dtype_post,status,relation,name_post,matched_by"
        assert header.startswith(identity + ",")
        measured = [column for group in GROUPS.values() for column in group]
        own_spectrum = own_spectrum_columns(GROUPS)
        assert header.split(",") == [*identity.split(","), *measured, *own_spectrum, *CONTROL_COLUMNS]
        assert list(llama_run.frame().columns) == header.split(",")
        assert ",".join(IDENTITY_COLUMNS) == identity

    def test_opened_again_it_is_the_same(self, llama_run):
        opened = polarax.Run.open(str(llama_run.path))
        assert opened.finished
        assert opened.frame().equals(llama_run.frame())
        assert opened.skipped().equals(llama_run.skipped())
        assert opened.summary()["reading"] == llama_run.summary()["reading"]
        name = "lm_head.weight"
        np.testing.assert_array_equal(opened.spectra(name), llama_run.spectra(name))
        assert "23 matrices, finished" in repr(opened)

    def test_numbers_read_back_exactly(self, llama_run):
        # The largest singular value is both a number in the table and one in the arrays.
        for name, base, post in llama_run.frame()[["name", "spectral_norm_base", "spectral_norm_post"]].itertuples(
            index=False
        ):
            s_base, s_post = llama_run.spectra(name)
            assert (s_base[0], s_post[0]) == (base, post)

    def test_any_float_reads_back_exactly(self, tmp_path):
        rng = np.random.default_rng(9)
        values = rng.integers(0, 2**64, 1000, dtype=np.uint64).view(np.float64).tolist()
        values = [value for value in values if value == value]
        values += [0.1 + 0.2, -0.0, 5e-324, 1.7976931348623157e308, float("inf"), float("nan")]
        run = _write_rows(tmp_path / "run", ["drift"], [{"drift": value} for value in values])
        found = run.frame()["drift"].to_numpy()
        assert found.dtype == np.float64
        assert found.view(np.uint64).tolist() == np.array(values).view(np.uint64).tolist()

    def test_types_of_the_columns(self, llama_run):
        types = llama_run.frame().dtypes.astype(str)
        assert types["layer"] == types["expert"] == "Int64"
        assert types["rows"] == types["intruders_left"] == types["rank_base"] == "int64"
        assert types["nf"] == types["alpha"] == "float64"

    @pytest.mark.parametrize(
        "name",
        [
            "a,b",
            'a"b',
            '"',
            "a\nb",
            "a\r\nb",
            "схема.层.🦙",
            "nan",
            "NA",
            "null",
            "None",
            "1",
            "1e5",
            "True",
            " a ",
            "=1+1",
            "#",
            "",
        ],
    )
    def test_any_name_survives(self, small, name):
        w = small.base_arrays["model.layers.0.self_attn.q_proj.weight"]
        tensors = {name: w, "b": w, name + "1": np.ones(3)}
        run = polarax.compare(tensors, tensors, metrics="change", progress=False)
        assert sorted(run.frame()["name"]) == sorted([name, "b"])
        assert list(run.skipped()["name"]) == [name + "1"]
        assert len(run.spectra(name)[0]) == 8

    def test_experts_and_layers_are_whole_numbers(self):
        names = [f"model.layers.3.mlp.experts.{i}.up_proj.weight" for i in (0, 11)]
        tensors = {name: np.eye(2) for name in [*names, "lm_head.weight"]}
        frame = polarax.compare(tensors, tensors, metrics="change", progress=False).frame()
        assert frame.set_index("name").loc[names, "expert"].tolist() == [0, 11]
        assert frame.set_index("name").loc[names, "layer"].tolist() == [3, 3]
        assert frame["expert"].isna().tolist() == [True, False, False]

    def test_an_unknown_matrix_or_array_is_a_key_error(self, llama_run):
        with pytest.raises(KeyError, match="nope"):
            llama_run.spectra("nope")
        with pytest.raises(KeyError, match="s_other"):
            llama_run.array("lm_head.weight", "s_other")

    def test_run_json_says_what_was_done_and_where(self, llama, llama_run):
        description = json.loads((llama_run.path / "run.json").read_text(encoding="utf-8"))
        for side in ("base", "post"):
            assert description[side]["location"] == getattr(llama, side)
            checkpoint = polarax.open_checkpoint(getattr(llama, side))
            assert description[side]["fingerprint"] == checkpoint.fingerprint()
        assert description["base"]["fingerprint"] != description["post"]["fingerprint"]
        assert description["flags"] == {
            "include": [],
            "exclude": [],
            "roles": [],
            "layers": [],
            "metrics": list(GROUPS),
            "top_k": 16,
            "dtype": "float64",
            "method": "auto",
            "memory_gib": 4.0,
            "quick": False,
            "role_map": None,
            "common_rows": False,
            "control_draws": 0,
            "seed": 0,
        }
        environment = description["environment"]
        assert environment["versions"]["polarax"] == polarax.__version__
        assert environment["versions"]["jax"] and environment["versions"]["python"]
        assert environment["backend"] == "cpu" and environment["devices"]
        assert description["state"] == "finished" and description["started"]
        assert set(description["seconds"]) == {"read", "compile", "compute"}

    def test_summary_json_is_the_summary(self, llama_run):
        text = (llama_run.path / "summary.json").read_text(encoding="utf-8")
        stored = json.loads(text, parse_constant=lambda literal: pytest.fail(literal))
        summary = llama_run.summary()
        assert stored["reading"] == summary["reading"]
        assert stored["roles"]["q"]["alpha"] == summary["roles"]["q"]["alpha"]
        alphas = llama_run.frame().query("role == 'q'")["alpha"]
        assert summary["roles"]["q"]["alpha"] == {
            "count": 3,
            "mean": pytest.approx(np.mean(alphas)),
            "std": pytest.approx(np.std(alphas)),
            "min": min(alphas),
            "median": sorted(alphas)[1],
            "max": max(alphas),
        }
        assert summary["status"] == {"ok": 23} and summary["matrices"] == 23


class TestInterrupted:
    def test_a_later_stack_that_cannot_be_read(self, tmp_path, three_stacks, monkeypatch):
        (base_path, post_path), base, _ = three_stacks
        arrange = polarax.loaders.View.arrange

        def fail_later(view, array):
            if view.tensor == "x":
                raise polarax.RunError("simulated")
            return arrange(view, array)

        monkeypatch.setattr(polarax.loaders.View, "arrange", fail_later)  # "x" is wide: it is not read into its place
        with pytest.raises(polarax.RunError, match="simulated"):
            polarax.compare(base_path, post_path, tmp_path / "run", metrics="scaling", progress=False)
        run = polarax.Run.open(tmp_path / "run")
        assert not run.finished and "2 matrices, interrupted" in repr(run)
        assert_holds(run, list(SHAPES)[:2], base)

    def test_a_file_cut_off_while_the_run_is_under_way(self, tmp_path, three_stacks, monkeypatch):
        (base_path, post_path), base, _ = three_stacks
        write_stack = polarax.comparison.RunWriter.write_stack

        def cut_off(self, *args):
            write_stack(self, *args)
            os.truncate(post_path, os.path.getsize(post_path) - 8)

        monkeypatch.setattr(polarax.comparison.RunWriter, "write_stack", cut_off)
        with pytest.raises(polarax.RunError) as caught:
            polarax.compare(base_path, post_path, tmp_path / "run", metrics="scaling", progress=False)
        message = str(caught.value)
        assert "post.safetensors" in message and "'x'" in message and "\n" not in message
        assert_holds(polarax.Run.open(tmp_path / "run"), list(SHAPES)[:2], base)

    def test_killed_after_its_first_stack(self, tmp_path, three_stacks):
        (base_path, post_path), base, _ = three_stacks
        done = subprocess.run(
            [sys.executable, "-c", KILLED, base_path, post_path, str(tmp_path / "run")],
            timeout=120,
            capture_output=True,
        )
        assert done.returncode == -signal.SIGKILL, done.stderr
        run = polarax.Run.open(tmp_path / "run")
        assert not run.finished
        assert run.description["base"]["fingerprint"]
        assert_holds(run, list(SHAPES)[:1], base)
        assert not (tmp_path / "run" / "summary.json").exists()

    @pytest.mark.parametrize("damage", ["none", "part of a row", "no names", "arrays of the next"])
    def test_the_same_command_goes_on_where_it_was_killed(self, tmp_path, three_stacks, monkeypatch, damage):
        (base_path, post_path), base, _ = three_stacks
        command = [sys.executable, "-c", KILLED, base_path, post_path, str(tmp_path / "run")]
        subprocess.run(command, timeout=120, capture_output=True)
        first, table = tmp_path / "run" / "arrays" / "0000-6x5", tmp_path / "run" / "matrices.csv"
        assert first.is_dir()
        if damage == "part of a row":
            table.write_bytes(table.read_bytes()[:-20])
        elif damage == "no names":
            (first / "names.json").unlink()
        elif damage == "arrays of the next":
            (tmp_path / "run" / "arrays" / "0001-5x4" / "s_base").mkdir(parents=True)
        written = []
        write_stack = polarax.comparison.RunWriter.write_stack

        def count(self, stack, *args):
            written.append(stack.label)
            write_stack(self, stack, *args)

        monkeypatch.setattr(polarax.comparison.RunWriter, "write_stack", count)
        run = polarax.compare(base_path, post_path, tmp_path / "run", metrics="scaling", progress=False)
        again = ["0000-6x5"] if damage in ("part of a row", "no names") else []
        assert written == [*again, "0001-5x4", "0002-5x3"]
        assert run.finished
        assert_holds(run, list(SHAPES), base)
        whole = polarax.compare(base_path, post_path, tmp_path / "whole", metrics="scaling", progress=False)
        assert table.read_bytes() == (whole.path / "matrices.csv").read_bytes()
        for name in ("summary.json", "skipped.csv"):
            assert (run.path / name).read_bytes() == (whole.path / name).read_bytes()

    def test_a_finished_run_is_not_measured_again(self, tmp_path, three_stacks, monkeypatch):
        paths, base, _ = three_stacks
        polarax.compare(*paths, tmp_path / "run", metrics="scaling", progress=False)
        monkeypatch.delattr(polarax.comparison.RunWriter, "write_stack")
        run = polarax.compare(*paths, tmp_path / "run", metrics="scaling", progress=False)
        assert run.finished
        assert_holds(run, list(SHAPES), base)

    def test_before_the_first_stack_there_is_an_empty_table(self, tmp_path, three_stacks):
        (base_path, post_path), _, _ = three_stacks
        plan = plan_posts(
            polarax.open_checkpoint(base_path),
            {"": polarax.open_checkpoint(post_path)},
            Selection(),
            memory_bytes=2**30,
        )
        columns = [*IDENTITY_COLUMNS, "drift", *CONTROL_COLUMNS]
        RunWriter(claim_directory(tmp_path / "run"), {}, columns, plan.skipped)
        run = polarax.Run.open(tmp_path / "run")
        assert list(run.frame().columns) == columns and run.frame().empty
        summary = run.summary()
        assert summary["matrices"] == 0 and summary["roles"] == {} and summary["reading"] == []

    def test_part_of_a_row_does_not_count(self, tmp_path):
        rows = [{"name": name, "drift": 1 / 3, "control": "x"} for name in ("a", "b\r\nb")]
        run = _write_rows(tmp_path / "run", ["name", "drift", "control"], rows)
        table = tmp_path / "run" / "matrices.csv"
        whole = table.read_bytes()
        first = whole.index(b"a,")
        second = whole.index(b'"b')
        assert run.frame()["name"].tolist() == ["a", "b\r\nb"]
        for length in range(first, len(whole)):
            table.write_bytes(whole[:length])
            expected = ["a"] if length >= second else []
            assert run.frame()["name"].tolist() == expected, whole[:length]
            assert run.frame()["drift"].tolist() == [1 / 3] * len(expected)


class TestNotARun:
    def test_a_path_that_is_not_there(self, tmp_path):
        with pytest.raises(polarax.UsageError, match=r"gone does not exist"):
            polarax.Run.open(tmp_path / "gone")

    def test_a_folder_without_run_json(self, tmp_path):
        with pytest.raises(polarax.UsageError, match="is not a run of polarax"):
            polarax.Run.open(tmp_path)

    @pytest.mark.parametrize("text", ["", "{", "[1]", "\xff"])
    def test_a_run_json_that_is_none(self, tmp_path, text):
        (tmp_path / "run.json").write_bytes(text.encode("latin-1"))
        with pytest.raises(polarax.UsageError, match=r"run\.json that is not"):
            polarax.Run.open(tmp_path)


def _write_rows(path, columns, rows):
    from polarax.results.run_directory import write_csv

    writer = RunWriter(claim_directory(path), {}, columns, [])
    write_csv(path / "matrices.csv", columns, map(writer._cells, rows))
    return polarax.Run.open(path)
