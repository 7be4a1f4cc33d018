"""Attention, some queries at a time: no array of all queries by all keys, and none of keys that come later."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from polarax.evaluation.decoder.config import DecoderConfig

_BLOCK = 256  # queries at a time: their scores stay in a CPU's cache, and half of all products is never computed
_NEVER = -1e30  # a score that softmax makes 0 of, and that times 0 is 0


class Scores(NamedTuple):
    """Attention of some queries, in float32: (batch, heads, queries, keys)."""

    scores: jax.Array  # -1e30 where a query does not see a key
    probabilities: jax.Array
    normaliser: jax.Array  # logarithm of the sum of the scores' exponentials, (batch, heads, queries)


def attend(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    config: DecoderConfig,
    places: jax.Array,
    window: jax.Array | None,
    *,
    starts: jax.Array | None = None,
    observe: Callable[[Scores], Any] | None = None,
) -> tuple[jax.Array, Any]:
    """Causal attention.

    Args:
        q: Queries, (batch, heads, length, head size).
        k: Keys, (batch, key heads, slots, head size).
        v: Values, like the keys.
        config: Scale, bound and sharing of heads.
        places: In which slots the queries are, (length,), one after the other.
        window: How many slots back a query sees, itself included; None for all.
        starts: The first slot that holds a token, (batch,), of a cache, of which all slots are then taken; without
            them queries and keys have the same places.
        observe: Called for each block of queries; what it returns is joined along its third axis.

    Returns:
        The heads' outputs, (batch, length, heads * head size), and what `observe` returned.
    """
    batch, heads, length, size = q.shape
    whole = starts is not None
    block = length if whole else min(_BLOCK, length)
    outputs, seen = [], []
    for first in range(0, length, block):
        last = min(first + block, length)
        keys = k.shape[2] if whole else last
        slots = jnp.arange(keys)
        back = places[first:last, None] - slots
        visible = back >= 0
        if window is not None:
            visible &= back < window
        visible = visible[None, None, None]
        if starts is not None:
            visible = visible & (slots >= starts[:, None])[:, None, None, None]
        queries = q[:, :, first:last].reshape(batch, config.key_heads, -1, size)  # of a group, one after the other
        scores = jnp.einsum("bkqd,bksd->bkqs", queries, k[:, :, :keys], preferred_element_type=jnp.float32)
        scores = scores.reshape(batch, config.key_heads, config.group, last - first, keys) * config.attention_scale
        if config.attention_cap:
            scores = config.attention_cap * jnp.tanh(scores / config.attention_cap)
        scores = jnp.where(visible, scores, _NEVER)
        top = jax.lax.stop_gradient(jnp.max(scores, axis=-1, keepdims=True))
        raised = jnp.exp(scores - top)
        total = jnp.sum(raised, axis=-1, keepdims=True)
        if observe is None:
            weighted = raised
        else:
            weighted = raised / total
            shape = batch, heads, last - first
            normaliser = (jnp.log(total) + top).reshape(shape)
            seen.append(observe(Scores(scores.reshape(*shape, keys), weighted.reshape(*shape, keys), normaliser)))
        weighted = weighted.astype(v.dtype).reshape(batch, config.key_heads, -1, keys)
        out = jnp.einsum("bkqs,bksd->bkqd", weighted, v[:, :, :keys], preferred_element_type=jnp.float32)
        if observe is None:  # dividing the sums is less work than dividing what is summed
            out = out / total.reshape(*out.shape[:3], 1)
        outputs.append(out.reshape(batch, heads, last - first, size).astype(v.dtype))
    joined = jnp.concatenate(outputs, axis=2).swapaxes(1, 2).reshape(batch, length, heads * size)
    return joined, jax.tree.map(lambda *parts: jnp.concatenate(parts, axis=2), *seen) if seen else None


def entropy(attention: Scores) -> jax.Array:
    """Entropy of the attention of each query, in nats: (batch, heads, queries)."""
    return attention.normaliser - jnp.sum(attention.probabilities * attention.scores, axis=-1)
