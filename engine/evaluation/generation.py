"""Texts that a model writes: greedy or sampled, with a cache of keys and values."""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from polarax.errors import UsageError
from polarax.evaluation.decoder import Cache, Decoder

_ROUND = 32  # prompts are filled up to a multiple of this, so that other prompts need no other program


def generate(
    model: Decoder,
    prompts: Sequence[Sequence[int]],
    length: int = 64,
    *,
    temperature: float = 0.0,
    seed: int = 0,
    stop: Sequence[int] = (),
) -> list[list[int]]:
    """Continues prompts.

    Args:
        model: The decoder.
        prompts: Token ids of each; none may be empty.
        length: Tokens to add, at most.
        temperature: Divides the scores before a token is drawn; 0 takes the most probable one.
        seed: Of the draws. A prompt's depend on its place in the list, not on the other prompts.
        stop: Tokens that end a text; they are left out of it.

    Returns:
        The token ids added to each.

    Raises:
        UsageError: A prompt is empty or has a token that is not in the vocabulary, or a number is out of range.
    """
    if not prompts:
        return []
    if length < 1 or not 0 <= temperature < float("inf"):
        raise UsageError(f"{length} tokens at temperature {temperature}. Expected one or more, at 0 or above.")
    vocabulary = model.config.vocabulary
    for number, prompt in enumerate(prompts):
        if not len(prompt):
            raise UsageError(f"Prompt {number + 1} has no tokens.")
        wrong = [token for token in prompt if not 0 <= token < vocabulary]
        if wrong:
            raise UsageError(f"Prompt {number + 1} has token {wrong[0]}; the model's embedding has {vocabulary}.")
    width = -(-max(map(len, prompts)) // _ROUND) * _ROUND
    tokens = np.zeros((len(prompts), width), np.int32)
    for row, prompt in enumerate(prompts):
        tokens[row, width - len(prompt) :] = prompt  # they end together
    starts = np.array([width - len(prompt) for prompt in prompts], np.int32)
    graph, weights = nnx.split(model)
    written, lengths = _generate(
        graph, weights, tokens, starts, np.float32(temperature), seed, np.array(stop, np.int32), length, temperature > 0
    )
    return [row[:count].tolist() for row, count in zip(np.asarray(written), np.asarray(lengths), strict=True)]


@functools.partial(jax.jit, static_argnums=(0, 7, 8))
def _generate(graph, weights, tokens, starts, temperature, seed, stop, length, sampled):
    """Tokens written, (prompts, length), and how many of each count."""
    model: Decoder = nnx.merge(graph, weights)
    count = tokens.shape[0]
    keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(seed), jnp.arange(count))

    def next_token(states, step):
        scores = model.scores(states[:, -1])
        if not sampled:
            return jnp.argmax(scores, axis=-1).astype(jnp.int32)
        draws = jax.vmap(jax.random.fold_in, (0, None))(keys, step)
        return jax.vmap(jax.random.categorical)(draws, scores / temperature).astype(jnp.int32)

    def unfinished(carry):
        _, _, lengths, _, step = carry
        return (step < length) & jnp.any(lengths == step)

    def write(carry):
        cache, token, lengths, written, step = carry
        going = (lengths == step) & ~jnp.isin(token, stop)
        written = written.at[:, step].set(token)
        states, _, cache = model.states(token[:, None], cache=cache)
        return cache, next_token(states, step + 1), lengths + going, written, step + 1

    cache = Cache.empty(model.config, starts, tokens.shape[1] + length, model.dtype)
    states, _, cache = model.states(tokens, cache=cache)
    carry = cache, next_token(states, 0), jnp.zeros(count, jnp.int32), jnp.zeros((count, length), jnp.int32), 0
    _, _, lengths, written, _ = jax.lax.while_loop(unfinished, write, carry)
    return written, lengths
