"""A made-up metric, registered by one record and one function, is measured, judged and shown everywhere."""

import csv
import dataclasses
import math
import re

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

import polarax
from polarax.cli import main
from polarax.metrics import GROUPS, Control, Effect, Group, Kind, Metric, Shown, register
from polarax.report.history_page import render_history_report
from polarax.report.plots.gallery import draw_history_plots, draw_plots, draw_posts_plots
from polarax.report.posts_page import render_posts_report
from polarax.report.run_page import render_report

ROWS, COLS, LAYERS = 24, 16, 3

# Along the base's polar factor: tr(E) / (||D|| sqrt(r)); of a random change 0, with standard deviation 1 / sqrt(m n).
ALONG = Metric(
    "along",
    "share of the change along the base's polar factor",
    Control(std="standard deviation of along under the control", z="along / its standard deviation"),
    Shown.HEADLINE,
    format="{:+.2f}",
    title="along: the way the base points",
    effect=Effect(
        threshold="along",
        size=0.5,
        words="along 0.5",
        numbers="along",
        format="{:+.2f}",
        above=Kind("forward", "went the way the base points"),
        below=Kind("backward", "went against the way the base points"),
    ),
)


def read_along(pair):
    m, n = pair.shape
    trace = jnp.trace(pair.vectors.change, axis1=-2, axis2=-1)
    along = trace / (pair.spectra.change_norm * math.sqrt(min(m, n)))
    std = jnp.full_like(along, 1 / math.sqrt(m * n))
    return {"along": along, "along_null_std": std, "along_z": along / std}


@pytest.fixture
def registered():
    register(Group("direction", "Direction of the change"), [ALONG], read_along)
    yield
    del GROUPS["direction"]


def weights(seed=0):
    rng = np.random.default_rng(seed)
    names = [f"model.layers.{layer}.self_attn.{role}_proj.weight" for layer in range(LAYERS) for role in "qo"]
    return {name: rng.normal(size=(ROWS, COLS)) for name in names}


def moved(base, by):
    """Random changes everywhere; of layer 1's o, a change along its polar factor."""
    post = {name: w + by * noise for (name, w), noise in zip(base.items(), weights(1).values(), strict=True)}
    name = "model.layers.1.self_attn.o_proj.weight"
    u, _, vt = np.linalg.svd(base[name], full_matrices=False)
    return post | {name: base[name] + by * u @ vt}


@pytest.fixture
def checkpoints(registered, tmp_path):
    base = weights()
    trees = {"base": base, "step-1": moved(base, 1e-3), "step-2": moved(base, 2e-3)}
    for name, tree in trees.items():
        (tmp_path / name).mkdir()
        save_file(tree, tmp_path / name / "model.safetensors")
    return tmp_path


def along_of(base, post):
    """From the formula."""
    change = post - base
    u, _, vt = np.linalg.svd(base, full_matrices=False)
    return np.trace(u.T @ change @ vt.T) / (np.linalg.norm(change) * math.sqrt(min(base.shape)))


GROUPS_ASKED = "--metrics=change,direction"  # the others would only take time to compile
SENTENCE = "Layer 1's o: went the way the base points (along +1.00, by chance 0 ± 0.051)."


def test_of_one_post(checkpoints, capsys):
    command = [
        "compare",
        f"--base={checkpoints}/base",
        f"--post={checkpoints}/step-1",
        f"--out={checkpoints}/run",
        GROUPS_ASKED,
    ]
    assert main([*command, "--noplots", "--compilation_cache="]) == 0
    printed = capsys.readouterr().out
    heading, _, *rows = printed[printed.index("role ") :].splitlines()[:4]
    assert "along  " in heading and "0 ± 0.05" in rows[0]  # the terminal table, with its control
    assert SENTENCE in printed and "along 0.5" in printed  # the reading, and its threshold
    run = polarax.Run.open(checkpoints / "run")
    with open(run.path / "matrices.csv", newline="") as file:
        header = next(csv.reader(file))
    assert [column for column in header if column.startswith("along")] == ["along", "along_null_std", "along_z"]
    base, post = weights(), moved(weights(), 1e-3)
    frame = run.frame().set_index("name")
    for name in base:
        assert frame.loc[name, "along"] == pytest.approx(along_of(base[name], post[name]), abs=1e-9)
    summary = run.summary()
    assert summary["effects"]["forward"] == {"o": 1} and summary["thresholds"]["along"] == 0.5
    assert summary["roles"]["o"]["along"]["count"] == summary["layers"]["1"]["along"]["count"] + 1 == LAYERS
    assert "along" in draw_plots(run)
    page = render_report(run)
    assert '<figure id="along">' in page and "Direction of the change" in page and '"key":"along"' in page
    assert "<th>along</th>" in run._repr_html_()


