"""Reads a sequence of tensors ahead of whoever uses them, in bounded memory."""

import collections
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from polarax.loaders.byte_runs import plan_windows
from polarax.loaders.checkpoint import Checkpoint, Read, Wanted
from polarax.loaders.slices import axis_slices

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

    Fresh memory costs more than reading a local file that is in the page cache (the system clears every page first):
    with `reuse` what has been used is filled again, and reading is several times faster.

    >>> from polarax.loaders import open_checkpoint
    >>> checkpoint = open_checkpoint({"a": np.zeros((2, 2)), "b": np.ones((2, 2))})
    >>> requests = [Request(checkpoint, Wanted(name)) for name in checkpoint.names()]
    >>> [float(array.sum()) for array in ReadAhead(requests, budget_bytes=1 << 20)]
    [0.0, 4.0]
    """

    def __init__(self, requests: Iterable[Request], budget_bytes: int, *, reuse: bool = False):
        """Starts to read.

        Args:
            requests: What is wanted, in order. Nothing is read in the order of the files: put neighbours
                near to each other.
            budget_bytes: Bytes that may be in flight or unused at any time.
            reuse: Give arrays that hold their values only until the next one is asked for. Those asked for
                with an `out` of their own are not concerned.

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
        self._pool = _Pool() if reuse else None
        self._lent: collections.deque[np.ndarray | None] = collections.deque()  # of the pool, one a read
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
            lent = self._lent.popleft()
            if lent is not None and self._pool is not None:
                self._pool.give_back(lent)
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
            self._reads.extend(_start([self._with_buffer(self._requests[index]) for index in window]))

    def _with_buffer(self, request: Request) -> Request:
        """The request with an array of the pool to read into, if it has none of its own and there is a pool."""
        wanted, lent = request.wanted, None
        if self._pool is not None and wanted.out is None:
            slices = axis_slices(request.checkpoint.shape(wanted.name), wanted.slices)
            sizes = zip(slices, request.checkpoint.shape(wanted.name), strict=True)
            shape = tuple(len(range(*item.indices(size))) for item, size in sizes)
            dtype = request.checkpoint.dtype(wanted.name)
            if dtype is not None:
                lent = self._pool.take(math.prod(shape) * dtype.itemsize, self._budget - self._held)
                request = request._replace(wanted=wanted._replace(out=lent.view(dtype).reshape(shape)))
        self._lent.append(lent)
        return request


class _Pool:
    """Memory that has been used before: its pages need not be cleared again."""

    def __init__(self) -> None:
        self._spare: dict[int, list[np.ndarray]] = {}
        self._bytes = 0

    def take(self, nbytes: int, room: int) -> np.ndarray:
        """Bytes that were given back, or new ones; of what is spare no more is kept than there is room for."""
        if self._spare.get(nbytes):
            self._bytes -= nbytes
            return self._spare[nbytes].pop()
        while self._bytes > max(0, room):
            size = next(size for size, arrays in self._spare.items() if arrays)
            self._bytes -= size
            self._spare[size].pop()
        return np.empty(nbytes, np.uint8)

    def give_back(self, array: np.ndarray) -> None:
        if array.nbytes:
            self._bytes += array.nbytes
            self._spare.setdefault(array.nbytes, []).append(array)


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
