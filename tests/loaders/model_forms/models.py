"""Published models, scaled down: the names and layers of each are its own, the sizes of its matrices are small.

Names follow the module names of the code in Hugging Face transformers (models/<name>/modeling_<name>.py of 4.50), as
the models are published.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

HIDDEN, HEADS, KEYS, SIZE, UNITS, TOKENS = 16, 4, 2, 6, 20, 40
EXPERT_UNITS = 10
QUERY_LATENT, KEY_LATENT, ROTARY, UNROTATED, VALUE = 14, 8, 2, 4, 5  # of latent attention

Shapes = dict[str, tuple[int, ...]]


class Model(NamedTuple):
    """A model as transformers 4 publishes it."""

    family: str  # transformers' model_type
    shapes: Mapping[str, tuple[int, ...]]
    config: Mapping[str, Any]
    gguf: str | None = None  # GGUF's name of the architecture; None if this model is not converted
    maxtext: bool = False  # MaxText has it


def _config(family: str, layers: int, tied: bool, **more: Any) -> dict[str, Any]:
    return {
        "model_type": family,
        "hidden_size": HIDDEN,
        "intermediate_size": UNITS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KEYS,
        "head_dim": SIZE,
        "num_hidden_layers": layers,
        "vocab_size": TOKENS,
        "tie_word_embeddings": tied,
        **more,
    }


def _in_layers(prefix: str, layers: int, tensors: Callable[[int], Shapes]) -> Shapes:
    return {f"{prefix}{layer}.{name}": shape for layer in range(layers) for name, shape in tensors(layer).items()}


def _attention(biases: bool = False, norms: bool = False) -> Shapes:
    rows = {"q": HEADS * SIZE, "k": KEYS * SIZE, "v": KEYS * SIZE}
    shapes: Shapes = {f"self_attn.{name}_proj.weight": (size, HIDDEN) for name, size in rows.items()}
    shapes |= {f"self_attn.{name}_proj.bias": (size,) for name, size in rows.items() if biases}
    shapes |= {f"self_attn.{name}_norm.weight": (SIZE,) for name in "qk" if norms}
    return {**shapes, "self_attn.o_proj.weight": (HIDDEN, HEADS * SIZE)}


def _latent_attention(query_latent: bool) -> Shapes:
    queries = HEADS * (UNROTATED + ROTARY)
    shapes: Shapes = {"self_attn.q_proj.weight": (queries, HIDDEN)}
    if query_latent:
        shapes = {
            "self_attn.q_a_proj.weight": (QUERY_LATENT, HIDDEN),
            "self_attn.q_a_layernorm.weight": (QUERY_LATENT,),
            "self_attn.q_b_proj.weight": (queries, QUERY_LATENT),
        }
    return {
        **shapes,
        "self_attn.kv_a_proj_with_mqa.weight": (KEY_LATENT + ROTARY, HIDDEN),
        "self_attn.kv_a_layernorm.weight": (KEY_LATENT,),
        "self_attn.kv_b_proj.weight": (HEADS * (UNROTATED + VALUE), KEY_LATENT),
        "self_attn.o_proj.weight": (HIDDEN, HEADS * VALUE),
    }


def _feed_forward(block: str = "mlp", units: int = UNITS) -> Shapes:
    return {
        f"{block}.gate_proj.weight": (units, HIDDEN),
        f"{block}.up_proj.weight": (units, HIDDEN),
        f"{block}.down_proj.weight": (HIDDEN, units),
    }


def _experts(count: int) -> Shapes:
    shapes: Shapes = {"mlp.gate.weight": (count, HIDDEN)}
    for expert in range(count):
        shapes |= _feed_forward(f"mlp.experts.{expert}", EXPERT_UNITS)
    return shapes


def _mixtral_experts(count: int) -> Shapes:
    sizes = {"w1": (EXPERT_UNITS, HIDDEN), "w2": (HIDDEN, EXPERT_UNITS), "w3": (EXPERT_UNITS, HIDDEN)}
    experts = {f"experts.{expert}.{name}.weight": size for expert in range(count) for name, size in sizes.items()}
    return {f"block_sparse_moe.{name}": size for name, size in {"gate.weight": (count, HIDDEN), **experts}.items()}


_NORMS = ("input_layernorm", "post_attention_layernorm")
_GEMMA_NORMS = (*_NORMS, "pre_feedforward_layernorm", "post_feedforward_layernorm")


def _decoder(
    layers: int,
    layer: Callable[[int], Shapes],
    tied: bool,
    norms: tuple[str, ...] = _NORMS,
    prefix: str = "model.",
    head: str = "lm_head.weight",
) -> Shapes:
    """A language model of Llama's outline."""
    around: Shapes = {f"{norm}.weight": (HIDDEN,) for norm in norms}
    shapes: Shapes = {f"{prefix}embed_tokens.weight": (TOKENS, HIDDEN), f"{prefix}norm.weight": (HIDDEN,)}
    shapes |= _in_layers(f"{prefix}layers.", layers, lambda number: {**layer(number), **around})
    return shapes if tied else {**shapes, head: (TOKENS, HIDDEN)}


