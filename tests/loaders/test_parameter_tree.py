import collections
import dataclasses
import pathlib
import subprocess
import sys

import flax.core
import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from flax import nnx
from flax.training import train_state

from polarax.loaders import CheckpointError, open_checkpoint, pair_checkpoints


class Linen(nn.Module):
    @nn.compact
    def __call__(self, tokens):
        x = nn.Embed(7, 4, name="embed_tokens")(tokens)
        for layer in range(2):
            x = nn.Dense(5, name=f"layers_{layer}")(x)
            x = nn.BatchNorm(use_running_average=True)(x)
        return nn.Conv(3, (2,))(x)


class Nnx(nnx.Module):
    def __init__(self, rngs):
        self.embed_tokens = nnx.Embed(7, 4, rngs=rngs)
        self.layers = nnx.List([nnx.Linear(4, 3, rngs=rngs) for _ in range(2)])
        self.dropout = nnx.Dropout(0.1, rngs=rngs)


@pytest.fixture
def variables():
    return Linen().init(jax.random.key(0), jnp.zeros((1, 2), int))


@pytest.fixture
def module():
    return Nnx(nnx.Rngs(0))


def test_nested_containers_become_dotted_names():
    Point = collections.namedtuple("Point", "x y")
    tree = {
        "a": {"b": np.zeros((2, 3)), 0: np.ones(1)},
        "c": [np.zeros(1), (np.zeros(2), None)],
        "p": Point(np.zeros(3), 1.5),
        "empty": {},
    }
    checkpoint = open_checkpoint(tree)
    assert checkpoint.names() == ("a.b", "a.0", "c.0", "c.1.0", "p.x", "p.y")
    assert checkpoint.format == "parameter tree"
    assert checkpoint.read("p.y").result() == 1.5
    assert checkpoint.dtype_name("p.y") == "float64"


@pytest.mark.parametrize("freeze", [False, True])
@pytest.mark.parametrize("inner", [False, True])
def test_linen_parameters(variables, freeze, inner):
    tree = {"params": variables["params"]}
    tree = flax.core.freeze(tree) if freeze else tree
    checkpoint = open_checkpoint(tree["params"] if inner else tree)
    kernel = variables["params"]["layers_1"]["kernel"]
    assert checkpoint.shape("layers_1.kernel") == (5, 5)
    assert checkpoint.shape("layers_0.kernel") == (5, 4)
    np.testing.assert_array_equal(checkpoint.read("layers_1.kernel").result(), kernel.T)
    assert checkpoint.shape("embed_tokens.embedding") == (7, 4)
    assert checkpoint.shape("Conv_0.kernel") == (2, 5, 3)


def test_linen_collections_beside_the_parameters_keep_their_name(variables):
    names = open_checkpoint(variables).names()
    assert "layers_0.kernel" in names
    assert "batch_stats.BatchNorm_0.mean" in names


def test_linen_boxes_are_opened():
    init = nn.with_partitioning(nn.initializers.ones, ("in", "out"))
    boxed = nn.Dense(3, kernel_init=init).init(jax.random.key(0), jnp.ones((1, 2)))
    checkpoint = open_checkpoint(boxed)
    assert sorted(checkpoint.names()) == ["bias", "kernel"]
    assert checkpoint.shape("kernel") == (3, 2)


def test_nnx_module_and_state(module):
    for source in (module, nnx.state(module), nnx.to_pure_dict(nnx.state(module))):
        checkpoint = open_checkpoint(source)
        kernel = module.layers[1].kernel[...]
        assert checkpoint.shape("layers.1.kernel") == (3, 4)
        np.testing.assert_array_equal(checkpoint.read("layers.1.kernel").result(), kernel.T)
        assert checkpoint.shape("embed_tokens.embedding") == (7, 4)
        assert checkpoint.dtype("dropout.rngs.count") == np.uint32
        assert checkpoint.dtype("dropout.rngs.key") is None
        with pytest.raises(CheckpointError, match=r"'dropout.rngs.key' is stored as key"):
            checkpoint.read("dropout.rngs.key")


def test_nnx_states_are_paired(module):
    parameters = nnx.state(module, nnx.Param)
    pairs, skipped = pair_checkpoints(open_checkpoint(parameters), open_checkpoint(module))
    assert [pair.name for pair in pairs] == [
        "embed_tokens.embedding",
        "layers.0.kernel",
        "layers.1.kernel",
    ]
    reasons = dict(skipped)
    assert reasons["layers.0.bias"] == "1-D: not a matrix"
    assert reasons["dropout.rngs.key"] == "0-D: not a matrix"


