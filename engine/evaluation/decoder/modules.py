"""The modules of a decoder, in Flax NNX: one tree for all families, its layers stacked and scanned.

The parameters of all layers are stacked along a leading axis, so that a program has one layer in it, whatever their
number, and compiles in seconds. What layers differ in (windows, rotary positions) is scanned beside them. Names are
those of transformers, with Flax's for the arrays ("layers.self_attn.q_proj.kernel", of (layers, in, out)): that is
what polarax recognises in a checkpoint.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from polarax.evaluation.decoder.attention import Scores, attend
from polarax.evaluation.decoder.config import DecoderConfig
from polarax.evaluation.decoder.rotary import turned

_ACTIVATIONS: Mapping[str, Callable[[jax.Array], jax.Array]] = {
    "silu": jax.nn.silu,
    "gelu": functools.partial(jax.nn.gelu, approximate=False),
    "gelu_tanh": functools.partial(jax.nn.gelu, approximate=True),
}
_EVERYTHING = 2**30  # a window that no text fills


class Observer(NamedTuple):
    """What to keep of each layer while it is computed; both are traced into the program.

    The probabilities of all layers never exist at once, nor do the states of all layers, unless they are returned.
    """

    attention: Callable[[Scores], Any] | None = (
        None  # arrays of (batch, heads, queries, ...), from those of some queries
    )
    states: Callable[[jax.Array], Any] | None = None  # anything, from the residual stream (batch, length, hidden)


class Observations(NamedTuple):
    """What an observer kept, every array with the layers along a leading axis."""

    attention: Any  # (layers, batch, heads, length, ...)
    states: Any  # (layers + 1, ...): of the embeddings, then after each layer


class Cache(NamedTuple):
    """Keys and values of the tokens so far: the cache for generating."""

    keys: jax.Array  # (layers, batch, key heads, slots, head size)
    values: jax.Array
    filled: jax.Array  # slots that are, a whole number
    starts: jax.Array  # (batch,) the first slot that holds a token: prompts end together

    @classmethod
    def empty(cls, config: DecoderConfig, starts: jax.Array, slots: int, dtype: Any) -> "Cache":
        """A cache for prompts of different lengths, of which the longest begins at slot 0."""
        shape = (config.layers, starts.shape[0], config.key_heads, slots, config.head_size)
        return cls(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype), jnp.int32(0), starts)


class Norm(nnx.Module):
    """Root mean square normalisation, in float32 whatever the dtype."""

    def __init__(self, size: int, config: DecoderConfig):
        self.scale = nnx.Param(jnp.ones(size, jnp.float32))
        self.epsilon, self.offset = config.epsilon, config.norm_offset

    def __call__(self, x: jax.Array) -> jax.Array:
        """Normalises along the last axis."""
        wide = x.astype(jnp.float32)
        wide = wide * jax.lax.rsqrt(jnp.mean(wide**2, axis=-1, keepdims=True) + self.epsilon)
        return (wide * (self.scale[...] + self.offset)).astype(x.dtype)


class Attention(nnx.Module):
    """Causal attention in which several heads of queries share one of keys and values."""

    def __init__(self, config: DecoderConfig, dtype: Any, rngs: nnx.Rngs):
        linear = functools.partial(nnx.Linear, dtype=dtype, param_dtype=dtype, rngs=rngs)
        queries, keys = config.heads * config.head_size, config.key_heads * config.head_size
        self.q_proj = linear(config.hidden, queries, use_bias=config.query_bias)
        self.k_proj = linear(config.hidden, keys, use_bias=config.query_bias)
        self.v_proj = linear(config.hidden, keys, use_bias=config.query_bias)
        self.o_proj = linear(queries, config.hidden, use_bias=config.output_bias)
        if config.query_key_norms:
            self.q_norm, self.k_norm = (Norm(config.head_size, config) for _ in range(2))
        self.config = config

    def queries_keys_values(self, x: jax.Array, cos: jax.Array, sin: jax.Array) -> tuple[jax.Array, ...]:
        """Of x (batch, length, hidden) the three, each (batch, its heads, length, head size); the first two turned."""
        q, k, v = (
            f(x).reshape(*x.shape[:2], -1, self.config.head_size) for f in (self.q_proj, self.k_proj, self.v_proj)
        )
        if self.config.query_key_norms:
            q, k = self.q_norm(q), self.k_norm(k)
        q, k, v = (part.swapaxes(1, 2) for part in (q, k, v))
        return turned(q, cos, sin), turned(k, cos, sin), v


class FeedForward(nnx.Module):
    """A gated unit."""

    def __init__(self, config: DecoderConfig, dtype: Any, rngs: nnx.Rngs):
        linear = functools.partial(nnx.Linear, dtype=dtype, param_dtype=dtype, use_bias=config.unit_bias, rngs=rngs)
        self.gate_proj = linear(config.hidden, config.units)
        self.up_proj = linear(config.hidden, config.units)
        self.down_proj = linear(config.units, config.hidden)
        self.activation = config.activation

    def __call__(self, x: jax.Array) -> jax.Array:
        """Of (..., hidden)."""
        return self.down_proj(_ACTIVATIONS[self.activation](self.gate_proj(x)) * self.up_proj(x))


class Layer(nnx.Module):
    """One layer; as `post_attention_layernorm` Gemma has what normalises attention's output, others the next input."""

    def __init__(self, config: DecoderConfig, dtype: Any, rngs: nnx.Rngs):
        self.input_layernorm = Norm(config.hidden, config)
        self.self_attn = Attention(config, dtype, rngs)
        self.post_attention_layernorm = Norm(config.hidden, config)
        if config.post_norms:
            self.pre_feedforward_layernorm = Norm(config.hidden, config)
            self.post_feedforward_layernorm = Norm(config.hidden, config)
        self.mlp = FeedForward(config, dtype, rngs)
        self.post_norms = config.post_norms

    def add(self, x: jax.Array, attended: jax.Array) -> jax.Array:
        """The residual stream after the layer, from that before it and attention's output (batch, length, hidden)."""
        if not self.post_norms:
            x = x + attended
            return x + self.mlp(self.post_attention_layernorm(x))
        x = x + self.post_attention_layernorm(attended)
        return x + self.post_feedforward_layernorm(self.mlp(self.pre_feedforward_layernorm(x)))


