"""What a decoder is: sizes and habits, hashable, so that programs are compiled for it."""

import dataclasses

from polarax.evaluation.decoder.rotary import Rotary


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
    """A decoder of the Llama family; what the families differ in are fields here, not classes.

    Attributes:
        family: Of `FAMILIES`.
        vocabulary: Tokens that have an embedding.
        hidden: Size of the residual stream.
        layers: Their number.
        heads: Of queries.
        key_heads: Of keys and of values; a divisor of `heads`.
        head_size: Numbers of a head.
        units: Hidden units of the feed-forward layer.
        epsilon: Added to mean squares before their root.
        rotaries: The rotary positions that layers choose from.
        rotary_of_layer: Which of them, by layer.
        windows: How many tokens back a layer sees, itself included, by layer; 0 for all.
        activation: Of the gate: "silu", "gelu" or "gelu_tanh".
        tied: The head is the embedding.
        query_bias: Queries, keys and values have a bias.
        output_bias: Attention's output projection has one.
        unit_bias: The three matrices of the feed-forward layer have one.
        query_key_norms: Queries and keys are normalised by head.
        post_norms: What attention and the feed-forward layer add to the stream is normalised too.
        norm_offset: Added to the stored scales of all norms.
        embedding_scale: Multiplies embeddings, rounded to the dtype of computing.
        attention_scale: Multiplies the products of queries and keys.
        attention_cap: Bounds attention scores softly; 0 for no bound.
        final_cap: Bounds the scores of tokens; 0 for no bound.
    """

    family: str
    vocabulary: int
    hidden: int
    layers: int
    heads: int
    key_heads: int
    head_size: int
    units: int
    epsilon: float
    rotaries: tuple[Rotary, ...]
    rotary_of_layer: tuple[int, ...]
    windows: tuple[int, ...]
    activation: str = "silu"
    tied: bool = False
    query_bias: bool = False
    output_bias: bool = False
    unit_bias: bool = False
    query_key_norms: bool = False
    post_norms: bool = False
    norm_offset: float = 0.0
    embedding_scale: float = 1.0
    attention_scale: float = 1.0
    attention_cap: float = 0.0
    final_cap: float = 0.0

    @property
    def group(self) -> int:
        """Heads of queries that share a head of keys."""
        return self.heads // self.key_heads
