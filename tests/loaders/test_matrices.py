"""The matrices inside tensors, by their values: fused, stacked and transposed as each family's own code takes them."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from polarax.loaders import View, open_checkpoint, pair_checkpoints, read_views
from polarax.loaders.matrices import take_inventory
from polarax.loaders.matrices.axes import Meaning, matrices
from polarax.loaders.matrices.splits import Part

HIDDEN, HEADS, KEYS, SIZE = 12, 4, 2, 3
rng = np.random.default_rng(0)


def random(*shape):
    return rng.normal(size=shape).astype(np.float32)


def found(tensors, config=None):
    """Every matrix of some tensors by its name."""
    checkpoint = open_checkpoint(tensors)
    inventory = take_inventory(checkpoint, config=config)
    views = [view for views in inventory.views.values() for view in views]
    read = {view.name: view.read(checkpoint).result() for view in views}
    assert {view.name: view.shape for view in views} == {name: array.shape for name, array in read.items()}
    return read, {view.name: (view.layer, view.role, view.expert) for view in views}


def parts(keys):
    return random(HEADS * SIZE, HIDDEN), random(keys * SIZE, HIDDEN), random(keys * SIZE, HIDDEN)


def per_head(q, k, v):
    """As GPT-NeoX, BLOOM and the first Falcon take it apart: view(heads, 3, size)."""
    blocks = [w.reshape(HEADS, 1, SIZE, HIDDEN) for w in (q, k, v)]
    return np.concatenate(blocks, axis=1).reshape(3 * HEADS * SIZE, HIDDEN)


def grouped(q, k, v):
    """As Falcon's new decoder takes it apart: view(key heads, queries of each + 2, size)."""
    q = q.reshape(KEYS, HEADS // KEYS, SIZE, HIDDEN)
    k, v = (w.reshape(KEYS, 1, SIZE, HIDDEN) for w in (k, v))
    return np.concatenate([q, k, v], axis=1).reshape(-1, HIDDEN)


def in_blocks(q, k, v):
    return np.concatenate([q, k, v])


NEOX = {"hidden_size": HIDDEN, "num_attention_heads": HEADS}
FALCON = {"model_type": "falcon", **NEOX}
GROUPED = {**FALCON, "num_kv_heads": KEYS, "new_decoder_architecture": True}
OLD_40B = {"model_type": "RefinedWeb", "hidden_size": HIDDEN, "n_head": HEADS, "n_head_kv": KEYS}
INTERNLM = {"model_type": "internlm2", **NEOX, "num_key_value_heads": KEYS}
CHATGLM = {**NEOX, "multi_query_attention": True, "multi_query_group_num": KEYS}
BLOOM = {"model_type": "bloom", "n_embed": HIDDEN, "n_head": HEADS}


@pytest.mark.parametrize(
    ("name", "fuse", "keys", "config"),
    [
        ("gpt_neox.layers.1.attention.query_key_value.weight", per_head, HEADS, NEOX),
        ("h.1.self_attention.query_key_value.weight", per_head, HEADS, BLOOM),
        ("transformer.h.1.self_attention.query_key_value.weight", per_head, HEADS, {**FALCON, "multi_query": False}),
        ("transformer.h.1.self_attention.query_key_value.weight", in_blocks, 1, FALCON),
        ("transformer.h.1.self_attention.query_key_value.weight", grouped, KEYS, GROUPED),
        ("transformer.h.1.self_attention.query_key_value.weight", grouped, KEYS, OLD_40B),
        ("model.layers.1.self_attn.qkv_proj.weight", in_blocks, KEYS, {**NEOX, "num_key_value_heads": KEYS}),
        ("model.layers.1.self_attn.qkv_proj.weight", in_blocks, KEYS, {"text_config": {**NEOX, "num_kv_heads": KEYS}}),
        ("model.layers.1.attention.wqkv.weight", grouped, KEYS, INTERNLM),
        ("language_model.model.layers.1.attention.wqkv.weight", grouped, KEYS, {"llm_config": INTERNLM}),
        ("transformer.encoder.layers.1.self_attention.query_key_value.weight", in_blocks, KEYS, CHATGLM),
        ("transformer.encoder.layers.1.self_attention.query_key_value.weight", per_head, HEADS, NEOX),
        ("blk.1.attn_qkv.weight", in_blocks, KEYS, {**NEOX, "num_key_value_heads": KEYS}),
    ],
)
def test_fused_queries_keys_and_values(name, fuse, keys, config):
    q, k, v = parts(keys)
    read, identities = found({name: fuse(q, k, v)}, config)
    for role, expected in zip("qkv", (q, k, v), strict=True):
        np.testing.assert_array_equal(read[f"{name}[{role}]"], expected)
        assert identities[f"{name}[{role}]"] == (1, role, None)


@pytest.mark.parametrize(
    "config", [None, {}, {"num_attention_heads": 5, "hidden_size": 20}, {"num_attention_heads": 0}]
)
@pytest.mark.parametrize(
    "name",
    [
        "gpt_neox.layers.1.attention.query_key_value.weight",
        "h.1.self_attention.query_key_value.weight",
        "transformer.encoder.layers.1.self_attention.query_key_value.weight",
        "model.layers.1.attention.wqkv.weight",
    ],
)
def test_what_cannot_be_split_is_whole_and_says_so(name, config):
    fused = random(36, 12)
    read, identities = found({name: fused}, config)
    assert identities == {name: (1, "qkv", None)}
    np.testing.assert_array_equal(read[name], fused)


def test_blocks_are_told_from_the_output_projection_beside_them():
    q, k, v = parts(KEYS)
    prefix = "model.layers.0.self_attn."
    read, _ = found({f"{prefix}qkv_proj.weight": in_blocks(q, k, v), f"{prefix}o_proj.weight": random(HIDDEN, 12)})
    np.testing.assert_array_equal(read[f"{prefix}qkv_proj.weight[k]"], k)
    _, identities = found({f"{prefix}qkv_proj.weight": in_blocks(q, k, v)})
    assert identities == {f"{prefix}qkv_proj.weight": (0, "qkv", None)}


def test_gpt2_keeps_its_weights_the_other_way_round():
    q, k, v, o = (random(4, 4) for _ in range(4))
    up, down = random(16, 4), random(4, 16)
    tensors = {"c_attn": in_blocks(q, k, v), "c_proj": o}
    tensors = {f"h.0.attn.{name}.weight": w.T for name, w in tensors.items()}
    tensors |= {"h.0.mlp.c_fc.weight": up.T, "h.0.mlp.c_proj.weight": down.T}
    read, identities = found(tensors)
    expected = {"attn.c_attn.weight[q]": q, "attn.c_attn.weight[k]": k, "attn.c_attn.weight[v]": v}
    expected |= {"attn.c_proj.weight": o, "mlp.c_fc.weight": up, "mlp.c_proj.weight": down}
    assert set(read) == {f"h.0.{name}" for name in expected}
    for name, matrix in expected.items():
        np.testing.assert_array_equal(read[f"h.0.{name}"], matrix)
    assert identities["h.0.mlp.c_proj.weight"] == (0, "down", None)


def test_the_same_names_with_ordinary_layers_are_told_by_the_configuration():
    q, k, v = parts(1)
    config = {"model_type": "gpt_bigcode", "n_embd": HIDDEN, "n_head": HEADS, "multi_query": True}
    tensors = {
        "transformer.h.0.attn.c_attn.weight": in_blocks(q, k, v),
        "transformer.h.0.mlp.c_fc.weight": random(48, 12),
    }
    read, _ = found(tensors, config)
    np.testing.assert_array_equal(read["transformer.h.0.attn.c_attn.weight[k]"], k)
    assert read["transformer.h.0.mlp.c_fc.weight"].shape == (48, 12)


@pytest.mark.parametrize("transposed", [True, False])
def test_experts_in_one_tensor(transposed):
    """Llama 4 has (experts, in, out), transformers 5 (experts, out, in): the residual stream tells which."""
    block = "model.layers.2.mlp.experts."
    gate, up, down = random(3, 5, 8), random(3, 5, 8), random(3, 8, 5)
    gate_up = np.concatenate([gate, up], axis=1)
    tensors = {"model.embed_tokens.weight": random(7, 8), f"{block}gate_up_proj": gate_up, f"{block}down_proj": down}
    if transposed:
        tensors |= {name: w.swapaxes(1, 2) for name, w in tensors.items() if "experts" in name}
    read, identities = found(tensors)
    for expert in range(3):
        np.testing.assert_array_equal(read[f"{block}gate_up_proj[expert={expert}][gate]"], gate[expert])
        np.testing.assert_array_equal(read[f"{block}gate_up_proj[expert={expert}][up]"], up[expert])
        np.testing.assert_array_equal(read[f"{block}down_proj[expert={expert}]"], down[expert])
    assert identities[f"{block}down_proj[expert=2]"] == (2, "down", 2)


@pytest.mark.parametrize(
    ("block", "biases", "transposed"),
    [("mlp", False, False), ("mlp", True, True), ("feed_forward", False, True)],
)
def test_experts_whose_sizes_do_not_tell_which_way_round_they_are(block, biases, transposed):
    """transformers 5 has OLMoE as (experts, out, in); gpt-oss is (experts, in, out) with biases, Llama 4 has none."""
    prefix = f"model.layers.0.{block}.experts."
    gate_up, down = random(3, 8, 8), random(3, 8, 8)
    tensors = {"model.embed_tokens.weight": random(7, 8), f"{prefix}gate_up_proj": gate_up, f"{prefix}down_proj": down}
    if biases:
        tensors |= {f"{prefix}{name}_bias": random(3, 8) for name in ("gate_up_proj", "down_proj")}
    read, _ = found(tensors)
    if transposed:
        gate_up, down = gate_up.swapaxes(1, 2), down.swapaxes(1, 2)
    gate = gate_up[1, ::2] if biases else gate_up[1, :4]
    np.testing.assert_array_equal(read[f"{prefix}gate_up_proj[expert=1][gate]"], gate)
    np.testing.assert_array_equal(read[f"{prefix}down_proj[expert=1]"], down[1])


def test_keys_and_values_for_a_decoder_of_gpt2():
    k, v = random(4, 4), random(4, 4)
    name = "h.0.crossattention.c_attn.weight"
    read, identities = found({name: np.concatenate([k, v]).T})
    np.testing.assert_array_equal(read[f"{name}[cross_k]"], k)
    np.testing.assert_array_equal(read[f"{name}[cross_v]"], v)
    assert identities[f"{name}[cross_v]"] == (0, "cross_v", None)


def test_experts_whose_gate_and_up_alternate():
    """gpt-oss: its experts have biases, and its gate is in every other column."""
    block = "model.layers.0.mlp.experts."
    gate_up = random(2, 8, 10)
    read, _ = found({f"{block}gate_up_proj": gate_up, f"{block}gate_up_proj_bias": random(2, 10)})
    assert set(read) == {f"{block}gate_up_proj[expert={e}][{part}]" for e in range(2) for part in ("gate", "up")}
    np.testing.assert_array_equal(read[f"{block}gate_up_proj[expert=1][gate]"], gate_up[1, :, ::2].T)
    np.testing.assert_array_equal(read[f"{block}gate_up_proj[expert=1][up]"], gate_up[1, :, 1::2].T)


def test_only_the_rows_of_a_part_are_read(save, tmp_path, monkeypatch):
    prefix = "model.layers.0."
    tensors = {
        f"{prefix}self_attn.qkv_proj.weight": random(20, HIDDEN),
        f"{prefix}self_attn.o_proj.weight": random(HIDDEN, 12),
        f"{prefix}mlp.experts.down_proj": random(4, HIDDEN, 5),
        "lm_head.weight": random(9, HIDDEN),
    }
    save(tmp_path / "model.safetensors", tensors)
    (tmp_path / "config.json").write_text(json.dumps({"hidden_size": HIDDEN}))
    checkpoint = open_checkpoint(tmp_path)
    pairs, _ = pair_checkpoints(checkpoint, checkpoint)
    sizes = []
    read = checkpoint._store.read
    monkeypatch.setattr(checkpoint._store, "read", lambda file, a, b: sizes.append(b - a) or read(file, a, b))
    for pair in pairs:
        np.testing.assert_array_equal(pair.base.read(checkpoint).result(), _expected(tensors, pair.name))
        assert sizes.pop() == 4 * pair.shape[0] * pair.shape[1], pair.name
    assert len(pairs) == 3 + 1 + 4 + 1
    head = next(pair.base for pair in pairs if pair.role == "head").first_rows(2)
    np.testing.assert_array_equal(head.read(checkpoint).result(), tensors["lm_head.weight"][:2])
    assert sizes == [4 * 2 * HIDDEN]


def test_a_tensor_whose_heads_alternate_is_read_once(save, tmp_path, monkeypatch):
    q, k, v = parts(HEADS)
    name = "gpt_neox.layers.1.attention.query_key_value.weight"
    other = "gpt_neox.layers.1.attention.dense.weight"
    save(tmp_path / "model.safetensors", {name: per_head(q, k, v), other: q})
    (tmp_path / "config.json").write_text(json.dumps(NEOX))
    checkpoint = open_checkpoint(tmp_path)
    views = [view for views in take_inventory(checkpoint).views.values() for view in views]
    sizes = []
    read = checkpoint._store.read
    monkeypatch.setattr(checkpoint._store, "read", lambda file, a, b: sizes.append(b - a) or read(file, a, b))
    expected = {f"{name}[q]": q, f"{name}[k]": k, f"{name}[v]": v, other: q}
    for view, matrix in zip(views, read_views(views, checkpoint), strict=True):
        np.testing.assert_array_equal(matrix.result(), expected.pop(view.name))
    assert not expected
    assert sorted(sizes) == [q.nbytes, 3 * q.nbytes]


def _expected(tensors, name):
    tensor, _, label = name.partition("[")
    whole = tensors[tensor]
    rows = {"q]": slice(0, 12), "k]": slice(12, 16), "v]": slice(16, 20), "": slice(None)}
    return whole[rows[label]] if label in rows else whole[int(label[len("expert=") : -1])]


letters = st.lists(st.sampled_from(["o", "i", "L", "E", "1"]), min_size=2, max_size=5)


@given(letters, st.data())
def test_matrices_of_any_axes_are_those_of_einsum(axes, data):
    axes = [*axes, "o", "i"]
    shape = tuple(1 if axis == "1" else data.draw(st.integers(1, 3)) for axis in axes)
    array = np.arange(np.prod(shape)).reshape(shape)
    views = list(matrices("w", shape, Meaning(tuple(axes)), "q", None, None, None))
    # Stacked axes first, then outputs, then inputs: one array of all the matrices.
    order = [n for want in (("L", "E", "1"), ("o",), ("i",)) for n, axis in enumerate(axes) if axis in want]
    expected = array.transpose(order).reshape(len(views), *views[0].shape)
    for view, matrix in zip(views, expected, strict=True):
        part = array[view.slices] if view.slices is not None else array
        np.testing.assert_array_equal(view.arrange(part), matrix)
        np.testing.assert_array_equal(view.first_rows(1).arrange(part), matrix[:1])


def test_parts_of_an_axis_that_is_not_the_first():
    array = random(2, 5, 6)
    halves = (Part("k", slice(0, 3)), Part("v", slice(3, 6)))
    k, v = list(matrices("w", array.shape, Meaning(("o", "i", "p")), "kv", halves, 4, None))
    assert (k.name, k.layer, k.role, k.shape) == ("w[k]", 4, "k", (6, 5))
    expected = array[:, :, 3:].transpose(0, 2, 1).reshape(6, 5)
    np.testing.assert_array_equal(v.arrange(array[v.slices]), expected)


def test_a_view_of_a_whole_tensor_is_the_tensor():
    array = random(3, 4)
    checkpoint = open_checkpoint({"w": array})
    view = View("w", (3, 4))
    assert view.name == "w"
    assert np.shares_memory(view.read(checkpoint).result(), array)
