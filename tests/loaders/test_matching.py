"""Checkpoints of one model in different spellings, formats and layouts: what belongs together is compared."""

import json

import numpy as np
import pytest

from polarax.loaders import CheckpointError, Pairing, Skipped, open_checkpoint, pair_checkpoints

rng = np.random.default_rng(0)


def random(*shape):
    return rng.normal(size=shape).astype(np.float32)


def phi3(layers=2, hidden=8, keys=4, units=6, vocabulary=10):
    """Queries, keys and the rest of a small model, each as (out, in)."""
    one = {"q": (hidden, hidden), "k": (keys, hidden), "v": (keys, hidden), "o": (hidden, hidden)}
    one |= {"gate": (units, hidden), "up": (units, hidden), "down": (hidden, units)}
    model = {(layer, role): random(*shape) for layer in range(layers) for role, shape in one.items()}
    return model | {(None, "embed"): random(vocabulary, hidden), (None, "head"): random(vocabulary, hidden)}


def as_phi3(model):
    """Fused, as Hugging Face stores Phi-3."""
    tensors = {"model.embed_tokens.weight": model[None, "embed"], "lm_head.weight": model[None, "head"]}
    for layer in range(2):
        prefix = f"model.layers.{layer}."
        tensors |= {
            f"{prefix}self_attn.qkv_proj.weight": np.concatenate([model[layer, role] for role in "qkv"]),
            f"{prefix}self_attn.o_proj.weight": model[layer, "o"],
            f"{prefix}mlp.gate_up_proj.weight": np.concatenate([model[layer, role] for role in ("gate", "up")]),
            f"{prefix}mlp.down_proj.weight": model[layer, "down"],
        }
    return tensors


def as_maxtext(model, heads=2):
    """Scanned, as MaxText stores it: the layers' axis comes second, kernels are (in, out), heads have their axis."""

    def stacked(role, *shape):
        return np.stack([model[layer, role].T.reshape(shape) for layer in range(2)], axis=1)

    layers = {
        "self_attention": {
            "query": {"kernel": stacked("q", 8, heads, 4)},
            "key": {"kernel": stacked("k", 8, 1, 4)},
            "value": {"kernel": stacked("v", 8, 1, 4)},
            "out": {"kernel": stacked("o", heads, 4, 8)},
        },
        "mlp": {
            "wi_0": {"kernel": stacked("gate", 8, 6)},
            "wi_1": {"kernel": stacked("up", 8, 6)},
            "wo": {"kernel": stacked("down", 6, 8)},
        },
        "pre_self_attention_layer_norm": {"scale": np.ones((8, 2), np.float32)},
    }
    head = {"kernel": model[None, "head"].T}
    return {"token_embedder": {"embedding": model[None, "embed"]}, "decoder": {"layers": layers, "logits_dense": head}}


@pytest.mark.parametrize("turned", [False, True])
def test_fused_safetensors_against_a_scanned_tree(save, tmp_path, turned):
    model = phi3()
    sides = [open_checkpoint(save(tmp_path / "m.safetensors", as_phi3(model))), open_checkpoint(as_maxtext(model))]
    sides = sides[::-1] if turned else sides
    pairs, skipped = pair_checkpoints(*sides)
    assert {(pair.layer, pair.role) for pair in pairs} == set(model)
    assert len(pairs) == len(model)
    for pair in pairs:
        for view, side in zip((pair.base, pair.post), sides, strict=True):
            np.testing.assert_array_equal(view.read(side).result(), model[pair.layer, pair.role])
    assert skipped == [Skipped("decoder.layers.pre_self_attention_layer_norm.scale", "2-D scale: not a matrix")]


def test_names_of_flax_and_pytorch_of_one_model():
    torch = {f"encoder.layer.{n}.attention.self.query.weight": random(3, 4) for n in range(2)}
    torch |= {"pooler.dense.weight": random(5, 4), "pooler.dense.bias": random(5)}
    flax = {
        f"bert.encoder.layer_{n}.attention.self.query.kernel": torch[name].T for n, name in enumerate(list(torch)[:2])
    }
    flax |= {
        "bert.pooler.dense.kernel": torch["pooler.dense.weight"].T,
        "bert.pooler.dense.bias": torch["pooler.dense.bias"],
    }
    base, post = open_checkpoint(torch), open_checkpoint(flax)
    pairs, skipped = pair_checkpoints(base, post)
    assert len(pairs) == 3
    for pair in pairs:
        np.testing.assert_array_equal(pair.post.read(post).result(), torch[pair.name])
    assert skipped == [Skipped("pooler.dense.bias", "1-D: not a matrix")]