def test_of_several_posts(checkpoints):
    posts = [checkpoints / "step-1", checkpoints / "step-2"]
    runs = polarax.compare(checkpoints / "base", posts, metrics="change,direction", progress=False)
    assert f"step-2: {SENTENCE}" in runs.summary()["reading"]
    assert "posts_along" in draw_posts_plots(runs)
    assert '<figure id="posts_along">' in render_posts_report(runs)


def test_of_a_history(checkpoints, capsys):
    command = ["history", f"--checkpoints={checkpoints}/step-*", f"--base={checkpoints}/base", GROUPS_ASKED]
    assert main([*command, f"--out={checkpoints}/runs", "--noplots", "--compilation_cache="]) == 0
    printed = capsys.readouterr().out
    assert "along" in next(line for line in printed.splitlines() if line.lstrip().startswith(("role", "step")))
    assert "o: went the way the base points from step 1 on, in 1 of 3 matrices at the end." in printed
    history = polarax.Runs.open(checkpoints / "runs")
    assert {"history_along", "history_along_layers"} <= set(draw_history_plots(history.frame()))
    assert '<figure id="history_along">' in render_history_report(history)


def test_a_group_of_it_can_be_asked_for(checkpoints):
    run = polarax.compare(checkpoints / "base", checkpoints / "step-1", metrics="direction", progress=False)
    assert "along" in run.frame() and "nf" not in run.frame()


def test_a_name_is_taken_once(registered):
    with pytest.raises(ValueError, match=r"Column 'along' of metric 'along' is there already\."):
        register(GROUPS["change"], [ALONG])
    with pytest.raises(ValueError, match=r"There is another group 'change'\."):
        register(Group("change", "Another"), [Metric("x", "x")])


@pytest.mark.parametrize(
    ("effect", "message"),
    [
        (
            Effect("x", 1.0, "x 1", "x", "{}", above=Kind("low rank", "x")),
            "There is another kind of effect 'low rank'.",
        ),
        (Effect("alpha", 0.25, "x 0.25", "x", "{}"), "Threshold 'alpha' is 0.005. Got 0.25."),
    ],
)
def test_an_effect_stands_for_one_thing(effect, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        register(GROUPS["change"], [Metric("x", "x", effect=effect)])


def test_registered_in_a_group_after_a_comparison(tmp_path):
    """A program that was compiled before does not know the metric, and is not taken."""
    weight = {"w": np.random.default_rng(0).normal(size=(6, 4))}
    post = {"w": 1.5 * weight["w"]}
    assert "twice" not in polarax.compare(weight, post, metrics="change", progress=False).frame()
    group = GROUPS["change"]
    metrics, readers = list(group.metrics), list(group.readers)
    register(group, [Metric("twice", "twice the drift")], lambda pair: {"twice": 2 * pair.spectra.change_norm})
    try:
        frame = polarax.compare(weight, post, metrics="change", progress=False).frame()
    finally:
        group.metrics[:], group.readers[:] = metrics, readers
    assert frame["twice"][0] == pytest.approx(np.linalg.norm(weight["w"]))


def test_one_that_can_be_sampled_has_no_closed_form_for_the_spectrum_of_the_change():
    assert ALONG.control is not None
    sampled = dataclasses.replace(ALONG, control=dataclasses.replace(ALONG.control, sampled=True))
    register(Group("direction", "Direction of the change"), [sampled], read_along)
    try:
        base = weights()
        frame = polarax.compare(base, moved(base, 0.01), metrics="direction,rotation,shape", progress=False).frame()
    finally:
        del GROUPS["direction"]
    assert frame["along"].notna().all() and frame["nf_spectrum"].notna().all()
    assert "along_spectrum" not in frame