def _dense(
    family: str,
    layers: int,
    gguf: str | None,
    *,
    tied: bool = True,
    biases: bool = False,
    norms: bool = False,
    around: tuple[str, ...] = _NORMS,
    maxtext: bool = False,
) -> Model:
    shapes = _decoder(layers, lambda _: {**_attention(biases, norms), **_feed_forward()}, tied, around)
    return Model(family, shapes, _config(family, layers, tied), gguf, maxtext)


def _phi3() -> Model:
    layer: Shapes = {
        "self_attn.qkv_proj.weight": ((HEADS + 2 * KEYS) * SIZE, HIDDEN),
        "self_attn.o_proj.weight": (HIDDEN, HEADS * SIZE),
        "mlp.gate_up_proj.weight": (2 * UNITS, HIDDEN),
        "mlp.down_proj.weight": (HIDDEN, UNITS),
    }
    return Model("phi3", _decoder(32, lambda _: layer, False), _config("phi3", 32, False), "PHI3")


def _qwen3_moe() -> Model:
    layers = 12  # of 48
    shapes = _decoder(layers, lambda _: {**_attention(norms=True), **_experts(128)}, False)
    config = _config("qwen3_moe", layers, False, num_experts=128, moe_intermediate_size=EXPERT_UNITS)
    return Model("qwen3_moe", shapes, config, "QWEN3MOE", True)


def _qwen2_moe() -> Model:
    def layer(_: int) -> Shapes:
        shared = {**_feed_forward("mlp.shared_expert", UNITS), "mlp.shared_expert_gate.weight": (1, HIDDEN)}
        return {**_attention(biases=True), **_experts(60), **shared}

    config = _config("qwen2_moe", 24, False, num_experts=60, moe_intermediate_size=EXPERT_UNITS)
    return Model("qwen2_moe", _decoder(24, layer, False), config, "QWEN2MOE")


def _mixtral() -> Model:
    shapes = _decoder(32, lambda _: {**_attention(), **_mixtral_experts(8)}, False)
    return Model("mixtral", shapes, _config("mixtral", 32, False, num_local_experts=8), "LLAMA", True)


def _deepseek(layers: int, experts: int, query_latent: bool) -> Model:
    def layer(number: int) -> Shapes:
        block = _feed_forward() if number == 0 else {**_experts(experts), **_feed_forward("mlp.shared_experts", UNITS)}
        return {**_latent_attention(query_latent), **block}

    config = _config("deepseek_v2", layers, False, n_routed_experts=experts, first_k_dense_replace=1)
    del config["head_dim"]
    config |= {
        "num_key_value_heads": HEADS,
        "q_lora_rank": QUERY_LATENT if query_latent else None,
        "kv_lora_rank": KEY_LATENT,
        "qk_nope_head_dim": UNROTATED,
        "qk_rope_head_dim": ROTARY,
        "v_head_dim": VALUE,
        "moe_intermediate_size": EXPERT_UNITS,
    }
    return Model("deepseek_v2", _decoder(layers, layer, False), config, "DEEPSEEK2", True)


def _gpt2() -> Model:
    layer: Shapes = {
        "ln_1.weight": (HIDDEN,),
        "ln_1.bias": (HIDDEN,),
        "attn.c_attn.weight": (HIDDEN, 3 * HIDDEN),
        "attn.c_attn.bias": (3 * HIDDEN,),
        "attn.c_proj.weight": (HIDDEN, HIDDEN),
        "attn.c_proj.bias": (HIDDEN,),
        "mlp.c_fc.weight": (HIDDEN, 4 * HIDDEN),
        "mlp.c_fc.bias": (4 * HIDDEN,),
        "mlp.c_proj.weight": (4 * HIDDEN, HIDDEN),
        "mlp.c_proj.bias": (HIDDEN,),
    }
    shapes: Shapes = {"wte.weight": (TOKENS, HIDDEN), "wpe.weight": (32, HIDDEN), "ln_f.weight": (HIDDEN,)}
    shapes |= _in_layers("h.", 12, lambda _: layer)
    config = {"model_type": "gpt2", "n_embd": HIDDEN, "n_head": HEADS, "n_layer": 12, "vocab_size": TOKENS}
    return Model("gpt2", shapes, config, "GPT2")