def test_what_identity_cannot_tell_is_skipped_with_the_reason():
    """T5 has an encoder and a decoder: a third-party tree with one of them may mean either."""
    model = phi3()
    tensors = as_phi3(model)
    maxtext = as_maxtext(model)
    maxtext["blk"] = {"1": {"attn_q": random(8, 8)}}  # a second matrix that is layer 1 q
    maxtext["decoder"]["position_embedder"] = {"embedding": random(5, 8)}
    pairs, skipped = pair_checkpoints(open_checkpoint(tensors), open_checkpoint(maxtext))
    assert len(pairs) == len(model) - 1
    reasons = dict(skipped)
    words = "ambiguous: several matrices are layer 1 q"
    assert reasons["model.layers.1.self_attn.qkv_proj.weight[q]"] == words
    assert reasons["blk.1.attn_q"] == reasons["decoder.layers.self_attention.query.kernel[layer=1]"] == words
    assert reasons["decoder.position_embedder.embedding"] == "only in post"


def test_two_models_of_other_sizes_are_not_matched_by_identity():
    with pytest.raises(CheckpointError, match="no tensor in common"):
        pair_checkpoints(open_checkpoint(as_phi3(phi3(hidden=16))), open_checkpoint(as_maxtext(phi3())))


def test_a_configuration_on_one_side_serves_both(tmp_path, save):
    name = "gpt_neox.layers.0.attention.query_key_value.weight"
    tensors = {name: random(24, 8)}
    for folder in ("with", "without"):
        (tmp_path / folder).mkdir()
        save(tmp_path / folder / "model.safetensors", tensors)
    (tmp_path / "with" / "config.json").write_text(json.dumps({"hidden_size": 8, "num_attention_heads": 2}))
    known, unknown = (open_checkpoint(tmp_path / folder) for folder in ("with", "without"))
    assert unknown.config is None
    assert known.config == {"hidden_size": 8, "num_attention_heads": 2}
    for sides in ((known, unknown), (unknown, known), (known, known)):
        assert [pair.name for pair in pair_checkpoints(*sides)[0]] == [f"{name}[{role}]" for role in "qkv"]
    assert [pair.role for pair in pair_checkpoints(unknown, unknown)[0]] == ["qkv"]


@pytest.mark.parametrize("text", ["", "[1]", "{", '{"num_attention_heads": "two"}', "\x00"])
def test_a_configuration_that_says_nothing(tmp_path, save, text):
    save(tmp_path / "model.safetensors", {"gpt_neox.layers.0.attention.query_key_value.weight": random(24, 8)})
    (tmp_path / "config.json").write_text(text)
    checkpoint = open_checkpoint(tmp_path)
    assert [pair.role for pair in pair_checkpoints(checkpoint, checkpoint)[0]] == ["qkv"]


LLAMA = {"model.embed_tokens.weight": (10, 4), "lm_head.weight": (10, 4), "model.layers.0.mlp.up_proj.weight": (6, 4)}


def test_a_head_that_is_the_embedding_is_compared_once():
    embedding = random(10, 4)
    tied = {name: random(*shape) for name, shape in LLAMA.items()}
    tied |= {"model.embed_tokens.weight": embedding, "lm_head.weight": embedding}
    untied = tied | {"lm_head.weight": embedding.copy()}
    for base, post, together in ((tied, tied, True), (tied, untied, False), (untied, untied, False)):
        pairs, skipped = pair_checkpoints(open_checkpoint(base), open_checkpoint(post))
        assert (skipped == [Skipped("lm_head.weight", "tied to model.embed_tokens.weight")]) == together
        assert len(pairs) == 3 - together


