"""Edits of checkpoints as a user makes them, judged by float64 NumPy and by bytes."""

import json
import os
import pathlib
import shutil

import ml_dtypes
import numpy as np
import pytest
import safetensors

import polarax
from polarax.editing import execution
from polarax.loaders import open_checkpoint
from polarax.planning import stacks
from tests.engine.command import NO_CACHE
from tests.engine.conftest import write_checkpoint
from tests.kernels.matrices import drifted, matrix

LAYERS = 2
FUSED = "transformer.h.{}.attn.c_attn.weight"  # GPT-2: (in, 3 out)
SQUARE = "transformer.h.{}.attn.c_proj.weight"
EMBEDDING = "transformer.wte.weight"
CONFIG = {"model_type": "gpt2", "n_embd": 16, "n_head": 4, "n_layer": LAYERS, "tie_word_embeddings": True}


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """GPT-2 as it is saved with its tied head stored too: fused, (in, out), in shards, in bfloat16."""
    folder = tmp_path_factory.mktemp("gpt2")
    sides = {"base": {}, "post": {}}
    shapes = {EMBEDDING: (24, 16)}
    for layer in range(LAYERS):
        shapes |= {FUSED.format(layer): (16, 48), SQUARE.format(layer): (16, 16)}
    for name, shape in shapes.items():
        sides["base"][name] = matrix("separated", shape, "bfloat16", seed=len(name))
        sides["post"][name] = drifted(sides["base"][name], 0.1)
    for side, arrays in sides.items():
        arrays["lm_head.weight"] = arrays[EMBEDDING]
        arrays["transformer.ln_f.weight"] = np.arange(16).astype(ml_dtypes.bfloat16) + (side == "post")
        write_checkpoint(folder / side, arrays, shards=2)
        (folder / side / "config.json").write_text(json.dumps(CONFIG))
        (folder / side / "tokenizer.json").write_bytes(b'{"a":  1}')
    return folder, sides["base"], sides["post"]


def read(folder):
    checkpoint = open_checkpoint(folder)
    return {name: np.asarray(checkpoint.read(name).result()) for name in checkpoint.names()}


def edit(pair, kind, out, **options):
    folder = pair[0]
    return polarax.edit(folder / "base", folder / "post", kind, out, progress=False, memory_gib=1, **options)


def broken_left(base, post):
    """Of a matrix (out, in), in float64."""
    base, post = base.astype(np.float64), post.astype(np.float64)
    (ub, _, vbt), (up, sp, vpt) = (np.linalg.svd(x, full_matrices=False) for x in (base, post))
    signs = np.where(np.sum(ub * up, 0) + np.sum(vbt * vpt, 1) < 0, -1.0, 1.0)
    return (ub * signs * sp) @ vpt


def rounded_once(numbers):
    """The bfloat16 nearest to each float64: of the two around it, found by their bits."""
    bits = numbers.astype(np.float32).view(np.uint32) & np.uint32(0xFFFF0000)
    below = bits.view(np.float32)
    with np.errstate(invalid="ignore"):
        below = np.where(np.abs(below) > np.abs(numbers), (bits - (1 << 16)).astype(np.uint32).view(np.float32), below)
    low = below.view(np.uint32)
    above = (low + np.uint32(1 << 16)).view(np.float32)
    return np.where(np.abs(numbers - below) <= np.abs(above - numbers.astype(np.float64)), below, above)


def test_parts_of_fused_tensors_are_put_back_and_all_else_keeps_its_bytes(pair, tmp_path):
    folder, base, post = pair
    edited = edit(pair, "break-left", tmp_path / "out", roles="q,o")
    found = read(edited.path)
    for layer in range(LAYERS):
        fused, square = FUSED.format(layer), SQUARE.format(layer)
        expected = rounded_once(broken_left(base[fused][:, :16].T, post[fused][:, :16].T)).T
        np.testing.assert_array_equal(found[fused][:, :16].astype(np.float32), expected)
        np.testing.assert_array_equal(found[fused][:, 16:], post[fused][:, 16:])
        expected = rounded_once(broken_left(base[square].T, post[square].T)).T
        np.testing.assert_array_equal(found[square].astype(np.float32), expected)
    for name in (EMBEDDING, "lm_head.weight", "transformer.ln_f.weight"):
        np.testing.assert_array_equal(found[name], post[name])
    assert sorted(os.listdir(edited.path)) == sorted([*os.listdir(folder / "post"), "polarax_edit.json"])
    for name in ("config.json", "tokenizer.json", "model.safetensors.index.json"):
        assert (edited.path / name).read_bytes() == (folder / "post" / name).read_bytes()
    for file in edited.path.glob("*.safetensors"):
        with (
            safetensors.safe_open(file, "np") as opened,
            safetensors.safe_open(folder / "post" / file.name, "np") as old,
        ):
            assert list(opened.keys()) == list(old.keys())
            assert opened.metadata()["format"] == "pt"
            assert json.loads(opened.metadata()["polarax_edit"])["kind"] == "break-left"
    provenance = json.loads((edited.path / "polarax_edit.json").read_text())
    assert provenance["kind"] == "break-left" and len(provenance["edited"]) == 2 * LAYERS
    assert os.listdir(tmp_path) == ["out"]


