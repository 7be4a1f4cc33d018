"""Models that match in part, or not at all: refused or said, by every command, before anything is written."""

import json
import re

import numpy as np
import pytest

import polarax
from polarax.loaders import CheckpointError
from tests.engine.command import NO_CACHE, assert_one_line

LAYERS = 3
RNG = np.random.default_rng(15)
BASE = {
    f"model.layers.{layer}.{name}.weight": RNG.normal(size=(24, 16)).astype(np.float32)
    for layer in range(LAYERS)
    for name in ("self_attn.k_proj", "mlp.up_proj", "mlp.other")
} | {"model.norm.weight": np.ones(16, np.float32)}
STAY = "(k_proj|norm)"  # a third of the weights


def changed(arrays):
    return {name: (w if w.ndim == 1 else 1.01 * w) for name, w in arrays.items()}


def renamed(arrays, kept):
    """The same weights under names that nothing is known of, but for some."""
    other = {name: f"net.block_{place}.thing" for place, name in enumerate(arrays) if not re.search(kept, name)}
    return {other.get(name, name): w for name, w in arrays.items()}


@pytest.fixture(scope="module")
def models(tmp_path_factory, write):
    folder = tmp_path_factory.mktemp("partial")
    arrays = {
        "base": BASE,
        "post": changed(BASE),
        "third": renamed(BASE, STAY),  # as it was, as far as it is paired
        "most": changed(renamed(BASE, STAY + "|up_proj")),
        "wrapped": changed({name.replace("model.", "model.language_model."): w for name, w in BASE.items()}),
        "longer": changed(BASE) | {"visual.blocks.0.qkv.weight": np.ones((24, 40), np.float32)},
        "nothing": {"a": np.ones((3, 4), np.float32)},
    }
    return {name: write(folder / name / "model.safetensors", tensors) for name, tensors in arrays.items()}


@pytest.fixture
def compare(cli, models, tmp_path):
    def run(post, *more):
        flags = [f"--base={models['base']}", f"--post={models[post]}", f"--out={tmp_path / 'run'}"]
        return cli("compare", *flags, "--metrics=change", "--noplots", NO_CACHE, *more)

    return run


def words(text):
    return " ".join(text.split())


class TestTooLittle:
    def test_is_refused_with_the_nearest_names_before_anything_is_written(self, compare, tmp_path):
        done = compare("third")
        assert_one_line(
            done,
            "67% of the base's matrix weights and 67% of the post's have no partner",
            "'model.layers.0.mlp.other.weight' of the base and 'net.block_",
            "polarax plan --base=BASE --post=POST --names",
            "--allow_partial",
        )
        assert not (tmp_path / "run").exists()

    def test_is_compared_where_that_is_asked_for_and_said_first(self, compare, tmp_path):
        done = compare("third", "--allow_partial")
        assert done.code == 0
        assert done.out.startswith("Compared: 3 of 10 tensors, 33.2% of the weights of either side.\n  not compared: ")
        reading = polarax.Run.open(tmp_path / "run").summary()["reading"]
        assert reading[0] == (
            "66.8% of the base's weights and 66.8% of the post's weights were not compared "
            "(only in base; only in post)."
        )
        assert "How much: none of 3 matrices changed at all." in reading

    def test_more_than_half_is_enough(self, compare, tmp_path):
        done = compare("most")
        assert done.code == 0 and "only in post: 3 tensors, 33.2% of the post" in done.out
        assert polarax.Run.open(tmp_path / "run").summary()["reading"][0].startswith("33.6% of the base's weights and ")

    def test_in_python(self, models):
        with pytest.raises(CheckpointError, match="paired too little"):
            polarax.compare(models["base"], models["third"], progress=False)
        run = polarax.compare(models["base"], models["third"], allow_partial=True, metrics="change", progress=False)
        assert len(run.frame()) == 3
        assert run.coverage["post"]["left_out"]["only in post"] == {"tensors": 6, "weights": 6 * 24 * 16}

    def test_one_of_several_posts_is_named(self, compare, models):
        assert_one_line(compare("post", f"--post=odd={models['third']}"), models["third"], "paired too little")

    def test_a_step_is_left_out_with_the_reason(self, models):
        steps = {10: models["post"], 20: models["third"]}
        history = polarax.history(steps, models["base"], metrics="change", progress=False)
        assert history.steps == (10,) and "paired too little" in history.unusable()[20]
        history = polarax.history(steps, models["base"], metrics="change", allow_partial=True, progress=False)
        assert history.steps == (10, 20)
        assert history.account()[0].startswith("Step 10: Compared: 9 of 10 tensors, 99.5%")
        reading = history.summary()["reading"]
        assert reading[0].startswith("Step 20: 66.8% of the base's weights and 66.8% of the post's")
        assert sum("were not compared" in sentence for sentence in reading) == 1

    def test_is_about_pairing_and_not_about_what_is_selected(self, compare, tmp_path):
        assert_one_line(compare("third", "--include=k_proj"), "paired too little")
        done = compare("post", "--layers=0")
        assert done.code == 0 and "not compared: not selected: 6 tensors, 66.4% of either side" in done.out
        assert polarax.Run.open(tmp_path / "run").summary()["reading"][0] == (
            "66.8% of the base's weights and 66.8% of the post's weights were not compared (not selected)."
        )


