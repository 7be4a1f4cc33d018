"""Stacks of matrices, known and unknown, under any prefix; and reasons that are true."""

import numpy as np
import pytest

from polarax.loaders import open_checkpoint
from polarax.loaders.matrices import parse_role_map, take_inventory

rng = np.random.default_rng(0)
LAYERS, HEADS, IN, SIZE, UNITS = 3, 4, 10, 6, 14
UNKNOWN = "axes unknown (give them by --role_map)"


def random(*shape):
    return rng.normal(size=shape).astype(np.float32)


def einsums(lead, suffix):
    """Gemma's kernels of one layer, or of all in one array."""
    return {
        f"attn/q_einsum{suffix}/w": random(*lead, HEADS, IN, SIZE),
        f"attn/kv_einsum{suffix}/w": random(*lead, 2, 1, IN, SIZE),
        f"attn/attn_vec_einsum{suffix}/w": random(*lead, HEADS, SIZE, IN),
        f"mlp{suffix}/gating_einsum": random(*lead, 2, IN, UNITS),
        f"mlp{suffix}/linear": random(*lead, UNITS, IN),
    }


def expected_of(arrays, suffix, layer):
    """The matrices (out, in) of a layer as the einsums of Gemma's code take them."""
    at = {name: array if layer is None else array[layer] for name, array in arrays.items()}
    q, kv, o, gate_up, down = (at[name] for name in arrays)
    return {
        "q": np.einsum("nds->nsd", q).reshape(-1, IN),
        "k": np.einsum("kds->ksd", kv[0]).reshape(-1, IN),
        "v": np.einsum("kds->ksd", kv[1]).reshape(-1, IN),
        "o": np.einsum("nsd->dns", o).reshape(IN, -1),
        "gate": gate_up[0].T,
        "up": gate_up[1].T,
        "down": down.T,
    }


@pytest.mark.parametrize("leaf", ["", "/value"])
@pytest.mark.parametrize("suffix", ["", "_1"])
@pytest.mark.parametrize("stacked", [True, False])
@pytest.mark.parametrize("prefix", ["", "PaliGemma/llm/", "params/policy/PaliGemma/llm/", "transformer/", "student/"])
def test_einsums_of_gemma_under_any_prefix(prefix, stacked, suffix, leaf):
    if stacked:
        arrays = einsums((LAYERS,), suffix)
        tensors = {f"{prefix}layers/{name}{leaf}": array for name, array in arrays.items()}
        expected = {layer: expected_of(arrays, suffix, layer) for layer in range(LAYERS)}
    else:
        by_layer = [einsums((), suffix) for _ in range(LAYERS)]
        tensors = {
            f"{prefix}layer_{layer}/{name}{leaf}": array
            for layer, arrays in enumerate(by_layer)
            for name, array in arrays.items()
        }
        expected = {layer: expected_of(arrays, suffix, None) for layer, arrays in enumerate(by_layer)}
    checkpoint = open_checkpoint({**tensors, f"{prefix}embedder/input_embedding{leaf}": random(20, IN)})
    inventory = take_inventory(checkpoint)
    assert not inventory.reasons
    found = {}
    for view in (view for views in inventory.views.values() for view in views):
        if view.layer is not None:
            found.setdefault(view.layer, {})[view.role] = view.read(checkpoint).result()
    assert {layer: set(roles) for layer, roles in found.items()} == {
        layer: set("qkvo") | {"gate", "up", "down"} for layer in expected
    }
    for layer, roles in expected.items():
        for role, matrix in roles.items():
            np.testing.assert_array_equal(found[layer][role], matrix, err_msg=f"{layer} {role}")