def test_what_is_measured_is_what_a_comparison_of_the_output_says(pair, tmp_path):
    """But for the rounding of what was written, which float32 makes small."""
    for kind in ("break-left", "break-right", "replace-values", "keep-coordinated", "random-control", "restore-right"):
        edited = edit(pair, kind, tmp_path / kind, layers="0", store_dtype="float32", roles="q,k,v,o")
        frame = edited.frame().set_index("name")
        for side in ("base", "post"):
            run = polarax.compare(
                pair[0] / side, edited.path, metrics="change,scaling,rotation", progress=False, layers="0"
            )
            expected = run.frame().set_index("name").loc[frame.index]
            np.testing.assert_allclose(frame[f"drift_{side}"], expected["drift"], rtol=1e-5)
            np.testing.assert_allclose(frame[f"alpha_{side}"], expected["alpha"], rtol=1e-5)
            np.testing.assert_allclose(frame[f"nf_{side}"], expected["nf"], rtol=1e-3, atol=1e-5)


def test_strengths_run_from_where_the_edit_begins(pair, tmp_path):
    _, base, post = pair
    edited = edit(pair, "keep-discordant", tmp_path / "out", strength="0,0.5,1", store_dtype="float64", roles="o")
    assert sorted(os.listdir(edited.path)) == ["strength-0", "strength-0.5", "strength-1"]
    at = {strength: read(folder) for strength, folder in edited.strengths.items()}
    for layer in range(LAYERS):
        name = SQUARE.format(layer)
        np.testing.assert_array_equal(at[0.0][name], base[name].astype(np.float64))
        np.testing.assert_allclose(at[0.5][name], (at[0.0][name] + at[1.0][name]) / 2, atol=1e-15)
        left, _, right = np.linalg.svd(base[name].T.astype(np.float64))
        change = left.T @ (post[name].astype(np.float64) - base[name]).T @ right.T
        expected = base[name].T + left @ ((change - change.T) / 2) @ right
        np.testing.assert_allclose(at[1.0][name], expected.T, atol=1e-9)
    table = edited.table()
    assert "role" in table and " 0.5 " in table and "asked" in table


def test_a_tied_head_is_written_with_its_embedding(pair, tmp_path):
    edited = edit(pair, "keep-outside", tmp_path / "out", roles="embed")
    found = read(edited.path)
    np.testing.assert_array_equal(found["lm_head.weight"], found[EMBEDDING])
    assert np.any(found[EMBEDDING] != pair[2][EMBEDDING])
    assert edited.notes == (f"lm_head.weight: tied to {EMBEDDING}, written with it",)
    with pytest.raises(
        polarax.UsageError, match="No matrix to edit has the role head.*edited with it|leaves no matrix"
    ):
        edit(pair, "keep-outside", tmp_path / "head", roles="head")


def test_one_model_is_scaled_without_a_base(pair, cli, tmp_path):
    folder, _, post = pair
    done = cli(
        "edit",
        f"--model={folder / 'post'}",
        "--kind=scale-values",
        "--factor=q=2,o=0.5",
        f"--out={tmp_path / 'out'}",
        NO_CACHE,
    )
    assert done.code == 0, done.err
    assert "Checkpoint:" in done.out
    found = read(tmp_path / "out")
    for layer in range(LAYERS):
        fused, square = FUSED.format(layer), SQUARE.format(layer)
        np.testing.assert_array_equal(found[fused][:, :16], 2 * post[fused][:, :16])
        np.testing.assert_array_equal(found[fused][:, 16:], post[fused][:, 16:])
        np.testing.assert_array_equal(found[square], post[square] / 2)


