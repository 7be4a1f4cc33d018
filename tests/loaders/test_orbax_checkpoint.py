"""Orbax checkpoints, saved by Orbax and Flax as training code does."""

import json
import shutil

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from flax import nnx
from flax.training import train_state
from orbax.checkpoint import v1

from polarax.loaders import CheckpointError, open_checkpoint, pair_checkpoints


class Block(nnx.Module):
    def __init__(self, rngs):
        self.norm = nnx.RMSNorm(8, rngs=rngs)
        self.attn = nnx.MultiHeadAttention(2, 8, rngs=rngs)
        self.mlp = nnx.Linear(8, 12, rngs=rngs)


class Model(nnx.Module):
    def __init__(self, rngs):
        self.embed = nnx.Embed(16, 8, rngs=rngs)
        self.layers = nnx.List([Block(rngs) for _ in range(2)])
        self.dropout = nnx.Dropout(0.1, rngs=rngs)


@pytest.fixture(scope="module")
def model():
    return Model(nnx.Rngs(0))


@pytest.fixture(scope="module")
def tree(model):
    return nnx.to_pure_dict(nnx.state(model, nnx.Param))


def save_standard(path, tree):
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(path, tree)


def save_nnx_state(path, tree):
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(path, nnx.state(Model(nnx.Rngs(0)), nnx.Param))


def save_manager(path, tree):
    with ocp.CheckpointManager(path) as manager:
        for step in (1, 20, 3):
            value = tree if step == 20 else jax.tree.map(jnp.zeros_like, tree)
            manager.save(step, args=ocp.args.StandardSave({"params": value, "step": step}), force=True)


def save_items(path, tree):
    with ocp.CheckpointManager(path) as manager:
        items = {"opt": {"count": jnp.zeros(())}, "params": tree, "meta": {"loss": 1.5}}
        saves = {"opt": ocp.args.StandardSave, "params": ocp.args.StandardSave, "meta": ocp.args.JsonSave}
        manager.save(4, args=ocp.args.Composite(**{name: saves[name](item) for name, item in items.items()}))


def save_v1_steps(path, tree):
    with v1.training.Checkpointer(path) as checkpointer:
        checkpointer.save(2, jax.tree.map(jnp.zeros_like, tree))
        checkpointer.save(11, tree)


LAYOUTS = {
    "StandardCheckpointer": save_standard,
    "StandardCheckpointer of an nnx.State": save_nnx_state,
    "PyTreeCheckpointer": lambda path, tree: ocp.PyTreeCheckpointer().save(path, {"params": tree, "note": "x"}),
    "without OCDBT": lambda path, tree: ocp.PyTreeCheckpointer(use_ocdbt=False).save(path, {"params": tree}),
    "zarr3": lambda path, tree: ocp.PyTreeCheckpointer(use_zarr3=True).save(path, {"params": tree}),
    "CheckpointManager": save_manager,
    "CheckpointManager of several items": save_items,
    "v1": lambda path, tree: v1.save(path, tree),
    "v1 steps": save_v1_steps,
}


@pytest.fixture(scope="module", params=LAYOUTS)
def saved(request, tree, tmp_path_factory):
    path = tmp_path_factory.mktemp("orbax") / "checkpoint"
    LAYOUTS[request.param](path, tree)
    return path


def test_every_layout_holds_the_tree_that_was_saved(saved, tree):
    checkpoint, expected = open_checkpoint(saved), open_checkpoint(tree)
    assert checkpoint.format == "Orbax"
    assert set(expected.names()) <= set(checkpoint.names())
    for name in expected.names():
        assert checkpoint.shape(name) == expected.shape(name)
        np.testing.assert_array_equal(checkpoint.read(name).result(), expected.read(name).result())
    pairs, skipped = pair_checkpoints(checkpoint, expected)
    assert len(pairs) == 1 + 2 * 5
    assert {pair.role for pair in pairs} == {"embed", "q", "k", "v", "o", "other"}
    for pair in pairs:
        np.testing.assert_array_equal(pair.base.read(checkpoint).result(), pair.post.read(expected).result())
    assert {reason for name, reason in skipped if name in expected} == {"1-D: not a matrix", "2-D bias: not a matrix"}


@pytest.fixture(scope="module")
def plain(tree, tmp_path_factory):
    """A tree in the simplest layout, to be damaged in copies."""
    path = tmp_path_factory.mktemp("orbax") / "plain"
    ocp.PyTreeCheckpointer(use_ocdbt=False).save(path, {"params": tree})
    return path


def test_matrices_of_attention(plain, tree):
    """Queries are (in, heads, size of a head), the output projection (heads, size of a head, out)."""
    checkpoint = open_checkpoint(plain)
    pairs, _ = pair_checkpoints(checkpoint, checkpoint)
    read = {pair.name: pair.base.read(checkpoint).result() for pair in pairs}
    attention = tree["layers"][1]["attn"]
    np.testing.assert_array_equal(read["layers.1.attn.query.kernel"], attention["query"]["kernel"].reshape(8, 8).T)
    np.testing.assert_array_equal(read["layers.1.attn.out.kernel"], attention["out"]["kernel"].reshape(8, 8).T)


