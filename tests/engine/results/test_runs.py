"""Several posts of one base: as if each were alone, from one reading and one decomposition; and against each other."""

import itertools
import json

import numpy as np
import pandas as pd
import pytest

import polarax
import polarax.measuring.execution
from polarax.loaders import Checkpoint
from polarax.planning.comparison_plan import plan_posts
from polarax.planning.selection import Selection
from polarax.results.run_directory import RunWriter
from tests.engine.command import NO_CACHE, assert_one_line
from tests.kernels import singular_frames

SHAPES = {
    "self_attn.q_proj": (24, 24),
    "self_attn.o_proj": (24, 24),
    "mlp.up_proj": (48, 24),
    "mlp.down_proj": (24, 48),
}
LACKING = "model.layers.1.mlp.up_proj.weight"
RESHAPED = "model.layers.0.self_attn.q_proj.weight"


@pytest.fixture(scope="module")
def models(tmp_path_factory, write):
    """A base and three posts, as paths and as arrays.

    The first two changed in part alike; the second lacks a matrix and has another in another shape; the third is stored
    in another type.
    """
    rng = np.random.default_rng(7)
    base = {f"model.layers.{layer}.{name}.weight": rng.normal(size=shape) for layer, name, shape in _places()}
    shared = {name: 0.02 * rng.normal(size=w.shape) for name, w in base.items()}
    sft = {name: w + shared[name] for name, w in base.items()}
    rl = {name: 1.02 * w + shared[name] + 0.02 * rng.normal(size=w.shape) for name, w in base.items()}
    other = {name: w + 0.05 * rng.normal(size=w.shape) for name, w in base.items()}
    arrays = {
        "base": {name: w.astype(np.float32) for name, w in base.items()},
        "sft": {name: w.astype(np.float32) for name, w in sft.items()},
        "rl": {name: w.astype(np.float32) for name, w in rl.items() if name != LACKING},
        "half": {name: w.astype(np.float16) for name, w in other.items()},
    }
    arrays["rl"][RESHAPED] = np.ones((4, 24), np.float32)
    folder = tmp_path_factory.mktemp("models")
    return {name: write(folder / name / "model.safetensors", tensors) for name, tensors in arrays.items()}, arrays


def _places():
    return [(layer, name, shape) for layer in range(3) for name, shape in SHAPES.items()]


@pytest.fixture(scope="module")
def runs(models, tmp_path_factory):
    paths, _ = models
    posts = [paths["sft"], paths["rl"], f"half={paths['half']}"]
    return polarax.compare(paths["base"], posts, tmp_path_factory.mktemp("runs") / "out", progress=False)


class TestEachPost:
    @pytest.mark.parametrize("label", ["sft", "rl", "half"])
    def test_is_as_if_it_were_alone(self, models, runs, label):
        alone = polarax.compare(models[0]["base"], models[0][label], progress=False)
        ours, theirs = runs[label].frame(), alone.frame()
        assert list(ours) == list(theirs) and len(ours) > 8
        for column in theirs:
            if theirs[column].dtype.kind == "f":
                np.testing.assert_allclose(ours[column], theirs[column], rtol=1e-7, atol=1e-9, err_msg=column)
            else:
                assert ours[column].equals(theirs[column]), column
        pd.testing.assert_frame_equal(runs[label].skipped(), alone.skipped())
        for kind in ("s_post", "cosines_left", "rotation_difference"):
            for name, values in alone.arrays(kind):
                np.testing.assert_allclose(runs[label].array(name, kind), values, rtol=1e-6, atol=1e-7)

    def test_what_a_post_lacks_is_skipped_in_its_run_alone(self, runs):
        assert runs.labels == ("sft", "rl", "half")
        assert [len(runs[label].frame()) for label in runs] == [12, 10, 12]
        skipped = runs.skipped()
        assert skipped["post"].tolist() == ["rl", "rl"]
        reasons = dict(zip(skipped["name"], skipped["reason"], strict=True))
        assert reasons == {LACKING: "only in base", RESHAPED: "shapes differ: base (24, 24), post (4, 24)"}

    def test_the_files_side_by_side(self, runs):
        for frame, file in ((runs.frame(), "matrices.csv"), (runs.between_frame(), "between.csv")):
            written = pd.read_csv(runs.path / file)
            assert list(written) == list(frame) and len(written) == len(frame)
            np.testing.assert_allclose(written["drift"], frame["drift"], rtol=1e-14)
        assert json.loads((runs.path / "run.json").read_text())["state"] == "finished"
        summary = json.loads((runs.path / "summary.json").read_text())
        assert list(summary["posts"]) == ["sft", "rl", "half"]
        assert polarax.Runs.open(runs.path).finished


