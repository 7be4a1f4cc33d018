"""Full analyses over a first look: what takes whose place, what interrupts it, and what is refused."""

import itertools
import json
import os
import shutil

import numpy as np
import pandas as pd
import pytest

import polarax
import polarax.comparison
from polarax.metrics.look import FIRST, FULL
from polarax.results.tables import Table, joint_columns, laid_over

NAMES = [f"model.layers.{layer}.self_attn.{role}_proj.weight" for layer in range(2) for role in "oq"]


@pytest.fixture(scope="module")
def trees():
    rng = np.random.default_rng(11)
    base = {name: rng.normal(size=(12, 8)).astype(np.float32) for name in NAMES} | {"norm": np.ones(8, np.float32)}
    post = {name: (1.01 * w).astype(np.float32) for name, w in base.items()}
    return base, post


@pytest.fixture
def made_up(monkeypatch):
    """Runs that measure nothing: every row is written with numbers that say who wrote it."""

    def run_stacks(work, stacks, outputs, progress):
        quick = work.measurement.quick
        for stack in stacks:
            for output in outputs:
                if output.waits_for(stack):
                    part, place = output._waiting[stack.label], output._place
                    rows = [_row(pair, quick) for pair in part.pairs]
                    arrays = {"s_base": np.full((len(rows), 2 if quick else 8), 2.0 if quick else 8.0)}
                    output.writer.write_stack(part, rows, arrays, [place[pair.name] for pair in part.pairs])
        return {"read": 0.0, "compile": 0.0, "compute": 0.0}

    monkeypatch.setattr(polarax.comparison, "run_stacks", run_stacks)
    monkeypatch.setattr(os, "fsync", lambda file: None)  # for the loss of power alone


def _row(pair, quick):
    row = {
        "name": pair.name,
        "layer": pair.layer,
        "role": pair.role,
        "rows": 12,
        "cols": 8,
        "dtype_base": "float32",
        "dtype_post": "float32",
        "status": "ok",
        "relation": "",
        "name_post": pair.name,
        "matched_by": "name",
        "drift": 0.1 + 0.2 if quick else 1 / 3,  # as many digits as there can be
        "alpha": 1.05,
        "alpha_null": 1.0,
        "alpha_null_std": 1e-4,
        "control": "closed form",
    }
    return row | ({"residual_base": 0.25, "converged": "yes"} if quick else {"nf": 0.5, "nf_null": 0.5})


def compare(trees, out, **options):
    return polarax.compare(*trees, out, progress=False, memory_gib=1e-6, **options)


def first_look(trees, out, **options):
    return compare(trees, out, quick=True, **options)


def files(folder, but=(".lock",)):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name not in but
    }


def described(path):
    return {name: value for name, value in json.loads(path).items() if name not in ("started", "seconds")}


def assert_same(folder, expected):
    """To the byte, but for times."""
    found, wanted = files(folder), files(expected)
    assert found.keys() == wanted.keys()
    for name, content in found.items():
        if name.endswith("run.json"):
            assert described(content) == described(wanted[name]), name
        else:
            assert content == wanted[name], name


class TestTables:
    FIRST_ROWS = Table(("name", "look", "drift", "extra"), [["a", "first", "1", "x"], ["b", "first", "2", "y"]])

    def test_a_full_row_takes_the_place_of_a_first_one(self):
        full = Table(("name", "drift", "nf"), [["b", "2.5", "0.5"]])
        table = laid_over(self.FIRST_ROWS, [full])
        assert table.columns == ("name", "look", "drift", "nf", "extra")
        assert table.rows == [["a", "first", "1", "", "x"], ["b", "full", "2.5", "0.5", ""]]
        assert laid_over(table, [full]) == table  # again changes nothing
        assert self.FIRST_ROWS.rows[1] == ["b", "first", "2", "y"]

    def test_what_the_first_look_has_not_got_to_comes_last(self):
        table = laid_over(self.FIRST_ROWS, [Table(("name", "nf"), [["c", "7"]])])
        assert [row[0] for row in table.rows] == ["a", "b", "c"]
        assert table.rows[2][table.columns.index("look")] == "full"

    def test_of_two_the_later_one_counts(self):
        one, two = (Table(("name", "nf"), [["a", value]]) for value in "12")
        table = laid_over(self.FIRST_ROWS, [one, two])
        assert table.rows[0][table.columns.index("nf")] == "2"

    def test_nothing_to_lay_over(self):
        assert laid_over(self.FIRST_ROWS, []) is self.FIRST_ROWS
        assert laid_over(self.FIRST_ROWS, [Table(("name", "nf"), [])]) is self.FIRST_ROWS

    def test_columns_of_several_stand_behind_their_neighbours(self):
        assert joint_columns([["a", "b", "z"], ["a", "c", "z", "y"], ["n", "a"]]) == ("n", "a", "c", "b", "z", "y")