def _gpt_neox() -> Model:
    layer: Shapes = {
        "input_layernorm.weight": (HIDDEN,),
        "attention.query_key_value.weight": (3 * HIDDEN, HIDDEN),
        "attention.query_key_value.bias": (3 * HIDDEN,),
        "attention.dense.weight": (HIDDEN, HIDDEN),
        "mlp.dense_h_to_4h.weight": (4 * HIDDEN, HIDDEN),
        "mlp.dense_4h_to_h.weight": (HIDDEN, 4 * HIDDEN),
    }
    shapes: Shapes = {"gpt_neox.embed_in.weight": (TOKENS, HIDDEN), "embed_out.weight": (TOKENS, HIDDEN)}
    shapes |= _in_layers("gpt_neox.layers.", 12, lambda _: layer)
    config = {"model_type": "gpt_neox", "hidden_size": HIDDEN, "num_attention_heads": HEADS, "num_hidden_layers": 12}
    return Model("gpt_neox", shapes, {**config, "tie_word_embeddings": False}, "GPTNEOX")


def _falcon() -> Model:
    layer: Shapes = {
        "input_layernorm.weight": (HIDDEN,),
        "self_attention.query_key_value.weight": (HIDDEN + 2 * HIDDEN // HEADS, HIDDEN),
        "self_attention.dense.weight": (HIDDEN, HIDDEN),
        "mlp.dense_h_to_4h.weight": (4 * HIDDEN, HIDDEN),
        "mlp.dense_4h_to_h.weight": (HIDDEN, 4 * HIDDEN),
    }
    shapes: Shapes = {"transformer.word_embeddings.weight": (TOKENS, HIDDEN), "transformer.ln_f.weight": (HIDDEN,)}
    shapes |= _in_layers("transformer.h.", 32, lambda _: layer)
    config = {"model_type": "falcon", "hidden_size": HIDDEN, "num_attention_heads": HEADS, "num_hidden_layers": 32}
    return Model("falcon", shapes, {**config, "multi_query": True, "new_decoder_architecture": False}, "FALCON")


def _bert() -> Model:
    square = ("attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense")

    def layer(_: int) -> Shapes:
        sizes = dict.fromkeys(square, (HIDDEN, HIDDEN))
        sizes |= {"intermediate.dense": (UNITS, HIDDEN), "output.dense": (HIDDEN, UNITS)}
        shapes: Shapes = {f"{name}.weight": size for name, size in sizes.items()}
        shapes |= {f"{name}.bias": size[:1] for name, size in sizes.items()}
        return {**shapes, "attention.output.LayerNorm.weight": (HIDDEN,), "output.LayerNorm.weight": (HIDDEN,)}

    rows = {"word": TOKENS, "position": 32, "token_type": 2}
    shapes: Shapes = {f"bert.embeddings.{name}_embeddings.weight": (size, HIDDEN) for name, size in rows.items()}
    shapes |= _in_layers("bert.encoder.layer.", 12, layer)
    shapes |= {"bert.pooler.dense.weight": (HIDDEN, HIDDEN), "bert.pooler.dense.bias": (HIDDEN,)}
    config = {"model_type": "bert", "hidden_size": HIDDEN, "num_attention_heads": HEADS, "num_hidden_layers": 12}
    return Model("bert", shapes, config, "BERT")


def _t5() -> Model:
    def attention(name: str) -> Shapes:
        return {
            f"{name}.{part}.weight": (HIDDEN, HEADS * SIZE) if part == "o" else (HEADS * SIZE, HIDDEN)
            for part in "qkvo"
        }

    def stack(side: str, feed_forward: int) -> Callable[[int], Shapes]:
        def layer(number: int) -> Shapes:
            shapes = {**attention("layer.0.SelfAttention"), "layer.0.layer_norm.weight": (HIDDEN,)}
            if side == "decoder":
                shapes |= {**attention("layer.1.EncDecAttention"), "layer.1.layer_norm.weight": (HIDDEN,)}
            block = f"layer.{feed_forward}.DenseReluDense"
            shapes |= {f"{block}.{name}.weight": (UNITS, HIDDEN) for name in ("wi_0", "wi_1")}
            shapes |= {f"{block}.wo.weight": (HIDDEN, UNITS), f"layer.{feed_forward}.layer_norm.weight": (HIDDEN,)}
            return (
                {**shapes, "layer.0.SelfAttention.relative_attention_bias.weight": (8, HEADS)} if not number else shapes
            )

        return layer

    shapes: Shapes = {"shared.weight": (TOKENS, HIDDEN), "lm_head.weight": (TOKENS, HIDDEN)}
    shapes |= _in_layers("encoder.block.", 8, stack("encoder", 1)) | _in_layers(
        "decoder.block.", 8, stack("decoder", 2)
    )
    config = {"model_type": "t5", "d_model": HIDDEN, "num_heads": HEADS, "d_kv": SIZE, "tie_word_embeddings": False}
    return Model("t5", shapes, config, "T5")


VISION = 12  # size of the vision tower's residual stream


def _with_biases(sizes: Mapping[str, tuple[int, int]]) -> Shapes:
    return {
        f"{name}.{leaf}": size[:rank] for name, size in sizes.items() for leaf, rank in (("weight", 2), ("bias", 1))
    }


def _qwen_vision(family: str) -> Shapes:
    """Qwen2-VL's tower, or Qwen2.5-VL's, whose feed-forward layers have a gate."""
    layer = _with_biases({"attn.qkv": (3 * VISION, VISION), "attn.proj": (VISION, VISION)})
    if family == "qwen2_vl":
        layer |= _with_biases({"mlp.fc1": (4 * VISION, VISION), "mlp.fc2": (VISION, 4 * VISION)})
    else:
        layer |= _with_biases(
            {"mlp.gate_proj": (22, VISION), "mlp.up_proj": (22, VISION), "mlp.down_proj": (VISION, 22)}
        )
    layer |= {"norm1.weight": (VISION,), "norm2.weight": (VISION,)}
    merger = _with_biases({"merger.mlp.0": (4 * VISION, 4 * VISION), "merger.mlp.2": (HIDDEN, 4 * VISION)})
    shapes = {"patch_embed.proj.weight": (VISION, 3, 2, 3, 3), **merger, **_in_layers("blocks.", 32, lambda _: layer)}
    return {f"visual.{name}": size for name, size in shapes.items()}


def _qwen_vl(family: str, layers: int) -> Model:
    text = _decoder(layers, lambda _: {**_attention(biases=True), **_feed_forward()}, True)
    return Model(family, {**_qwen_vision(family), **text}, _config(family, layers, True), "QWEN2VL")


def _llava() -> Model:
    """LLaVA 1.5: a Llama beside the vision tower of CLIP."""
    square = {f"self_attn.{name}": (VISION, VISION) for name in ("q_proj", "k_proj", "v_proj", "out_proj")}
    layer = _with_biases({**square, "mlp.fc1": (4 * VISION, VISION), "mlp.fc2": (VISION, 4 * VISION)})
    layer |= {"layer_norm1.weight": (VISION,), "layer_norm2.weight": (VISION,)}
    tower = {
        "embeddings.class_embedding": (VISION,),
        "embeddings.patch_embedding.weight": (VISION, 3, 3, 3),
        "embeddings.position_embedding.weight": (10, VISION),
        **_in_layers("encoder.layers.", 24, lambda _: layer),
    }
    shapes: Shapes = {f"vision_tower.vision_model.{name}": size for name, size in tower.items()}
    connector = _with_biases({"linear_1": (HIDDEN, VISION), "linear_2": (HIDDEN, HIDDEN)})
    shapes |= {f"multi_modal_projector.{name}": size for name, size in connector.items()}
    text = _decoder(
        32,
        lambda _: {**_attention(), **_feed_forward()},
        False,
        prefix="language_model.model.",
        head="language_model.lm_head.weight",
    )
    config = {"model_type": "llava", "text_config": _config("llama", 32, False), "tie_word_embeddings": False}
    return Model("llava", {**shapes, **text}, config, "LLAMA")


MODELS: Mapping[str, Model] = {
    "Llama-3.2-1B": _dense("llama", 16, "LLAMA", maxtext=True),
    "Llama-3.1-8B": _dense("llama", 32, "LLAMA", tied=False, maxtext=True),
    "Qwen2.5-0.5B": _dense("qwen2", 24, "QWEN2", biases=True, maxtext=True),
    "Qwen3-0.6B": _dense("qwen3", 28, "QWEN3", norms=True, maxtext=True),
    "Qwen3-30B-A3B": _qwen3_moe(),
    "Qwen1.5-MoE-A2.7B": _qwen2_moe(),
    "Mixtral-8x7B": _mixtral(),
    "Gemma-2-2B": _dense("gemma2", 26, "GEMMA2", around=_GEMMA_NORMS, maxtext=True),
    "Gemma-3-1B": _dense("gemma3_text", 26, "GEMMA3", norms=True, around=_GEMMA_NORMS, maxtext=True),
    "Phi-3-mini": _phi3(),
    "DeepSeek-V2-Lite": _deepseek(27, 64, False),
    "DeepSeek-V2": _deepseek(60, 20, True),  # of 160 experts
    "GPT-2": _gpt2(),
    "Pythia-160M": _gpt_neox(),
    "Falcon-7B": _falcon(),
    "BERT": _bert(),
    "T5 1.1": _t5(),
    "Qwen2-VL-2B": _qwen_vl("qwen2_vl", 28),
    "Qwen2.5-VL-3B": _qwen_vl("qwen2_5_vl", 36),
    "LLaVA-1.5-7B": _llava(),
}