@pytest.mark.parametrize("make", [np.asarray, jnp.asarray])
def test_slices_are_of_the_out_in_view(make):
    kernel = np.arange(12, dtype=np.float32).reshape(3, 4)
    checkpoint = open_checkpoint({"kernel": make(kernel), "weight": make(kernel)})
    for index in (slice(1, 3), (slice(None, None, -1), slice(0, 2)), (slice(None), slice(1)), ()):
        read = checkpoint.read("kernel", index).result()
        np.testing.assert_array_equal(read, kernel.T[index])
        np.testing.assert_array_equal(checkpoint.read("weight", index).result(), kernel[index])
    with pytest.raises(TypeError, match="slices only"):
        checkpoint.read("kernel", 1)


def test_only_what_is_called_kernel_and_has_two_axes_is_transposed():
    tree = {
        "kernel": np.zeros((2, 3, 4)),
        "my_kernel": np.zeros((2, 3)),
        "weight": np.zeros((2, 3)),
    }
    checkpoint = open_checkpoint(tree)
    assert [checkpoint.shape(n) for n in tree] == [(2, 3, 4), (2, 3), (2, 3)]


def test_dtypes_stay_as_they_are():
    for dtype in (jnp.bfloat16, jnp.float8_e4m3fn, jnp.float8_e5m2, jnp.float16, jnp.int4):
        checkpoint = open_checkpoint({"w": jnp.ones((2, 2), dtype)})
        assert checkpoint.dtype("w") == checkpoint.read("w").result().dtype == np.dtype(dtype)


def test_numpy_arrays_are_not_copied_and_cannot_be_written():
    array = np.zeros((2, 3), np.float32)
    read = open_checkpoint({"w": array}).read("w").result()
    assert np.shares_memory(read, array)
    assert not read.flags.writeable
    assert array.flags.writeable


def test_device_arrays_are_fetched_when_they_are_read(monkeypatch):
    fetched = []
    checkpoint = open_checkpoint({"w": jnp.ones((2, 2))})
    monkeypatch.setattr(np, "asarray", lambda array: fetched.append(array) or np.array(array))
    assert fetched == []
    checkpoint.read("w").result()
    assert len(fetched) == 1


def test_many_reads_are_begun_before_the_first_is_waited_for():
    tree = {f"w{i}": jnp.full((2, 2), i) for i in range(20)}
    checkpoint = open_checkpoint(tree)
    for i, read in enumerate([checkpoint.read(name) for name in tree]):
        np.testing.assert_array_equal(read.result(), np.full((2, 2), i))


@pytest.mark.parametrize("source", [3, None, np.zeros((2, 2)), object()])
def test_what_is_no_tree(source):
    with pytest.raises(CheckpointError, match="expected a path, a URL, a nested dict"):
        open_checkpoint(source)


def test_two_arrays_of_one_name():
    with pytest.raises(CheckpointError, match=r"two arrays are named 'a\.b'"):
        open_checkpoint({"a.b": np.zeros(1), "a": {"b": np.zeros(1)}})


def test_an_abstract_array():
    shapes = jax.eval_shape(lambda: {"w": jnp.zeros((2, 2))})
    with pytest.raises(CheckpointError, match="tensor 'w' is abstract"):
        open_checkpoint(shapes)


def test_a_donated_array():
    array = jnp.zeros((2, 2))
    checkpoint = open_checkpoint({"w": array})
    array.delete()
    for index in (None, slice(1)):
        with pytest.raises(CheckpointError, match="tensor 'w': cannot be read"):
            checkpoint.read("w", index).result()


def test_leaves_that_are_no_arrays_are_listed():
    checkpoint = open_checkpoint({"name": "bert", "w": np.zeros((2, 2)), "o": np.array([{}])})
    assert checkpoint.names() == ("name", "w", "o")
    assert checkpoint.dtype("name") is checkpoint.dtype("o") is None
    assert checkpoint.dtype_name("name") == "str"
    with pytest.raises(CheckpointError, match="'name' is stored as str, which cannot be read"):
        checkpoint.read("name")