class TestPostAgainstPost:
    @pytest.mark.parametrize(("first", "second"), list(itertools.combinations(["sft", "rl", "half"], 2)))
    def test_against_numpy(self, models, runs, first, second):
        arrays = models[1]
        frame = runs.between(first, second).frame()
        assert len(frame) == (12 if "rl" not in (first, second) else 10)
        for row in frame.itertuples():
            base, one, other = (arrays[which][row.name].astype(np.float64) for which in ("base", first, second))
            pair = singular_frames.reference(one, other)
            changes = [(post - base).ravel() for post in (one, other)]
            cosine = changes[0] @ changes[1] / np.prod([np.linalg.norm(change) for change in changes])
            np.testing.assert_allclose(row.drift, np.linalg.norm(other - one) / np.linalg.norm(one), rtol=1e-10)
            np.testing.assert_allclose(row.alpha, pair.s_base @ pair.s_post / (pair.s_base @ pair.s_base), rtol=1e-10)
            np.testing.assert_allclose(row.nf, singular_frames.nf(pair), rtol=1e-6)
            np.testing.assert_allclose(row.budget_coordinated, singular_frames.budget(pair)["coordinated"], rtol=1e-7)
            np.testing.assert_allclose(row.change_cosine, cosine, rtol=1e-9)
            np.testing.assert_allclose(row.change_cosine_null_std, base.size**-0.5)
            np.testing.assert_allclose(row.change_cosine_z, cosine * np.sqrt(base.size), rtol=1e-9)
            for values, expected in zip(
                runs.between(first, second).spectra(row.name), (pair.s_base, pair.s_post), strict=True
            ):
                np.testing.assert_allclose(values, expected, rtol=1e-9)

    def test_the_reading_tells_common_changes_from_unrelated_ones(self, runs):
        reading = runs.summary()["reading"]
        (common,) = [sentence for sentence in reading if sentence.startswith("sft and rl changed")]
        (unrelated,) = [sentence for sentence in reading if sentence.startswith("sft and half changed")]
        assert "the same way in 10 of 10 matrices" in common
        assert "unrelated directions in all 12 matrices" in unrelated
        assert [s for s in reading if s.startswith("rl: ") and "scaled up" in s]

    def test_the_two_run_one_way_only(self, runs):
        with pytest.raises(KeyError, match="'rl' and 'sft' were not compared"):
            runs.between("rl", "sft")
        with pytest.raises(KeyError, match="No post 'nothing'"):
            runs["nothing"]

    def test_without_it(self, models, tmp_path):
        paths, _ = models
        posts = [paths["sft"], paths["rl"]]
        runs = polarax.compare(paths["base"], posts, tmp_path / "out", metrics="scaling", between=False, progress=False)
        assert runs.pairs == () and not (tmp_path / "out" / "between").exists() and len(runs.frame()) == 22


OTHER_OPTIONS = [{"metrics": "change,scaling"}, {"metrics": "scaling,shape"}, {"method": "lapack"}]


@pytest.mark.parametrize(
    "options",
    [
        *(one | {"include": role} for one, role in zip(OTHER_OPTIONS, ["q_proj", "up_proj", "down_proj"], strict=True)),
        *(pytest.param(one, marks=pytest.mark.exhaustive) for one in OTHER_OPTIONS),
    ],
    ids=lambda options: " ".join(options.values()),
)
def test_other_metrics_and_methods(models, options):
    paths, _ = models
    runs = polarax.compare(paths["base"], {"a": paths["sft"], "b": paths["half"]}, progress=False, **options)
    alone = polarax.compare(paths["base"], paths["half"], progress=False, **options).frame()
    ours = runs["b"].frame()
    assert list(ours) == list(alone)
    for column in (column for column in alone if alone[column].dtype.kind == "f"):
        np.testing.assert_allclose(ours[column], alone[column], rtol=1e-7, atol=1e-9, err_msg=column)


