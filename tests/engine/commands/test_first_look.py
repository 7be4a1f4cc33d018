"""`polarax compare --quick`, and the command it ends with."""

import re
import shlex

import numpy as np
import pandas as pd
import pytest

import polarax
from polarax.report.plots.scaling import scaling_maps
from tests.engine.command import NO_CACHE, assert_one_line


def command_of(done):
    """The command that a first look ends with, word by word."""
    (line,) = [line for line in done.out.splitlines() if line.startswith("  polarax ")]
    return shlex.split(line)[1:]


@pytest.fixture(scope="module")
def awkward(tmp_path_factory, write):
    """Names with all that a shell and a regular expression have a use for; the last one alone is scaled."""
    rng = np.random.default_rng(3)
    names = ["it's (a) $b", 'a "quoted" [name]', "model.layers.0.self_attn.q_proj.weight", "c|d^e $HOME *"]
    left, right = (np.linalg.qr(rng.normal(size=(side, 12)))[0] for side in (20, 12))
    base = {name: ((left * np.geomspace(9, 1, 12)) @ right.T).astype(np.float32) for name in names}
    noise = {name: w + 0.001 * rng.normal(size=w.shape).astype(np.float32) for name, w in base.items()}
    post = {name: w * (1.05 if name in names[::3] else 1) for name, w in noise.items()}
    folder = tmp_path_factory.mktemp("awkward names")
    return *(write(folder / f"{side}.safetensors", w) for side, w in (("base", base), ("post", post))), names[::3]


class TestOnePost:
    def test_the_command_at_the_end_looks_closer(self, llama, llama_run, cli, tmp_path):
        out = tmp_path / "run"
        given = (f"--base={llama.base}", f"--post={llama.post}", f"--out={out}", NO_CACHE)
        done = cli("compare", "--quick", *given)
        assert done.code == 0, done.err
        assert "A first look: the 16 leading singular values and their subspaces, and norms; nf," in done.out
        lines = done.out.splitlines()
        place = next(place for place, line in enumerate(lines) if line.startswith("role "))
        header, below = lines[place].split(), lines[place + 1].split()
        assert "nf" not in header and "overlap," in header and "left" in below
        first = polarax.Run.open(out)
        closer = first.closer()
        assert 0 < len(closer.names) == min(12, closer.found)
        assert closer.sentence in done.out.replace("\n  ", " ")
        words = command_of(done)
        assert words[0] == "compare" and set(given[:3]) <= set(words)
        assert {name for name in first.frame()["name"] if re.search(closer.include, name)} == set(closer.names)
        page = (out / "report.html").read_text()
        assert 'class="command"' in page and "A first look: the 16 leading" in page
        before = first.frame()

        done = cli(*words, NO_CACHE, "--noplots")
        assert done.code == 0, done.err
        frame, full = polarax.Run.open(out).frame(), llama_run.frame()
        assert frame["name"].tolist() == full["name"].tolist()
        rows = frame["name"].isin(closer.names)
        assert (
            (frame["look"] == "full") == rows
        ).all() and f"{(~rows).sum()} of {len(rows)} matrices, the others" in done.out
        np.testing.assert_allclose(frame.loc[rows, "nf"], full.loc[rows, "nf"], rtol=1e-6)
        pd.testing.assert_frame_equal(frame.loc[~rows, before.columns], before[~rows], check_dtype=False)
        for name in frame["name"]:
            short = 16 if name not in closer.names else min(llama.matrices[name][0].shape)
            assert len(polarax.Run.open(out).spectra(name)[0]) == short
        # Pictures show as many singular values of each, beside the control of the whole change: the law's of those that
        # were looked at closely, of the others the first order.
        maps, whole = scaling_maps(polarax.Run.open(out)), scaling_maps(llama_run)
        of_law = set()
        for role, one in maps.items():
            assert one.ratio.shape[1] == 16 and one.end == "no. 16"
            np.testing.assert_allclose(one.ratio, whole[role].ratio[:, :16], rtol=1e-5)
            if set(frame.loc[frame["role"] == role, "name"]) <= set(closer.names):
                np.testing.assert_allclose(one.control, whole[role].control[:, :16], rtol=1e-4)
                of_law.add(role)
            elif not frame.loc[frame["role"] == role, "name"].isin(closer.names).any():
                np.testing.assert_array_equal(one.null, 1)
        assert of_law
        again = polarax.Run.open(out).closer()
        assert not set(again.names) & set(closer.names) and again.seen > 0

    def test_names_that_need_quotes(self, awkward, cli, tmp_path):
        base, post, scaled = awkward
        out = tmp_path / "it's a run"
        done = cli("compare", "--quick", f"--base={base}", f"--post={post}", f"--out={out}", "--noplots", NO_CACHE)
        assert done.code == 0, done.err
        words = command_of(done)
        assert cli(*words, "--noplots", NO_CACHE).code == 0
        frame = polarax.Run.open(out).frame()
        assert sorted(frame.loc[frame["look"] == "full", "name"]) == sorted(scaled)

    def test_nothing_stands_out(self, cli, write, tmp_path):
        rng = np.random.default_rng(1)
        base = {"q": rng.normal(size=(20, 12)).astype(np.float32)}
        paths = [write(tmp_path / f"{side}.safetensors", base) for side in ("base", "post")]
        out = tmp_path / "run"
        done = cli(
            "compare", "--quick", f"--base={paths[0]}", f"--post={paths[1]}", f"--out={out}", "--noplots", NO_CACHE
        )
        assert done.code == 0, done.err
        assert "No matrix stands out at the first look." in done.out and "  polarax compare" not in done.out

    def test_flags_that_say_which_rows_are_compared_are_kept(self, awkward, cli, tmp_path):
        base, post, _ = awkward
        roles = tmp_path / "my roles.json"
        roles.write_text('{"it.*": "o"}')
        kept = ["--common_rows", "--allow_partial", f"--role_map={roles}", "--top_k=3", "--memory_gib=2.5"]
        done = cli(
            "compare",
            "--quick",
            f"--base={base}",
            f"--post={post}",
            f"--out={tmp_path / 'run'}",
            "--noplots",
            NO_CACHE,
            *kept,
        )
        assert done.code == 0, done.err
        words = command_of(done)
        assert set(kept) <= set(words)
        assert cli(*words, "--noplots", NO_CACHE).code == 0

    def test_many_that_stand_out(self, cli, write, tmp_path):
        rng = np.random.default_rng(2)
        base = {f"layers.{i}.q": rng.normal(size=(20, 12)).astype(np.float32) for i in range(20)}
        post = {name: (1.01 + 0.01 * i) * w for i, (name, w) in enumerate(base.items())}
        paths = [write(tmp_path / f"{side}.safetensors", w) for side, w in (("base", base), ("post", post))]
        out = tmp_path / "run"
        done = cli(
            "compare", "--quick", f"--base={paths[0]}", f"--post={paths[1]}", f"--out={out}", "--noplots", NO_CACHE
        )
        assert (
            "20 matrices stand out at the first look. To look closer at the 12 that stand out most, in the same"
            in done.out
        )
        assert set(polarax.Run.open(out).closer().names) == {f"layers.{i}.q" for i in range(8, 20)}
        command = command_of(done)
        cli(*command, "--noplots", NO_CACHE)
        closer = polarax.Run.open(out).closer()
        assert closer.seen == 12 and set(closer.names) == {f"layers.{i}.q" for i in range(8)}

    def test_other_inputs(self, awkward, cli, tmp_path):
        base, post, _ = awkward
        given = (f"--out={tmp_path / 'run'}", "--noplots", NO_CACHE)
        assert cli("compare", "--quick", f"--base={base}", f"--post={post}", *given).code == 0
        done = cli("compare", f"--base={base}", f"--post={base}", "--include=q", *given)
        assert_one_line(done, "holds a run of something else", "fingerprint of post")

    def test_parameters_in_memory(self, tmp_path):
        w = np.random.default_rng(0).normal(size=(20, 12)).astype(np.float32)
        run = polarax.compare({"q": w}, {"q": 1.05 * w}, tmp_path / "run", quick=True, progress=False)
        closer = run.closer()
        assert closer.names == ("q",) and closer.command == "" and "closer().include" in closer.sentence
        full = polarax.compare({"q": w}, {"q": 1.05 * w}, run.path, include=closer.include, progress=False)
        assert full.frame()["look"].tolist() == ["full"]
        assert (
            full.closer().sentence == "Beside 1 matrix that stands out in full, no matrix stands out at the first look."
        )


