import collections
import json
import pathlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from polarax.loaders import ROLES, Identity, identify, open_checkpoint, pair_checkpoints
from polarax.loaders.architectures import ARCHITECTURES

PUBLISHED = json.loads(pathlib.Path(__file__).with_name("published_models.json").read_text())


def shapes_of(model):
    """Name and shape of every tensor of a published model."""
    shapes = dict(model["outside"])
    for prefix, layers in model["layers"].items():
        for layer in range(layers["count"]):
            for name, shape in layers["tensors"].items():
                shapes[prefix.replace("#", str(layer)) + name] = shape
    return {name: tuple(shape) for name, shape in shapes.items()}


@pytest.mark.parametrize("model", PUBLISHED)
def test_every_matrix_of_a_published_model_has_its_role(model):
    model = PUBLISHED[model]
    matrices = [name for name, shape in shapes_of(model).items() if len(shape) == 2]
    roles = collections.Counter(identify(name).role for name in matrices)
    assert roles == collections.Counter(model["roles"])


@pytest.mark.parametrize("model", PUBLISHED)
def test_every_layer_of_a_published_model_is_complete(model):
    model = PUBLISHED[model]
    decoder, layers = next(iter(model["layers"].items()))
    for name, shape in shapes_of(model).items():
        identity = identify(name)
        inside = name.startswith(decoder.partition("#")[0])
        assert (identity.layer is not None) == inside
        if len(shape) == 2 and inside:
            assert identity.role != "other"
            assert identity.layer in range(layers["count"])
            assert identity.expert is None


@pytest.mark.parametrize("model", PUBLISHED)
def test_every_tensor_of_a_published_model_is_paired_or_skipped(model):
    shapes = shapes_of(PUBLISHED[model])
    zero = np.float32(0)
    tree = {name: np.broadcast_to(zero, shape) for name, shape in shapes.items()}
    pairs, skipped = pair_checkpoints(open_checkpoint(tree), open_checkpoint(tree))
    assert {pair.name for pair in pairs} == {n for n, shape in shapes.items() if len(shape) == 2}
    assert {name for name, _ in skipped} == {n for n, shape in shapes.items() if len(shape) != 2}
    assert {reason for _, reason in skipped} <= {"1-D: not a matrix", "4-D: not a matrix"}


Q3 = Identity(3, "q", None)


@pytest.mark.parametrize(
    ("name", "identity"),
    [
        ("model.layers.3.self_attn.q_proj.weight", Q3),
        ("model.layers.3.self_attn.q_proj.kernel", Q3),
        ("model.layers.3.self_attn.q_proj", Q3),
        ("layers.3.self_attn.q_proj.weight", Q3),
        ("layers_3.self_attn.q_proj.kernel", Q3),
        ("params/model/layers_3/self_attn/q_proj/kernel", Q3),
        ("language_model.model.layers.3.self_attn.q_proj.weight", Q3),
        ("model.language_model.layers.3.self_attn.q_proj.weight", Q3),
        ("module.model.layers.3.self_attn.q_proj.weight", Q3),
        ("_orig_mod.model.layers.3.self_attn.q_proj.weight", Q3),
        ("encoder.layer.3.attention.self.query.weight", Q3),
        ("bert.encoder.layer.3.attention.self.query.weight", Q3),
        ("roberta.encoder.layer.3.attention.self.query.weight", Q3),
        ("model.encoder.layer.3.attention.self.query.kernel", Q3),
        ("bert.encoder.layer_3.attention.self.query.kernel", Q3),
        ("0.auto_model.encoder.layer.3.attention.self.query.weight", Q3),
        ("bert.encoder.layer.11.attention.output.dense.weight", Identity(11, "o", None)),
        ("bert.encoder.layer.11.output.dense.weight", Identity(11, "down", None)),
        ("model.embed_tokens.embedding", Identity(None, "embed", None)),
        ("embed_tokens.weight", Identity(None, "embed", None)),
        ("bert.embeddings.word_embeddings.embedding", Identity(None, "embed", None)),
        ("model.layers.2.mlp.experts.17.down_proj.weight", Identity(2, "down", 17)),
        ("model.layers.2.mlp.gate.weight", Identity(2, "router", None)),
        # Known layers with unknown tensors in them.
        ("model.layers.3.self_attn.q_norm.weight", Identity(3, "other", None)),
        ("encoder.layer.3.crossattention.output.LayerNorm.weight", Identity(3, "other", None)),
        # Nobody's layers, or somebody else's.
        ("vision_tower.vision_model.encoder.layers.3.self_attn.q_proj.weight", None),
        ("model.vision_tower.encoder.layers.3.self_attn.q_proj.weight", None),
        ("model.visual.layers.3.self_attn.q_proj.weight", None),
        ("decoder.model.layers.3.self_attn.q_proj.weight", None),
        ("mymodel.layers.3.self_attn.q_proj.weight", None),
        ("model.layers.x.self_attn.q_proj.weight", None),
        ("model.layers.", None),
        ("model.layers.9999999.self_attn.q_proj.weight", None),
        ("dense.kernel", None),
        ("", None),
    ],
)
def test_names(name, identity):
    assert identify(name) == (identity or Identity(None, "other", None))


def test_roles_are_those_of_the_tables():
    used = {
        rule.role
        for architecture in ARCHITECTURES
        for table in (architecture.in_layer, architecture.outside)
        for rule in table.values()
    }
    assert set(ROLES) == used | {"other"}
    assert len(set(ROLES)) == len(ROLES)
    assert ROLES[-1] == "other"


fragments = st.sampled_from(["model.", "layers.", "3.", "_", "experts.", "9" * 5000, "٣.", "q_proj"])


@given(st.text(max_size=20) | st.lists(fragments, max_size=8).map("".join))
def test_any_name_has_an_identity(name):
    assert identify(name).role in ROLES