def test_slices_are_numpys_on_the_out_in_view(plain):
    checkpoint = open_checkpoint(plain)
    for name in ("layers.0.mlp.kernel", "embed.embedding"):
        whole = checkpoint.read(name).result()
        for index in (slice(1, 3), (slice(None, None, -1), slice(0, 2)), (slice(-2, None, -2), slice(99)), slice(9, 2)):
            np.testing.assert_array_equal(checkpoint.read(name, index).result(), whole[index])
    assert len(checkpoint.fingerprint()) == 16


def test_one_step_or_item_can_be_named(tree, tmp_path):
    save_manager(tmp_path / "run", tree)
    assert not open_checkpoint(tmp_path / "run" / "3").read("layers.0.mlp.kernel").result().any()
    assert open_checkpoint(tmp_path / "run" / "20" / "default").read("layers.0.mlp.kernel").result().any()
    assert open_checkpoint((tmp_path / "run" / "20" / "default").as_uri()).names()


def test_a_step_that_was_not_finished_is_not_the_latest(tree, tmp_path):
    save_manager(tmp_path, tree)
    (tmp_path / "21.orbax-checkpoint-tmp-1").mkdir()
    (tmp_path / "22" / "default").mkdir(parents=True)
    assert open_checkpoint(tmp_path).read("layers.0.mlp.kernel").result().any()


def test_optimizer_state_and_random_keys_of_nnx(model, tmp_path):
    optimizer = nnx.Optimizer(model, optax.adam(1e-3), wrt=nnx.Param)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "state", {"model": nnx.state(model), "optimizer": nnx.state(optimizer)})
    checkpoint = open_checkpoint(tmp_path / "state")
    pairs, skipped = pair_checkpoints(checkpoint, open_checkpoint(model))
    assert len(pairs) == 11
    assert pairs[0].name == "model.embed.embedding"
    reasons = dict(skipped)
    moments = [name for name in reasons if ".mu." in name or ".nu." in name]
    assert len(moments) == 2 * len(open_checkpoint(nnx.state(model, nnx.Param)).names())
    assert {reasons[name] for name in moments} == {"optimizer state: not a parameter"}


class Transformer(nn.Module):
    @nn.compact
    def __call__(self, x):
        def body(block, x, _):
            return block(x), None

        scanned = nn.scan(
            body, variable_axes={"params": 0}, split_rngs={"params": True}, length=3, in_axes=nn.broadcast
        )
        return scanned(Encoder(name="blocks"), x, None)[0]


class Encoder(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = x + nn.MultiHeadDotProductAttention(num_heads=2, name="attention")(nn.LayerNorm(name="norm")(x))
        return x + nn.Dense(8, name="dense")(nn.gelu(nn.Dense(12, use_bias=False, name="hidden")(x)))


@pytest.fixture(scope="module")
def scanned():
    """A Linen training state whose three layers are stacked by `nn.scan`."""
    network = Transformer()
    variables = network.init(jax.random.key(0), jnp.zeros((1, 4, 8)))
    return train_state.TrainState.create(apply_fn=network.apply, params=variables["params"], tx=optax.adam(1e-3))


def test_scanned_layers_of_a_linen_training_state(scanned, tmp_path):
    with ocp.CheckpointManager(tmp_path) as manager:
        manager.save(1, args=ocp.args.StandardSave(scanned))
    checkpoint = open_checkpoint(tmp_path)
    pairs, skipped = pair_checkpoints(checkpoint, checkpoint)
    read = {pair.name: pair.base.read(checkpoint).result() for pair in pairs}
    assert len(read) == 3 * 6
    params = jax.device_get(scanned.params)["blocks"]
    for layer in range(3):
        query = params["attention"]["query"]["kernel"][layer].reshape(8, 8).T
        np.testing.assert_array_equal(read[f"blocks.attention.query.kernel[layer={layer}]"], query)
        out = params["attention"]["out"]["kernel"][layer].reshape(8, 8).T
        np.testing.assert_array_equal(read[f"blocks.attention.out.kernel[layer={layer}]"], out)
        hidden = params["hidden"]["kernel"][layer].T
        np.testing.assert_array_equal(read[f"blocks.hidden.kernel[layer={layer}]"], hidden)
    assert [(pair.layer, pair.role) for pair in pairs if "query" in pair.name] == [(0, "q"), (1, "q"), (2, "q")]
    reasons = dict(skipped)
    assert reasons["blocks.dense.bias"] == "2-D bias: not a matrix"
    assert reasons["blocks.norm.scale"] == "2-D scale: not a matrix"
    assert reasons["opt_state.0.mu.blocks.hidden.kernel"] == "optimizer state: not a parameter"


def damaged(plain, tmp_path, change):
    path = tmp_path / "damaged"
    shutil.copytree(plain, path)
    metadata = json.loads((path / "_METADATA").read_text())
    (path / "_METADATA").write_text(change(metadata))
    return path


def with_entry(keys, kind="jax.Array"):
    def change(metadata):
        entry = {"key_metadata": [{"key": key, "key_type": 2} for key in keys], "value_metadata": {"value_type": kind}}
        metadata["tree_metadata"]["added"] = entry
        return json.dumps(metadata)

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda metadata: json.dumps(metadata)[:100], "_METADATA: expected JSON: "),
        (lambda metadata: "", "_METADATA: expected JSON: "),
        (lambda metadata: "[]", "_METADATA: expected tree_metadata, an object that lists the arrays"),
        (lambda metadata: '{"tree_metadata": 3}', "_METADATA: expected tree_metadata"),
        (lambda metadata: '{"tree_metadata": {"w": {}}}', "entry 'w': expected key_metadata and value_metadata"),
        (with_entry(["..", "w"]), "expected names inside the folder"),
        (with_entry(["a/../../w"]), "expected names inside the folder"),
        (with_entry([]), "expected names inside the folder"),
        (with_entry(["absent"]), "array 'absent', which _METADATA lists, cannot be opened: "),
        (with_entry(["embed", "embedding"]), "two arrays are named 'embed.embedding'"),
    ],
)
def test_damaged_metadata(plain, tmp_path, change, message):
    with pytest.raises(CheckpointError, match=message) as caught:
        open_checkpoint(damaged(plain, tmp_path, change))
    assert "\n" not in str(caught.value)


