"""The compiled programs: a batch of windows through a model, and what its scores say of the tokens that follow."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from polarax.evaluation.decoder import Decoder, Observer
from polarax.evaluation.decoder.attention import entropy

_ROWS = 512  # positions whose scores over the vocabulary exist at once


class Seen(NamedTuple):
    """What a batch of windows showed of a model's inside; sums over the queries that count."""

    entropy: jax.Array  # (layers, heads) nats
    share: jax.Array  # (layers, heads) of the entropy of looking at all visible tokens alike
    queries: jax.Array  # how many, and how many of them see more than one token
    queries_with_choice: jax.Array
    states: jax.Array | None  # (layers + 1, rows, hidden) of some positions


class _Normalised(NamedTuple):
    """Scores over the vocabulary with what normalises them; logarithms of probabilities are never all written down."""

    values: jax.Array  # (rows, vocabulary)
    top: jax.Array  # (rows,) the largest
    normaliser: jax.Array  # (rows,) logarithm of the sum of their exponentials

    @classmethod
    def of(cls, scores: jax.Array) -> "_Normalised":
        top = jnp.max(scores, axis=-1)
        return cls(scores, top, top + jnp.log(jnp.sum(jnp.exp(scores - top[:, None]), axis=-1)))

    def first_top(self) -> jax.Array:
        """The first token with the largest score; as argmax, in two passes that a CPU vectorises."""
        count = self.values.shape[-1]
        return jnp.min(jnp.where(self.values == self.top[:, None], jnp.arange(count), count), axis=-1)


class Told(NamedTuple):
    """What the scores at each place say of the next token, each (batch, length)."""

    loss: jax.Array  # minus the logarithm of its probability; nats
    hit: jax.Array  # it is the most probable one
    loss_reference: jax.Array | None  # of the reference model
    divergence: jax.Array | None  # Kullback-Leibler divergence of the distribution from the reference's; nats
    agreement: jax.Array | None  # both models find the same token most probable


def run_model(model: Decoder, tokens: Any, counted_from: Any, lengths: Any, every: int = 0) -> tuple[jax.Array, Seen]:
    """A batch of windows through a model.

    Args:
        model: The decoder.
        tokens: (batch, length).
        counted_from: (batch,) the first query that counts.
        lengths: (batch,) tokens of each row.
        every: Keep the states of each layer at every so many positions; 0 keeps none.

    Returns:
        The normalised states (batch, length, hidden), and what was seen.
    """
    graph, weights = nnx.split(model)
    return _run_model(graph, weights, tokens, counted_from, lengths, every)


@functools.partial(jax.jit, static_argnums=(0, 5))
def _run_model(graph, weights, tokens, counted_from, lengths, every):
    model: Decoder = nnx.merge(graph, weights)
    config, length = model.config, tokens.shape[1]
    keep = (lambda states: states[:, ::every]) if every else None
    states, seen, _ = model.states(tokens, Observer(attention=entropy, states=keep))
    places = jnp.arange(length)
    counts = ((places >= counted_from[:, None]) & (places < lengths[:, None])).astype(jnp.float32)
    visible = jnp.stack([jnp.minimum(places + 1, window or length) for window in config.windows])
    most = jnp.log(visible.astype(jnp.float32))[:, None, None]  # (layers, 1, 1, length)
    choice = counts * (places > 0)
    share = seen.attention / jnp.where(most > 0, most, 1.0)
    kept = None if seen.states is None else seen.states.reshape(config.layers + 1, -1, config.hidden)
    return states, Seen(
        jnp.einsum("lbhq,bq->lh", seen.attention, counts),
        jnp.einsum("lbhq,bq->lh", share, choice),
        counts.sum(),
        choice.sum(),
        kept,
    )


def next_tokens(
    model: Decoder, states: jax.Array, tokens: Any, reference: Decoder | None = None, states_reference: Any = None
) -> Told:
    """What a model's scores say of the tokens that follow, and how they differ from another model's.

    Args:
        model: The decoder.
        states: Its normalised states, (batch, length, hidden).
        tokens: (batch, length). The last place of a row has no next token; what is told of it means nothing.
        reference: Another decoder of the same vocabulary.
        states_reference: Its states.
    """
    graph, weights = nnx.split(model)
    other = (None, None) if reference is None else nnx.split(reference)
    return _next_tokens(graph, weights, other[0], other[1], states, states_reference, tokens)


@functools.partial(jax.jit, static_argnums=(0, 2))
def _next_tokens(graph, weights, graph_reference, weights_reference, states, states_reference, tokens):
    model: Decoder = nnx.merge(graph, weights)
    reference: Decoder | None = None
    if graph_reference is not None:
        reference = nnx.merge(graph_reference, weights_reference)
    targets = jnp.roll(tokens, -1, axis=1)
    rows = min(_ROWS, tokens.size)

    def told(block):
        states, states_reference, targets = block
        scores = _Normalised.of(model.scores(states))
        score = jnp.take_along_axis(scores.values, targets[:, None], axis=-1)[:, 0]
        loss, hit = scores.normaliser - score, score >= scores.top
        if reference is None:
            return Told(loss, hit, None, None, None)
        others = _Normalised.of(reference.scores(states_reference))
        loss_reference = others.normaliser - jnp.take_along_axis(others.values, targets[:, None], axis=-1)[:, 0]
        chances = jnp.exp(others.values - others.normaliser[:, None])
        divergence = jnp.sum(chances * (others.values - scores.values), axis=-1)
        divergence = divergence - others.normaliser + scores.normaliser
        return Told(loss, hit, loss_reference, divergence, scores.first_top() == others.first_top())

    def in_blocks(array):
        if array is None:
            return None
        flat = array.reshape(tokens.size, *array.shape[2:])
        flat = jnp.pad(flat, [(0, -tokens.size % rows), *[(0, 0)] * (flat.ndim - 1)])
        return flat.reshape(-1, rows, *flat.shape[1:])

    blocks = jax.lax.map(told, tuple(map(in_blocks, (states, states_reference, targets))))
    return jax.tree.map(lambda array: array.reshape(-1)[: tokens.size].reshape(tokens.shape), blocks)
