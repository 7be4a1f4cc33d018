"""Names that JAX training code gives: MaxText, Gemma's own code, vision transformers, and common choices in Flax.

Rules for a `kernel` say (out, in) like all others, which is how a `Checkpoint` shows one of two axes; those of more
axes, and of stacked layers, are told by `polarax.loaders.matrices.flax_kernels`.
"""

from polarax.loaders.architectures.rules import Architecture, Rule, Table
from polarax.loaders.roles import OTHER


def _attention(name: str) -> dict[str, str]:
    """The four matrices of Flax's attention modules, Linen or NNX, under a name that the model gives."""
    parts = {"query": "q", "key": "k", "value": "v", "out": "o"}
    return {f"{name}.{part}": role for part, role in parts.items()}


_LATENT_ATTENTION: Table = {
    "wq_a": "q_a",
    "wq_b": "q_b",
    "wkv_a": "kv_a",
    "wkv_b": Rule("kv_b", "i o p", "latent"),
}


def _feed_forward(name: str) -> dict[str, str]:
    """MaxText's feed-forward layer; `wi` where it has no gate."""
    parts = {"wi": "up", "wi_0": "gate", "wi_1": "up", "wo": "down"}
    return {f"{name}.{part}": role for part, role in parts.items()}


def _experts(name: str) -> Table:
    """MaxText's router, and the arrays of its experts."""
    arrays = {"wi_0": "gate", "wi_1": "up", "wo": "down"}
    return {f"{name}.gate": "router", **{f"{name}.{part}": Rule(role, "E i o") for part, role in arrays.items()}}


def _alternating(place: int, suffix: str) -> Table:
    """Gemma 2, of which MaxText makes one layer of two: one whose attention is local, one whose is not."""
    names = {**_attention(f"self_attention_{suffix}"), **_feed_forward(f"mlp_{suffix}")}
    return {name: Rule(role, turn=(place, 2)) for name, role in names.items()}


# The layers' axis is the second one (param_scan_axis=1), unless each layer is by itself. The names are those of
# checkpoint_conversion/utils/param_mapping.py and layers/moe.py in MaxText's repository.
MAXTEXT = Architecture(
    "MaxText",
    prefixes=("", "params."),
    layers=(
        "decoder.layers.layers.",  # Gemma 3, gpt-oss, Llama 4: blocks of layers that alternate
        "decoder.layers_remainder.layers.",  # Gemma 3: those that fill no block
        "decoder.layers.",
        "decoder.dense_layers.",  # DeepSeek: those without experts
        "decoder.moe_layers.",
    ),
    in_layer={
        **_attention("self_attention"),
        **_attention("attention"),
        **_attention("GptOssAttention"),
        **{f"self_attention.{name}": role for name, role in _LATENT_ATTENTION.items()},
        **_alternating(0, "local"),
        **_alternating(1, "global"),
        **_feed_forward("mlp"),
        **_feed_forward("DeepSeekMoeBlock_0.shared_experts"),
        **_feed_forward("Llama4MoEBlock_0.shared_experts"),
        **_experts("MoeBlock_0"),  # Mixtral
        **_experts("moe_block"),  # Qwen3
        **_experts("GptOssMlp"),
        **_experts("DeepSeekMoeBlock_0.MoeBlock_0"),
        **_experts("Llama4MoEBlock_0.MoeBlock_0"),
    },
    outside={
        "token_embedder": "embed",
        "decoder.position_embedder": "position",
        "decoder.logits_dense": "head",
    },
    layer_axis=1,
    follows={
        "decoder.moe_layers.": "decoder.dense_layers.",
        "decoder.layers_remainder.layers.": "decoder.layers.layers.",
    },
    blocks=("decoder.layers.layers.",),
)


def _einsums(suffix: str) -> Table:
    """Gemma's own kernels; queries are (heads, in, size of a head)."""
    gate_up, down = Rule("gate_up", "p i o|p o i", "halves"), Rule("down", "i o")
    return {
        f"attn.q_einsum{suffix}.w": Rule("q", "o i o"),
        f"attn.kv_einsum{suffix}.w": Rule("qkv", "p o i o", "kv"),
        f"attn.qkv_einsum{suffix}.w": Rule("qkv", "p o i o", "thirds"),
        f"attn.attn_vec_einsum{suffix}.w": Rule("o", "i i o"),
        f"mlp{suffix}.gating_einsum": gate_up,
        f"mlp{suffix}.gating_einsum.w": gate_up,
        f"mlp{suffix}.linear": down,
        f"mlp{suffix}.linear.w": down,
    }


# The Gemma library of Google DeepMind, the example in Flax's repository, big_vision, and openpi, whose layers have the
# weights of a second model beside those of the first, with "_1" behind their names.
GEMMA = Architecture(
    "Gemma in Flax",
    prefixes=("", "transformer.", "model."),
    layers=("layer.", "layers.", "block.", "blocks."),
    in_layer={
        **_einsums(""),
        **_einsums("_1"),
        "mlp.gate_proj": "gate",
        "mlp.up_proj": "up",
        "mlp.down_proj": "down",
    },
    outside={"embedder.input_embedding": "embed", "embedder.mm_input_projection.w": Rule(OTHER, "i o")},
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
_PROJECTIONS = {"q_proj": "q", "k_proj": "k", "v_proj": "v", "o_proj": "o", "out_proj": "o"}
_PROJECTIONS |= {"wq": "q", "wk": "k", "wv": "v", "wo": "o"}
_LINEARS = {"gate": "gate", "up": "up", "down": "down", "gate_proj": "gate", "up_proj": "up", "down_proj": "down"}

COMMON = Architecture(
    "common names in Flax",
    prefixes=("", "model.", "decoder.", "encoder.", "transformer."),
    layers=("layers.", "layer.", "blocks.", "block."),
    in_layer={
        **{name: role for attention in _ATTENTIONS for name, role in _attention(attention).items()},
        **{f"{attention}.{name}": role for attention in _ATTENTIONS for name, role in _PROJECTIONS.items()},
        **{f"{block}.{name}": role for block in _FEED_FORWARDS for name, role in _LINEARS.items()},
        **{f"{block}.gate_up_proj": Rule("gate_up", "p i", "halves") for block in _FEED_FORWARDS},
        # Straight in the layer, where there is one of each.
        **_PROJECTIONS,
        **{name: role for name, role in _LINEARS.items() if name.endswith("_proj")},
    },
    outside={"embed": "embed", "embed_tokens": "embed", "token_embed": "embed", "lm_head": "head"},
)

TABLES = (MAXTEXT, GEMMA, VISION, COMMON)
