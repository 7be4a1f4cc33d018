"""Reads the stacks of a run in order, one ahead of the one at work, into memory that is used again."""

import collections
import concurrent.futures
import math
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np

from polarax.errors import RunError
from polarax.loaders import Checkpoint, CheckpointError, Read, View, Wanted, read_views
from polarax.planning.stacks import BESIDE_BYTES, Stack

# Bytes that XLA's programs on CPU want their operands aligned to (kMinAlign of its CPU runtime): others are copied.
_ALIGNMENT = 64

# Base and posts, (size, m, n) each, m >= n, in their stored dtypes.
Operands = tuple[np.ndarray, ...]


class StackReads:
    """The operands of every stack, each read while the one before is at work; a context manager.

    Two sets of buffers take turns: what is given holds its values until the next one is begun.
    """

    def __init__(self, base: Checkpoint, posts: Checkpoint | Sequence[Checkpoint], stacks: Iterable[Stack]):
        """Starts to read the first stack.

        Args:
            base: The checkpoint before training.
            posts: The checkpoint after it, or several.
            stacks: What is to be read, in order; each is asked for when its turn to be read has come.
        """
        self._base, self._posts = base, [posts] if isinstance(posts, Checkpoint) else list(posts)
        self._waiting = iter(stacks)
        self._buffers: list[list[_Buffer]] = [[], []]
        self._pool = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="polarax-reads")
        self.begin()

    def __enter__(self) -> "StackReads":
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)

    def __iter__(self) -> Iterator[Operands]:
        """Base and posts of every stack, in turn; the next one is begun before each is given.

        Raises:
            RunError: A checkpoint can no longer be read.
        """
        while (read := self.take()) is not None:
            self.begin()
            yield read[1]

    def begin(self) -> None:
        """Starts to read the next stack, into the buffers of the last but one."""
        self._buffers.reverse()
        self._following: concurrent.futures.Future[Stack | None] = concurrent.futures.Future()
        self.reading = self._pool.submit(self._read_next, self._following, self._buffers[0])

    @property
    def ready(self) -> bool:
        """Whether the stack that was begun is read, or known to be none."""
        return self.reading.done()

    def following(self, seconds: float) -> Stack | None:
        """The stack that is being read; None if there is none, or none is known within some seconds."""
        try:
            return self._following.result(seconds)
        except (concurrent.futures.TimeoutError, concurrent.futures.CancelledError):
            return None

    def take(self) -> tuple[Stack, Operands] | None:
        """The stack that was begun with its operands, base and posts, waited for; None after the last.

        Raises:
            RunError: A checkpoint can no longer be read.
        """
        try:
            return self.reading.result()
        except CheckpointError as error:
            raise RunError(f"Reading failed part-way: {error}") from error

    def _read_next(self, following, buffers):
        stack = None
        try:
            stack = next(self._waiting, None)
        finally:
            following.set_result(stack)
        return None if stack is None else (stack, self._read(stack, buffers))

    def _read(self, stack, buffers):
        first = stack.pairs[0]
        sides = [(self._base, [pair.base for pair in stack.pairs], first.dtype_base)]
        for place, pairs in zip(stack.posts, stack.pairs_of_posts, strict=True):
            sides.append((self._posts[place], [pair.post for pair in pairs], pairs[0].dtype_post))
        buffers += [_Buffer() for _ in sides[len(buffers) :]]
        del buffers[len(sides) :]
        reads = [
            _read_side(checkpoint, views, stack, buffer.array((stack.size, *stack.shape), dtype))
            for (checkpoint, views, dtype), buffer in zip(sides, buffers, strict=True)
        ]
        return tuple(finish() for finish in reads)


class _Buffer:
    """Memory that is filled again and again: fresh pages cost more than reading a file that is in the page cache."""

    def __init__(self):
        self._bytes = np.empty(0, np.uint8)

    def array(self, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        """An array in it; the one before holds its values no longer."""
        nbytes = math.prod(shape) * dtype.itemsize
        if self._bytes.nbytes != nbytes:
            self._bytes = np.empty(0, np.uint8)  # first: both need not be there at once
            loose = np.empty(nbytes + _ALIGNMENT, np.uint8)
            start = -loose.ctypes.data % _ALIGNMENT
            self._bytes = loose[start : start + nbytes]
        return self._bytes.view(dtype).reshape(shape)


def _read_side(
    checkpoint: Checkpoint, views: Sequence[View], stack: Stack, operand: np.ndarray
) -> Callable[[], np.ndarray]:
    """Starts to read one side of a stack; returns the function that waits for it."""
    operand[len(views) :] = 0  # pads a last stack that is short
    shapes = [view.read_shape(checkpoint.shape(view.tensor)) for view in views]
    plain = [
        index
        for index, view in enumerate(views)
        if view.is_plain and not stack.transposed[index] and math.prod(shapes[index]) == operand[index].size
    ]
    wanted = [
        Wanted(views[index].tensor, views[index].slices, operand[index].reshape(shapes[index])) for index in plain
    ]
    decoded = [item for item in wanted if checkpoint.is_decoded(item.name)]
    in_place = checkpoint.read_many([item for item in wanted if not checkpoint.is_decoded(item.name)])
    beside = [index for index in range(len(views)) if index not in set(plain)]

    def finish():
        most = max(1, BESIDE_BYTES // operand[0].nbytes)
        for start in range(0, len(beside), most):
            together = beside[start : start + most]
            reads = read_views([views[index] for index in together], checkpoint)
            for index, read in zip(together, reads, strict=True):
                matrix = read.result()
                operand[index] = matrix.T if stack.transposed[index] else matrix
        _read_decoded(checkpoint, decoded)
        for read in in_place:
            read.result()
        return operand

    return finish


def _read_decoded(checkpoint: Checkpoint, wanted: Sequence[Wanted]) -> None:
    """Reads what is decoded on its way into its place; what is stored waits for that in `BESIDE_BYTES` at most."""
    waiting = collections.deque((item, checkpoint.read_bytes(item)) for item in wanted)
    flying: collections.deque[tuple[Read, int]] = collections.deque()
    held = 0
    while waiting or flying:
        if held <= BESIDE_BYTES // 2:  # several at once, which may lie beside each other
            together = []
            while waiting and (not held or held + waiting[0][1] <= BESIDE_BYTES):
                together.append(waiting.popleft())
                held += together[-1][1]
            reads = checkpoint.read_many([item for item, _ in together])
            flying.extend((read, count) for read, (_, count) in zip(reads, together, strict=True))
        read, count = flying.popleft()
        read.result()
        held -= count