def test_damaged_arrays(plain, tmp_path):
    path = damaged(plain, tmp_path, json.dumps)
    (path / "params.embed.embedding" / "0.0").write_bytes(b"no zstd")
    with pytest.raises(CheckpointError, match="tensor 'embed.embedding': cannot be read: "):
        open_checkpoint(path).read("embed.embedding").result()
    (path / "params.embed.embedding" / ".zarray").write_text('{"chunks": [')
    with pytest.raises(CheckpointError, match="array 'embed.embedding', which _METADATA lists, cannot be opened"):
        open_checkpoint(path)


def test_a_damaged_database(tree, tmp_path):
    save_standard(tmp_path / "saved", tree)
    (tmp_path / "saved" / "manifest.ocdbt").write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match="cannot be opened"):
        open_checkpoint(tmp_path / "saved")


def test_items_of_which_none_is_known(plain, tmp_path):
    for name in ("first", "second"):
        shutil.copytree(plain, tmp_path / name)
    with pytest.raises(CheckpointError, match="has several Orbax items; name one of them: first, second"):
        open_checkpoint(tmp_path)


def test_names_with_dots_and_what_is_no_array(tmp_path):
    tree = {"a.b": {"c": jnp.ones((2, 3))}, "name": "model", "step": 3, "nothing": None}
    ocp.PyTreeCheckpointer().save(tmp_path / "saved", tree)
    checkpoint = open_checkpoint(tmp_path / "saved")
    assert checkpoint.shape("a.b.c") == (2, 3)
    assert checkpoint.dtype("name") is checkpoint.dtype("nothing") is None
    assert checkpoint.read("step").result() == 3
    assert checkpoint.why_no_array("a.b.c") is checkpoint.why_no_array("step") is None
    assert checkpoint.why_no_array("name") == "string: not an array"
    assert "not an array" in checkpoint.why_no_array("nothing")
    with pytest.raises(CheckpointError, match="tensor 'name' is stored as string, which cannot be read"):
        checkpoint.read("name")


def test_low_precision(tmp_path):
    dtypes = (jnp.bfloat16, jnp.float16, jnp.float8_e4m3fn)
    tree = {np.dtype(dtype).name: {"kernel": jnp.ones((2, 3), dtype)} for dtype in dtypes}
    ocp.PyTreeCheckpointer().save(tmp_path / "saved", tree)
    checkpoint = open_checkpoint(tmp_path / "saved")
    for dtype in map(np.dtype, dtypes):
        assert (
            checkpoint.read(f"{dtype.name}.kernel").result().dtype == dtype == checkpoint.dtype(f"{dtype.name}.kernel")
        )
        assert checkpoint.shape(f"{dtype.name}.kernel") == (3, 2)


@pytest.mark.parametrize("ocdbt", [True, False])
def test_over_http(tree, web, ocdbt):
    ocp.PyTreeCheckpointer(use_ocdbt=ocdbt).save(web.root / "run" / "default", {"params": tree})
    expected = open_checkpoint(tree)
    for url in (web.url + "run", web.url + "run/default/"):
        checkpoint = open_checkpoint(url)
        for name in ("embed.embedding", "layers.1.mlp.kernel"):
            np.testing.assert_array_equal(checkpoint.read(name).result(), expected.read(name).result())


def test_nothing_over_http(web):
    with pytest.raises(CheckpointError, match="looked for model.safetensors and model.safetensors.index.json, and for"):
        open_checkpoint(web.url + "nothing")
