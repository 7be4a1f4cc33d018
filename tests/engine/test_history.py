"""The steps of a training run: which are compared and with what, numbers, pictures and the page with a slider."""

import itertools
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pandas as pd
import pytest

import polarax
from polarax.planning.comparison_plan import plan_posts
from polarax.planning.selection import Selection
from polarax.report.history_page import render_history_report, write_history_report
from polarax.report.plots.over_steps import plot_over_steps
from polarax.report.steps_table import spread_evenly
from polarax.results.run_directory import RunWriter
from tests.engine.browser import needs_chromium, visit
from tests.engine.command import NO_CACHE, assert_one_line
from tests.engine.report.test_report import MALICIOUS, Page
from tests.engine.synthetic_runs import matrix, write_run

STEPS = (0, 5, 10, 100)
METRICS = "change,scaling,budget"


def weights(step, rng=None):
    """A model whose k is scaled from step 10 on; all drift a little."""
    start = np.random.default_rng(1)
    tree = {}
    for layer in range(3):
        for name in ("q_proj", "k_proj"):
            base, way = start.normal(size=(2, 24, 16))
            scale = 1.05 if name == "k_proj" and step >= 10 else 1.0
            tree[f"model.layers.{layer}.self_attn.{name}.weight"] = scale * base + 1e-5 * step * way
    return tree


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory, write):
    folder = tmp_path_factory.mktemp("training")
    for step in STEPS:
        arrays = {name: w.astype(np.float32) for name, w in weights(step).items()}
        write(folder / f"checkpoint-{step}" / "model.safetensors", arrays)
    return folder


@pytest.fixture(scope="module")
def history(checkpoints, tmp_path_factory):
    return polarax.history(checkpoints, out=tmp_path_factory.mktemp("runs") / "out", metrics=METRICS, progress=False)


class TestNumbers:
    def test_each_step_is_compared_with_the_first(self, history, checkpoints):
        assert history.steps == STEPS[1:]
        frame = history.frame()
        assert frame["step"].tolist() == [step for step in STEPS[1:] for _ in range(6)]
        for row in frame.itertuples():
            base, post = (weights(step)[row.name].astype(np.float32).astype(float) for step in (0, row.step))
            s_base, s_post = (np.linalg.svd(x, compute_uv=False) for x in (base, post))
            np.testing.assert_allclose(row.drift, np.linalg.norm(post - base) / np.linalg.norm(base), rtol=1e-9)
            np.testing.assert_allclose(row.alpha, s_base @ s_post / (s_base @ s_base), rtol=1e-12)

    def test_the_table_has_a_column_of_steps(self, history):
        written = pd.read_csv(history.path / "matrices.csv")
        assert list(written)[:2] == ["step", "name"]
        np.testing.assert_array_equal(written["step"], history.frame()["step"])
        np.testing.assert_allclose(written["alpha"], history.frame()["alpha"], rtol=1e-14)
        opened = polarax.Runs.open(history.path)
        assert isinstance(opened, polarax.History) and opened.finished and opened.at(100).finished

    def test_with_a_base(self, checkpoints):
        found = polarax.history(
            str(checkpoints / "checkpoint-1*"), checkpoints / "checkpoint-5", metrics="change", progress=False
        )
        assert found.steps == (10, 100)
        row = found.frame().iloc[0]
        base, post = (weights(step)[row["name"]].astype(np.float32).astype(float) for step in (5, 10))
        np.testing.assert_allclose(row["drift"], np.linalg.norm(post - base) / np.linalg.norm(base), rtol=1e-9)

    def test_the_reading_says_when_an_effect_came(self, history):
        reading = history.summary()["reading"]
        assert [one.split(", ")[0] for one in reading[:3]] == ["How much", "Where", "More than chance"]
        moved = re.fullmatch(
            r"How much, step 100: the weights moved by .* over 6 matrices\); before, (.*)% at step 5, (.*)% at step 10 "
            r"in the median\.",
            reading[0],
        )
        medians = [100 * history.at(step).frame()["drift"].median() for step in (5, 10)]
        np.testing.assert_allclose([float(size) for size in moved.groups()], medians, rtol=0.06)
        assert "k: scaled up from step 10 on, in 3 of 3 matrices at the end." in reading
        assert [s for s in reading if s.startswith("Step 100: ")] and "Thresholds" in reading[-1]

    def test_memory_does_not_grow_with_the_steps(self):
        tree = {"w": np.ones((64, 64), np.float32)}
        base = polarax.open_checkpoint(tree)
        peaks = []
        for count in (20, 200):
            posts = {str(step): base for step in range(count)}
            plan = plan_posts(base, posts, Selection(), memory_bytes=2**21)
            peaks.append(plan.peak_memory)
            assert len(plan.stacks) < count
        assert max(peaks) < 1.05 * peaks[0] and max(peaks) <= 2**21


