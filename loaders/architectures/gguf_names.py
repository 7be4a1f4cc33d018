"""Names in GGUF files: one scheme for all architectures (MODEL_TENSOR and TENSOR_NAMES in gguf/constants.py).

The converter of llama.cpp stores every matrix as (out, in), and the parts of a fused one in blocks, one after the
other, whatever order the original had.
"""

from polarax.loaders.architectures.rules import Architecture, Rule

GGUF = Architecture(
    "GGUF",
    prefixes=("",),
    anywhere=False,  # "v." and "a." before the names are the towers of a multimodal model
    layers=("blk.", "enc.blk.", "dec.blk."),
    in_layer={
        "attn_q": "q",
        "attn_k": "k",
        "attn_v": "v",
        "attn_qkv": Rule("qkv", "p i", "blocks"),
        "attn_output": "o",
        "attn_q_a": "q_a",
        "attn_q_b": "q_b",
        "attn_kv_a_mqa": "kv_a",
        "attn_kv_b": "kv_b",
        "attn_k_b": Rule("k_b", "o i o"),  # (heads, latent, size of a head)
        "attn_v_b": Rule("v_b", "o o i"),
        "attn_o": "o",  # T5
        "attn_rel_b": "position",
        "cross_attn_q": "cross_q",
        "cross_attn_k": "cross_k",
        "cross_attn_v": "cross_v",
        "cross_attn_o": "cross_o",
        "ffn_gate": "gate",
        "ffn_up": Rule("up", "p i", "up"),  # of Phi-3 it is gate and up in one
        "ffn_down": "down",
        "ffn_gate_inp": "router",
        "ffn_gate_inp_shexp": "shared_router",
        "ffn_gate.{expert}": "gate",  # as Mixtral was first converted
        "ffn_up.{expert}": "up",
        "ffn_down.{expert}": "down",
        "ffn_gate_exps": Rule("gate", "E o i"),
        "ffn_up_exps": Rule("up", "E o i"),
        "ffn_down_exps": Rule("down", "E o i"),
        "ffn_gate_up_exps": Rule("gate_up", "E p i", "halves"),
        "ffn_gate_shexp": "gate",
        "ffn_up_shexp": "up",
        "ffn_down_shexp": "down",
        "nextn.embed_tokens": "embed",  # a layer that predicts one token more
        "nextn.shared_head_head": "head",
    },
    outside={
        "token_embd": "embed",
        "position_embd": "position",
        "token_types": "token_type",
        "output": "head",
        "cls": "pooler",
        "cls.output": "head",
    },
)

TABLES = (GGUF,)