def test_sampled_controls_are_those_of_each_post_alone(models):
    paths, _ = models
    how = {"metrics": "rotation", "control_draws": 2, "include": r"layers\.0\.mlp", "progress": False}
    runs = polarax.compare(paths["base"], {"a": paths["sft"], "b": paths["half"]}, **how)
    alone = polarax.compare(paths["base"], paths["half"], **how).frame()
    for column in ("nf_isotropic", "nf_spectrum", "nf_shuffled"):
        np.testing.assert_allclose(runs["b"].frame()[column], alone[column], rtol=1e-8)
    assert "nf_spectrum" not in runs.between_frame()


class TestOnce:
    def test_the_base_is_read_once(self, models, monkeypatch):
        paths, arrays = models
        read = {}
        for kind in {Checkpoint, *Checkpoint.__subclasses__()}:
            if "read_many" in vars(kind):
                real = vars(kind)["read_many"]
                monkeypatch.setattr(kind, "read_many", lambda self, wanted, real=real: _note(read, self, wanted, real))
        polarax.compare(paths["base"], [paths["sft"], f"h={paths['half']}"], metrics="change", progress=False)
        plain = [name for name, w in arrays["base"].items() if w.shape[0] >= w.shape[1]]
        for name in plain:
            assert read[paths["base"], name] == arrays["base"][name].nbytes
            assert read[paths["sft"], name] == arrays["sft"][name].nbytes

    def test_memory_is_planned_for_all_posts(self, models):
        base, *posts = (polarax.open_checkpoint(models[0][name]) for name in ("base", "sft", "half"))
        one = plan_posts(base, {"": posts[0]}, Selection(), memory_bytes=2**30)
        both = plan_posts(base, {"a": posts[0], "b": posts[1]}, Selection(), memory_bytes=2**30, between=True)
        assert both.bytes_to_read == one.bytes_to_read * (4 + 4 + 2) // 8
        assert both.matrices == one.matrices and both.peak_memory > one.peak_memory
        assert one.operations < both.operations < 2 * one.operations
        for stack, alone in zip(both.stacks, one.stacks, strict=True):
            assert stack.work_bytes > alone.work_bytes and stack.posts == (0, 1)

    def test_posts_that_do_not_fit_together_take_turns(self):
        tree = {f"w{i}": np.ones((64, 64), np.float32) for i in range(2)}
        base = polarax.open_checkpoint(tree)
        posts = {f"p{i}": polarax.open_checkpoint(tree) for i in range(40)}
        plan = plan_posts(base, posts, Selection(), memory_bytes=2**22)
        shares = [len(stack.posts) for stack in plan.stacks]
        assert sorted(set(shares)) == [12, 14]  # three goes, of at most sixteen posts
        for name in tree:
            seen = [p for stack in plan.stacks if name in {pair.name for pair in stack.pairs} for p in stack.posts]
            assert sorted(seen) == list(range(40))
        together = plan_posts(base, posts, Selection(), memory_bytes=2**22, between=True)
        assert {len(stack.posts) for stack in together.stacks} == {40}

    def test_in_turns_the_numbers_are_the_same(self, models, runs):
        paths, _ = models
        posts = {label: paths[label] for label in ("sft", "rl", "half")}
        small = polarax.compare(paths["base"], posts, between=False, memory_gib=1e-4, progress=False)
        for label in posts:
            np.testing.assert_allclose(small[label].frame()["nf"], runs[label].frame()["nf"], rtol=1e-7)


class Crash(Exception):
    """The end of a process."""


