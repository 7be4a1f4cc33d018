import collections
import functools
import json
import math
import pathlib
import re
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from polarax.loaders import ROLES, Identity, architectures, identify, open_checkpoint
from polarax.loaders.architectures import ARCHITECTURES, without_wrappers
from polarax.loaders.architectures.names import recognise_in
from polarax.loaders.matrices import take_inventory

# Names and shapes are facts, taken from where each model's "source" says; some models' are given twice, as one library
# publishes them and as another one, or the same one in memory, calls them.
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
        rank = len(shapes[tensor])
        words = rf"{rank}-D( bias| scale)?: not a matrix|{rank - 1}-D in each layer: not a matrix"
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
    layers = {layer for _, layer, _, _ in counts}
    assert layers == set(range(len(layers)))
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


@pytest.mark.parametrize(
    ("name", "places"),
    [  # Where Hugging Face's layers are in MaxText: checkpoint_conversion/utils/param_mapping.py in its repository.
        (
            "MaxText deepseek2-16b, layers scanned",
            {0: ("dense_layers", 0), 1: ("moe_layers", 0), 26: ("moe_layers", 25)},
        ),
        ("MaxText gpt-oss-20b, layers scanned", {0: ("layers_0", 0), 1: ("layers_1", 0), 22: ("layers_0", 11)}),
        ("MaxText gemma2-2b, layers scanned", {0: ("local", 0), 1: ("global", 0), 25: ("global", 12)}),
        ("MaxText gemma3-4b, layers scanned", {5: ("layers_5", 0), 6: ("layers_0", 1), 29: ("layers_5", 4)}),
    ],
)
def test_layers_of_maxtext_are_numbered_as_the_model_has_them(name, places, inventory_of):
    queries = {view.layer: view for view in views_of(inventory_of(name)) if view.role == "q"}
    for layer, (container, index) in places.items():
        assert container in queries[layer].tensor
        slices = queries[layer].slices  # None where there is one layer
        assert slices is None or slices[1] == slice(index, index + 1)


def test_layers_of_maxtext_that_fill_no_block_are_the_last(inventory_of):
    queries = {
        view.tensor.split(".")[3]: view.layer
        for view in views_of(inventory_of("MaxText gemma3-4b, layers scanned"))
        if view.role == "q" and "remainder" in view.tensor
    }
    assert queries == {f"layers_{number}": 30 + number for number in range(4)}


@pytest.mark.parametrize(
    ("name", "config", "tied"),
    [
        ("tiiuae/falcon-7b", {"model_type": "falcon"}, True),  # the default of its family, which config.json leaves out
        ("tiiuae/falcon-7b", {"model_type": "falcon", "tie_word_embeddings": False}, False),
        ("tiiuae/falcon-7b", {}, False),  # nothing says what it is
        ("facebook/opt-350m", {"model_type": "opt"}, True),
        ("meta-llama/Meta-Llama-3-8B", {"model_type": "llama"}, False),
        ("meta-llama/Meta-Llama-3-8B", {"model_type": "llama", "tie_word_embeddings": True}, True),
        ("EleutherAI/pythia-160m", {"model_type": "gpt_neox"}, False),
    ],
)
def test_a_head_that_is_tied(name, config, tied):
    found = take_inventory(tree_of(PUBLISHED[name]), config=config).tied
    heads = {head: embedding.rsplit(".", 2)[-2] for head, embedding in found.items()}
    assert heads == ({"lm_head.weight": "word_embeddings" if "falcon" in name else "embed_tokens"} if tied else {})


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
        ("model.layers.61.shared_head.head.weight", Identity(61, "head", None)),
        ("score.weight", Identity(None, "head", None)),
        ("embedder.weight", Identity(None, "embed", None)),
        ("params/params/decoder/layers_3/self_attention_global/query/kernel", Identity(7, "q", None)),
        ("params/params/decoder/layers_3/self_attention_local/query/kernel", Identity(6, "q", None)),
        ("blk.3.attn_k_b.weight", Identity(3, "k_b", None)),
        ("dec.blk.3.cross_attn_q.weight", Identity(3, "cross_q", None)),
        # After any prefix.
        ("decoder.model.layers.3.self_attn.q_proj.weight", Q3),
        ("mymodel.layers.3.self_attn.q_proj.weight", Q3),
        ("base_model.model.model.layers.3.self_attn.q_proj.base_layer.weight", Q3),
        ("thinker.model.layers.3.self_attn.q_proj.weight", Q3),
        ("talker.model.layers.3.self_attn.q_proj.weight", Q3),
        ("policy/params/llm/layers_3/self_attn/q_proj/kernel", Q3),
        ("models.1.model.layers.3.self_attn.q_proj.weight", Q3),
        ("student.bert.encoder.layer.3.attention.self.query.weight", Q3),
        ("text_model.encoder.layers.3.self_attn.q_proj.weight", Q3),
        ("actor.transformer.h.3.mlp.c_proj.weight", Identity(3, "down", None)),
        ("student.model.layers.2.mlp.experts.17.down_proj.weight", Identity(2, "down", 17)),
        ("student.model.embed_tokens.weight", Identity(None, "embed", None)),
        ("PaliGemma.llm.embedder.input_embedding.value", Identity(None, "embed", None)),
        ("student.lm_head.weight", Identity(None, "head", None)),
        # A word like "classifier" or "output" says nothing behind a prefix that nobody knows.
        ("router_loss.classifier.weight", None),
        ("student.output.weight", None),
        # GGUF's names do not stand behind prefixes, but for those of towers.
        ("v.blk.3.attn_q.weight", None),
        # Layers in a layer.
        ("swin.layers.3.blocks.1.attn.q_proj.weight", None),
        ("model.layers.3.inner.layers.1.self_attn.q_proj.weight", Identity(3, "other", None)),
        # Known layers with unknown tensors in them.
        ("model.layers.3.self_attn.q_norm.weight", Identity(3, "other", None)),
        ("encoder.layer.3.crossattention.output.LayerNorm.weight", Identity(3, "other", None)),
        # Nobody's layers, or somebody else's.
        ("vision_tower.vision_model.encoder.layers.3.self_attn.q_proj.weight", None),
        ("model.vision_tower.encoder.layers.3.self_attn.q_proj.weight", None),
        ("model.visual.layers.3.self_attn.q_proj.weight", None),
        ("audio_tower.layers.3.self_attn.q_proj.weight", None),
        ("thinker.audio_tower.layers.3.self_attn.q_proj.weight", None),
        ("vision_model.embeddings.word_embeddings.weight", None),
        ("PaliGemma.img.Transformer.encoderblock_3.MlpBlock_0.Dense_0.kernel", None),
        ("qformer.encoder.layer.3.attention.attention.query.weight", None),
        ("model.layers.x.self_attn.q_proj.weight", None),
        ("model.layers.", None),
        ("model.layers.9999999.self_attn.q_proj.weight", None),
        ("dense.kernel", None),
        ("", None),
    ],
)
def test_names(name, identity):
    assert identify(name) == (identity or Identity(None, "other", None))


