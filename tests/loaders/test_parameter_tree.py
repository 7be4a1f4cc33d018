import collections
import subprocess
import sys

import flax.core
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

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