class TestTrainingStates:
    """What Orbax saves of a training run."""

    def states(self, folder, save):
        params = {"dense": {"kernel": jnp.asarray(np.random.default_rng(0).normal(size=(8, 6)), jnp.float32)}}
        optimiser = optax.adam(1e-3)
        opt_state = optimiser.init(params)
        with ocp.CheckpointManager(folder) as manager:
            for step in range(3):
                manager.save(step * 10, args=save(params, opt_state, step))
                grads = jax.tree.map(jnp.sin, params)
                updates, opt_state = optimiser.update(grads, opt_state, params)
                params = optax.apply_updates(params, updates)
            manager.wait_until_finished()

    @pytest.mark.parametrize(
        "save",
        [
            lambda params, opt, step: ocp.args.StandardSave({"params": params, "opt_state": opt, "step": step}),
            lambda params, opt, step: ocp.args.Composite(
                params=ocp.args.StandardSave(params), opt_state=ocp.args.StandardSave(opt)
            ),
            lambda params, opt, step: ocp.args.Composite(
                state=ocp.args.StandardSave({"params": params, "opt_state": opt}),
                metrics=ocp.args.JsonSave({"loss": 1.0}),
            ),
        ],
        ids=["one item", "composite", "state and metrics"],
    )
    def test_the_parameters_alone_are_compared(self, tmp_path, save):
        self.states(tmp_path / "run", save)
        found = polarax.history(tmp_path / "run", metrics="change", progress=False)
        assert found.steps == (10, 20)
        frame = found.frame()
        assert frame["name"].unique().tolist() == ["dense.kernel"]
        assert (frame["drift"] > 0).all() and frame["drift"].is_monotonic_increasing
        assert all("optimizer" in reason for name, reason in found.skipped()[["name", "reason"]].to_numpy()
                   if name.startswith("opt_state"))  # fmt: skip


class TestBrokenSteps:
    def test_a_broken_step_is_left_out_with_the_reason(self, checkpoints, tmp_path, cli, write):
        folder = tmp_path / "training"
        for step in (0, 5, 10):
            write(folder / f"{step}" / "model.safetensors", {n: w.astype(np.float32) for n, w in weights(step).items()})
        (folder / "5" / "model.safetensors").write_bytes(b"\x00" * 4)
        write(folder / "7" / "model.safetensors", {"other": np.ones((3, 2), np.float32)})
        (folder / "8").mkdir()
        out = tmp_path / "out"
        done = cli("history", f"--checkpoints={folder}", f"--out={out}", "--metrics=change", "--noplots", NO_CACHE)
        assert done.code == 0, done.err
        found = polarax.Runs.open(out)
        assert found.steps == (10,) and set(found.unusable()) == {5, 7, 8}
        for step in (5, 7, 8):
            assert f"Step {step} was not compared: " in " ".join(done.out.split())
        assert "no tensor in common" in found.unusable()[7]
        assert json.loads((out / "summary.json").read_text())["unusable"].keys() == {"5", "7", "8"}

    @pytest.mark.parametrize(
        ("flags", "words"),
        [
            (["--out={out}"], "--checkpoints is missing"),
            (["--checkpoints={all}"], "--out is missing"),
            (["--checkpoints={all}-*", "--out={out}"], "matches no checkpoint"),
            (["--checkpoints={all}/checkpoint-5", "--out={out}"], "named after their step"),
            (["--checkpoints={all}/checkpoint-[5]", "--out={out}"], "Step 5 is alone"),
            (["--checkpoints={all}", "--base=nowhere", "--out={out}"], "nowhere"),
            (["--checkpoints={all}", "--include=nothing", "--out={out}"], "None of 3 steps can be compared. Step 5:"),
        ],
    )
    def test_bad_input_is_one_line(self, checkpoints, cli, tmp_path, flags, words):
        filled = [flag.format(all=checkpoints, out=tmp_path / "out") for flag in flags]
        assert_one_line(cli("history", *filled, NO_CACHE), words)
        assert not (tmp_path / "out").exists()


def test_the_same_again_goes_on(checkpoints, history, tmp_path, monkeypatch):
    write_stack = RunWriter.write_stack
    count = itertools.count(1)

    def cut_off(self, *args):
        if next(count) == 2:
            raise RuntimeError("the end")
        write_stack(self, *args)

    monkeypatch.setattr(RunWriter, "write_stack", cut_off)
    with pytest.raises(RuntimeError, match="the end"):
        polarax.history(checkpoints, out=tmp_path / "out", metrics=METRICS, progress=False)
    part = polarax.Runs.open(tmp_path / "out")
    assert not part.finished and len(part.frame()) == 6
    assert "interrupted" in Page(render_history_report(part)).text
    monkeypatch.setattr(RunWriter, "write_stack", write_stack)
    again = polarax.history(checkpoints, out=tmp_path / "out", metrics=METRICS, progress=False)
    pd.testing.assert_frame_equal(again.frame(), history.frame(), rtol=1e-9)