@pytest.mark.parametrize("prefix", ["", "student.", "visual.", "models.1."])
def test_names_that_differ_in_a_number_mean_what_each_means_by_itself(prefix):
    """They are looked up together."""
    names = {name for model in PUBLISHED.values() for name in shapes_of(model) if ".experts." not in name}
    for name in sorted(names)[::3]:
        name = prefix + name
        flax_first = architectures.FLAX if name.endswith(".kernel") else ()
        assert architectures.recognise(name) == recognise_in((*flax_first, *ARCHITECTURES), name), name


@pytest.mark.parametrize(
    ("name", "bare"),
    [
        ("module.module.model.norm.weight", "model.norm.weight"),
        ("_orig_mod.model.layers.0._checkpoint_wrapped_module.mlp.up_proj.weight", "model.layers.0.mlp.up_proj.weight"),
        ("_fsdp_wrapped_module.layers.0._fsdp_wrapped_module.wq.weight", "layers.0.wq.weight"),
        ("model.layers.0._orig_mod.mlp.up_proj.weight", "model.layers.0.mlp.up_proj.weight"),
        ("_forward_module.model.norm.weight", "model.norm.weight"),
        ("base_model.model.model.layers.0.q_proj.base_layer.weight", "model.layers.0.q_proj.weight"),
        ("base_model.model.lm_head.modules_to_save.default.weight", "lm_head.weight"),
        ("base_model.model.lm_head.original_module.weight", "lm_head.original_module.weight"),
        ("train_state/params/params/layers_0/mlp/kernel", "layers.0.mlp.kernel"),
        ("state.module.layers.0.attn.out.kernel.value", "layers.0.attn.out.kernel"),
        ("PaliGemma.llm.layers.attn.q_einsum.w.value", "PaliGemma.llm.layers.attn.q_einsum.w"),
        ("encoder.layer.0.attention.self.value.weight", "encoder.layer.0.attention.self.value.weight"),
        ("encoder.layer.0.attention.self.value", "encoder.layer.0.attention.self.value"),
        ("submodule.parameters.weight", "submodule.parameters.weight"),  # words that only look like one of these
        ("model.state.weight", "model.state.weight"),
        ("base_model.encoder.weight", "base_model.encoder.weight"),
    ],
)
def test_wrapper_words_are_taken_out_of_a_name(name, bare):
    assert without_wrappers(name) == bare


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


def test_a_module_with_tables_is_all_that_a_new_family_takes(tmp_path, monkeypatch):
    (tmp_path / "toy_family.py").write_text(
        "from polarax.loaders.architectures.rules import Architecture, Rule\n"
        "TABLES = (Architecture('Toy', prefixes=('toy.',), layers=('rungs.',),\n"
        "    in_layer={'ask': 'q', 'tell': Rule('o', 'i o')}, outside={'words': 'embed'}),)\n"
    )
    monkeypatch.setattr(architectures, "__path__", [*architectures.__path__, str(tmp_path)])
    tables = architectures._all_tables()
    assert [table.name for table in tables if table not in ARCHITECTURES] == ["Toy"]
    assert [table for table in tables if table.name != "Toy"] == list(ARCHITECTURES)
    found = [recognise_in(tables, name).identity for name in ("toy.rungs.3.ask.weight", "toy.words", "other.words")]
    assert found == [Identity(3, "q", None), Identity(None, "embed", None), Identity(None, "other", None)]
    sys.modules.pop("polarax.loaders.architectures.toy_family")
