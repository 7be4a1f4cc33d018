"""Matrices are found in whatever tree they are in, and read from it as they are."""

import collections
import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import polarax
from polarax.errors import UsageError
from polarax.planning.selection import Selection
from polarax.tracking.adapters import find_adapters
from polarax.tracking.layout import find_layout, matrix_reader
from polarax.tracking.tracked_metrics import paths

RNG = np.random.default_rng(0)


def _array(*shape):
    return RNG.normal(size=shape).astype(np.float32)


def read_all(params, **arguments):
    """Every matrix by its path for writers, m >= n, as the tracker reads it under jit."""
    layout = find_layout(params, Selection.parse(), k=None, **arguments)

    @jax.jit
    def read(leaves):
        found = []
        for group in layout.groups:
            reader = matrix_reader(group, leaves)
            places = (jnp.array(group.source_of), jnp.array(group.starts))
            found += [*jax.lax.map(lambda place, reader=reader: reader(*place), places)]
        return found

    from polarax.loaders.formats.parameter_tree import named_leaves

    leaves = named_leaves(params)
    return dict(zip(paths(layout.labels), read({name: leaves[name] for name in layout.leaves}), strict=True))


def _tall(matrix):
    return matrix.T if matrix.shape[0] < matrix.shape[1] else matrix


def test_layers_in_a_stack():
    tree = {"layers": {"self_attn": {"q_proj": {"kernel": _array(3, 8, 6)}}, "norm": {"scale": _array(3, 8)}}}
    found = read_all(tree)
    assert list(found) == ["q/layer_00", "q/layer_01", "q/layer_02"]
    for layer in range(3):
        expected = _tall(tree["layers"]["self_attn"]["q_proj"]["kernel"][layer].T)
        np.testing.assert_array_equal(found[f"q/layer_{layer:02d}"], expected)


def test_experts_and_fused_projections():
    tree = {
        "model": {
            "layers": {
                "0": {
                    "mlp": {"experts": {"gate_up_proj": _array(2, 20, 8), "down_proj": _array(2, 8, 10)}},
                    "self_attn": {"o_proj": {"weight": _array(8, 8)}},
                }
            }
        }
    }
    experts = tree["model"]["layers"]["0"]["mlp"]["experts"]
    found = read_all(tree)
    for expert in range(2):
        gate_up = experts["gate_up_proj"][expert]
        np.testing.assert_array_equal(found[f"gate/layer_00/expert_{expert:02d}"], gate_up[:10])
        np.testing.assert_array_equal(found[f"up/layer_00/expert_{expert:02d}"], gate_up[10:])
        down = experts["down_proj"][expert]
        np.testing.assert_array_equal(found[f"down/layer_00/expert_{expert:02d}"], down.T)


def test_flax_attention_of_several_heads():
    layer = nnx.MultiHeadAttention(2, 8, decode=False, rngs=nnx.Rngs(0))

    class Model(nnx.Module):
        def __init__(self):
            self.layers = nnx.List([nnx.Dict(attn=layer)])

    found = read_all(Model())
    np.testing.assert_array_equal(found["q/layer_00"], layer.query.kernel.get_value().reshape(8, 8).T)
    np.testing.assert_array_equal(found["o/layer_00"], layer.out.kernel.get_value().reshape(8, 8).T)


def test_linen_parameters_with_axis_names():
    dense = nn.Dense(5, kernel_init=nn.with_partitioning(nn.initializers.normal(), ("in", "out")))
    params = dense.init(jax.random.key(0), jnp.ones((1, 7)))
    (matrix,) = read_all(params).values()
    np.testing.assert_array_equal(matrix, params["params"]["kernel"].unbox())


def test_the_order_of_keys_does_not_matter():
    one = {"b": {"kernel": _array(6, 4)}, "a": {"kernel": _array(6, 4)}}
    other = {"a": one["a"], "b": one["b"]}
    layouts = [find_layout(tree, Selection.parse(), k=None) for tree in (one, other)]
    assert layouts[0].labels == layouts[1].labels


def test_matrices_of_one_role_and_layer_have_names_of_their_own():
    tree = {"layers": {"0": {"self_attn": {"q_proj": {"weight": _array(4, 4)}}}}}
    found = read_all({"model": tree, "vision_tower": tree} | tree)
    assert len(found) == 3


def _nnx_lora():
    layer = nnx.LoRALinear(6, 10, lora_rank=2, rngs=nnx.Rngs(0))
    layer.lora.lora_b.set_value(jnp.asarray(_array(2, 10)))
    merged = layer.kernel.get_value() + 0.5 * layer.lora.lora_a.get_value() @ layer.lora.lora_b.get_value()
    return layer, np.asarray(merged).T


