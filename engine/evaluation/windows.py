"""A text cut into windows: what a model sees at once, and which of its tokens count.

As in the guide of transformers to the perplexity of models of fixed length: windows of `window` tokens begin every
`stride` tokens, the last one ends with the text, and of each only those tokens count that none before had. The first
token of a text is predicted by nobody, nor is that of a window which overlaps none.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from polarax.errors import UsageError


class Batch(NamedTuple):
    """Some windows; rows that are to fill the batch have length 0."""

    tokens: np.ndarray  # (batch, window) int32; 0 behind a window's end
    counted_from: np.ndarray  # (batch,) int32: the first token that counts, of those that are in the window
    lengths: np.ndarray  # (batch,) int32: tokens of the window


def check_tokens(tokens: np.ndarray, vocabulary: int, window: int, stride: int) -> None:
    """Refuses tokens that a model cannot take.

    Raises:
        UsageError: They are too few, or not in the vocabulary.
    """
    if window < 2 or not 1 <= stride <= window:
        raise UsageError(
            f"A window of {window} tokens with a stride of {stride}. Expected 2 or more, stride from 1 to it."
        )
    if len(tokens) < window:
        raise UsageError(
            f"The text has {len(tokens)} tokens, less than a window of {window}. Give a longer text or a smaller "
            "window."
        )
    low, high = int(tokens.min()), int(tokens.max())
    if low < 0 or high >= vocabulary:
        raise UsageError(
            f"The text has token {high if high >= vocabulary else low}; the model's embedding has {vocabulary} tokens, "
            f"from 0 to {vocabulary - 1}."
        )


def window_count(count: int, window: int, stride: int) -> int:
    """How many windows a text of this many tokens has."""
    return 1 + max(0, -(-(count - window) // stride))


def batches(tokens: np.ndarray, window: int, stride: int, batch: int) -> Iterator[Batch]:
    """The windows of a text, some at a time.

    Args:
        tokens: (count,) integers; read as they are needed, where they are mapped from a file.
        window: Tokens of a window.
        stride: Tokens from the beginning of one to the next.
        batch: Windows at a time.
    """
    starts = np.arange(window_count(len(tokens), window, stride)) * stride
    for first in range(0, len(starts), batch):
        rows = np.zeros((batch, window), np.int32)
        counted_from, lengths = np.zeros(batch, np.int32), np.zeros(batch, np.int32)
        for row, start in enumerate(starts[first : first + batch]):
            piece = tokens[start : start + window]
            rows[row, : len(piece)] = piece
            lengths[row] = len(piece)
            counted_from[row] = 0 if start == 0 else window - stride
        yield Batch(rows, counted_from, lengths)