def test_random_changes_have_the_size_asked_for(pair, tmp_path):
    first = edit(pair, "random-control", tmp_path / "a", roles="o", sd=0.25, store_dtype="float64")
    other = edit(pair, "random-control", tmp_path / "b", roles="o", sd=0.25, store_dtype="float64")
    seeded = edit(pair, "random-control", tmp_path / "c", roles="o", sd=0.25, store_dtype="float64", seed=1)
    changes = [
        read(x.path)[SQUARE.format(0)] - pair[1][SQUARE.format(0)].astype(np.float64) for x in (first, other, seeded)
    ]
    np.testing.assert_array_equal(changes[0], changes[1])
    assert np.all(changes[0] != changes[2])
    assert abs(changes[0].std() - 0.25) < 5 * 0.25 / np.sqrt(2 * 256)


def test_nan_is_left_as_it_is_and_said(tmp_path):
    name = "model.layers.0.self_attn.{}_proj.weight"
    base = {name.format(role): matrix("mild", (8, 8), "float32", seed=ord(role)) for role in "qk"}
    post = {key: drifted(array, 0.1) for key, array in base.items()}
    post[name.format("q")][2, 2] = np.nan
    paths = [write_checkpoint(tmp_path / f"{side}.safetensors", x) for side, x in (("base", base), ("post", post))]
    edited = polarax.edit(*paths, "restore-left", tmp_path / "out", progress=False)
    np.testing.assert_array_equal(read(edited.path)[name.format("q")], post[name.format("q")])
    assert "NaN or Inf: left as it is" in edited.table()
    assert np.any(read(edited.path)[name.format("k")] != post[name.format("k")])


@pytest.mark.parametrize("kind", ["replace-values", "break-left", "restore-right", "reparameterise"])
def test_a_base_of_zeros_has_no_vectors_and_that_is_said(tmp_path, kind):
    name = "model.layers.0.self_attn.q_proj.weight"
    post = {name: matrix("mild", (8, 8), "float32")}
    paths = [
        write_checkpoint(tmp_path / f"{side}.safetensors", {name: array})
        for side, array in (("base", np.zeros_like(post[name])), ("post", post[name]))
    ]
    edited = polarax.edit(*paths, kind, tmp_path / "out", progress=False)
    np.testing.assert_array_equal(read(edited.path)[name], post[name])
    assert edited.rows[0]["status"] == "the base is zero: left as it is"


def test_an_embedding_that_is_the_head_as_well_is_edited_as_embedding(tmp_path):
    """Tied, and stored once: the configuration goes on to say so."""
    embedding, config = "model.embed_tokens.weight", {"model_type": "llama", "tie_word_embeddings": True}
    before = {embedding: matrix("separated", (24, 16), "float32")}
    post = {embedding: drifted(before[embedding], 0.1)}
    for side, arrays in (("base", before), ("post", post)):
        (tmp_path / side).mkdir()
        write_checkpoint(tmp_path / side / "model.safetensors", arrays)
        (tmp_path / side / "config.json").write_text(json.dumps(config))
    sides = tmp_path / "base", tmp_path / "post"
    edited = polarax.edit(*sides, "keep-scaling", tmp_path / "out", roles="embed", progress=False)
    found = read(edited.path)
    assert set(found) == {embedding} and np.any(found[embedding] != post[embedding])
    assert (edited.path / "config.json").read_bytes() == (tmp_path / "post" / "config.json").read_bytes()
    with pytest.raises(polarax.UsageError, match=r"^The post's head is \S*embed_tokens.*choose --roles=embed"):
        polarax.edit(*sides, "keep-scaling", tmp_path / "head", roles="head", progress=False)


def test_what_needs_more_memory_is_said_beforehand(pair, cli, tmp_path):
    folder, out = pair[0], tmp_path / "out"
    both = [f"--base={folder / 'base'}", f"--post={folder / 'post'}", f"--out={out}", "--roles=o"]
    done = cli("edit", *both, "--kind=break-left", "--memory_gib=1e-9", NO_CACHE)
    assert done.code == 0 and "2 of 2 matrices need more than the" in done.err, done


def test_an_interrupted_edit_is_resumed(pair, tmp_path, monkeypatch):
    whole = edit(pair, "break-right", tmp_path / "whole")
    stop, edit_one = [3], execution._Editor.__call__

    def fails(self, *arguments):
        stop[0] -= 1
        if stop[0] < 0:
            raise KeyboardInterrupt
        return edit_one(self, *arguments)

    monkeypatch.setattr(stacks, "_LARGEST_STACK", 1)
    monkeypatch.setattr(execution._Editor, "__call__", fails)
    with pytest.raises(KeyboardInterrupt):
        edit(pair, "break-right", tmp_path / "out")
    assert not (tmp_path / "out").exists() and (tmp_path / ".out.partial").is_dir()
    calls = 0

    def counts(self, *arguments):
        nonlocal calls
        calls += 1
        return edit_one(self, *arguments)

    monkeypatch.setattr(execution._Editor, "__call__", counts)
    with pytest.raises(
        polarax.UsageError, match="unfinished edit of something else: kind was break-right, is break-left"
    ):
        edit(pair, "break-left", tmp_path / "out")
    resumed = edit(pair, "break-right", tmp_path / "out")
    for file in sorted(whole.path.glob("*.safetensors")):
        assert file.read_bytes() == (resumed.path / file.name).read_bytes()
    assert calls < len(whole.rows) and resumed.rows == whole.rows
    assert not (tmp_path / ".out.partial").exists()
    # A finished one is left as it is.
    before = (resumed.path / "polarax_edit.json").stat().st_mtime_ns
    assert len(edit(pair, "break-right", tmp_path / "out").rows) == len(whole.rows)
    assert (resumed.path / "polarax_edit.json").stat().st_mtime_ns == before


