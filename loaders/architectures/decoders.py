"""Names of decoder-only language models in PyTorch: Llama and what kept its names, GPT-2, GPT-NeoX, OPT and others.

Each table follows the module names of the code in Hugging Face transformers (models/<name>/modeling_<name>.py).
"""

from polarax.loaders.architectures.rules import Architecture, Rule, Table
from polarax.loaders.roles import OTHER

# Models whose language model sits beside a vision tower put one of these before it.
_MULTIMODAL = (
    "language_model.",
    "language_model.model.",
    "model.language_model.",
    "model.language_model.model.",
)

# One matrix of three: queries, keys and values.
_FALCON_QKV = Rule("qkv", "p i", "falcon")
_PER_HEAD_QKV = Rule("qkv", "p i", "heads")
_BLOCK_QKV = Rule("qkv", "p i", "blocks")

# What models have in place of a head over the vocabulary: rewards and classes, spans of answers.
_OTHER_HEADS = {"score": "head", "classifier": "head", "qa_outputs": "head"}

_GATE_UP = Rule("gate_up", "p i", "halves")
_FEED_FORWARD = ("gate", "up", "down")

_EXPERTS: Table = {
    "gate": "router",
    "router": "router",
    "experts.{expert}.gate_proj": "gate",
    "experts.{expert}.up_proj": "up",
    "experts.{expert}.down_proj": "down",
    "experts.{expert}.w1": "gate",
    "experts.{expert}.w3": "up",
    "experts.{expert}.w2": "down",
    "shared_expert.gate_proj": "gate",
    "shared_expert.up_proj": "up",
    "shared_expert.down_proj": "down",
    "shared_experts.gate_proj": "gate",
    "shared_experts.up_proj": "up",
    "shared_experts.down_proj": "down",
    "shared_expert_gate": "shared_router",
    # vLLM joins what is alike, and keeps the experts in one tensor.
    "shared_expert.gate_up_proj": _GATE_UP,
    "shared_experts.gate_up_proj": _GATE_UP,
    "experts.w13_weight": Rule("gate_up", "E p i", "experts"),
    "experts.w2_weight": Rule("down", "E o i"),
    # MLX has the experts in one tensor for each of the three.
    **{
        f"{experts}.{role}_proj": Rule(role, "E o i") for experts in ("switch_mlp", "experts") for role in _FEED_FORWARD
    },
}

# Experts in one tensor: (E, 2 x hidden, in) as transformers 5 has Mixtral, Qwen and DeepSeek in memory; (E, in, 2 x
# hidden) in Llama 4, gpt-oss and the first Qwen3-VL. What comes first is meant where the residual stream does not tell.
_STACKED_EXPERTS: Table = {
    "mlp.experts.gate_up_proj": Rule("gate_up", "E p i|E i p", "experts"),
    "mlp.experts.down_proj": Rule("down", "E o i|E i o"),
    "feed_forward.experts.gate_up_proj": Rule("gate_up", "E i p|E p i", "experts"),
    "feed_forward.experts.down_proj": Rule("down", "E i o|E o i"),
}

# Llama and the families that kept its names: Mistral, Mixtral, Qwen2, Qwen2.5, Qwen3, Gemma 1 to 3, Phi-2, Phi-3,
# Llama 4, DeepSeek-V2 and V3, and the mixtures of experts among them.
LLAMA = Architecture(
    "Llama",
    prefixes=("", "model.", *_MULTIMODAL),
    layers=("layers.",),
    in_layer={
        "self_attn.q_proj": "q",
        "self_attn.k_proj": "k",
        "self_attn.v_proj": "v",
        "self_attn.o_proj": "o",
        "self_attn.qkv_proj": _BLOCK_QKV,  # Phi-3
        "self_attn.dense": "o",  # Phi-2
        "self_attn.q_a_proj": "q_a",  # DeepSeek
        "self_attn.q_b_proj": "q_b",
        "self_attn.kv_a_proj_with_mqa": "kv_a",
        "self_attn.kv_b_proj": Rule("kv_b", "p i", "latent"),
        "self_attn.fused_qkv_a_proj": Rule(OTHER, "p i", "latents"),  # vLLM
        "self_attn.fused_qkv_a_proj_with_mqa": Rule(OTHER, "p i", "latents"),  # SGLang
        "self_attn.embed_q": Rule("k_b", "o i o"),  # MLX, as GGUF
        "self_attn.unembed_out": Rule("v_b", "o o i"),
        "mlp.gate_proj": "gate",
        "mlp.up_proj": "up",
        "mlp.down_proj": "down",
        "mlp.gate_up_proj": _GATE_UP,  # Phi-3
        "mlp.fc1": "up",  # Phi-2
        "mlp.fc2": "down",
        "feed_forward.gate_proj": "gate",  # Llama 4
        "feed_forward.up_proj": "up",
        "feed_forward.down_proj": "down",
        # Qwen and DeepSeek, Mixtral, Llama 4
        **{
            f"{block}.{name}": r
            for block in ("mlp", "block_sparse_moe", "feed_forward")
            for name, r in _EXPERTS.items()
        },
        **_STACKED_EXPERTS,
        # A layer that predicts one token more (DeepSeek-V3) has its own copies of both.
        "embed_tokens": "embed",
        "shared_head.head": "head",
    },
    outside={
        "embed_tokens": "embed",
        "embedder": "embed",
        "lm_head": "head",
        **_OTHER_HEADS,
    },  # embedder: gemma.pytorch
)

