"""Kernels of Flax with more than two axes: heads, several inputs or outputs, stacked layers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from polarax.loaders import open_checkpoint, pair_checkpoints
from polarax.loaders.matrices import take_inventory

UNKNOWN = "3-D: axes unknown (give them by --role_map)"


def read_all(source):
    checkpoint = open_checkpoint(source)
    pairs, skipped = pair_checkpoints(checkpoint, checkpoint)
    return {pair.name: pair.base.read(checkpoint).result() for pair in pairs}, dict(skipped), pairs


class Block(nnx.Module):
    def __init__(self, rngs):
        self.norm = nnx.LayerNorm(6, rngs=rngs)
        self.attn = nnx.MultiHeadAttention(2, 6, use_bias=False, rngs=rngs)
        self.mlp = nnx.Linear(6, 10, rngs=rngs)
        self.dropout = nnx.Dropout(0.1, rngs=rngs)


class Scanned(nnx.Module):
    def __init__(self, rngs):
        @nnx.split_rngs(splits=3)
        @nnx.vmap(in_axes=(0,), out_axes=0)
        def create(rngs):
            return Block(rngs)

        self.layers = create(rngs)
        self.head = nnx.LinearGeneral((2, 3), 7, axis=(-2, -1), rngs=rngs)


def test_layers_stacked_by_vmap():
    model = Scanned(nnx.Rngs(0))
    read, skipped, pairs = read_all(model)
    assert len(read) == 3 * 5
    for layer in range(3):
        query = model.layers.attn.query.kernel[...][layer].reshape(6, 6).T
        np.testing.assert_array_equal(read[f"layers.attn.query.kernel[layer={layer}]"], query)
        out = model.layers.attn.out.kernel[...][layer].reshape(6, 6).T
        np.testing.assert_array_equal(read[f"layers.attn.out.kernel[layer={layer}]"], out)
        np.testing.assert_array_equal(read[f"layers.mlp.kernel[layer={layer}]"], model.layers.mlp.kernel[...][layer].T)
    assert {(pair.layer, pair.role) for pair in pairs} >= {(layer, role) for layer in range(3) for role in "qkvo"}
    assert skipped["layers.mlp.bias"] == "2-D bias: not a matrix"
    assert skipped["layers.norm.scale"] == "2-D scale: not a matrix"


@pytest.mark.parametrize(
    ("name", "inputs", "outputs", "known"),
    [
        ("query", 6, (2, 3), True),
        ("mixer", 6, (2, 3), True),  # its bias has two axes
        ("mixer", (2, 3), (4, 5), True),
        ("out", (2, 3), 6, True),
        ("out_proj", (2, 3), 6, True),
        ("mixer", (2, 3), 6, False),  # as a convolution looks
    ],
)
def test_linear_general(name, inputs, outputs, known):
    axes = tuple(range(-len(inputs), 0)) if isinstance(inputs, tuple) else -1
    layer = nnx.LinearGeneral(inputs, outputs, axis=axes, rngs=nnx.Rngs(0))
    read, skipped, _ = read_all({name: nnx.state(layer)})
    kernel = layer.kernel[...]
    if known:
        expected = kernel.reshape(np.prod(inputs), np.prod(outputs)).T
        np.testing.assert_array_equal(read[f"{name}.kernel"], expected)
    else:
        assert skipped[f"{name}.kernel"] == UNKNOWN


def test_a_convolution_is_no_matrix():
    _, skipped, _ = read_all({"conv": nnx.state(nnx.Conv(4, 6, (3,), rngs=nnx.Rngs(0)))})
    assert skipped["conv.kernel"] == "3-D: not a matrix"


def test_containers_that_hold_one_layer_are_no_stack():
    """Alike leading axes are not enough: the scale of a norm is a vector unless it is stacked."""
    block = {"norm": {"scale": np.ones(6)}, "a": {"kernel": np.ones((6, 2, 3))}, "b": {"kernel": np.ones((6, 5))}}
    _, skipped, pairs = read_all({"block": block, "layers": {"0": block}})
    assert {pair.name: pair.shape for pair in pairs} == {"block.b.kernel": (5, 6), "layers.0.b.kernel": (5, 6)}
    assert skipped["block.a.kernel"] == UNKNOWN


def test_experts_are_not_taken_for_layers():
    bank = {"wi": {"kernel": np.ones((4, 2, 3))}, "wo": {"kernel": np.ones((4, 3, 2))}}
    _, skipped, pairs = read_all({"experts_layer": bank})
    assert pairs == []
    assert set(skipped.values()) == {UNKNOWN}


def test_einsums_of_gemma():
    key = jax.random.key(0)
    shapes = {"q_einsum": (2, 6, 3), "kv_einsum": (2, 1, 6, 3), "attn_vec_einsum": (2, 3, 6)}
    attn = {name: {"w": jax.random.normal(key, shape)} for name, shape in shapes.items()}
    mlp = {"gating_einsum": jax.random.normal(key, (2, 6, 10)), "linear": jax.random.normal(key, (10, 6))}
    embedder = {"input_embedding": jnp.ones((7, 6))}
    tree = {"transformer": {"layer_0": {"attn": attn, "mlp": mlp}, "embedder": embedder}}
    checkpoint = open_checkpoint(tree)
    views = {view.role: view for views in take_inventory(checkpoint).views.values() for view in views}
    read = {role: view.read(checkpoint).result() for role, view in views.items()}
    np.testing.assert_array_equal(read["q"], attn["q_einsum"]["w"].transpose(0, 2, 1).reshape(6, 6))
    np.testing.assert_array_equal(read["v"], attn["kv_einsum"]["w"][1, 0].T)
    np.testing.assert_array_equal(read["o"], attn["attn_vec_einsum"]["w"].reshape(6, 6).T)
    np.testing.assert_array_equal(read["up"], mlp["gating_einsum"][1].T)
    np.testing.assert_array_equal(read["down"], mlp["linear"].T)
    assert {views[role].layer for role in "qkvo"} == {0}


@pytest.mark.parametrize("number", ["_0", ""])
def test_blocks_of_big_vision(number):
    """Numbered, or all in one stack."""
    lead = () if number else (3,)
    shapes = {"MultiHeadDotProductAttention_0/query/kernel": (6, 2, 3), "MlpBlock_0/Dense_0/kernel": (6, 9)}
    shapes |= {"MlpBlock_0/Dense_1/kernel": (9, 6), "LayerNorm_0/scale": (6,)}
    tensors = {f"Transformer/encoderblock{number}/{name}": np.ones(lead + s) for name, s in shapes.items()}
    checkpoint = open_checkpoint({**tensors, "embedding/kernel": np.ones((2, 2, 3, 6)), "head/kernel": np.ones((6, 5))})
    views = [view for views in take_inventory(checkpoint).views.values() for view in views]
    found = {(view.layer, view.role, view.shape) for view in views}
    layers = [0] if number else range(3)
    assert found == {
        (None, "patch", (6, 12)),
        (None, "head", (5, 6)),
        *((layer, role, s) for layer in layers for role, s in (("q", (6, 6)), ("up", (9, 6)), ("down", (6, 9)))),
    }