def test_flax_is_not_imported_for_a_plain_tree():
    program = """
import sys
import numpy as np
from polarax.loaders import open_checkpoint
open_checkpoint({"w": np.zeros((2, 2))}).fingerprint()
assert "flax" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Registered:
    weight: object
    bias: object
    activation: object = dataclasses.field(default=jax.nn.relu, metadata={"static": True})


@flax.struct.dataclass
class Struct:
    weight: object
    bias: object
    activation: object = flax.struct.field(pytree_node=False, default=jax.nn.relu)


class Node(flax.struct.PyTreeNode):
    weight: object
    bias: object


class Module:
    """Registered with keys, as Equinox registers its modules: fields by GetAttrKey, static ones aside."""

    def __init__(self, weight, bias):
        self.weight, self.bias, self.activation = weight, bias, jax.nn.relu

    def with_keys(self):
        keys = jax.tree_util.GetAttrKey
        return ((keys("weight"), self.weight), (keys("bias"), self.bias)), (self.activation,)


jax.tree_util.register_pytree_with_keys(Module, Module.with_keys, lambda _, children: Module(*children))

Fields = collections.namedtuple("Fields", "weight bias")
CLASSES = [Registered, Struct, Node, Module, Fields, lambda weight, bias: {"weight": weight, "bias": bias}]


class TestRegisteredPytrees:
    @pytest.mark.parametrize("make", CLASSES, ids=["dataclass", "struct", "PyTreeNode", "keys", "namedtuple", "dict"])
    def test_leaves_by_the_keys_that_lead_to_them(self, make):
        layer = make(np.zeros((3, 4)), np.zeros(3))
        whole = make([layer, {"inner": layer}], None)
        assert open_checkpoint(layer).names() == ("weight", "bias")
        assert open_checkpoint({"encoder": layer}).names() == ("encoder.weight", "encoder.bias")
        checkpoint = open_checkpoint({"params": {"net": whole}})
        expected = {f"net.weight.{place}.{name}" for place in ("0", "1.inner") for name in ("weight", "bias")}
        assert set(checkpoint.names()) == expected  # no static field, no None
        assert checkpoint.shape("net.weight.1.inner.weight") == (3, 4)  # (out, in) as it is

    @pytest.mark.parametrize(
        ("keys", "names"),
        [
            (jax.tree_util.DictKey, ("x.0", "x.1")),
            (jax.tree_util.SequenceKey, ("x.0", "x.1")),
            (lambda place: jax.tree_util.GetAttrKey(f"w{place}"), ("x.w0", "x.w1")),
            (jax.tree_util.FlattenedIndexKey, ("x.0", "x.1")),
            (None, ("x.0", "x.1")),
        ],
    )
    def test_every_kind_of_key(self, keys, names):
        class Pair:
            children = (np.zeros((2, 2)), np.ones((2, 2)))

        if keys is None:
            jax.tree_util.register_pytree_node(Pair, lambda pair: (pair.children, None), lambda *_: Pair())
        else:
            jax.tree_util.register_pytree_with_keys(
                Pair,
                lambda pair: ([(keys(place), child) for place, child in enumerate(pair.children)], None),
                lambda *_: Pair(),
            )
        assert open_checkpoint({"x": Pair()}).names() == names

    def test_kernels_in_them_are_transposed(self):
        Layer = collections.namedtuple("Layer", "kernel")
        assert open_checkpoint(Struct(Layer(np.zeros((3, 4))), None)).shape("weight.kernel") == (4, 3)

    def test_a_train_state(self, variables):
        state = train_state.TrainState.create(apply_fn=None, params=variables["params"], tx=optax.adam(1e-3))
        pairs, skipped = pair_checkpoints(open_checkpoint(variables["params"]), open_checkpoint(state))
        assert {pair.name for pair in pairs} >= {"layers_0.kernel", "layers_1.kernel"}
        assert dict(skipped)["opt_state.0.mu.layers_0.kernel"] == "optimizer state: not a parameter"

    def test_nnx_modules_and_variables_in_containers(self, module):
        inside = open_checkpoint({"net": module, "head": nnx.Param(jnp.zeros((2, 3))), "more": Struct(module, None)})
        alone = open_checkpoint(module)
        assert set(inside.names()) >= {f"net.{name}" for name in alone.names()} | {
            "head",
            "more.weight.layers.0.kernel",
        }
        assert inside.shape("net.layers.1.kernel") == alone.shape("layers.1.kernel")

    def test_names_are_those_that_orbax_writes(self, tmp_path):
        tree = {"encoder": Struct(jnp.zeros((3, 4)), {"inner": Registered(jnp.zeros((2, 3)), jnp.zeros(2))})}
        with ocp.StandardCheckpointer() as checkpointer:
            checkpointer.save(tmp_path / "tree", tree)
        assert set(open_checkpoint(tmp_path / "tree").names()) == set(open_checkpoint(tree).names())

    def test_objects_that_are_no_pytrees_say_so(self):
        @dataclasses.dataclass
        class Unregistered:
            weight: object

        tree = {
            "encoder": Unregistered(np.zeros((2, 2))),
            "path": pathlib.PurePath("a"),
            "activation": jax.nn.gelu,
            "name": "bert",
            "step": 3,
            "none": None,
            "w": np.zeros((2, 2)),
        }
        pairs, skipped = pair_checkpoints(open_checkpoint(tree), open_checkpoint(dict(tree)))
        assert [pair.name for pair in pairs] == ["w"]
        reasons = dict(skipped)
        assert reasons.pop("step") == "0-D: not a matrix" and set(reasons) == {"encoder", "path", "activation", "name"}
        assert all(reason.endswith("not looked into") for reason in reasons.values())
        assert (
            "Unregistered" in reasons["encoder"] and reasons["name"] == "a Python object of class str: not looked into"
        )
        for source in (tree["encoder"], tree["activation"]):
            with pytest.raises(CheckpointError, match="expected a path, a URL, a nested dict"):
                open_checkpoint(source)