def test_bad_input_is_one_line(pair, cli, tmp_path):
    folder = pair[0]
    small = tmp_path / "small.safetensors"
    write_checkpoint(small, {SQUARE.format(0): np.eye(8, dtype=np.float32), EMBEDDING: pair[1][EMBEDDING]})
    both = [f"--base={folder / 'base'}", f"--post={folder / 'post'}"]
    out = f"--out={tmp_path / 'out'}"
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "file").write_text("mine")
    for arguments, words in (
        ([*both, out, "--kind=bend"], "Unknown kind 'bend'"),
        ([*both, out, "--kind=restore"], "needs --side=left or --side=right"),
        ([*both, out], "--kind is missing"),
        ([*both, "--kind=break-left"], "--out is missing"),
        ([both[1], out, "--kind=break-left"], "--base is missing"),
        ([*both, out, "--kind=break-left", "--roles=q,router"], "has the role router"),
        ([*both, out, "--kind=break-left", "--layers=0,7"], "layers 7-7"),
        ([*both, out, "--kind=break-left", "--factor=2"], "takes no --factor"),
        ([*both, out, "--kind=scale-values"], "needs --factor"),
        ([*both, out, "--kind=break-left", "--strength=0,x"], "cannot be read"),
        ([*both, f"--out={taken}", "--kind=break-left"], "is not empty"),
        ([*both, f"--out={folder / 'post'}", "--kind=break-left"], "is where the checkpoint is read from"),
        ([*both, f"--out={folder / 'base'}", "--kind=break-left"], "is where the checkpoint is read from"),
        ([*both, f"--out={folder / 'post' / 'new'}", "--kind=break-left"], "which is read"),
        ([*both, f"--out={folder / 'base' / 'a' / 'new'}", "--kind=break-left"], "which is read"),
        ([*both, f"--out={folder}", "--kind=break-left"], "is not empty"),
        ([f"--base={small}", both[1], out, "--kind=break-left"], "shapes differ"),
        ([*both, out, "--kind=break-left", "--store_dtype=int8"], "Unknown store_dtype 'int8'"),
    ):
        done = cli("edit", *arguments, NO_CACHE)
        assert done.code == 2 and words in done.err, (arguments, done)
        assert len(done.err.splitlines()) == 1, done.err
    assert sorted(os.listdir(tmp_path)) == ["small.safetensors", "taken"]


def test_memory_for_many_strengths_is_bounded(pair, tmp_path, monkeypatch):
    """Strengths that do not fit together are written in turns, with the same bytes."""
    strengths = (0.25, 0.5, 1.0)
    for kind in ("break-left", "random-control"):
        together = edit(pair, kind, tmp_path / f"{kind}-together", strength=strengths, roles="o")
        monkeypatch.setattr(execution, "_HELD_BYTES", 1)
        monkeypatch.setattr(execution, "_BLOCK_NUMBERS", 80)  # five rows at a time
        apart = edit(pair, kind, tmp_path / f"{kind}-apart", strength=strengths, roles="o")
        if kind == "break-left":
            for strength in strengths:
                first, second = (read(x.strengths[strength])[SQUARE.format(0)] for x in (together, apart))
                np.testing.assert_array_equal(first, second)
        measured = apart.frame()
        assert measured["nf_base"].notna().all() and measured["drift_base"].notna().all()
        monkeypatch.undo()


def test_the_source_is_never_changed(pair, tmp_path):
    copy = tmp_path / "post"
    shutil.copytree(pair[0] / "post", copy)
    polarax.edit(pair[0] / "base", copy, "replace-values", tmp_path / "out", progress=False, roles="o")
    for path in pathlib.Path(copy).iterdir():
        assert path.read_bytes() == (pair[0] / "post" / path.name).read_bytes()