@pytest.mark.parametrize(
    ("name", "shape", "reason"),
    [
        ("cls_token", (1, 1, 8), "3-D: not a matrix"),
        ("layer0.conv.weight", (8, 8, 3, 3), "4-D: not a matrix"),
        ("features.0.weight", (64, 3, 11, 11), "4-D: not a matrix"),
        ("downsample.0.weight", (8, 4, 1, 1), "4-D: not a matrix"),
        ("stem.weight", (8, 7, 7, 3), "4-D: not a matrix"),  # MLX
        ("stem.kernel", (3, 3, 3, 16), "4-D: not a matrix"),
        ("Conv_0.kernel", (2, 2, 3, 16), "4-D: not a matrix"),
        ("visual.patch_embed.proj.weight", (16, 3, 2, 14, 14), "5-D: not a matrix"),
        ("backbone.layers.0.mixer.conv1d.weight", (16, 1, 4), "3-D: not a matrix"),
        ("pre_norm.scale.value", (3, 8), "2-D scale: not a matrix"),
        ("mixer.experts.weight", (4, 8, 6), f"3-D: {UNKNOWN}"),
        ("blocks.weights", (2, 4, 8, 6), f"4-D: {UNKNOWN}"),
        ("layers.attn.q_einsum.lora_a", (3, 4, 10, 2), f"4-D: {UNKNOWN}"),
        ("experts.weight", (0, 8, 6), "empty"),
        ("conversation.weights", (4, 8, 6), f"3-D: {UNKNOWN}"),
    ],
)
def test_reasons_are_true(name, shape, reason):
    inventory = take_inventory(open_checkpoint({name: np.zeros(shape, np.float32)}))
    assert inventory.reasons == {name: reason}


def test_a_role_map_whose_axes_do_not_fit_is_named():
    table = parse_role_map({"experts": {"role": "up", "axes": "E o i"}})
    checkpoint = open_checkpoint({"experts.a": random(2, 4, 3, 5), "experts.b": random(2, 3, 5)})
    inventory = take_inventory(checkpoint, table)
    assert inventory.reasons == {"experts.a": '4-D: --role_map gives the axes "E o i"'}


def test_a_matrix_behind_axes_of_length_one():
    array = random(1, 7, 4)
    checkpoint = open_checkpoint({"pos_embed": array})
    ((view,),) = take_inventory(checkpoint).views.values()
    np.testing.assert_array_equal(view.read(checkpoint).result(), array[0])


@pytest.mark.parametrize("linear", [True, False])
def test_square_matrices_of_gpt2_lie_as_the_others_do(linear):
    """A Conv1D keeps (in, out); MLX and vLLM have ordinary layers, (out, in), under the same names."""
    matrices = {"attn.c_proj": random(4, 4), "mlp.c_fc": random(16, 4), "mlp.c_proj": random(4, 16)}
    prefix = "model.h.0." if linear else "h.0."
    tensors = {f"{prefix}{name}.weight": w if linear else w.T for name, w in matrices.items()}
    checkpoint = open_checkpoint({**tensors, "model.wte.weight": random(9, 4)})
    views = take_inventory(checkpoint).views
    for name, matrix in matrices.items():
        (view,) = views[f"{prefix}{name}.weight"]
        np.testing.assert_array_equal(view.read(checkpoint).result(), matrix)


@pytest.mark.parametrize("config", [True, False])
def test_second_matrix_of_latent_attention(config):
    """Of each head the keys that are not rotated, then the values: known from the configuration alone."""
    keys, values = random(HEADS, 3, 5), random(HEADS, 2, 5)
    name = "model.layers.0.self_attn.kv_b_proj.weight"
    checkpoint = open_checkpoint({name: np.concatenate([keys, values], axis=1).reshape(-1, 5)})
    sizes = {"qk_nope_head_dim": 3, "v_head_dim": 2} if config else {}
    views = {view.role: view for view in take_inventory(checkpoint, config=sizes).views[name]}
    assert set(views) == ({"k_b", "v_b"} if config else {"kv_b"})
    if config:
        np.testing.assert_array_equal(views["k_b"].read(checkpoint).result(), keys.reshape(-1, 5))
        np.testing.assert_array_equal(views["v_b"].read(checkpoint).result(), values.reshape(-1, 5))
