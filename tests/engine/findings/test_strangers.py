"""Posts that are not the base, trained: each is called what was planted, end to end."""

import json

import ml_dtypes
import numpy as np
import pytest

import polarax
from polarax.findings.answers import details_of

NAME = "model.layers.{}.self_attn.q_proj.weight"
SHAPE = (48, 32)
ROLES = {"self_attn.q_proj": (32, 32), "mlp.up_proj": (48, 32), "mlp.down_proj": (32, 48)}


def weight(seed, shape=SHAPE):
    return (np.random.default_rng(seed).standard_normal(shape) / 6).astype(np.float32)


def orthogonal(rng, size):
    return np.linalg.qr(rng.standard_normal((size, size)))[0]


def turned(w, left, right):
    rng = np.random.default_rng(7)
    if left:
        w = orthogonal(rng, w.shape[0]) @ w
    return w @ orthogonal(rng, w.shape[1]) if right else w


def signs(count):
    return np.where(np.arange(count) % 3, 1, -1)


RNG = np.random.default_rng(3)
ROWS, COLUMNS = RNG.permutation(SHAPE[0]), RNG.permutation(SHAPE[1])
PLANTED = {
    "rows permuted": lambda w: w[ROWS],
    "columns permuted": lambda w: w[:, COLUMNS],
    "rows and columns permuted": lambda w: w[ROWS][:, COLUMNS],
    "signs of rows flipped": lambda w: w * signs(len(w))[:, None],
    "signs of columns flipped": lambda w: w * signs(w.shape[1]),
    "rows permuted and their signs flipped": lambda w: w[ROWS] * signs(len(w))[:, None],
    "columns permuted and their signs flipped": lambda w: w[:, COLUMNS] * signs(w.shape[1]),
    "same singular values, other vectors": lambda w: turned(w, left=True, right=True),
    "unrelated to the base": lambda w: weight(99),
}


def read(run):
    """The sentences that are neither answers, nor on thresholds, nor on what was not compared."""
    return [sentence for sentence in details_of(run.summary()) if "were not compared" not in sentence]


def compare(base, post, **options):
    return polarax.compare(base, post, progress=False, **options)


@pytest.fixture(scope="module")
def planted_run():
    base = {NAME.format(layer): weight(layer) for layer in range(len(PLANTED))}
    made = zip(base.items(), PLANTED.values(), strict=True)
    return compare(base, {name: plant(w).astype(np.float32) for (name, w), plant in made})


@pytest.mark.parametrize("relation", PLANTED)
def test_each_is_called_what_it_is(planted_run, relation):
    layer = list(PLANTED).index(relation)
    row = planted_run.frame().set_index("layer").loc[layer]
    assert row["relation"] == relation
    about = [sentence for sentence in read(planted_run) if sentence.startswith(f"Layer {layer}'s q: ")]
    assert about == [f"Layer {layer}'s q: {relation} (drift {row['drift']:.3g})."]


def test_and_nothing_else_is_said(planted_run):
    assert len(read(planted_run)) == len(PLANTED)
    summary = planted_run.summary()
    assert summary["effects"] == {} and summary["roles"]["q"]["named"] == len(PLANTED)
    assert summary["strangers"] == {
        "relations": {relation: {"q": 1} for relation in PLANTED}, "layers": [], "missing": []
    }  # fmt: skip


@pytest.mark.parametrize("left, right", [(True, False), (False, True)])
def test_one_side_turned(left, right):
    base = {NAME.format(0): weight(0)}
    run = compare(base, {NAME.format(0): turned(weight(0), left, right).astype(np.float32)})
    assert run.frame()["relation"].tolist() == ["same singular values, other vectors"]
    assert not any("singular values changed" in sentence for sentence in read(run))


def trained(size):
    noise = weight(50)
    return lambda w: w + size * np.linalg.norm(w) / np.linalg.norm(noise) * noise


@pytest.mark.parametrize(
    "change",
    [lambda w: 3 * w, lambda w: 0.1 * w, trained(0.01), trained(0.5), trained(1.0), lambda w: 1.3 * trained(0.3)(w)],
    ids=["scaled up", "scaled down", "trained", "trained by half", "by as much as itself", "scaled and trained"],
)
def test_what_was_trained_is_no_stranger(change):
    base = {NAME.format(layer): weight(layer) for layer in range(3)}
    run = compare(base, {name: change(w).astype(np.float32) for name, w in base.items()})
    assert run.frame()["relation"].tolist() == [""] * 3
    assert run.summary()["strangers"] == {"relations": {}, "layers": [], "missing": []}


