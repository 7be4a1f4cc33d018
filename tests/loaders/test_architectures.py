import collections
import functools
import json
import math
import pathlib
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from polarax.loaders import ROLES, Identity, identify, open_checkpoint
from polarax.loaders.architectures import ARCHITECTURES
from polarax.loaders.matrices import take_inventory

PUBLISHED = json.loads(pathlib.Path(__file__).with_name("published_models.json").read_text())


def shapes_of(model):
    """Name and shape of every tensor of a published model."""
    shapes = dict(model["outside"])
    for prefix, layers in model["layers"].items():
        first = layers.get("start", 0)
        for layer in range(first, first + layers["count"]):
            for name, shape in layers["tensors"].items():
                name = prefix.replace("#", str(layer)) + name
                experts = range(layers["experts"]) if "@" in name else [None]
                shapes.update({name.replace("@", str(expert)): shape for expert in experts})
    return {name: tuple(shape) for name, shape in shapes.items()}


@pytest.fixture(scope="module")
def inventory_of():
    """The matrices of a published model, from its names, shapes and configuration."""

    @functools.cache
    def listed(name):
        model = PUBLISHED[name]
        return take_inventory(tree_of(model), config=model.get("config"))

    return listed


def tree_of(model):
    zero = np.float32(0)
    return open_checkpoint({name: np.broadcast_to(zero, shape) for name, shape in shapes_of(model).items()})


def views_of(inventory):
    return [view for views in inventory.views.values() for view in views]


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_matrix_of_a_published_model_has_its_role(name, inventory_of):
    roles = collections.Counter(view.role for view in views_of(inventory_of(name)))
    assert roles == collections.Counter(PUBLISHED[name]["roles"])


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_tensor_of_a_published_model_is_a_matrix_or_has_a_reason(name, inventory_of):
    inventory = inventory_of(name)
    shapes = shapes_of(PUBLISHED[name])
    assert set(inventory.views) | set(inventory.reasons) == set(shapes)
    assert set(inventory.views).isdisjoint(inventory.reasons)
    for tensor, reason in inventory.reasons.items():
        words = rf"{len(shapes[tensor])}-D( bias| scale)?: not a matrix"
        assert re.fullmatch(words, reason), tensor


@pytest.mark.parametrize("name", PUBLISHED)
def test_matrices_of_a_published_model_take_up_their_tensors(name, inventory_of):
    """Every number of a tensor is in one of its matrices, and in no other."""
    shapes = shapes_of(PUBLISHED[name])
    for tensor, views in inventory_of(name).views.items():
        assert sum(math.prod(view.shape) for view in views) == math.prod(shapes[tensor]), tensor


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_layer_of_a_published_model_is_complete(name, inventory_of):
    """A role that is in the layers at all is in each of them, for each expert, and once."""
    counts = collections.Counter(
        (view.tensor.split(".")[0] if "t5" in name else "", view.layer, view.role, view.expert)
        for view in views_of(inventory_of(name))
        if view.role not in ("other", "position") and view.layer is not None
    )
    assert counts and set(counts.values()) == {1}
    for layers in PUBLISHED[name]["layers"].values():
        if "experts" in layers:
            experts = collections.Counter(expert for _, _, role, expert in counts if role == "down")
            assert {expert for expert in experts if expert is not None} == set(range(layers["experts"]))


@pytest.mark.parametrize("name", [name for name, model in PUBLISHED.items() if {"parts", "outside_parts"} & set(model)])
def test_matrices_within_tensors_of_a_published_model(name, inventory_of):
    model = PUBLISHED[name]
    prefix = next(iter(model["layers"]), "").replace("#", "1")
    expected = {prefix + part: tuple(shape) for part, shape in model.get("parts", {}).items()}
    expected |= {part: tuple(shape) for part, shape in model.get("outside_parts", {}).items()}
    found = {view.name: view.shape for view in views_of(inventory_of(name)) if view.name in expected}
    assert found == expected


@pytest.mark.parametrize("name", [name for name, model in PUBLISHED.items() if "config" in model])
def test_heads_that_alternate_need_the_configuration(name):
    """Without it queries, keys and values stay together, and it shows; Falcon says in it how it orders them."""
    model = PUBLISHED[name]
    roles = collections.Counter(view.role for view in views_of(take_inventory(tree_of(model))))
    assert roles["qkv"] == model["roles"]["q"]
    assert not {"q", "k", "v"} & set(roles)


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
