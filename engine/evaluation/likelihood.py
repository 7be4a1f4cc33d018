"""How probable a model finds given continuations: what benchmarks of multiple choice ask."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from polarax.errors import UsageError
from polarax.evaluation.decoder import Decoder
from polarax.evaluation.programs import next_tokens, run_model

_ROUND = 64  # rows are filled up to a multiple of this
_BATCH_TOKENS = 4096


class Likelihood(NamedTuple):
    """Of one continuation."""

    logarithm: float  # of its probability after the context; nats
    greedy: bool  # each of its tokens is the most probable one


def log_likelihoods(
    model: Decoder, pairs: Sequence[tuple[Sequence[int], Sequence[int]]], longest: int = 2048
) -> list[Likelihood]:
    """The likelihoods of continuations.

    Args:
        model: The decoder.
        pairs: Token ids of a context and of its continuation; neither may be empty.
        longest: Tokens of both together that the model sees: what is more is cut from the context's beginning.

    Raises:
        UsageError: A context or a continuation is empty, or a continuation longer than the model may see.
    """
    rows: list[tuple[np.ndarray, int]] = []
    for context, continuation in pairs:
        if not len(context) or not len(continuation):
            raise UsageError("A context or a continuation has no tokens.")
        if len(continuation) >= longest:
            raise UsageError(
                f"A continuation has {len(continuation)} tokens. The model sees {longest} with its context."
            )
        row = np.array([*context, *continuation], np.int32)[-longest:]
        rows.append((row, len(continuation)))
    found: dict[int, Likelihood] = {}
    order = sorted(range(len(rows)), key=lambda number: -len(rows[number][0]))  # rows of about one length together
    while order:
        width = -(-len(rows[order[0]][0]) // _ROUND) * _ROUND
        count = max(1, _BATCH_TOKENS // width)
        numbers, order = order[:count], order[count:]
        tokens = np.zeros((count, width), np.int32)
        for place, number in enumerate(numbers):
            tokens[place, : len(rows[number][0])] = rows[number][0]
        zeros = np.zeros(count, np.int32)
        states, _ = run_model(model, tokens, zeros, zeros)
        told = next_tokens(model, states, tokens)
        losses, hits = np.asarray(told.loss, np.float64), np.asarray(told.hit)
        for place, number in enumerate(numbers):
            row, length = rows[number]
            predicted = slice(len(row) - length - 1, len(row) - 1)
            found[number] = Likelihood(-float(losses[place, predicted].sum()), bool(hits[place, predicted].all()))
    return [found[number] for number in range(len(rows))]