@pytest.mark.usefixtures("made_up")
class TestOneRun:
    def test_rows_arrays_and_columns(self, trees, tmp_path):
        first = first_look(trees, tmp_path / "run")
        before = first.frame()
        assert (before["look"] == FIRST).all() and "nf" not in before
        run = compare(trees, tmp_path / "run", include=r"0.self_attn.o")
        frame = run.frame()
        assert frame["name"].tolist() == NAMES
        assert frame["look"].tolist() == [FULL, FIRST, FIRST, FIRST]
        assert frame["drift"].tolist() == [1 / 3, *[0.1 + 0.2] * 3]
        assert frame["nf"].notna().tolist() == [True, False, False, False]
        assert frame["residual_base"].notna().tolist() == [False, True, True, True]
        assert frame["converged"].tolist() == ["", "yes", "yes", "yes"]
        pd.testing.assert_frame_equal(frame.iloc[1:][before.columns], before.iloc[1:])
        assert [len(run.array(name, "s_base")) for name in NAMES] == [
            8,
            2,
            2,
            2,
        ]
        assert {name: len(values) for name, values in run.arrays("s_base")} == dict(
            zip(NAMES, [8, 2, 2, 2], strict=True)
        )
        assert run.coverage == first.coverage and run.skipped().equals(first.skipped())
        # The file says the same as what is read.
        text = pd.read_csv(run.path / "matrices.csv")
        assert list(text.columns) == list(frame.columns) and text["look"].tolist() == frame["look"].tolist()
        summary = json.loads((run.path / "summary.json").read_text())
        assert summary["reading"] == run.summary()["reading"]
        assert summary["first_look"] == {"matrices": 3, "converged": 3, "values_alone": 0, "not_converged": 0}

    def test_more_is_added(self, trees, tmp_path):
        first_look(trees, tmp_path / "run")
        compare(trees, tmp_path / "run", include="0.self_attn.o")
        run = compare(trees, tmp_path / "run", include="1.self_attn.q")
        assert run.frame()["look"].tolist() == [FULL, FIRST, FIRST, FULL]
        again = compare(trees, tmp_path / "run", include="0.self_attn.o")
        assert sorted(path.name for path in (again.path / "closer").iterdir()) == ["1", "2"]
        assert again.summary()["first_look"] == {"matrices": 2, "converged": 2, "values_alone": 0, "not_converged": 0}

    def test_fewer_columns_do_not_replace_more(self, trees, tmp_path):
        first_look(trees, tmp_path / "run")
        compare(trees, tmp_path / "run", include="0.self_attn.o")
        run = compare(trees, tmp_path / "run", include="self_attn.o", metrics="change")
        assert run.frame()["nf"].notna().tolist() == [True, False, False, False]
        assert run.frame()["look"].tolist() == [FULL, FIRST, FULL, FIRST]

    def test_the_first_look_again_changes_nothing(self, trees, tmp_path):
        first_look(trees, tmp_path / "run")
        compare(trees, tmp_path / "run", include="0.self_attn.q")
        shutil.copytree(tmp_path / "run", tmp_path / "before")
        run = first_look(trees, tmp_path / "run")
        assert run.finished
        assert_same(tmp_path / "run", tmp_path / "before")

    def test_other_inputs_are_refused(self, trees, tmp_path):
        first_look(trees, tmp_path / "run")
        before = files(tmp_path / "run")
        base, post = trees
        other = {name: 2 * w for name, w in post.items()}
        with pytest.raises(polarax.UsageError, match=r"fingerprint of post was \w+, is \w+"):
            compare((base, other), tmp_path / "run")
        with pytest.raises(polarax.UsageError, match="--common_rows was False, is True"):
            compare(trees, tmp_path / "run", common_rows=True)
        with pytest.raises(polarax.UsageError, match="--top_k was 16, is 3"):
            first_look(trees, tmp_path / "run", top_k=3)
        assert files(tmp_path / "run") == before

    def test_what_the_first_look_left_out_is_refused(self, trees, tmp_path):
        first_look(trees, tmp_path / "run", layers="0")
        with pytest.raises(polarax.UsageError, match="holds a first look without 'model.layers.1.self_attn.q_proj"):
            compare(trees, tmp_path / "run", include="self_attn.q")
        assert not (tmp_path / "run" / "closer").exists()

    def test_a_first_look_over_a_full_analysis_is_refused(self, trees, tmp_path):
        compare(trees, tmp_path / "run")
        with pytest.raises(polarax.UsageError, match="--quick was False, is True"):
            first_look(trees, tmp_path / "run", metrics="change")

    def test_overwriting_removes_the_full_analyses(self, trees, tmp_path):
        first_look(trees, tmp_path / "run")
        compare(trees, tmp_path / "run", include="0.self_attn.q")
        (tmp_path / "run" / "notes.txt").write_text("mine")
        run = first_look(trees, tmp_path / "run", overwrite=True)
        assert (run.frame()["look"] == FIRST).all() and not (run.path / "closer").exists()
        run = compare(trees, tmp_path / "run", overwrite=True)
        assert "look" not in run.frame() and (run.path / "notes.txt").exists()

    def test_a_run_that_another_process_writes_is_left_alone(self, trees, tmp_path):
        run = first_look(trees, tmp_path / "run")
        with (
            polarax.results.files.locked(run.path),
            pytest.raises(polarax.RunError, match="Another process is writing"),
        ):
            compare(trees, tmp_path / "run", include="0.self_attn.q")


