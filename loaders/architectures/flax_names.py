"""Names that JAX training code gives: MaxText, Gemma's own code, vision transformers, and common choices in Flax.

Rules for a `kernel` say (out, in) like all others, which is how a `Checkpoint` shows one of two axes; those of more
axes, and of stacked layers, are told by `polarax.loaders.matrices.flax_kernels`.
"""

from polarax.loaders.architectures.rules import Architecture, Rule, Table


def _attention(name: str) -> dict[str, str]:
    """The four matrices of Flax's attention modules, Linen or NNX, under a name that the model gives."""
    parts = {"query": "q", "key": "k", "value": "v", "out": "o"}
    return {f"{name}.{part}": role for part, role in parts.items()}


# The layers' axis is the second one (param_scan_axis=1), unless each layer is by itself. Experts have names of arrays.
MAXTEXT = Architecture(
    "MaxText",
    prefixes=("", "params."),
    layers=("decoder.layers.",),
    in_layer={
        **_attention("self_attention"),
        **_attention("attention"),
        "mlp.wi": "up",
        "mlp.wi_0": "gate",
        "mlp.wi_1": "up",
        "mlp.wo": "down",
        "MoeBlock_0.gate": "router",
        "MoeBlock_0.wi_0": Rule("gate", "E i o"),
        "MoeBlock_0.wi_1": Rule("up", "E i o"),
        "MoeBlock_0.wo": Rule("down", "E i o"),
    },
    outside={
        "token_embedder": "embed",
        "decoder.position_embedder": "position",
        "decoder.logits_dense": "head",
    },
    layer_axis=1,
)

# The Gemma library of Google DeepMind, and the example in Flax's repository. Queries are (heads, in, size of a head).
GEMMA = Architecture(
    "Gemma in Flax",
    prefixes=("", "transformer.", "model."),
    layers=("layer.", "layers."),
    in_layer={
        "attn.q_einsum.w": Rule("q", "o i o"),
        "attn.kv_einsum.w": Rule("qkv", "p o i o", "kv"),
        "attn.qkv_einsum.w": Rule("qkv", "p o i o", "thirds"),
        "attn.attn_vec_einsum.w": Rule("o", "i i o"),
        "mlp.gating_einsum": Rule("gate_up", "p i o|p o i", "halves"),
        "mlp.gating_einsum.w": Rule("gate_up", "p i o|p o i", "halves"),
        "mlp.linear": Rule("down", "i o"),
        "mlp.linear.w": Rule("down", "i o"),
        "mlp.gate_proj": "gate",
        "mlp.up_proj": "up",
        "mlp.down_proj": "down",
    },
    outside={"embedder.input_embedding": "embed"},
)


def _encoder_block(*numbers: int) -> dict[str, str]:
    """A block of automatically numbered modules: attention before a perceptron of two layers."""
    first, last = numbers
    return {
        **_attention(f"MultiHeadDotProductAttention_{first}"),
        **_attention(f"SelfAttention_{first}"),
        f"MlpBlock_{last}.Dense_0": "up",
        f"MlpBlock_{last}.Dense_1": "down",
    }


_VISION_OUTSIDE: Table = {
    "embedding": Rule("patch", "i i i o"),
    "pos_embedding": Rule("position", "1 o i"),
    "Transformer.posembed_input.pos_embedding": Rule("position", "1 o i"),
    "head": "head",
}

# big_vision, the vision_transformer repository, and the language model among Flax's examples (lm1b).
VISION = Architecture(
    "Transformers of Flax's examples",
    prefixes=("", "img.", "model."),
    layers=("Transformer.encoderblock.", "decoder.encoderdecoderblock."),
    in_layer={**_encoder_block(0, 0), **_encoder_block(1, 3)},
    outside={
        **_VISION_OUTSIDE,
        "decoder.Embed_0": "embed",
        "shared_embedding": "embed",
        "decoder.logitdense": "head",
    },
)

_ATTENTIONS = ("attn", "attention", "self_attn", "self_attention", "mha", "MultiHeadDotProductAttention_0")
_FEED_FORWARDS = ("mlp", "ffn", "feed_forward")
_LINEARS = {"gate": "gate", "up": "up", "down": "down", "gate_proj": "gate", "up_proj": "up", "down_proj": "down"}

COMMON = Architecture(
    "common names in Flax",
    prefixes=("", "model.", "decoder.", "encoder.", "transformer."),
    layers=("layers.", "layer.", "blocks.", "block."),
    in_layer={
        **{name: role for attention in _ATTENTIONS for name, role in _attention(attention).items()},
        **{
            f"{attention}.{name}": role
            for attention in _ATTENTIONS
            for name, role in (("q_proj", "q"), ("k_proj", "k"), ("v_proj", "v"), ("o_proj", "o"), ("out_proj", "o"))
        },
        **{f"{block}.{name}": role for block in _FEED_FORWARDS for name, role in _LINEARS.items()},
    },
    outside={"embed": "embed", "embed_tokens": "embed", "token_embed": "embed", "lm_head": "head"},
)

FLAX = (MAXTEXT, GEMMA, VISION, COMMON)
