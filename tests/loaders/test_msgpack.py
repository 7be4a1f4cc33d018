"""Trees in msgpack: files of Flax, and what early Orbax kept in the file `checkpoint`."""

import json

import flax
import flax.serialization
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from flax.training import checkpoints
from orbax.checkpoint import msgpack_utils

from polarax.loaders import CheckpointError, open_checkpoint, pair_checkpoints

KERNEL = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)
TREE = {"params": {"layers_0": {"q_proj": {"kernel": KERNEL, "bias": np.zeros(4, np.float32)}}}, "step": 3}


def check(checkpoint):
    assert checkpoint.shape("layers_0.q_proj.kernel") == (4, 6)
    np.testing.assert_array_equal(checkpoint.read("layers_0.q_proj.kernel").result(), KERNEL.T)
    assert checkpoint.read("step").result() == 3
    pairs, _ = pair_checkpoints(checkpoint, open_checkpoint({"params": TREE["params"]}))
    assert [(pair.name, pair.role) for pair in pairs] == [("layers_0.q_proj.kernel", "q")]


@pytest.mark.parametrize("name", ["flax_model.msgpack", "checkpoint_1000", "checkpoint_2.5", "checkpoint"])
def test_a_file_of_flax(tmp_path, name):
    (tmp_path / name).write_bytes(flax.serialization.to_bytes(TREE))
    (tmp_path / "config.json").write_text('{"num_attention_heads": 2}')
    checkpoint = open_checkpoint(tmp_path / name)
    assert checkpoint.format == "Flax msgpack" and checkpoint.location == str(tmp_path / name)
    assert checkpoint.config == {"num_attention_heads": 2}
    check(checkpoint)
    check(open_checkpoint(tmp_path))


def test_what_flax_training_writes(tmp_path):
    with flax.config.temp_flip_flag("use_orbax_checkpointing", False):
        checkpoints.save_checkpoint(tmp_path, TREE, 10)
    check(open_checkpoint(tmp_path / "checkpoint_10"))


def test_low_precision(tmp_path):
    (tmp_path / "m.msgpack").write_bytes(flax.serialization.to_bytes({"w": jnp.ones((2, 3), jnp.bfloat16)}))
    assert open_checkpoint(tmp_path).dtype("w") == jnp.bfloat16


@pytest.mark.parametrize(
    ("name", "data", "problem"),
    [
        ("a.msgpack", b"\x82\xa1a", "a.msgpack: is no msgpack of flax.serialization, or is damaged"),
        ("a.msgpack", b"", "a.msgpack: is no msgpack"),
        ("a.msgpack", b"\x93\x01\x02\x03", "expected a nested dict of arrays. Got list"),
        ("a-00001-of-00002.msgpack", b"\x80", "is one of several files"),
        ("a.msgpack", flax.serialization.msgpack_serialize({"w": "//GDAPlaceholder:w"}), "array 'w' is not in it"),
    ],
)
def test_what_is_refused(tmp_path, name, data, problem):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(CheckpointError, match=problem) as caught:
        open_checkpoint(tmp_path / name)
    assert "\n" not in str(caught.value)


def test_a_text_file_named_checkpoint_is_none(tmp_path):
    """As TensorFlow leaves it."""
    (tmp_path / "checkpoint").write_text('model_checkpoint_path: "model.ckpt-1000"')
    with pytest.raises(CheckpointError, match="no checkpoint there"):
        open_checkpoint(tmp_path)


class TestOrbax:
    """The layouts of Orbax before it wrote `_METADATA`, written with its own msgpack and its arrays."""

    def placeholders(self, prefix="PLACEHOLDER://"):
        names = {"kernel": f"{prefix}params.layers_0.q_proj.kernel", "bias": f"{prefix}params.layers_0.q_proj.bias"}
        return {"params": {"layers_0": {"q_proj": names}}, "step": 3}

    def test_all_values_aggregated(self, tmp_path):
        step = tmp_path / "run" / "checkpoint_7"
        step.mkdir(parents=True)
        (step / "checkpoint").write_bytes(msgpack_utils.msgpack_serialize(TREE))
        for source in (tmp_path / "run", step):
            checkpoint = open_checkpoint(source)
            assert checkpoint.format == "Orbax"
            check(checkpoint)

    @pytest.mark.parametrize("ocdbt", [True, False])
    @pytest.mark.parametrize("prefix", ["PLACEHOLDER://", "AGGREGATED://"])
    def test_structure_in_msgpack_and_arrays_beside(self, tmp_path, ocdbt, prefix):
        ocp.PyTreeCheckpointer(use_ocdbt=ocdbt).save(tmp_path / "saved", TREE)
        (tmp_path / "saved" / "_METADATA").unlink()
        (tmp_path / "saved" / "checkpoint").write_bytes(msgpack_utils.msgpack_serialize(self.placeholders(prefix)))
        check(open_checkpoint(tmp_path / "saved"))

    def test_some_values_aggregated_beside_metadata(self, tmp_path):
        folder = tmp_path / "saved"
        ocp.PyTreeCheckpointer(use_ocdbt=False).save(folder, TREE)
        metadata = json.loads((folder / "_METADATA").read_text())
        for entry in metadata["tree_metadata"].values():
            if entry["key_metadata"][-1]["key"] == "kernel":
                entry["value_metadata"]["skip_deserialize"] = True
        (folder / "_METADATA").write_text(json.dumps(metadata))
        aggregated = self.placeholders()
        aggregated["params"]["layers_0"]["q_proj"]["kernel"] = KERNEL
        (folder / "checkpoint").write_bytes(msgpack_utils.msgpack_serialize(aggregated))
        check(open_checkpoint(folder))
        assert np.array_equal(open_checkpoint(folder).read("layers_0.q_proj.bias").result(), np.zeros(4))

    def test_damage_and_names_outside_are_refused(self, tmp_path):
        (tmp_path / "checkpoint").write_bytes(b"\x82\xa1")
        with pytest.raises(CheckpointError, match="/checkpoint: is no msgpack of flax.serialization, or is damaged"):
            open_checkpoint(tmp_path)
        (tmp_path / "checkpoint").write_bytes(msgpack_utils.msgpack_serialize({"a": "PLACEHOLDER://../a"}))
        with pytest.raises(CheckpointError, match="is in '../a'; expected a name inside the folder"):
            open_checkpoint(tmp_path)
        (tmp_path / "checkpoint").write_bytes(msgpack_utils.msgpack_serialize({"a": "PLACEHOLDER://a"}))
        with pytest.raises(CheckpointError, match="array 'a', which checkpoint lists, cannot be opened"):
            open_checkpoint(tmp_path)