def test_a_few_rows_exchanged_and_lines_that_are_equal():
    """Equal spectra give them away, though most of the base is there; zero rows tie."""
    w = weight(0)
    w[[3, 9, 20]] = 0
    order = np.arange(len(w))
    order[[1, 5, 9]] = [5, 9, 1]
    run = compare({NAME.format(0): w}, {NAME.format(0): w[order]}, dtype="float64")
    assert run.frame()["drift"][0] < 0.5
    assert run.frame()["relation"].tolist() == ["rows permuted"]


def test_a_permutation_that_was_saved_in_another_dtype():
    w = weight(0)
    run = compare({NAME.format(0): w}, {NAME.format(0): w[ROWS].astype(ml_dtypes.bfloat16)})
    assert run.frame()["relation"].tolist() == ["rows permuted"]
    run = compare({NAME.format(0): w.astype(ml_dtypes.bfloat16)}, {NAME.format(0): w[ROWS].astype(ml_dtypes.bfloat16)})
    assert run.frame()["relation"].tolist() == ["rows permuted"]


def test_turned_and_saved_in_another_dtype():
    w = weight(0)
    run = compare({NAME.format(0): w}, {NAME.format(0): turned(w, True, True).astype(ml_dtypes.bfloat16)})
    assert run.frame()["relation"].tolist() == ["same singular values, other vectors"]


def test_wide_matrices_are_named_as_they_are_stored():
    w = weight(0, (32, 48))
    run = compare({NAME.format(0): w}, {NAME.format(0): w[:, ROWS]})
    assert run.frame()["relation"].tolist() == ["columns permuted"]


def test_singular_values_that_changed_are_still_told():
    base, post = {}, {}
    for layer in range(3):
        u, s, vt = np.linalg.svd(weight(layer), full_matrices=False)
        base[NAME.format(layer)] = weight(layer)
        post[NAME.format(layer)] = ((u * s * np.linspace(0.7, 1.3, len(s))) @ vt).astype(np.float32)
    assert any("singular values changed" in sentence for sentence in read(compare(base, post)))


def test_vectors_that_turned_far_take_from_the_diagonal_and_change_no_value():
    """Some left vectors are others of the same space: the diagonal has a share, singular values have none."""
    rng = np.random.default_rng(5)
    base, post = {}, {}
    for layer in range(4):
        u, s, vt = np.linalg.svd(weight(layer, (64, 64)))
        new = u.copy()
        new[:, 40:] = u[:, 40:] @ orthogonal(rng, 24)
        base[NAME.format(layer)] = ((u * s) @ vt).astype(np.float32)
        post[NAME.format(layer)] = ((new * s) @ vt).astype(np.float32)
    run = compare(base, post)
    assert (run.frame()["budget_scaling"] > 0.4).all() and (run.frame()["nss"] < 1e-6).all()
    assert not any("singular values changed" in sentence for sentence in read(run))


# Layers as merges pass them through.


def layers_of(places, *, change=0.0, prefix="model.layers."):
    """A model whose layers are those of one base; with this much noise on each."""
    weights = {"model.embed_tokens.weight": weight(1000, (64, 32))}
    for post, base in enumerate(places):
        for number, (name, shape) in enumerate(ROLES.items()):
            w = weight(10 * base + number, shape)
            noise = np.random.default_rng([post, number]).standard_normal(shape)
            w = w + change * np.linalg.norm(w) / np.linalg.norm(noise) * noise
            weights[f"{prefix}{post}.{name}.weight"] = w.astype(np.float32)
    return weights


MERGED = {
    "repeated": (
        [0, 1, 2, 3, 4, 5, 2, 3, 4, 5, 6, 7],
        ["Layers 6 to 11 of the post are layers 2 to 7 of the base."],
    ),
    "inserted": (
        [0, 1, 2, 3, 0, 1, 4, 5, 6, 7],
        [
            "Layers 4 to 5 of the post are layers 0 to 1 of the base.",
            "Layers 6 to 9 of the post are layers 4 to 7 of the base.",
        ],
    ),
    "dropped": (
        [0, 1, 2, 5, 6, 7],
        [
            "Layers 3 to 5 of the post are layers 5 to 7 of the base.",
            "Layers 3 to 4 of the base are not in the post.",
        ],
    ),
    "one exchanged": ([0, 1, 2, 6, 4, 5, 6, 7], ["Layer 3 of the post is layer 6 of the base.",
                                                "Layer 3 of the base is not in the post."]),
}  # fmt: skip