@pytest.mark.parametrize("said", [True, False, None])
@pytest.mark.parametrize("equal", [True, False])
def test_bytes_decide_whether_a_head_is_tied(tmp_path, save, said, equal):
    tensors = {name: random(*shape) for name, shape in LLAMA.items()}
    if equal:
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].copy()
    save(tmp_path / "model.safetensors", tensors)
    (tmp_path / "config.json").write_text(json.dumps({} if said is None else {"tie_word_embeddings": said}))
    checkpoint = open_checkpoint(tmp_path)
    pairs, skipped, coverage = Pairing(checkpoint).pair(checkpoint)
    tied = equal and said is True
    assert ("head" in {pair.role for pair in pairs}) == (not tied)
    assert skipped == ([Skipped("lm_head.weight", "tied to model.embed_tokens.weight")] if tied else [])
    assert bool(coverage.notes) == (said is not None and said != equal)
    assert all("lm_head.weight" in note and "both are compared" in note for note in coverage.notes)


@pytest.mark.parametrize("place", [0, 700, 1023])
def test_a_head_of_which_some_rows_were_trained_is_not_tied(tmp_path, save, place):
    """Rows of added tokens are the last ones; a matrix of zeros says nothing until all of it was read."""
    embedding = np.zeros((1024, 4), np.float32)
    head = embedding.copy()
    head[place] = 1
    tensors = {"model.embed_tokens.weight": embedding, "lm_head.weight": head}
    save(tmp_path / "model.safetensors", tensors | {"model.layers.0.mlp.up_proj.weight": random(6, 4)})
    (tmp_path / "config.json").write_text(json.dumps({"tie_word_embeddings": True}))
    checkpoint = open_checkpoint(tmp_path)
    assert "lm_head.weight" in {pair.name for pair in pair_checkpoints(checkpoint, checkpoint)[0]}


def test_copies_of_the_embedding_in_t5():
    shared = random(10, 4)
    tensors = {"shared.weight": shared, "encoder.embed_tokens.weight": shared.copy(), "lm_head.weight": random(10, 4)}
    checkpoint = open_checkpoint(tensors)
    pairs, skipped = pair_checkpoints(checkpoint, checkpoint)
    assert {pair.name for pair in pairs} == {"shared.weight", "lm_head.weight"}
    assert skipped == [Skipped("encoder.embed_tokens.weight", "tied to shared.weight")]


@pytest.mark.parametrize("turned", [False, True])
def test_vocabularies_that_differ(turned):
    base = {name: random(*shape) for name, shape in LLAMA.items()}
    post = {name: random(*((13, 4) if shape[0] == 10 else shape)) for name, shape in LLAMA.items()}
    sides = [open_checkpoint(post), open_checkpoint(base)] if turned else [open_checkpoint(base), open_checkpoint(post)]
    pairs, skipped = pair_checkpoints(*sides)
    assert [pair.role for pair in pairs] == ["up"]
    assert {reason[:13] for _, reason in skipped} == {"shapes differ"}
    pairs, skipped = pair_checkpoints(*sides, common_rows=True)
    assert skipped == []
    for pair in pairs:
        if pair.role in ("embed", "head"):
            tensor = pair.base.tensor
            assert pair.name == f"{tensor}[rows=10]"
            assert pair.shape == pair.base.shape == pair.post.shape == (10, 4)
            for side, view in zip(sides, (pair.base, pair.post), strict=True):
                np.testing.assert_array_equal(view.read(side).result(), side.read(tensor).result()[:10])


def test_common_rows_are_for_vocabularies_alone():
    base, post = ({"model.layers.0.mlp.up_proj.weight": random(rows, 4), "w": random(2, 2)} for rows in (6, 8))
    _, skipped = pair_checkpoints(open_checkpoint(base), open_checkpoint(post), common_rows=True)
    assert [reason for _, reason in skipped] == ["shapes differ: base (6, 4), post (8, 4)"]


def test_a_different_number_of_experts():
    base, post = ({"model.layers.0.feed_forward.experts.down_proj": random(n, 3, 4), "w": random(2, 2)} for n in (2, 3))
    _, skipped = pair_checkpoints(open_checkpoint(base), open_checkpoint(post))
    expected = "shapes differ: base (2, 3, 4), post (3, 3, 4)"
    assert skipped == [Skipped("model.layers.0.feed_forward.experts.down_proj", expected)]