def _nnx_wrapped():
    linear = nnx.Linear(6, 10, rngs=nnx.Rngs(1))
    layer = nnx.LoRA(6, 2, 10, base_module=linear, rngs=nnx.Rngs(0))
    layer.lora_b.set_value(jnp.asarray(_array(2, 10)))
    merged = linear.kernel.get_value() + 0.5 * layer.lora_a.get_value() @ layer.lora_b.get_value()
    return layer, np.asarray(merged).T


def _peft():
    weight, a, b = _array(10, 6), _array(2, 6), _array(10, 2)
    tree = {
        "base_model": {
            "q_proj": {
                "base_layer": {"weight": weight},
                "lora_A": {"default": {"weight": a}},
                "lora_B": {"default": {"weight": b}},
            }
        }
    }
    return tree, weight + 0.5 * b @ a


def _beside():
    kernel, a, b = _array(6, 10), _array(6, 2), _array(2, 10)
    return {"dense": {"kernel": kernel, "lora_a": a, "lora_b": b}}, (kernel + 0.5 * a @ b).T


@pytest.mark.parametrize("make", [_nnx_lora, _nnx_wrapped, _peft, _beside])
def test_an_adapter_is_merged_into_its_weight(make):
    tree, merged = make()
    (matrix,) = read_all(tree, scale=0.5).values()
    np.testing.assert_allclose(matrix, _tall(merged), rtol=1e-5, atol=1e-6)


def test_adapters_of_layers_in_a_stack_scaled_by_name():
    kernel, a, b = _array(3, 8, 6), _array(3, 8, 2), _array(3, 2, 6)
    tree = {"layers": {"self_attn": {"q_proj": {"kernel": kernel, "lora_a": a, "lora_b": b}}}}
    asked = []

    def scale(name):
        asked.append(name)
        return 2.0

    found = read_all(tree, scale=scale)
    assert asked == ["layers.self_attn.q_proj.kernel"]
    for layer in range(3):
        merged = kernel[layer] + 2 * a[layer] @ b[layer]
        np.testing.assert_allclose(found[f"q/layer_{layer:02d}"], _tall(merged.T), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ({"x.lora_a": (6, 2)}, "no other half"),
        ({"x.lora_a": (6, 2), "x.lora_b": (2, 10)}, "has no weight beside it"),
        ({"x.kernel": (10, 6), "x.lora_a": (5, 2), "x.lora_b": (2, 10)}, "does not fit its weight 'x.kernel' (10, 6)"),
    ],
    ids=["half", "no weight", "shapes"],
)
def test_adapters_that_cannot_be_merged(shapes, message):
    with pytest.raises(UsageError) as caught:
        find_adapters(shapes, 1.0)
    assert message in str(caught.value)


def test_an_adapter_moves_its_weight():
    """A and B start as nnx has them, B zero: at first nothing has changed."""
    layer = nnx.LoRALinear(24, 20, lora_rank=2, rngs=nnx.Rngs(0))
    tracker = polarax.Tracker(every=1, metrics="change")
    state = tracker.init(layer)
    state, metrics = tracker.update(state, layer, 0)
    assert metrics.scalars()["spectra/other/kernel/drift"] == 0
    layer.lora.lora_b.set_value(jnp.full((2, 20), 0.1))
    _, metrics = tracker.update(state, layer, 1)
    change = np.asarray(layer.lora.lora_a.get_value() @ layer.lora.lora_b.get_value())
    expected = np.linalg.norm(change) / np.linalg.norm(layer.kernel.get_value())
    assert metrics.scalars()["spectra/other/kernel/drift"] == pytest.approx(expected, rel=1e-5)


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Linear:
    weight: jax.Array
    bias: jax.Array


def test_modules_that_are_pytrees_are_followed_under_the_names_of_a_comparison():
    Block = collections.namedtuple("Block", "attention")

    def tree(scale):
        layer = Linear(jnp.asarray(scale * _array(20, 16)), jnp.ones(20))
        return {
            "blocks": [Block({"q_proj": layer})],
            "encoder": layer,
            "head": {"kernel": jnp.eye(16)},
            "f": jax.nn.relu,
        }

    base, post = tree(1.0), tree(2.0)
    tracker = polarax.Tracker(every=1, metrics="change")
    state = tracker.init(base)
    compared = polarax.compare(base, post, progress=False).frame().set_index("name")
    assert {label.name for label in state.metrics.labels} <= set(compared.index)
    assert {"encoder.weight", "blocks.0.attention.q_proj.weight"} <= {label.name for label in state.metrics.labels}
    _, metrics = jax.jit(tracker.update, static_argnames="step")(state, post | {"f": None}, step=0)
    for label, drift in zip(metrics.labels, metrics.readings["drift"], strict=True):
        assert drift == pytest.approx(compared.loc[label.name, "drift"], rel=1e-4)
    matrices = read_all({"net": base["encoder"]})
    np.testing.assert_array_equal(matrices["other/net.weight"], base["encoder"].weight)