class TestSeveral:
    def test_posts(self, awkward, cli, tmp_path):
        base, post, scaled = awkward
        out = tmp_path / "run"
        given = (f"--base={base}", f"--post=tuned={post}", f"--post=same={base}", f"--out={out}")
        done = cli("compare", "--quick", *given, "--noplots", NO_CACHE)
        assert done.code == 0, done.err
        words = command_of(done)
        assert {f"--post=tuned={post}", f"--post=same={base}"} <= set(words)
        of_one = polarax.Runs.open(out)["tuned"].closer()  # the same command, of all posts
        assert shlex.split(of_one.command)[1:] == words
        between = polarax.Runs.open(out).between("tuned", "same").closer()
        assert f"--out={out}" in shlex.split(between.command)
        done = cli(*words, NO_CACHE)
        assert done.code == 0, done.err
        runs = polarax.Runs.open(out)
        for run in runs.each():
            frame = run.frame()
            assert sorted(frame.loc[frame["look"] == "full", "name"]) == sorted(scaled)
        assert runs.closer().names == () and "A first look" in (out / "report.html").read_text()

    def test_history(self, awkward, cli, write, tmp_path):
        base, post, scaled = awkward
        steps = tmp_path / "steps"
        steps.mkdir()
        for step, source in ((0, base), (10, base), (20, post)):
            (steps / f"step-{step}").symlink_to(source)
        folder = {f"checkpoint-{step}": source for step, source in ((0, base), (10, base), (20, post))}
        for name, source in folder.items():
            (tmp_path / "run of" / name).mkdir(parents=True)
            (tmp_path / "run of" / name / "model.safetensors").symlink_to(source)
        out = tmp_path / "history"
        done = cli("history", "--quick", f"--checkpoints={tmp_path / 'run of'}", f"--out={out}", "--noplots", NO_CACHE)
        assert done.code == 0, done.err
        words = command_of(done)
        assert words[:2] == ["history", f"--checkpoints={tmp_path / 'run of'}"]
        done = cli(*words, NO_CACHE)
        assert done.code == 0, done.err
        frame = polarax.History(out).frame()
        assert sorted(frame.loc[frame["look"] == "full", "name"]) == sorted([*scaled, *scaled])
        assert (out / "report.html").is_file()

    def test_plan(self, awkward, cli):
        base, post, _ = awkward
        done = cli("plan", "--quick", f"--base={base}", f"--post={post}", "--device=none")
        assert done.code == 0, done.err
        assert "products with a few columns" in done.out and "SVD" not in done.out
