"""The command line: exit codes, one line for bad input, and what a good command prints."""

import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

import polarax
import polarax.comparison
import polarax.measuring.execution
import polarax.planning.request
from tests.engine.command import NO_CACHE, Done, assert_one_line, shell


@pytest.fixture
def compare(cli, small, tmp_path):
    """Runs `polarax compare` on the small pair, cheaply, with other flags or other values of these."""

    def run(*more, **flags):
        given = {
            "base": small.base,
            "post": small.post,
            "out": tmp_path / "run",
            "metrics": "change",
            "compilation_cache": "",
        } | flags
        flags = [f"--{name}={value}" for name, value in given.items() if value is not None]
        return cli("compare", *flags, "--noplots", *more)

    return run


class TestBadCheckpoints:
    @pytest.mark.parametrize("side", ["base", "post"])
    def test_a_missing_path(self, compare, tmp_path, side):
        assert_one_line(compare(**{side: tmp_path / "gone"}), tmp_path / "gone", "no such file")
        assert not (tmp_path / "run").exists()

    def test_a_folder_with_no_checkpoint(self, compare, tmp_path):
        (tmp_path / "empty").mkdir()
        done = compare(base=tmp_path / "empty")
        assert_one_line(done, tmp_path / "empty", "no checkpoint", "*.safetensors")

    def test_a_truncated_file(self, compare, small):
        os.truncate(small.post, os.path.getsize(small.post) - 8)
        assert_one_line(compare(), small.post, "tensor 'model.", "truncated")

    def test_a_file_cut_inside_its_header(self, compare, small):
        os.truncate(small.post, 100)
        assert_one_line(compare(), small.post, "truncated", "the file at 100")

    def test_an_empty_file(self, compare, small):
        os.truncate(small.post, 0)
        assert_one_line(compare(), small.post, "is empty")

    @pytest.mark.parametrize(
        ("change", "words"),
        [
            ({"shape": [12, 9]}, ["F32 of shape [12, 9] takes 432 bytes", "384"]),
            ({"shape": [-1, 8]}, ["shape", "[-1, 8]"]),
            ({"shape": [2**40, 2**40]}, ["beyond any memory"]),
            ({"data_offsets": [0, 10**15]}, ["data_offsets hold 1000000000000000"]),
            ({"data_offsets": [384, 0]}, ["run backwards"]),
            ({"dtype": 3}, ["dtype must be a string"]),
        ],
    )
    def test_a_header_that_lies(self, compare, small, change, words):
        name = "model.layers.0.self_attn.q_proj.weight"
        rewrite_header(small.post, lambda header: header[name].update(change))
        assert_one_line(compare(), small.post, f"tensor {name!r}", *words)

    def test_a_header_that_is_no_json(self, compare, small):
        pathlib.Path(small.post).write_bytes((5).to_bytes(8, "little") + b"{nope")
        assert_one_line(compare(), small.post, "header is not valid JSON")

    def test_a_pickle_is_never_opened(self, compare, tmp_path):
        (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04.")
        assert_one_line(compare(base=tmp_path / "pytorch_model.bin"), "never opened")

    def test_two_models_with_nothing_in_common(self, compare, tmp_path, write):
        other = write(tmp_path / "other.safetensors", {"decoder.w": np.eye(3, dtype=np.float32)})
        assert_one_line(compare(post=other), "no tensor in common", "'decoder.w'", "'model.layers.0")

    def test_two_models_of_which_nothing_can_be_compared(self, compare, tmp_path, small, write):
        halves = {name: w[:4] for name, w in small.post_arrays.items()}
        other = write(tmp_path / "other.safetensors", halves)
        assert_one_line(compare(post=other), "No matrix can be compared", "(12, 8)", "(4, 8)", "'model."[1:])


class TestDamagedShards:
    """Headers and indexes that lie, as both commands meet them: one line, and nothing at --out."""

    FIRST, SECOND = (f"model-0000{number}-of-00002.safetensors" for number in (1, 2))
    INDEX = "model.safetensors.index.json"
    NAME = "model.layers.0.self_attn.q_proj.weight"  # in the first shard, with the vector
    VECTOR = "model.norm.weight"

    @pytest.fixture
    def sharded(self, small, tmp_path, write):
        return pathlib.Path(write(tmp_path / "sharded", small.post_arrays, shards=2))

    @pytest.fixture
    def refused(self, cli, compare, small, sharded, tmp_path):
        def check(*words):
            assert_one_line(compare(post=sharded), sharded, *words)
            assert not (tmp_path / "run").exists()
            assert_one_line(cli("plan", f"--base={small.base}", f"--post={sharded}"), sharded, *words)

        return check

    @pytest.mark.parametrize("kept", [0, 7, 40, -1])
    def test_a_shard_that_was_cut(self, refused, sharded, kept):
        os.truncate(sharded / self.SECOND, kept if kept >= 0 else os.path.getsize(sharded / self.SECOND) - 1)
        refused(self.SECOND, "is empty" if kept == 0 else "7 bytes" if kept == 7 else "truncated")

    @pytest.mark.parametrize("length", [10**8 + 1, 2**40, 2**64 - 1])
    def test_a_header_of_absurd_length(self, refused, sharded, length):
        with (sharded / self.SECOND).open("r+b") as file:
            file.write(length.to_bytes(8, "little"))
            file.truncate(1 << 40)  # so that the file is no shorter
        refused(self.SECOND, str(length), "limit 100000000")

    def test_tensors_that_overlap(self, refused, sharded):
        def overlap(header):
            header[self.VECTOR]["data_offsets"] = [0, 32]
            header[self.NAME]["data_offsets"] = [28, 28 + 384]

        rewrite_header(sharded / self.FIRST, overlap)
        refused(self.FIRST, f"tensor {self.NAME!r}", f"overlaps {self.VECTOR!r}")

    def test_bytes_that_are_nobodys(self, refused, sharded):
        with (sharded / self.FIRST).open("ab") as file:
            file.write(b"more")
        refused(self.FIRST, "4 bytes after")

    def test_a_name_twice_in_one_header(self, refused, sharded):
        content = (sharded / self.FIRST).read_bytes()
        length, rest = int.from_bytes(content[:8], "little"), content[8:]
        twice = rest.replace(self.VECTOR.encode(), self.NAME.encode())
        length += len(twice) - len(rest)
        (sharded / self.FIRST).write_bytes(length.to_bytes(8, "little") + twice)
        refused(self.FIRST, f"duplicate key {self.NAME!r}")

    def test_a_name_in_two_shards(self, refused, sharded):
        (sharded / self.SECOND).write_bytes((sharded / self.FIRST).read_bytes())
        refused(self.SECOND, "tensor 'model.", f"is also in {self.FIRST}")

    @pytest.mark.parametrize("file", ["../base.safetensors", "/etc/passwd", "a/../../base.safetensors", 7])
    def test_an_index_that_leaves_its_folder(self, refused, sharded, file):
        index = json.loads((sharded / self.INDEX).read_text())
        index["weight_map"][self.NAME] = file
        (sharded / self.INDEX).write_text(json.dumps(index))
        refused(self.INDEX, f"tensor {self.NAME!r}", repr(file))

    def test_an_index_that_names_what_is_not_in_the_shard(self, refused, sharded):
        index = json.loads((sharded / self.INDEX).read_text())
        index["weight_map"]["lm_head.weight"] = self.SECOND
        (sharded / self.INDEX).write_text(json.dumps(index))
        refused(self.SECOND, "has no tensor 'lm_head.weight'", self.INDEX)

    @pytest.mark.parametrize("text", [b"", b"{", b"[]", b"\xff\xfe", b'{"weight_map": 3}'])
    def test_an_index_that_is_none(self, refused, sharded, text):
        (sharded / self.INDEX).write_bytes(text)
        refused(self.INDEX)

    def test_an_index_without_its_shards(self, refused, sharded):
        (sharded / self.SECOND).unlink()
        refused(self.SECOND, "no such file", f"{self.INDEX} names it")


class TestBadFlags:
    @pytest.mark.parametrize(
        ("flags", "words"),
        [
            ({"roles": "q,query"}, ["Unknown role 'query'", "q, k, v"]),
            ({"metrics": "speed"}, ["Unknown metric 'speed'", "change, scaling, rotation"]),
            ({"include": "("}, ["include='('", "not a regular expression"]),
            ({"exclude": "[a-"}, ["exclude='[a-'", "not a regular expression"]),
            ({"layers": "3-"}, ["layers='3-'", "0,3-5"]),
            ({"layers": "5-2"}, ["layers='5-2'", "empty range"]),
            ({"layers": "two"}, ["layers='two'"]),
            ({"layers": "7"}, ["leaves no matrix of 2", "layers 0 to 1"]),
            ({"roles": "v"}, ["leaves no matrix of 2", "roles q"]),
            ({"top_k": "0"}, ["top_k must be at least 1. Got 0."]),
            ({"top_k": "many"}, ["top_k", "many"]),
            ({"dtype": "float16"}, ["Unknown dtype 'float16'", "float64, float32"]),
            ({"method": "magic"}, ["Unknown method 'magic'", "auto"]),
            ({"memory_gib": "0"}, ["memory_gib must be positive"]),
            ({"memory_gib": "inf"}, ["memory_gib must be positive"]),
            ({"memory_gib": "lots"}, ["memory_gib", "lots"]),
            ({"base": None}, ["--base is missing"]),
            ({"post": ""}, ["--post is missing"]),
            ({"out": None}, ["--out is missing"]),
            ({"speed": "1"}, ["Unknown command line flag 'speed'", "See polarax compare --help."]),
            ({"meTrics": "change"}, ["Unknown command line flag 'meTrics'"]),
        ],
    )
    def test_one_line_names_the_flag_and_what_was_expected(self, compare, tmp_path, flags, words):
        assert_one_line(compare(**flags), *words)
        assert not (tmp_path / "run").exists()

    def test_positional_leftovers(self, compare):
        assert_one_line(compare("extra"), "Unexpected argument 'extra'", "--name=value")

    def test_an_unknown_command(self, cli):
        assert_one_line(cli("diff"), "Unknown command 'diff'", "compare")

    def test_plan_refuses_alike(self, cli, small, tmp_path):
        given = f"--base={small.base}", f"--post={small.post}"
        assert_one_line(cli("plan"), "--base is missing")
        assert_one_line(cli("plan", *given, "--roles=w"), "Unknown role 'w'")
        assert_one_line(cli("plan", *given, "extra"), "Unexpected argument 'extra'")
        assert_one_line(cli("plan", given[0], f"--post={tmp_path / 'gone'}"), "no such file")
        assert_one_line(cli("plan", *given, "--out=x"), "Unknown command line flag 'out'")


class TestOutputFolder:
    def test_a_folder_that_is_not_a_run(self, compare, tmp_path):
        (tmp_path / "run").mkdir()
        (tmp_path / "run" / "thesis.tex").write_text("years of work")
        for more in ([], ["--overwrite"]):
            assert_one_line(compare(*more), tmp_path / "run", "is not a run of polarax")
        assert (tmp_path / "run" / "thesis.tex").read_text() == "years of work"

    def test_a_file(self, compare, tmp_path):
        (tmp_path / "run").write_text("mine")
        assert_one_line(compare("--overwrite"), tmp_path / "run", "is a file")
        assert (tmp_path / "run").read_text() == "mine"

    def test_a_run_is_kept_unless_it_may_be_overwritten(self, compare, tmp_path):
        assert compare().code == 0
        table = (tmp_path / "run" / "matrices.csv").read_bytes()
        assert_one_line(compare(layers="0"), tmp_path / "run", "--layers was []", "overwrite")
        assert (tmp_path / "run" / "matrices.csv").read_bytes() == table
        assert compare("--overwrite", layers="0").code == 0
        assert len(polarax.Run.open(tmp_path / "run").frame()) == 1

    def test_a_folder_that_cannot_be_made(self, compare, tmp_path):
        (tmp_path / "file").write_text("mine")
        assert_one_line(compare(out=tmp_path / "file" / "run"), "cannot be made: Not a directory")

    def test_a_full_disk_is_a_run_that_failed(self, compare, tmp_path, monkeypatch):
        def full(*_):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(polarax.results.run_directory, "write_array", full)
        done = compare()
        assert_one_line(done, tmp_path / "run", "No space left on device", code=1)
        assert not polarax.Run.open(tmp_path / "run").finished


class TestFailures:
    def test_a_read_that_fails_part_way(self, compare, small, tmp_path, monkeypatch):
        stack_reads = polarax.measuring.execution.StackReads

        def cut_off(*args):  # after the headers were read
            os.truncate(small.post, os.path.getsize(small.post) - 40)
            return stack_reads(*args)

        monkeypatch.setattr(polarax.measuring.execution, "StackReads", cut_off)
        assert_one_line(compare(), "part-way", small.post, "tensor 'model.", code=1)
        assert not polarax.Run.open(tmp_path / "run").finished

    def test_an_interruption(self, compare, tmp_path, monkeypatch):
        def interrupt(*_):
            raise KeyboardInterrupt

        monkeypatch.setattr(polarax.measuring.outputs, "make_row", interrupt)
        assert_one_line(compare(), "Interrupted", code=130)
        assert not polarax.Run.open(tmp_path / "run").finished

    def test_a_bug_is_one_line_too_and_says_how_to_see_more(self, compare, monkeypatch):
        def fail(*_):
            raise ZeroDivisionError("simulated\nbug")

        monkeypatch.setattr(polarax.measuring.outputs, "make_row", fail)
        done = compare()
        assert_one_line(done, "ZeroDivisionError: simulated bug", "--verbosity=1", code=1)
        done = compare("--overwrite", verbosity=1)
        assert done.code == 1 and "Traceback" in done.err and "in _row" not in done.err
        assert done.err.rstrip().endswith("polarax: ZeroDivisionError: simulated bug")

    def test_verbosity_shows_the_traceback_of_bad_input(self, compare, tmp_path):
        done = compare(base=tmp_path / "gone", verbosity=1)
        assert done.code == 2 and "Traceback" in done.err and "open_checkpoint" in done.err
        assert done.err.splitlines()[-1].startswith("polarax: ")


class TestRowsThatSayLittle:
    """Bad weights are rows; the command succeeds and says so."""

    @pytest.fixture
    def run_with(self, compare, small, tmp_path, write):
        def run(side, name, value):
            arrays = dict(getattr(small, f"{side}_arrays"))
            arrays[name] = value
            path = write(tmp_path / f"other-{side}.safetensors", arrays)
            done = compare(**{side: path, "metrics": "change,scaling"})
            assert done.code == 0 and "Traceback" not in done.err
            return polarax.Run.open(tmp_path / "run"), done

        return run

    NAME = "model.layers.1.self_attn.q_proj.weight"

    @pytest.mark.parametrize("value", [np.nan, np.inf])
    @pytest.mark.parametrize("side", ["base", "post"])
    def test_nan_and_inf(self, run_with, small, side, value):
        broken = getattr(small, f"{side}_arrays")[self.NAME].copy()
        broken[2, 3] = value
        run, done = run_with(side, self.NAME, broken)
        status = run.frame().set_index("name")["status"]
        assert status.pop(self.NAME) == f"not finite: 1 in {side}"
        assert set(status) == {"ok"}
        assert "could not be read (zero, NaN or Inf)" in " ".join(done.out.split())
        strict = (run.path / "summary.json").read_text()
        json.loads(strict, parse_constant=lambda literal: pytest.fail(literal))

    @pytest.mark.parametrize("side", ["base", "post"])
    def test_an_all_zero_matrix(self, run_with, side):
        run, done = run_with(side, self.NAME, np.zeros((12, 8), np.float32))
        status = run.frame().set_index("name")["status"]
        assert status.pop(self.NAME) == f"zero {side}" and set(status) == {"ok"}
        assert "1 matrix could not be read" in " ".join(done.out.split())
        json.loads((run.path / "summary.json").read_text(), parse_constant=pytest.fail)

    def test_a_shape_mismatch(self, run_with):
        run, _ = run_with("post", self.NAME, np.ones((4, 8), np.float32))
        assert len(run.frame()) == 1
        reasons = run.skipped().set_index("name")["reason"]
        assert reasons[self.NAME] == "shapes differ: base (12, 8), post (4, 8)"
        text = (run.path / "skipped.csv").read_text().splitlines()
        assert text[0] == "name,reason" and len(text) == 3

    def test_a_matrix_of_one_row(self, compare, tmp_path, write):
        row = np.arange(1, 6, dtype=np.float32).reshape(1, 5)
        paths = [
            write(tmp_path / f"row-{side}.safetensors", {"w": scale * row})
            for side, scale in (("base", 1), ("post", 2))
        ]
        done = compare(base=paths[0], post=paths[1], metrics="")
        assert done.code == 0 and "Traceback" not in done.err
        row = polarax.Run.open(tmp_path / "run").frame().iloc[0]
        assert row["status"] == "ok" and row["alpha"] == pytest.approx(2)


HOST_FLAGS = "distributed coordinator_address num_processes process_id initialization_timeout"


class TestHelp:
    @pytest.mark.parametrize("argument", ["--help", "-h", "help"])
    def test_lists_the_commands(self, cli, argument):
        done = cli(argument)
        assert done.code == 0 and done.err == ""
        assert "compare" in done.out and "plan" in done.out and "--version" in done.out

    def test_no_command_is_not_a_success(self, cli):
        done = cli()
        assert done.code == 2 and "usage: polarax <command>" in done.out

    @pytest.mark.parametrize(
        ("command", "flags"),
        [
            ("compare", f"out overwrite plots report compilation_cache {HOST_FLAGS}"),
            ("plan", f"names device hosts devices_per_host {HOST_FLAGS}"),
        ],
    )
    def test_a_command_lists_every_flag_with_its_default(self, cli, command, flags):
        shared = "base post include exclude roles layers role_map common_rows metrics dtype top_k method memory_gib"
        shared += " control_draws seed between allow_partial quick keep_base"
        done = cli(command, "--help")
        assert done.code == 0 and done.err == ""
        flags = {*shared.split(), *flags.split(), "verbosity"}
        lines = done.out[done.out.index("flags:") :].splitlines()[1:]
        # each flag on a line of its own, followed by what it means
        listed = [line.strip().removeprefix("--").split()[0] for line in lines[::2]]
        assert {name.removeprefix("[no]") for name in listed} == flags
        assert all(line.startswith("      ") and line.strip() for line in lines[1::2])
        assert "--top_k [16]" in done.out and "--memory_gib [4.0]" in done.out
        assert "'" not in "".join(lines[::2])
        assert f"polarax {command} --base=BASE " in done.out and "--post=POST" in done.out

    def test_help_wins_over_bad_flags(self, cli):
        assert cli("compare", "--speed=1", "--help").code == 0

    def test_version(self, cli):
        assert cli("--version") == Done(0, f"polarax {polarax.__version__}\n", "")


class TestCompare:
    def test_selections_reach_the_run(self, compare, tmp_path):
        assert compare(include="layers.1", metrics="change").code == 0
        run = polarax.Run.open(tmp_path / "run")
        assert run.frame()["name"].tolist() == ["model.layers.1.self_attn.q_proj.weight"]
        assert run.description["flags"]["include"] == ["layers.1"]
        assert "not selected by include" in set(run.skipped()["reason"])

    def test_a_flag_may_be_repeated(self, compare, tmp_path):
        assert compare("--include=layers.0", "--include=layers.1").code == 0
        assert len(polarax.Run.open(tmp_path / "run").frame()) == 2
        assert compare("--exclude=layers.0", "--exclude=layers.1").code == 2

    def test_top_k_and_dtype_reach_the_run(self, compare, tmp_path):
        assert compare(top_k=3, dtype="float32", metrics="overlap").code == 0
        run = polarax.Run.open(tmp_path / "run")
        assert run.description["flags"]["top_k"] == 3
        assert run.description["flags"]["dtype"] == "float32"
        name = run.frame()["name"][0]
        assert len(run.array(name, "cosines_left")) == 3
        values = run.spectra(name)[0]
        assert np.all(values == values.astype(np.float32))

    def test_the_table_and_the_sentences_are_printed(self, compare, tmp_path):
        done = compare(metrics="")
        assert done.code == 0
        summary = polarax.Run.open(tmp_path / "run").summary()
        account, rest, _, header, _, rule, row = done.out.splitlines()[:7]  # headings are of two lines
        # two matrices of 96 numbers each, and a vector of 8
        assert account == "Compared: 2 of 3 tensors, 96.0% of the weights of either side."
        assert rest == "  not compared: 1-D: not a matrix: 1 tensor, 4.0% of either side"
        assert header.split()[:3] == ["role", "matrices", "drift"] and set(rule) == {"-"}
        assert row.split()[:2] == ["q", "2"]
        assert f"{summary['roles']['q']['alpha']['median']:.5f}" in row
        printed = " ".join(done.out.split())
        assert len(summary["reading"]) >= 2
        for sentence in summary["reading"]:
            assert " ".join(sentence.split()) in printed
        assert f"Run: {tmp_path / 'run'}" in done.out

    def test_plots_are_written_and_named(self, compare, tmp_path):
        done = compare("--plots", metrics="")
        assert done.code == 0
        for name in ("scaling", "nf", "drift_budget"):
            path = tmp_path / "run" / "plots" / f"{name}.png"
            assert path.stat().st_size > 1000 and f"Plot: {path}" in done.out
        report = tmp_path / "run" / "report.html"
        assert report.stat().st_size > 1000 and f"Report: {report}" in done.out

    def test_plots_without_a_report(self, compare, tmp_path):
        assert compare("--plots", "--noreport").code == 0
        assert (tmp_path / "run" / "plots").is_dir() and not (tmp_path / "run" / "report.html").exists()

    def test_without_jinja2_there_are_still_plots(self, compare, tmp_path, monkeypatch):
        monkeypatch.setitem(sys.modules, "jinja2", None)
        done = compare("--plots")
        assert done.code == 0 and "The report needs jinja2: pip install 'polarax[report]'." in done.out.splitlines()
        assert list((tmp_path / "run" / "plots").iterdir())

    def test_without_matplotlib_it_says_so_in_one_line_and_succeeds(self, compare, tmp_path, monkeypatch):
        for name in [name for name in sys.modules if name.split(".")[0] == "matplotlib"]:
            monkeypatch.delitem(sys.modules, name)
        monkeypatch.setitem(sys.modules, "matplotlib", None)  # `import matplotlib` now fails
        done = compare("--plots", metrics="")
        assert done.code == 0
        lines = [line for line in done.out.splitlines() if line.startswith(("Plot", "matplotlib"))]
        assert lines == ["Plots need matplotlib: pip install 'polarax[plot]'."]
        assert "Traceback" not in done.err and "matplotlib" not in done.err
        assert polarax.Run.open(tmp_path / "run").finished


class TestShell:
    """A few commands in processes of their own."""

    def test_a_run_that_succeeds(self, small, tmp_path):
        out = tmp_path / "run"
        done = shell(
            "compare",
            f"--base={small.base}",
            f"--post={small.post}",
            f"--out={out}",
            "--metrics=change",
            "--noplots",
            NO_CACHE,
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith("Compared: 2 of 3 tensors") and f"Run: {out}" in done.stdout
        assert done.stderr.splitlines()[-1].startswith("2/2 matrices")
        assert len(done.stderr.splitlines()) == 1  # no warnings
        assert polarax.Run.open(out).finished

    def test_a_cache_of_programs_that_cannot_be_kept_is_no_trouble(self, small, tmp_path):
        (tmp_path / "file").write_text("in the way")
        done = shell(
            "compare",
            f"--base={small.base}",
            f"--post={small.post}",
            f"--out={tmp_path / 'run'}",
            "--metrics=change",
            "--noplots",
            env={**os.environ, "HOME": str(tmp_path / "file")},
        )
        assert done.returncode == 0
        assert len(done.stderr.splitlines()) == 1, done.stderr

    def test_bad_input_is_one_line(self, small, tmp_path):
        missing = tmp_path / "gone.safetensors"
        done = shell("compare", f"--base={missing}", f"--post={small.post}", f"--out={tmp_path}/r")
        assert done.returncode == 2 and done.stdout == ""
        assert done.stderr == f"polarax: {missing}: no such file or folder\n"

    def test_output_that_finds_no_room_is_one_line(self):
        command = [sys.executable, "-m", "polarax", "--version"]
        with open("/dev/full", "w") as full:
            done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, timeout=120)
        assert done.returncode == 1
        assert done.stderr == "polarax: The output cannot be written: No space left on device.\n"

    def test_a_reader_that_has_seen_enough_is_no_failure(self, small, tmp_path):
        command = f"{sys.executable} -m polarax plan --base=base.safetensors --post={small.post}"
        done = subprocess.run(
            f"set -o pipefail; {command} --names | true",
            shell=True,
            executable="/bin/bash",
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert (done.returncode, done.stderr) == (0, "")


class TestPlan:
    def test_prints_the_stacks_the_skipped_and_the_cost(self, cli, llama):
        done = cli("plan", f"--base={llama.base}", f"--post={llama.post}")
        assert done.code == 0 and done.err == ""
        for stack in ("0000-96x48", "0001-48x24", "0002-48x48"):
            assert stack in done.out
        assert "23 matrices in 3 stacks" in done.out
        assert f"skip       {len(llama.vectors)} tensors" in done.out and "1-D" in done.out
        size = sum(base.nbytes + post.nbytes for base, post in llama.matrices.values())
        assert f"read       {size / 1024:.1f} KiB" in done.out
        assert "GFLOP" in done.out and "at peak" in done.out
        assert "computing on this host's devices (measured: " in done.out
        assert "divide" not in done.out and "post " not in done.out

    def test_names_lists_every_matrix_and_every_skipped_tensor(self, cli, llama):
        done = cli("plan", f"--base={llama.base}", f"--post={llama.post}", "--names", "--device=none")
        lines = {line.strip() for line in done.out.splitlines()}
        assert set(llama.matrices) <= lines
        assert all(any(line.startswith(f"{name}: ") for line in lines) for name in llama.vectors)

    def test_takes_the_flags_of_compare(self, cli, llama):
        given = f"--base={llama.base}", f"--post={llama.post}", "--device=none"
        done = cli("plan", *given, "--layers=1", "--roles=q,k", "--names")
        assert "2 matrices in 2 stacks" in done.out
        assert "model.layers.1.self_attn.k_proj.weight" in done.out

    def test_stacks_of_one_program_are_one_line(self, cli, llama):
        done = cli("plan", f"--base={llama.base}", f"--post={llama.post}", "--memory_gib=1e-9", "--device=none")
        assert "23 matrices in 23 stacks" in done.out
        rows = [line.split() for line in done.out.splitlines() if line[:4].isdecimal()]
        assert [(int(stacks), int(matrices)) for _, stacks, matrices, *_ in rows] == [(11, 11), (6, 6), (6, 6)]
        assert {row[3] for row in rows} == {"bfloat16"}

    @pytest.mark.parametrize("spelt", [None, "{}", "file://{}", "{}/../post/."])
    def test_one_checkpoint_is_opened_once(self, cli, llama, monkeypatch, spelt):
        opened = []

        def spy(source):
            opened.append(source)
            return polarax.open_checkpoint(source)

        monkeypatch.setattr(polarax.planning.request, "open_checkpoint", spy)
        more = [] if spelt is None else [f"--post={spelt.format(llama.post)}"]
        done = cli("plan", f"--base={llama.post}", "--device=none", *more)
        assert done.code == 0 and opened == [llama.post]
        assert "23 matrices in 3 stacks" in done.out
        assert ("post       taken to have the base's layout" in done.out) == (spelt is None)
        assert f"read       {2 * sum(post.nbytes for _, post in llama.matrices.values()) / 1024:.1f} KiB" in done.out

    def test_a_named_device_is_not_measured(self, cli, llama, monkeypatch):
        monkeypatch.setattr("polarax.commands.plan.measure_rates", lambda: pytest.fail("measured"))
        done = cli("plan", f"--base={llama.base}", "--device=h100")
        assert "computing on one h100 (not measured: " in done.out
        assert "expect" not in cli("plan", f"--base={llama.base}", "--device=none").out
        assert_one_line(cli("plan", f"--base={llama.base}", "--device=h1000"), "Unknown device 'h1000'", "h100, ")
        no_float64 = cli("plan", f"--base={llama.base}", "--device=tpu-v5e", "--dtype=float64")
        assert no_float64.code == 2 and "none that is fast" in no_float64.err

    def test_hosts_share_the_matrices(self, cli, llama):
        given = f"--base={llama.base}", "--device=l4", "--memory_gib=1e-9"
        done = cli("plan", *given, "--hosts=3")
        rows = [line.split() for line in done.out.splitlines() if line.strip().startswith("host ")]
        assert [row[1] for row in rows] == ["0:", "1:", "2:"]
        assert sum(int(row[2]) for row in rows) == 23
        assert "over 3 hosts: the largest share is 1." in done.out and "on the busiest host" in done.out
        done = cli("plan", *given, "--hosts=25")
        assert "the largest share is" in done.out and "2 hosts: nothing, there are too few matrices" in done.out
        assert "no more than 23 hosts can be kept busy: the largest matrix alone takes" in done.out
        assert "the busiest and the least busy:" in done.out and "simulated: no host was asked" in done.out
        assert_one_line(cli("plan", *given, "--hosts=0"), "hosts=0", "See polarax plan --help")

    def test_devices_of_a_host(self, cli, llama):
        given = f"--base={llama.base}", "--device=h200", "--hosts=2"
        one, four = (cli("plan", *given, f"--devices_per_host={count}").out for count in (1, 4))
        assert "computing on one h200 on the busiest host (measured on one" in one
        assert "computing on 4 x h200 on the busiest host (measured on one" in four
        # Eleven, six and six, four at a time: five rounds, of which one host has two.
        rows = [line.split() for line in four.splitlines() if line.strip().startswith("host ")]
        assert sorted(int(row[2]) for row in rows) in ([8, 15], [10, 13], [11, 12])
        assert "what takes longest is starting and compiling" in four
        here = cli("plan", given[0], "--device=this", "--devices_per_host=3").out
        assert "computing on 3 devices like this host's (measured: " in here


def rewrite_header(path, change):
    """Changes the header of a safetensors file and nothing else."""
    path = pathlib.Path(path)
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    change(header)
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + content[8 + length :])
