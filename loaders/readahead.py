"""Reads a sequence of tensors ahead of whoever uses them, in bounded memory."""

import collections
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from polarax.loaders.byte_runs import plan_windows
from polarax.loaders.checkpoint import Checkpoint, Read, Wanted

# Windows in which the budget is spent: while one is used the others are read. More of them follow the
# use more closely, fewer leave longer runs to join.
_WINDOWS = 4


class Request(NamedTuple):
    """One tensor, or part of one, that will be wanted."""

    checkpoint: Checkpoint
    wanted: Wanted


class ReadAhead(Iterator[np.ndarray]):
    """The arrays that were asked for, in that order, each read before it is its turn.

    Reads are started window by window, in which neighbours in a file are joined to one read. What has
    been started and not yet been used never exceeds the budget, with one exception: a single array larger
    than all of it is read alone. An array counts as used when the one after it is asked for; whoever
    keeps it longer has to count it himself.

    >>> from polarax.loaders import open_checkpoint
    >>> checkpoint = open_checkpoint({"a": np.zeros((2, 2)), "b": np.ones((2, 2))})
    >>> requests = [Request(checkpoint, Wanted(name)) for name in checkpoint.names()]
    >>> [float(array.sum()) for array in ReadAhead(requests, budget_bytes=1 << 20)]
    [0.0, 4.0]
    """

    def __init__(self, requests: Iterable[Request], budget_bytes: int):
        """Starts to read.

        Args:
            requests: What is wanted, in order. Nothing is read in the order of the files: put neighbours
                near to each other.
            budget_bytes: Bytes that may be in flight or unused at any time.

        Raises:
            CheckpointError: If something is asked for that is not there.
            ValueError: If the budget is not positive.
        """
        if budget_bytes <= 0:
            raise ValueError(f"budget_bytes must be positive. Got {budget_bytes}")
        self._requests = tuple(requests)
        self._budget = budget_bytes
        self._sizes = [request.checkpoint.read_bytes(request.wanted) for request in self._requests]
        self._windows = collections.deque(plan_windows(self._sizes, max(1, budget_bytes // _WINDOWS)))
        self._reads: collections.deque[Read] = collections.deque()
        self._position = 0  # of the next array to give
        self._freed = 0  # arrays before this position are counted no longer
        self._held = 0  # bytes started, and not yet used
        self._advance()

    @property
    def held_bytes(self) -> int:
        """Bytes of what has been started and not yet been used."""
        return self._held

    def __next__(self) -> np.ndarray:
        """The next array; the one before counts as used.

        Raises:
            CheckpointError: If it cannot be read.
        """
        if self._freed < self._position:
            self._held -= self._sizes[self._freed]
            self._freed += 1
        self._advance()
        if self._position == len(self._requests):
            raise StopIteration
        read = self._reads.popleft()
        self._position += 1
        return read.result()

    def _advance(self) -> None:
        """Starts windows while the budget has room for them."""
        while self._windows:
            window = self._windows[0]
            size = sum(self._sizes[index] for index in window)
            if self._held and self._held + size > self._budget:
                return
            self._windows.popleft()
            self._held += size
            self._reads.extend(_start([self._requests[index] for index in window]))


def _start(requests: Sequence[Request]) -> list[Read]:
    """Starts the reads of one window, those of each checkpoint together."""
    by_checkpoint: dict[int, list[int]] = {}
    for index, request in enumerate(requests):
        by_checkpoint.setdefault(id(request.checkpoint), []).append(index)
    reads: dict[int, Read] = {}
    for indices in by_checkpoint.values():
        checkpoint = requests[indices[0]].checkpoint
        started = checkpoint.read_many([requests[index].wanted for index in indices])
        reads.update(zip(indices, started, strict=True))
    return [reads[index] for index in range(len(requests))]