OPT = Architecture(
    "OPT",
    prefixes=("", "model.", "decoder.", "model.decoder."),
    layers=("layers.",),
    in_layer={
        "self_attn.q_proj": "q",
        "self_attn.k_proj": "k",
        "self_attn.v_proj": "v",
        "self_attn.out_proj": "o",
        "fc1": "up",
        "fc2": "down",
    },
    outside={"embed_tokens": "embed", "embed_positions": "position", "lm_head": "head", **_OTHER_HEADS},
    tied=True,
    model_types=("opt",),
)

GPT_NEOX = Architecture(
    "GPT-NeoX",
    prefixes=("", "gpt_neox.", "model."),
    layers=("layers.", "h."),  # h: MLX
    in_layer={
        "attention.query_key_value": _PER_HEAD_QKV,
        "attention.dense": "o",
        "mlp.dense_h_to_4h": "up",
        "mlp.dense_4h_to_h": "down",
    },
    outside={"embed_in": "embed", "embed_out": "head", "lm_head": "head", **_OTHER_HEADS},  # lm_head: transformers 5
)

# BLOOM, whose queries, keys and values alternate head by head, and Falcon, which has that and two other orders.
FALCON = Architecture(
    "Falcon and BLOOM",
    prefixes=("", "transformer."),
    layers=("h.",),
    in_layer={
        "self_attention.query_key_value": _FALCON_QKV,
        "self_attention.dense": "o",
        "mlp.dense_h_to_4h": "up",
        "mlp.dense_4h_to_h": "down",
    },
    outside={"word_embeddings": "embed", "lm_head": "head", **_OTHER_HEADS},
    tied=True,
)

# ChatGLM 2 and 3 and GLM-4 in the code that came with them (modeling_chatglm.py).
CHATGLM = Architecture(
    "ChatGLM",
    prefixes=("", "transformer."),
    layers=("encoder.layers.",),
    in_layer={
        "self_attention.query_key_value": Rule("qkv", "p i", "chatglm"),
        "self_attention.dense": "o",
        "mlp.dense_h_to_4h": _GATE_UP,
        "mlp.dense_4h_to_h": "down",
    },
    outside={"embedding.word_embeddings": "embed", "output_layer": "head"},
)

# Conv1D keeps its weight as (in, out); the ordinary linear layers of vLLM and MLX under the same name have (out, in).
GPT2 = Architecture(
    "GPT-2",
    prefixes=("", "transformer.", "model."),
    layers=("h.",),
    in_layer={
        "attn.c_attn": Rule("qkv", "i p|p i", "thirds"),
        "attn.c_proj": Rule("o", "i o|o i"),
        "crossattention.q_attn": Rule("cross_q", "i o|o i"),
        "crossattention.c_attn": Rule(OTHER, "i p|p i", "cross_kv"),
        "crossattention.c_proj": Rule("cross_o", "i o|o i"),
        "mlp.c_fc": Rule("up", "i o|o i"),
        "mlp.c_proj": Rule("down", "i o|o i"),
    },
    outside={"wte": "embed", "wpe": "position", "lm_head": "head", **_OTHER_HEADS},
    tied=True,
    model_types=("gpt2",),
)

# StarCoder: the names of GPT-2 with ordinary linear layers, and one head of keys and values. Told by config.json.
GPT_BIGCODE = Architecture(
    "GPTBigCode",
    prefixes=GPT2.prefixes,
    layers=GPT2.layers,
    in_layer={
        "attn.c_attn": _BLOCK_QKV,
        "attn.c_proj": "o",
        "mlp.c_fc": "up",
        "mlp.c_proj": "down",
    },
    outside=GPT2.outside,
    tied=True,
    model_types=("gpt_bigcode",),
)

TABLES = (LLAMA, OPT, GPT_NEOX, FALCON, CHATGLM, GPT2, GPT_BIGCODE)