@pytest.mark.usefixtures("made_up")
class TestSeveral:
    def posts(self, trees):
        base, post = trees
        other = {name: (0.98 * w).astype(np.float32) for name, w in base.items()}
        return {"sft": polarax.open_checkpoint(post), "rl": polarax.open_checkpoint(other)}

    def test_posts(self, trees, tmp_path):
        posts = self.posts(trees)
        first = polarax.compare(trees[0], posts, tmp_path / "run", quick=True, progress=False)
        assert first.first_look
        polarax.compare(trees[0], posts, tmp_path / "run", include="1.self_attn.q", progress=False)
        runs = polarax.Runs.open(tmp_path / "run")
        looks = [FIRST, FIRST, FIRST, FULL]
        assert runs.frame()["look"].tolist() == looks * 2
        assert runs.between("sft", "rl").frame()["look"].tolist() == looks
        assert polarax.Run.open(tmp_path / "run" / "rl").frame()["look"].tolist() == looks
        table = pd.read_csv(tmp_path / "run" / "matrices.csv")
        assert table["look"].tolist() == looks * 2 and table["post"].tolist() == ["sft"] * 4 + ["rl"] * 4
        assert pd.read_csv(tmp_path / "run" / "between.csv")["look"].tolist() == looks
        shutil.copytree(tmp_path / "run", tmp_path / "before")
        polarax.compare(trees[0], posts, tmp_path / "run", quick=True, progress=False)
        assert_same(tmp_path / "run", tmp_path / "before")

    def test_other_posts_are_refused(self, trees, tmp_path):
        posts = self.posts(trees)
        polarax.compare(trees[0], posts, tmp_path / "run", quick=True, progress=False)
        with pytest.raises(polarax.UsageError, match="something else"):
            polarax.compare(trees[0], posts["sft"], tmp_path / "run", progress=False)
        with pytest.raises(polarax.UsageError, match="--between was True, is False"):
            polarax.compare(trees[0], posts, tmp_path / "run", between=False, progress=False)

    def test_history(self, trees, tmp_path):
        steps = dict(zip((10, 20), self.posts(trees).values(), strict=True))
        base = polarax.open_checkpoint(trees[0])
        polarax.history(steps, base, tmp_path / "run", quick=True, progress=False)
        history = polarax.history(steps, base, tmp_path / "run", roles="o", progress=False)
        assert history.frame()["look"].tolist() == [FULL, FIRST] * 4
        assert history.at(20).array(NAMES[0], "s_base").tolist() == [8.0] * 8
        assert history.summary()["steps"]["20"]["first_look"]["matrices"] == 2