def made_up(path, steps=(10, 20, 40), name=None, count=3):
    """A history whose numbers were never computed."""
    path.mkdir(parents=True)
    for step in steps:
        rows = [matrix(role, layer) for layer in range(count) for role in ("q", "o")]
        if name is not None:
            rows.append(matrix("other", None, name=name))
        write_run(path / str(step), rows, base=name or "base", skipped=[(name or "norm", name or "1-D")])
    description = json.loads((path / str(steps[0]) / "run.json").read_text())
    posts = {str(step): {"location": name or f"step-{step}", "fingerprint": "0"} for step in steps}
    description |= {"posts": posts, "history": True, "between": [], "unusable": {"30": name or "broken"}}
    (path / "run.json").write_text(json.dumps(description))
    return polarax.Runs.open(path)


class TestReport:
    def test_everything_is_there(self, tmp_path):
        found = made_up(tmp_path / "out")
        text = render_history_report(found)
        page = Page(text)
        for plot in ("drift", "alpha", "nf", "coordination", "budget", "overlap", "alpha_layers", "nf_layers"):
            assert f"history_{plot}" in page.ids
        assert {"step-10", "step-20", "step-40", "step-choice", "table-section"} <= set(page.ids)
        assert "step 30: broken" in page.text
        assert len(page.ids) == len(set(page.ids))
        assert not re.search(r"url\((?!#)|@import|https?:", text)
        for sentence in found.summary()["reading"]:
            assert " ".join(sentence.split()) in page.text

    def test_names_and_reasons_are_text(self, tmp_path):
        page = Page(render_history_report(made_up(tmp_path / "out", name=MALICIOUS)))
        assert [tag for tag, _ in page.elements].count("script") == 2
        assert not any(key.startswith("on") for _, attributes in page.elements for key in attributes)

    def test_many_steps_have_few_pictures(self, tmp_path, monkeypatch):
        monkeypatch.setattr("polarax.report.history_page._DRAWN_STEPS", 3)
        found = made_up(tmp_path / "out", steps=tuple(range(1, 8)), count=1)
        text = render_history_report(found)
        drawn = [step for step in range(1, 8) if "<svg" in text.split(f'id="step-{step}"')[1].split("</article>")[0]]
        assert drawn == [1, 4, 7]
        assert "Pictures of 3 of 7 steps" in Page(text).text

    def test_spread_evenly(self):
        assert spread_evenly([1, 2, 3], 5) == [1, 2, 3]
        assert spread_evenly(list(range(11)), 3) == [0, 5, 10]

    def test_the_report_command_and_pictures(self, tmp_path, cli):
        found = made_up(tmp_path / "out")
        done = cli("report", f"--run={found.path}")
        assert done.code == 0, done.err
        assert (found.path / "report.html").exists() and (found.path / "plots" / "history_alpha.png").exists()

    def test_in_a_notebook(self, tmp_path):
        found = made_up(tmp_path / "out", name=MALICIOUS)
        assert "<img" not in found._repr_html_() and "<script" not in found._repr_html_()
        for draw in (found.plot.alpha, found.plot.nf, found.plot.drift_budget, found.plot.overlap, found.plot.layers):
            assert draw(role="q").axes
        with pytest.raises(polarax.UsageError, match="has nothing for this picture"):
            found.plot.metric("no_such_column")

    @needs_chromium
    @pytest.mark.slow
    def test_the_slider_shows_another_step(self, tmp_path):
        page = write_history_report(made_up(tmp_path / "out"))
        script = """
            const all = (what) => [...document.querySelectorAll(what)];
            const shown = () => all(".step").filter((one) => one.offsetHeight).map((one) => one.id);
            const slider = document.getElementById("step-choice");
            const found = [shown()];
            const follow = document.getElementById("step-follow");
            follow.checked = true;
            follow.dispatchEvent(new Event("change"));
            slider.value = 1;
            slider.dispatchEvent(new Event("input"));
            found.push(shown(), document.getElementById("step-shown").textContent);
            found.push([...new Set(all("#matrices-table tbody tr").map((row) => row.cells[0].textContent))]);
            follow.checked = false;
            follow.dispatchEvent(new Event("change"));
            found.push(document.getElementById("count").textContent);
            return found;
        """
        seen = visit(page, tmp_path, script)
        assert seen.wrong == [] and "CONSOLE" not in seen.log
        assert seen.found == [["step-40"], ["step-20"], "20", ["20"], "18 of 18"]


def test_of_a_single_step_the_control_and_the_bands_are_seen():
    frame = pd.DataFrame({"layer": [0, 1], "alpha": [1.001, 1.003], "alpha_null": [1.0, 1.0], "alpha_null_std": 1e-4})
    frame = frame.assign(step=5, role="q", expert=None, status="ok", control_reach=0.1)
    axis = plot_over_steps(frame, "alpha", "alpha").axes[0]
    control, median = axis.lines
    assert np.ptp(control.get_xdata()) == 1 and set(control.get_ydata()) == {1.0}
    assert list(median.get_xdata()) == [5] and median.get_ydata() == pytest.approx([1.002])
    for band in axis.collections:
        assert np.all(np.ptp(band.get_paths()[0].vertices, axis=0) > 0)
