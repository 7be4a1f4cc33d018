"""Files of Meta and Mistral, whose rows of queries and keys are interleaved, beside those of Hugging Face."""

import json

import numpy as np
import pytest

from polarax.loaders import open_checkpoint, pair_checkpoints

HIDDEN, HEADS, KEYS, SIZE, UNITS = 24, 4, 2, 8, 40  # heads of another size than HIDDEN / HEADS
NAMES = {
    "self_attn.q_proj": ("attention.wq", (HEADS * SIZE, HIDDEN)),
    "self_attn.k_proj": ("attention.wk", (KEYS * SIZE, HIDDEN)),
    "self_attn.v_proj": ("attention.wv", (KEYS * SIZE, HIDDEN)),
    "self_attn.o_proj": ("attention.wo", (HIDDEN, HEADS * SIZE)),
    "mlp.gate_proj": ("feed_forward.w1", (UNITS, HIDDEN)),
    "mlp.up_proj": ("feed_forward.w3", (UNITS, HIDDEN)),
    "mlp.down_proj": ("feed_forward.w2", (HIDDEN, UNITS)),
}
PARAMS = {"dim": HIDDEN, "n_layers": 2, "head_dim": SIZE, "n_heads": HEADS, "n_kv_heads": KEYS, "vocab_size": 50}
CONFIG = {"hidden_size": HIDDEN, "head_dim": SIZE, "num_attention_heads": HEADS, "num_key_value_heads": KEYS}


def interleaved(weight, heads):
    """The inverse of `permute_for_rope` in transformers' convert_mistral_weights_to_hf.py, row by row."""
    result, size = np.empty_like(weight), len(weight) // heads
    for head in range(heads):
        for pair in range(size // 2):
            for half in range(2):
                result[head * size + 2 * pair + half] = weight[head * size + half * size // 2 + pair]
    return result


@pytest.fixture
def models():
    rng = np.random.default_rng(0)
    new = lambda shape: rng.normal(size=shape).astype(np.float32)  # noqa: E731
    face = {"model.embed_tokens.weight": new((50, HIDDEN)), "lm_head.weight": new((50, HIDDEN))}
    meta = {"tok_embeddings.weight": face["model.embed_tokens.weight"], "output.weight": face["lm_head.weight"]}
    for layer in range(2):
        for name, (own, shape) in NAMES.items():
            weight = face[f"model.layers.{layer}.{name}.weight"] = new(shape)
            heads = {"attention.wq": HEADS, "attention.wk": KEYS}.get(own)
            meta[f"layers.{layer}.{own}.weight"] = interleaved(weight, heads) if heads else weight
    return face, meta


def folder(save, path, tensors, name="model.safetensors", **files):
    path.mkdir()
    save(path / name, tensors)
    for file, value in files.items():
        (path / f"{file}.json").write_text(json.dumps(value))
    return open_checkpoint(str(path))


def differing(base, post):
    pairs, skipped = pair_checkpoints(base, post)
    assert skipped == [] or all("rows of queries" in reason for _, reason in skipped)
    return len(pairs), [
        pair.name for pair in pairs if not np.array_equal(pair.base.read(base).result(), pair.post.read(post).result())
    ]


@pytest.mark.parametrize(
    ("of_face", "of_meta"),
    [
        ({"config": CONFIG}, {"params": PARAMS}),
        ({}, {"params": PARAMS}),
        ({"config": CONFIG}, {}),  # either one's serves both
        ({}, {"config": CONFIG}),
        ({}, {"config": {"torch_dtype": "bfloat16"}, "params": PARAMS}),
        ({}, {"config": PARAMS}),  # as mlx-examples writes it
    ],
)
def test_rows_are_put_back(save, tmp_path, models, of_face, of_meta):
    face = folder(save, tmp_path / "face", models[0], **of_face)
    meta = folder(save, tmp_path / "meta", models[1], "consolidated.safetensors", **of_meta)
    assert differing(face, meta) == (16, [])
    assert differing(meta, face) == (16, [])


@pytest.mark.parametrize(
    "settings", [{}, {"params": {**PARAMS, "n_heads": 5}}, {"params": [1]}, {"params": {"dim": 24}}]
)
def test_unknown_heads_are_refused(save, tmp_path, models, settings):
    face = folder(save, tmp_path / "face", models[0])
    meta = folder(save, tmp_path / "meta", models[1], "consolidated.safetensors", **settings)
    pairs, skipped = pair_checkpoints(face, meta)
    refused = {name: reason for name, reason in skipped if "rows of queries and keys are in another order" in reason}
    expected = {f"model.layers.{layer}.self_attn.{name}_proj.weight" for layer in range(2) for name in "qk"}
    if settings.get("params", {}) and "head_dim" in settings["params"]:
        expected = {name for name in expected if ".q_proj" in name}  # the keys' heads fit
    assert refused.keys() == expected
    assert all(f"the heads of {meta.location} are not known" in reason for reason in refused.values())
    assert len(pairs) == 16 - len(expected)


def test_two_files_in_one_order_need_no_heads(save, tmp_path, models):
    base = folder(save, tmp_path / "base", models[1], "consolidated.safetensors")
    post = folder(save, tmp_path / "post", models[1], "consolidated.safetensors")
    assert differing(base, post) == (16, [])


def test_normalised_queries_are_left_alone(save, tmp_path, models):
    """torchtitan's Qwen3 has Meta's names; which order its rows are in is nowhere said."""
    norms = {f"layers.{layer}.attention.q_norm.weight": np.ones(SIZE, np.float32) for layer in range(2)}
    face = folder(save, tmp_path / "face", models[0], config=CONFIG)
    meta = folder(save, tmp_path / "meta", models[1] | norms)
    pairs, skipped = pair_checkpoints(face, meta)
    assert len(pairs) == 12
    assert sum("rows of queries and keys" in reason for _, reason in skipped) == 4


def test_kernels_and_arrays_of_other_code_are_not_taken_for_metas(models):
    arrays = {name.removesuffix(".weight"): array for name, array in models[1].items()}
    checkpoint = open_checkpoint(arrays)
    pairs, _ = pair_checkpoints(checkpoint, checkpoint)
    assert {pair.base.row_order for pair in pairs} == {""}


@pytest.mark.parametrize(
    ("name", "layer", "role", "expert"),
    [
        ("layers.3.attention.wq.weight", 3, "q", None),
        ("layers.3.feed_forward.w1.weight", 3, "gate", None),
        ("layers.3.feed_forward.w2.weight", 3, "down", None),
        ("layers.3.feed_forward.gate.weight", 3, "router", None),
        ("layers.3.feed_forward.experts.7.w3.weight", 3, "up", 7),
        ("layers.3.experts.7.w1.weight", 3, "gate", 7),
        ("layers.3.shared_experts.w1.weight", 3, "gate", None),
        ("layers.3.attention.wkv_a_with_mqa.weight", 3, "kv_a", None),
        ("language_model.layers.3.attention.wk.weight", 3, "k", None),
        ("tok_embeddings.weight", None, "embed", None),
        ("output.weight", None, "head", None),
    ],
)
def test_names(name, layer, role, expert):
    checkpoint = open_checkpoint({name: np.zeros((4, 4), np.float32)})
    pair = pair_checkpoints(checkpoint, checkpoint)[0][0]
    assert (pair.layer, pair.role, pair.expert) == (layer, role, expert)