@pytest.mark.slow
@pytest.mark.usefixtures("made_up")
@pytest.mark.parametrize("stride", [3, pytest.param(1, marks=pytest.mark.exhaustive)])
class TestEveryMoment:
    """Writing ends at each step of it in turn, or at each third one."""

    def test_of_a_full_analysis(self, trees, tmp_path, crashes, stride):
        first_look(trees, tmp_path / "first")
        shutil.copytree(tmp_path / "first", tmp_path / "whole")
        compare(trees, tmp_path / "whole", roles="q")
        for step in itertools.count(1, stride):
            out = tmp_path / f"run-{step}"
            shutil.copytree(tmp_path / "first", out)
            if not crashes(step, compare, trees, out, roles="q"):
                break
            self.assert_nothing_is_lost(out)
            # Whichever comes first, another look or the rest of this one.
            if step % 2:
                first_look(trees, out)
                self.assert_nothing_is_lost(out)
            compare(trees, out, roles="q")
            assert_same(out, tmp_path / "whole")
            shutil.rmtree(out)
        assert step > 25  # of them were tried

    def test_of_a_first_look_that_was_looked_at_closer(self, trees, tmp_path, crashes, stride):
        first_look(trees, tmp_path / "whole")
        compare(trees, tmp_path / "whole", roles="q")
        for step in itertools.count(1, stride):
            out = tmp_path / f"run-{step}"
            shutil.copytree(tmp_path / "whole", out)
            if not crashes(step, first_look, trees, out):
                break
            self.assert_nothing_is_lost(out, full=True)
            first_look(trees, out)
            assert_same(out, tmp_path / "whole")
            shutil.rmtree(out)
        assert step > 5

    def test_of_a_first_look_that_is_then_looked_at_closer(self, trees, tmp_path, crashes, stride):
        first_look(trees, tmp_path / "whole")
        compare(trees, tmp_path / "whole", roles="q")
        for step in itertools.count(1, stride):
            out = tmp_path / f"run-{step}"
            if not crashes(step, first_look, trees, out):
                break
            if json.loads((out / "run.json").read_text() if (out / "run.json").exists() else "{}"):
                compare(trees, out, roles="q")
                frame = polarax.Run.open(out).frame()
                assert (frame.loc[frame["role"] == "q", "look"] == FULL).all() and (frame["role"] == "q").sum() == 2
            first_look(trees, out)
            compare(trees, out, roles="q")
            assert_same(out, tmp_path / "whole")
            shutil.rmtree(out)
        assert step > 25

    @staticmethod
    def assert_nothing_is_lost(path, full=False):
        run = polarax.Run.open(path)
        frame = run.frame()
        assert sorted(frame["name"]) == sorted(NAMES)
        full_rows = frame[frame["look"] == FULL]
        assert set(full_rows["role"]) <= {"q"} and (not full or len(full_rows) == 2)
        assert full_rows.empty or (full_rows[["drift", "nf"]] == [1 / 3, 0.5]).all().all()
        first_rows = frame[frame["look"] == FIRST]
        assert (first_rows["drift"] == 0.1 + 0.2).all() and (first_rows["residual_base"] == 0.25).all()
        for name in full_rows["name"]:
            assert len(run.array(name, "s_base")) == 8
