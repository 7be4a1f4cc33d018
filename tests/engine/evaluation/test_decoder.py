"""Scores of tokens against NumPy in float64 and against what transformers said, for every family and any format."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from polarax import UsageError
from polarax.evaluation import Observer, load_decoder
from polarax.evaluation.decoder.attention import entropy
from tests.engine.evaluation import models
from tests.engine.evaluation.record_transformers import FILE, LENGTH, PLACES, TOKENS
from tests.engine.evaluation.reference import decode

RECORDED = json.loads(FILE.read_text())["models"]
# float32 and a few layers of products of some 50 terms: several hundred roundings of 6e-8, in any direction.
TOLERANCE = 2e-5


def _apart(found, expected):
    return np.linalg.norm(np.asarray(found, np.float64) - expected) / np.linalg.norm(expected)


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    """Models by name, saved and loaded once."""
    kept = {}

    def get(name):
        if name not in kept:
            config, tensors = models.CONFIGS[name], models.tensors_of(models.CONFIGS[name])
            kept[name] = load_decoder(models.save(tmp_path_factory.mktemp(name), config, tensors)), config, tensors
        return kept[name]

    return get


@pytest.mark.parametrize("name", models.CONFIGS)
def test_scores_are_those_of_numpy_and_of_transformers(loaded, name):
    model, config, tensors = loaded(name)
    tokens = models.text(LENGTH)
    scores = nnx.jit(lambda model, tokens: model(tokens))(model, tokens[None])[0]
    assert scores.dtype == jnp.float32
    assert _apart(scores, decode(config, tensors, tokens).scores) < TOLERANCE
    assert _apart(scores[-PLACES:, TOKENS], np.array(RECORDED[name]["scores"])) < TOLERANCE


@pytest.mark.parametrize("name", ["mistral", "gemma2", "gemma3"])
def test_states_and_attention_are_seen_layer_by_layer(loaded, name):
    model, config, tensors = loaded(name)
    tokens = models.text(30)
    _, seen, _ = model.states(tokens[None], Observer(attention=entropy, states=lambda x: x[:, ::3]))
    expected = decode(config, tensors, tokens)
    chances = expected.attention
    expected_entropy = -np.sum(chances * np.log(np.where(chances > 0, chances, 1)), axis=-1)
    np.testing.assert_allclose(seen.attention[:, 0], expected_entropy, atol=1e-4)
    assert seen.states.shape == (config["num_hidden_layers"] + 1, 1, 10, config["hidden_size"])
    for layer, states in enumerate(expected.states):
        assert _apart(seen.states[layer, 0], states[::3]) < TOLERANCE


def test_long_texts_are_attended_to_in_blocks(loaded):
    """More queries than a block has, and not a multiple of it."""
    model, config, tensors = loaded("mistral")
    tokens = models.text(300)
    scores = model(tokens[None])[0]
    assert _apart(scores, decode(config, tensors, tokens).scores) < TOLERANCE


def test_bfloat16_is_as_exact_as_its_eight_bits(loaded, tmp_path):
    _, config, tensors = loaded("qwen3")
    model = load_decoder(models.save(tmp_path, config, tensors), "bfloat16")
    tokens = models.text(LENGTH)
    scores = model(tokens[None])[0]
    assert scores.dtype == jnp.float32
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(nnx.state(model.layers.mlp))} == {"bfloat16"}
    # The rounding of 1/256 adds up over the layers' dozen of roundings, as square roots do.
    assert 1e-3 < _apart(scores, decode(config, tensors, tokens).scores) < 0.06


def test_a_decoder_saved_from_flax_is_read_again(loaded, tmp_path):
    """Its own parameter tree, stacked layers and all, by the names that the rest of polarax knows."""
    model, config, _ = loaded("qwen2")
    tree = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    again = load_decoder({"params": tree}, config=config)
    tokens = models.text(12)[None]
    np.testing.assert_array_equal(again(tokens), model(tokens))


def test_a_gguf_file_needs_no_config(tmp_path):
    gguf = pytest.importorskip("gguf")  # in the extra that the tests install
    config, tensors = models.CONFIGS["llama_biases"] | {"attention_bias": False, "mlp_bias": False}, {}
    tensors = models.tensors_of(config)
    writer = gguf.GGUFWriter(tmp_path / "model.gguf", "llama")
    for add, value in [
        (writer.add_block_count, 3),
        (writer.add_context_length, 128),
        (writer.add_embedding_length, 32),
        (writer.add_feed_forward_length, 48),
        (writer.add_head_count, 4),
        (writer.add_head_count_kv, 2),
        (writer.add_key_length, 10),
        (writer.add_layer_norm_rms_eps, 1e-5),
    ]:
        add(value)
    names = {
        "model.embed_tokens": "token_embd",
        "model.norm": "output_norm",
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
        "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ffn_norm",
    }
    for name, tensor in tensors.items():
        module = name.removesuffix(".weight")
        layer = module.split(".")[2] if "layers" in module else None
        stored = names[module if layer is None else module.split(".", 3)[3]]
        if stored in ("attn_q", "attn_k"):  # as LlamaModel.permute of llama.cpp
            heads = 4 if stored == "attn_q" else 2
            tensor = tensor.reshape(heads, 2, 5, 32).swapaxes(1, 2).reshape(tensor.shape)
        writer.add_tensor(f"{stored}.weight" if layer is None else f"blk.{layer}.{stored}.weight", tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    tokens = models.text(20)
    scores = load_decoder(tmp_path / "model.gguf")(tokens[None])[0]
    assert _apart(scores, decode(config, tensors, tokens).scores) < TOLERANCE


@pytest.mark.parametrize(
    ("changes", "tensor", "message"),
    [
        (
            {"model_type": "mamba"},
            {},
            "architecture 'mamba' is none that the decoder knows. It knows llama, mistral, qwen2",
        ),
        (
            {"rope_scaling": {"rope_type": "spiral"}},
            {},
            "rotary scaling 'spiral' is not known. Expected one of default",
        ),
        ({"rope_scaling": {"rope_type": "linear"}}, {}, "rotary scaling 'linear' has no factor"),
        ({"hidden_act": "relu"}, {}, "activation 'relu' is not known"),
        ({"num_attention_heads": None}, {}, "its configuration has no num_attention_heads"),
        ({"num_key_value_heads": 3}, {}, "4 heads cannot share 3 heads of keys"),
        ({"num_hidden_layers": 4}, {}, "in layer 3; not this"),
        ({"num_hidden_layers": 2}, {}, "the decoder would leave 9 tensors of the layers out"),
        ({"intermediate_size": 40}, {}, "32 x 48 does not fit the configuration, which asks for 32 x 40"),
        ({"tie_word_embeddings": False}, {"lm_head.weight": None}, "a llama model has lm_head.kernel; not this"),
        (
            {},
            {"model.layers.1.self_attn.q_norm.weight": np.ones(8, np.float32)},
            "a llama model has no 'model.layers.1.self_attn.q_norm.weight'",
        ),
        ({}, {"model.layers.1.mlp.up_proj.weight": None}, "a llama model has mlp.up_proj.kernel in layer 1; not this"),
    ],
)
def test_what_does_not_fit_is_said_in_one_line(changes, tensor, message, tmp_path):
    config = models.CONFIGS["mistral_all"] | {"model_type": "llama"} | changes
    tensors = {**models.tensors_of(models.CONFIGS["mistral_all"]), **tensor}
    tensors = {name: array for name, array in tensors.items() if array is not None}
    with pytest.raises(UsageError, match=message.replace("(", "\\(")) as error:
        load_decoder(models.save(tmp_path, config, tensors))
    assert "\n" not in str(error.value)


def test_without_config_json_nothing_is_guessed(tmp_path):
    config = models.CONFIGS["llama"]
    models.save(tmp_path, config, models.tensors_of(config))
    (tmp_path / "config.json").unlink()
    with pytest.raises(UsageError, match="has no config.json"):
        load_decoder(tmp_path)
    assert load_decoder(tmp_path, config=config).config.family == "llama"


@pytest.mark.parametrize("prefix", ["language_model.model.", "model.language_model."])
def test_a_language_model_beside_a_tower_for_images(loaded, prefix, tmp_path):
    model, config, tensors = loaded("gemma3")
    tower = prefix.removesuffix("language_model.model.").removesuffix("language_model.") + "vision_tower.encoder."
    names = ("self_attn.q_proj.weight", "mlp.fc1.weight", "layer_norm1.weight", "layer_norm1.bias")
    beside = {
        f"{tower}layers.0.{name}": np.ones((4, 4) if "_proj" in name or "fc1" in name else 4, np.float32)
        for name in names
    }
    renamed = {name.replace("model.", prefix, 1): tensor for name, tensor in tensors.items()}
    whole = {"model_type": "gemma3", "text_config": config, "vision_config": {}}
    tokens = models.text(9)[None]
    both = load_decoder(models.save(tmp_path, whole, renamed | beside))
    np.testing.assert_array_equal(both(tokens), model(tokens))
