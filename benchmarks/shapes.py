"""Linear layers of published models, derived from the numbers in their config.json.

Only the projections inside the layers are listed. The embedding and the output head are 2-D
weights too, but they are one or two of hundreds and no repeated shape.
"""

import math
from typing import NamedTuple


class Config(NamedTuple):
    """The numbers of a config.json that fix the shapes of the linear layers."""

    hidden_size: int
    intermediate_size: int  # of the dense feed-forward block
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    vocab_size: int
    tie_word_embeddings: bool
    attention_bias: bool = False  # on q, k and v
    num_experts: int = 0  # routed ones; 0 for a dense model
    moe_intermediate_size: int = 0
    n_shared_experts: int = 0
    first_k_dense_replace: int = 0  # leading layers of a mixture that are dense
    # Multi-head latent attention (DeepSeek-V2 and later); 0 for plain attention.
    q_lora_rank: int = 0
    kv_lora_rank: int = 0
    qk_nope_head_dim: int = 0
    qk_rope_head_dim: int = 0
    v_head_dim: int = 0


class Linear(NamedTuple):
    """Linear layers of one role and shape."""

    role: str
    rows: int  # out
    cols: int  # in
    per_layer: int
    layers: int

    @property
    def count(self) -> int:
        """How many of them the model has."""
        return self.per_layer * self.layers


# Values of the config.json that each model was published with.
CONFIGS = {
    "qwen2.5-0.5b": Config(896, 4864, 24, 14, 2, 151936, True, attention_bias=True),
    "qwen2.5-1.5b": Config(1536, 8960, 28, 12, 2, 151936, True, attention_bias=True),
    "qwen2.5-7b": Config(3584, 18944, 28, 28, 4, 152064, False, attention_bias=True),
    "qwen2.5-14b": Config(5120, 13824, 48, 40, 8, 152064, False, attention_bias=True),
    "llama-3.1-8b": Config(4096, 14336, 32, 32, 8, 128256, False),
    "llama-3.1-70b": Config(8192, 28672, 80, 64, 8, 128256, False),
    "mixtral-8x7b": Config(4096, 14336, 32, 32, 8, 32000, False, num_experts=8, moe_intermediate_size=14336),
    "deepseek-v3": Config(
        7168,
        18432,
        61,
        128,
        128,
        129280,
        False,
        num_experts=256,
        moe_intermediate_size=2048,
        n_shared_experts=1,
        first_k_dense_replace=3,
        q_lora_rank=1536,
        kv_lora_rank=512,
        qk_nope_head_dim=128,
        qk_rope_head_dim=64,
        v_head_dim=128,
    ),
}


def linear_layers(config: Config) -> tuple[Linear, ...]:
    """Every linear layer inside the transformer's layers, one row for each role."""
    hidden, layers = config.hidden_size, config.num_hidden_layers
    attention = _latent_attention(config) if config.kv_lora_rank else _attention(config)
    rows = [Linear(role, out, into, 1, layers) for role, out, into in attention]
    sparse = layers - config.first_k_dense_replace if config.num_experts else 0
    dense = layers - sparse
    if dense:
        rows += _feed_forward("", config.intermediate_size, hidden, 1, dense)
    if sparse:
        rows.append(Linear("router", config.num_experts, hidden, 1, sparse))
        inner, experts = config.moe_intermediate_size, config.num_experts
        rows += _feed_forward("expert_", inner, hidden, experts, sparse)
        if config.n_shared_experts:
            shared = config.n_shared_experts * inner
            rows += _feed_forward("shared_", shared, hidden, 1, sparse)
    return tuple(rows)


def distinct_shapes(config: Config) -> dict[tuple[int, int], int]:
    """(rows, cols) -> how many of that shape an average layer has, in order of first appearance.

    Rounded up to whole matrices: a mixture's leading dense layers count as one in each layer.
    """
    counts: dict[tuple[int, int], int] = {}
    for linear in linear_layers(config):
        shape = (linear.rows, linear.cols)
        counts[shape] = counts.get(shape, 0) + linear.count
    return {shape: math.ceil(count / config.num_hidden_layers) for shape, count in counts.items()}


def shrunk(size: int, divisor: int) -> int:
    """A dimension divided for a trial run, at least 8 so that tall stays tall."""
    return size if divisor == 1 else max(8, size // divisor)


def _attention(config):
    head = config.hidden_size // config.num_attention_heads
    queries, keys = head * config.num_attention_heads, head * config.num_key_value_heads
    return (
        ("q", queries, config.hidden_size),
        ("k", keys, config.hidden_size),
        ("v", keys, config.hidden_size),
        ("o", config.hidden_size, queries),
    )


def _latent_attention(config):
    heads, hidden = config.num_attention_heads, config.hidden_size
    query = config.qk_nope_head_dim + config.qk_rope_head_dim
    key_value = config.qk_nope_head_dim + config.v_head_dim
    return (
        ("q_a", config.q_lora_rank, hidden),
        ("q_b", heads * query, config.q_lora_rank),
        ("kv_a", config.kv_lora_rank + config.qk_rope_head_dim, hidden),
        ("kv_b", heads * key_value, config.kv_lora_rank),
        ("o", hidden, heads * config.v_head_dim),
    )


def _feed_forward(prefix, inner, hidden, per_layer, layers):
    return [
        Linear(f"{prefix}gate", inner, hidden, per_layer, layers),
        Linear(f"{prefix}up", inner, hidden, per_layer, layers),
        Linear(f"{prefix}down", hidden, inner, per_layer, layers),
    ]
