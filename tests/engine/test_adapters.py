"""Comparisons of a model with its adapters: the same numbers as of the weights that NumPy makes of both."""

import json

import numpy as np
import pandas as pd
import pytest

import polarax
from tests.engine.command import assert_one_line

SIZE, RANK, ALPHA = 32, 4, 8
CONFIG = {"peft_type": "LORA", "r": RANK, "lora_alpha": ALPHA, "use_rslora": True}
ADAPTED = ("q_proj", "v_proj")
METRICS = "change,scaling"


def tensors():
    rng = np.random.default_rng(0)
    names = [f"model.layers.{layer}.self_attn.{role}_proj.weight" for layer in range(2) for role in "qkvo"]
    return {name: (rng.normal(size=(SIZE, SIZE)) / 6).astype(np.float32) for name in names}


def factors(step):
    rng = np.random.default_rng(step)
    draw = lambda *shape: rng.normal(size=shape).astype(np.float32) / 20  # noqa: E731
    return {name: (draw(RANK, SIZE), draw(SIZE, RANK)) for name in tensors() if name.split(".")[-2] in ADAPTED}


def merged(step):
    scale = ALPHA / np.sqrt(RANK)
    made = {name: (scale * b.astype(np.float64) @ a.astype(np.float64)) for name, (a, b) in factors(step).items()}
    return {name: (weight + made.get(name, 0)).astype(np.float32) for name, weight in tensors().items()}


def drift(step):
    """Of every adapted matrix, in float64."""
    base, post = tensors(), merged(step)
    norm = lambda matrix: np.linalg.norm(matrix.astype(np.float64))  # noqa: E731
    return {name: norm(post[name].astype(np.float64) - base[name]) / norm(base[name]) for name in factors(step)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory, write):
    place = tmp_path_factory.mktemp("adapters")
    write(place / "base" / "model.safetensors", tensors())
    for step in (1, 2):
        alone, beside = {}, {}
        for name, weight in tensors().items():
            stem = f"base_model.model.{name.removesuffix('.weight')}"
            if name not in factors(step):
                beside[name] = weight
                continue
            a, b = factors(step)[name]
            alone |= {f"{stem}.lora_A.weight": a, f"{stem}.lora_B.weight": b}
            stem = name.removesuffix(".weight")
            beside |= {f"{stem}.lora_A.weight": a, f"{stem}.lora_B.weight": b, f"{stem}.weight": weight}
        write(place / "run" / f"checkpoint-{step}" / "adapter_model.safetensors", alone)
        write(place / f"unmerged-{step}" / "model.safetensors", beside)
        write(place / f"merged-{step}" / "model.safetensors", merged(step))
        for of in (place / "run" / f"checkpoint-{step}", place / f"unmerged-{step}"):
            (of / "adapter_config.json").write_text(json.dumps(CONFIG))
    return place


def assert_drift(table, step):
    expected = drift(step)
    found = table.set_index("name").drift
    np.testing.assert_allclose(found[list(expected)], list(expected.values()), rtol=1e-5)


def test_an_adapter_alone_is_compared_as_what_it_makes_of_the_base(folder, cli, tmp_path):
    flags = [f"--base={folder}/base", f"--post={folder}/run/checkpoint-1", f"--metrics={METRICS}", "--noplots"]
    done = cli("compare", *flags, f"--out={tmp_path}/run")
    assert done.code == 0, done.err
    table = pd.read_csv(tmp_path / "run" / "matrices.csv")
    assert set(table.name) == set(factors(1))
    assert set(table.dtype_post) == {"float32 + LoRA"}
    assert_drift(table, 1)
    skipped = pd.read_csv(tmp_path / "run" / "skipped.csv").set_index("name").reason
    assert skipped["model.layers.0.self_attn.k_proj.weight"] == "not adapted: the base's own weights"
    assert json.loads((tmp_path / "run" / "run.json").read_text())["post"]["location"].endswith("checkpoint-1")


def test_adapters_beside_their_weights_are_compared_as_their_sums(folder):
    run = polarax.compare(f"{folder}/base", f"{folder}/unmerged-1", metrics=METRICS, progress=False)
    assert len(run.frame()) == len(tensors())
    assert_drift(run.frame(), 1)
    merged = polarax.compare(f"{folder}/base", f"{folder}/merged-1", metrics=METRICS, progress=False).frame()
    for column in ("drift", "ratio_mean"):
        np.testing.assert_allclose(run.frame()[column], merged[column], rtol=1e-6, atol=1e-7)


def test_the_steps_of_a_run_that_saves_adapters(folder):
    frame = polarax.history(f"{folder}/run", f"{folder}/base", metrics=METRICS, progress=False).frame()
    for step in (1, 2):
        assert_drift(frame[frame.step == step], step)


def test_several_adapters_of_one_base(folder):
    posts = {step: f"{folder}/run/checkpoint-{step}" for step in ("1", "2")}
    runs = polarax.compare(f"{folder}/base", posts, metrics=METRICS, between=True, progress=False)
    for label in posts:
        assert_drift(runs[label].frame(), int(label))


def test_bad_input_is_one_line(folder, cli, write, tmp_path):
    done = cli("plan", f"--base={folder}/run/checkpoint-1", f"--post={folder}/base")
    assert_one_line(done, "is an adapter alone", "give the model it was trained on as the base")
    write(
        tmp_path / "other" / "model.safetensors",
        {"model.layers.0.self_attn.q_proj.weight": np.ones((8, 8), np.float32)},
    )
    done = cli("plan", f"--base={tmp_path}/other", f"--post={folder}/run/checkpoint-1")
    assert_one_line(done, "another base", "(8, 8)", "(32, 32)")