@pytest.mark.parametrize("kind", MERGED)
def test_layers_of_a_merge(kind, tmp_path):
    places, sentences = MERGED[kind]
    run = compare(layers_of(range(8)), layers_of(places), out=tmp_path / "run")
    assert read(run)[: len(sentences)] == sentences
    assert not any("singular values changed" in sentence or "unrelated" in sentence for sentence in read(run))
    frame = run.frame().dropna(subset="layer")
    expected = ["" if places[i] == i else f"layer {places[i]} of the base" for i in frame["layer"]]
    assert frame["relation"].tolist() == expected
    strangers = json.loads((tmp_path / "run" / "summary.json").read_text())["strangers"]
    assert strangers["layers"] == [
        {"post": post, "base": base, "matrices": len(ROLES), "drift": 0.0}
        for post, base in enumerate(places)
        if post != base
    ]


def test_layers_that_were_trained_after_the_merge():
    run = compare(layers_of(range(6)), layers_of([0, 1, 0, 1, 2, 3, 4, 5], change=0.05))
    assert read(run)[0] == "Layers 2 to 7 of the post are layers 0 to 5 of the base, trained (drift up to 0.05)."


def test_layers_of_another_model_are_none_of_the_base():
    other = {name: weight(500 + i, w.shape) for i, (name, w) in enumerate(layers_of(range(6)).items())}
    run = compare(layers_of(range(4)), other)
    assert set(run.frame()["relation"]) == {"unrelated to the base"}
    assert run.summary()["strangers"]["layers"] == []


def test_a_single_matrix_of_another_layer():
    base = layers_of(range(4))
    post = base | {"model.layers.1.mlp.up_proj.weight": base["model.layers.3.mlp.up_proj.weight"]}
    run = compare(base, post)
    row = run.frame().set_index("name").loc["model.layers.1.mlp.up_proj.weight"]
    assert row["relation"] == "layer 3 of the base"
    assert read(run)[0] == f"Layer 1's up: layer 3 of the base (drift {row['drift']:.3g})."
    assert run.summary()["strangers"]["layers"] == []


def test_experts_that_changed_places():
    name = "model.layers.{}.mlp.experts.{}.down_proj.weight"
    base = {name.format(layer, e): weight(10 * layer + e, (32, 48)) for layer in range(2) for e in range(3)}
    post = base | {name.format(1, 0): base[name.format(1, 2)], name.format(1, 2): base[name.format(1, 0)]}
    frame = compare(base, post).frame().set_index("name")
    assert frame.loc[name.format(1, 0), "relation"] == "expert 2 of the base"
    assert frame.loc[name.format(1, 2), "relation"] == "expert 0 of the base"
    assert (frame["relation"] != "").sum() == 2


def test_several_posts_and_the_same_run_again(tmp_path):
    base = layers_of(range(4))
    posts = {"merged": layers_of([0, 1, 0, 1, 2, 3]), "tuned": layers_of(range(4), change=0.01)}
    posts = {label: polarax.open_checkpoint(post) for label, post in posts.items()}
    runs = compare(base, posts, out=tmp_path / "run")
    said = "Layers 2 to 5 of the post are layers 0 to 3 of the base."
    assert f"merged: {said}" in runs.summary()["reading"]
    assert runs["tuned"].summary()["strangers"] == {"relations": {}, "layers": [], "missing": []}
    table = (tmp_path / "run" / "matrices.csv").read_bytes()
    again = compare(base, posts, out=tmp_path / "run")
    assert (tmp_path / "run" / "matrices.csv").read_bytes() == table
    assert f"merged: {said}" in again.summary()["reading"]


def test_a_history():
    base = layers_of(range(4))
    steps = {0: base, 10: layers_of(range(4), change=0.01), 20: layers_of([0, 1, 0, 1])}
    history = polarax.history({k: polarax.open_checkpoint(v) for k, v in steps.items()}, progress=False)
    assert "Step 20: Layers 2 to 3 of the post are layers 0 to 1 of the base." in history.summary()["reading"]


@pytest.mark.parametrize("metrics", ["rotation", "budget", "change", "change,scaling", "budget,overlap"])
def test_with_some_of_the_metrics_nothing_false_is_said(metrics):
    base = {NAME.format(layer): weight(layer) for layer in range(4)}
    post = {name: turned(w, True, True).astype(np.float32) for name, w in base.items()}
    run = compare(base, post, metrics=metrics)
    assert not any("singular values changed" in sentence for sentence in read(run))
    known = metrics == "change,scaling"
    assert set(run.frame()["relation"]) == {"same singular values, other vectors" if known else ""}