class Decoder(nnx.Module):
    """A whole decoder."""

    def __init__(self, config: DecoderConfig, dtype: Any = jnp.float32, *, rngs: nnx.Rngs):
        """Random weights, to start from nothing.

        Args:
            config: What it is.
            dtype: Of weights and computing; norms, softmax and the scores of tokens are in float32.
            rngs: For the weights.
        """
        self.embed_tokens = nnx.Embed(config.vocabulary, config.hidden, dtype=dtype, param_dtype=dtype, rngs=rngs)

        @nnx.split_rngs(splits=config.layers)
        @nnx.vmap(in_axes=0, out_axes=0)
        def stacked(rngs: nnx.Rngs) -> Layer:
            return Layer(config, dtype, rngs)

        self.layers = stacked(rngs)
        self.norm = Norm(config.hidden, config)
        if not config.tied:
            self.lm_head = nnx.Linear(
                config.hidden, config.vocabulary, use_bias=False, dtype=dtype, param_dtype=dtype, rngs=rngs
            )
        self.config, self.dtype = config, dtype

    def __call__(self, tokens: jax.Array) -> jax.Array:
        """Scores of the next token, (batch, length, vocabulary) float32, at each place of tokens (batch, length)."""
        return self.scores(self.states(tokens)[0])

    def states(
        self, tokens: jax.Array, observer: Observer | None = None, cache: Cache | None = None
    ) -> tuple[jax.Array, Observations, Any]:
        """The normalised states that scores are made of.

        Args:
            tokens: (batch, length), each row from its first token on; with a cache, those that follow what is in it.
            observer: What to keep of each layer.
            cache: Of the tokens before; with it attention takes all slots, and an observer sees only states.

        Returns:
            The states, (batch, length, hidden); what the observer kept; the cache with these tokens in it, or None.
        """
        observer = observer or Observer()
        config, length = self.config, tokens.shape[1]
        x = self.embed_tokens(tokens)
        x = x * jnp.asarray(config.embedding_scale, x.dtype)
        places = jnp.arange(length)
        if cache is None:
            reach, positions = length, places
        else:
            reach = cache.keys.shape[3]
            places = places + cache.filled
            positions = jnp.maximum(places - cache.starts[:, None], 0)[:, None]  # the same for all heads
        tables = [
            jnp.stack(tables) for tables in zip(*(r.tables(positions, reach) for r in config.rotaries), strict=True)
        ]
        graph, weights = nnx.split(self.layers)
        windows = np.array([window or _EVERYTHING for window in config.windows], np.int32)
        numbers = np.arange(config.layers, dtype=np.int32), np.array(config.rotary_of_layer, np.int32), windows

        def step(carry, scanned):
            x, cache = carry
            weights, (number, rotary, window) = scanned
            layer = nnx.merge(graph, weights)
            cos, sin = (table[rotary] for table in tables)
            q, k, v = layer.self_attn.queries_keys_values(layer.input_layernorm(x), cos, sin)
            if cache is not None:
                cache, k, v = _remember(cache, number, k, v)
            out, seen = attend(
                q,
                k,
                v,
                config,
                places,
                window if any(config.windows) else None,
                starts=None if cache is None else cache.starts,
                observe=observer.attention,
            )
            x = layer.add(x, layer.self_attn.o_proj(out))
            return (x, cache), (seen, observer.states(x) if observer.states else None)

        before = observer.states(x) if observer.states else None
        (x, cache), (attention, after) = jax.lax.scan(step, (x, cache), (weights, numbers))
        states = jax.tree.map(lambda first, rest: jnp.concatenate([first[None], rest]), before, after)
        if cache is not None:
            cache = cache._replace(filled=cache.filled + length)
        return self.norm(x), Observations(attention, states), cache

    def scores(self, states: jax.Array) -> jax.Array:
        """Scores of the next token, (..., vocabulary) float32, from normalised states (..., hidden)."""
        if self.config.tied:
            scores = self.embed_tokens.attend(states)
        else:
            scores = self.lm_head(states)
        scores = scores.astype(jnp.float32)
        cap = self.config.final_cap
        return cap * jnp.tanh(scores / cap) if cap else scores


def _remember(cache: Cache, layer: jax.Array, k: jax.Array, v: jax.Array) -> tuple[Cache, jax.Array, jax.Array]:
    """The cache with more keys and values in a layer, and all that are then in that layer."""
    start = (layer, 0, 0, cache.filled, 0)
    keys = jax.lax.dynamic_update_slice(cache.keys, k[None].astype(cache.keys.dtype), start)
    values = jax.lax.dynamic_update_slice(cache.values, v[None].astype(cache.values.dtype), start)
    return cache._replace(keys=keys, values=values), keys[layer], values[layer]