class TestNothing:
    @pytest.mark.parametrize("more", [[], ["--allow_partial"]])
    def test_in_common_is_always_an_error(self, compare, tmp_path, more):
        assert_one_line(compare("nothing", *more), "no tensor in common", "'a'", "'model.layers.0.")
        assert not (tmp_path / "run").exists()

    def test_is_chosen_where_two_are_as_good(self, cli, models, write, tmp_path):
        twice = {f"{word}.{name}": w for word in ("policy", "reference") for name, w in BASE.items()}
        post = write(tmp_path / "twice" / "model.safetensors", twice)
        done = cli("compare", f"--base={models['base']}", f"--post={post}", f"--out={tmp_path / 'run'}")
        name = "model.layers.0.mlp.other.weight"
        assert_one_line(done, f"{name}: ambiguous: policy.{name}, reference.{name} are like it", "plan")
        assert done.err.count("ambiguous") == 1
        assert not (tmp_path / "run").exists()

    def test_is_lost_of_a_model_against_itself(self, compare):
        done = compare("base")
        assert done.code == 0
        assert done.out.splitlines()[0] == (
            "Compared: 9 of 10 tensors, 99.5% of the weights of either side; the rest: 1 x 1-D: not a matrix."
        )
        assert "How much: none of 9 matrices changed at all." in done.out


class TestOtherNames:
    def test_are_columns_of_the_table(self, compare, tmp_path):
        done = compare("wrapped")
        assert done.code == 0 and "Matched under other names: 9 matrices by prefix." in done.out
        frame = polarax.Run.open(tmp_path / "run").frame()
        assert set(frame["matched_by"]) == {"prefix"}
        expected = frame["name"].str.replace("model.", "model.language_model.", n=1, regex=False)
        assert frame["name_post"].tolist() == expected.tolist()

    def test_are_shown_first_on_the_page_only_where_there_are_any(self, models):
        from polarax.report.table_data import table_data

        for post, shown in (("wrapped", True), ("post", False)):
            run = polarax.compare(models["base"], models[post], metrics="change", progress=False)
            data = table_data(run.frame())
            headline = {column["key"]: column["headline"] for column in data["columns"]}
            assert headline["matched_by"] == headline["name_post"] == shown
            place = list(headline).index("name_post")
            names = {"\0".join(data["patterns"][pattern] for pattern, *_ in [row]) for row in data["values"][place]}
            assert (names == {""}) != shown  # nothing where the name is the base's


class TestKept:
    def test_report_and_page_say_it_again(self, cli, compare, tmp_path):
        pytest.importorskip("jinja2")
        assert compare("longer").code == 0
        run = polarax.Run.open(tmp_path / "run")
        assert run.account()[0].endswith("9 of 11 of the post, 78.0% of its weights.")
        done = cli("report", f"--run={run.path}", "--noplots")
        assert done.code == 0 and words(done.out).startswith(words(" ".join(run.account())))
        page = (run.path / "report.html").read_text()
        for line in run.account():
            assert f'<p class="account">{line}</p>' in page
        assert run.account()[0] in run._repr_html_()

    def test_a_run_without_it_is_opened_and_resumed(self, compare, tmp_path):
        assert compare("longer").code == 0
        file = tmp_path / "run" / "run.json"
        description = json.loads(file.read_text())
        assert description.pop("coverage")["matched_by"] == {"name": 9}
        file.write_text(json.dumps(description))
        run = polarax.Run.open(tmp_path / "run")
        assert run.coverage is None and run.account() == ()
        assert not any("were not compared" in sentence for sentence in run.summary()["reading"])
        assert compare("longer").code == 0 and polarax.Run.open(tmp_path / "run").coverage

    def test_two_posts_against_each_other_count_what_both_have(self, models):
        posts = {"most": models["most"], "all": models["post"]}
        runs = polarax.compare(models["base"], posts, metrics="change", progress=False)
        assert runs.between("most", "all").account() == (
            "Compared: 6 of 10 tensors, 66.4% of the weights of either side.",
            "  not compared: not in both, or not compared with the base: 4 tensors, 33.6% of either side",
        )


