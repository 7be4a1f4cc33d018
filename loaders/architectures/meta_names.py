"""Names of Meta's own Llama code, which Mistral's files (`consolidated*.safetensors`) and torchtitan keep.

The modules are those of llama/model.py in Meta's repository and of mistral_inference/transformer_layers.py in
Mistral's; what Mistral Large 3 adds is in `MistralLarge3ForCausalLM.remapping` of vLLM. Rotary embeddings turn
neighbouring rows of a head there, where transformers turns rows half a head apart: its converters (`permute_for_rope`
in models/mistral/convert_mistral_weights_to_hf.py) reorder queries and keys.
"""

from polarax.loaders.architectures.rules import Architecture, Rule, Table

_QUERIES = Rule("q", interleaved=True)
_KEYS = Rule("k", interleaved=True)


def _feed_forward(name: str) -> Table:
    return {f"{name}.w1": "gate", f"{name}.w3": "up", f"{name}.w2": "down"}


META = Architecture(
    "Llama as Meta and Mistral name it",
    prefixes=("", "model.", "language_model.", "language_model.model."),
    layers=("layers.",),
    in_layer={
        "attention.wq": _QUERIES,
        "attention.wk": _KEYS,
        "attention.wv": "v",
        "attention.wqkv": Rule("qkv", "p i", "internlm"),  # InternLM 2, whose other names are Meta's
        "attention.wo": "o",
        "attention.wq_a": "q_a",  # latent attention, whose rows transformers leaves as they are
        "attention.wq_b": "q_b",
        "attention.wkv_a_with_mqa": "kv_a",
        "attention.wkv_b": "kv_b",
        **_feed_forward("feed_forward"),
        **_feed_forward("mlp"),  # torchtitan's Qwen
        "feed_forward.gate": "router",
        "gate": "router",
        "moe.router.gate": "router",  # torchtitan
        **_feed_forward("feed_forward.experts.{expert}"),
        **_feed_forward("experts.{expert}"),
        **_feed_forward("shared_experts"),
        "moe.experts.w1": Rule("gate", "E o i"),
        "moe.experts.w3": Rule("up", "E o i"),
        "moe.experts.w2": Rule("down", "E o i"),
    },
    outside={"tok_embeddings": "embed", "output": "head"},
)

TABLES = (META,)