class TestResuming:
    def test_the_same_again_goes_on(self, models, runs, tmp_path, monkeypatch):
        paths, _ = models
        given = (paths["base"], {"sft": paths["sft"], "rl": paths["rl"], "half": paths["half"]}, tmp_path / "out")
        write_stack = RunWriter.write_stack
        count = itertools.count(1)

        def cut_off(self, stack, *args):
            if next(count) == 5:  # in the middle of a stack: some of its runs have it, others not
                raise Crash
            write_stack(self, stack, *args)

        monkeypatch.setattr(RunWriter, "write_stack", cut_off)
        with pytest.raises(Crash):
            polarax.compare(*given, progress=False)
        part = polarax.Runs.open(tmp_path / "out")
        assert not part.finished and 0 < len(part.frame()) < 34
        monkeypatch.setattr(RunWriter, "write_stack", write_stack)
        written = []
        monkeypatch.setattr(
            RunWriter, "write_stack", lambda self, *a: (written.append(self.path.name), write_stack(self, *a))
        )
        again = polarax.compare(*given, progress=False)
        assert again.finished
        pd.testing.assert_frame_equal(again.frame(), runs.frame(), rtol=1e-7)
        assert len(written) == sum(len(list((run.path / "arrays").iterdir())) for run in again.each()) - 4

    def test_what_differs_is_refused(self, models, runs, cli):
        paths, _ = models
        command = ["compare", f"--base={paths['base']}", f"--out={runs.path}", NO_CACHE, "--noplots"]
        two = [f"--post={paths['sft']}", f"--post={paths['rl']}"]
        assert_one_line(cli(*command, *two), "holds a run of something else", "posts was sft, rl, half, is sft, rl")
        three = [*two, f"--post=half={paths['sft']}"]
        assert_one_line(cli(*command, *three), "fingerprint of half")
        assert_one_line(cli(*command, two[0]), "holds a run of something else", "fingerprint of post")

    def test_overwrite_removes_the_runs_within(self, models, tmp_path):
        paths, _ = models
        out = tmp_path / "out"
        polarax.compare(
            paths["base"], {"a": paths["sft"], "b": paths["rl"]}, out, metrics="change,scaling", progress=False
        )
        (out / "mine.txt").write_text("kept")
        run = polarax.compare(
            paths["base"], paths["sft"], out, metrics="change,scaling", overwrite=True, progress=False
        )
        assert isinstance(run, polarax.Run)
        assert not (out / "a").exists() and not (out / "between").exists() and (out / "mine.txt").exists()


class TestCommand:
    def test_compare_prints_the_posts_side_by_side(self, models, cli, tmp_path):
        paths, _ = models
        done = cli("compare", f"--base={paths['base']}", f"--post={paths['sft']}", f"--post=b={paths['rl']}",
                   "--metrics=change,scaling", f"--out={tmp_path / 'out'}", "--noplots", NO_CACHE)  # fmt: skip
        assert done.code == 0, done.err
        assert (
            done.out.startswith("sft: Compared: 12 of 12 tensors, 100% of the weights")
            and "\nb: Compared: 10 of " in done.out
        )
        lines = [line.split()[:3] for line in done.out.splitlines()]
        table = lines[lines.index(["role", "post", "matrices"]) :]
        assert table[2:4] == [["q", "sft", "3"], ["q", "b", "2"]]
        assert "sft and b changed the same way" in done.out
        assert (tmp_path / "out" / "b" / "matrices.csv").exists()

    def test_plan_counts_the_posts(self, models, cli):
        paths, _ = models
        posts = [f"--post={paths['sft']}", f"--post={paths['half']}"]
        done = cli("plan", f"--base={paths['base']}", *posts, "--device=none")
        assert done.code == 0, done.err
        assert "float32 / float32 / float16" in done.out and "compare    12 matrices" in done.out

    @pytest.mark.parametrize(
        ("posts", "words"),
        [
            (["{sft}", "x={sft}", "x={rl}"], ["Two posts are named 'x'"]),
            (["{sft}", "nowhere"], ["nowhere"]),
            (["a={sft}", "a/b={rl}"], ["a/b="]),
        ],
    )
    def test_bad_input_is_one_line(self, models, cli, tmp_path, posts, words):
        paths, _ = models
        flags = [f"--post={post.format(**paths)}" for post in posts]
        assert_one_line(cli("compare", f"--base={paths['base']}", *flags, f"--out={tmp_path / 'out'}"), *words)
        assert not (tmp_path / "out").exists()

    def test_a_post_of_which_nothing_can_be_compared_is_named(self, models, cli, tmp_path, write):
        paths, arrays = models
        wrong = write(tmp_path / "wrong.safetensors", {name: np.ones((3, 5), np.float32) for name in arrays["base"]})
        flags = [f"--post={paths['sft']}", f"--post={wrong}"]
        done = cli("compare", f"--base={paths['base']}", *flags, f"--out={tmp_path / 'out'}")
        assert_one_line(done, "No matrix of wrong can be compared")

    def test_each_kind_is_opened_by_its_own(self, runs):
        with pytest.raises(polarax.UsageError, match="several posts"):
            polarax.Run.open(runs.path)
        with pytest.raises(polarax.UsageError, match="of one post"):
            polarax.Runs.open(runs["sft"].path)


def _note(read, checkpoint, wanted, real):
    for one in wanted:
        key = (checkpoint.location, one.name)
        read[key] = read.get(key, 0) + one.out.nbytes
    return real(checkpoint, wanted)