class TestPlan:
    @pytest.fixture
    def plan(self, cli, models):
        def run(post, *more):
            return cli("plan", f"--base={models['base']}", f"--post={models[post]}", "--device=none", *more)

        return run

    def test_shows_what_is_matched_with_what_as_patterns(self, plan):
        done = plan("wrapped")
        lines = list(map(words, done.out.splitlines()))
        assert (
            lines[0]
            == "To compare: 9 of 10 tensors, 99.5% of the weights of either side; the rest: 1 x 1-D: not a matrix."
        )
        pattern = "model.layers.*.mlp.up_proj.weight -> model.language_model.layers.*.mlp.up_proj.weight"
        assert f"{pattern} 3 matrices, prefix" in lines
        assert "model.norm.weight 1 x 1-D: not a matrix" in lines

    def test_names_lists_all_of_both_sides(self, plan):
        lines = list(map(words, plan("most", "--names").out.splitlines()))
        assert "model.layers.2.mlp.up_proj.weight" in lines  # with its own name
        assert "model.layers.2.mlp.other.weight: only in base" in lines
        assert sum(line.startswith("net.block_") and line.endswith(": only in post") for line in lines) == 3
        wrapped = "model.layers.2.mlp.up_proj.weight -> model.language_model.layers.2.mlp.up_proj.weight prefix"
        assert wrapped in map(words, plan("wrapped", "--names").out.splitlines())

    def test_shows_all_where_compare_would_refuse_and_ends_with_the_error(self, plan):
        done = plan("third")
        assert done.code == 2 and done.err.count("\n") == 1 and "paired too little" in done.err
        assert "3 matrices in 1 stacks" in done.out and "net.block_*.thing" in done.out
        assert plan("third", "--allow_partial").code == 0

    def test_shows_what_there_is_where_nothing_is_in_common(self, plan):
        done = plan("nothing")
        assert done.code == 2 and done.err.count("\n") == 1 and "no tensor in common" in done.err
        assert "model.layers.*.mlp.up_proj.weight" in done.out and "only in post" in done.out

    def test_a_selection_that_leaves_nothing_does_not_hide_it(self, plan):
        done = plan("third", "--include=up_proj")
        assert done.code == 2 and "paired too little" in done.err and "not compared" in done.out


class TestLongNames:
    LONG = "x" * 10_000 + ".Größe.weight"

    @pytest.fixture
    def long(self, tmp_path, write):
        def model(file, **more):
            return write(tmp_path / f"{file}.safetensors", {self.LONG: np.eye(4, dtype=np.float32), **more})

        return model

    def test_are_shortened_in_errors(self, cli, models, long, tmp_path):
        post = long("post")
        done = cli("compare", f"--base={models['base']}", f"--post={post}", f"--out={tmp_path / 'run'}")
        assert_one_line(done, "no tensor in common", "...xxx", ".Größe.weight'")
        assert len(done.err) < 1000

    def test_are_shortened_in_what_is_printed_and_on_the_page(self, cli, long, tmp_path):
        pytest.importorskip("jinja2")
        base, post = long("base", b=np.ones((2, 3), np.float32)), long("post", c=np.ones((2, 5), np.float32))
        for command in ("plan", "plan --names"):
            name, *more = command.split()
            done = cli(name, f"--base={base}", f"--post={post}", "--device=none", *more)
            assert done.code == 0 and max(map(len, done.out.splitlines())) < 700
        out = tmp_path / "run"
        done = cli(
            "compare", f"--base={base}", f"--post={post}", f"--out={out}", "--metrics=change", "--noplots", NO_CACHE
        )
        assert done.code == 0 and max(map(len, done.out.splitlines())) < 700
        assert polarax.Run.open(out).frame()["name"].tolist() == [self.LONG]
        assert cli("report", f"--run={out}", "--noplots").code == 0
        assert self.LONG not in (out / "report.html").read_text()

    def test_what_a_library_says_at_length_is_cut(self, cli, tmp_path):
        done = cli("compare", f"--base={tmp_path / ('y' * 200)}{'/z' * 3000}", "--post=b", f"--out={tmp_path / 'run'}")
        assert done.code == 2 and len(done.err) < 1000
