"""Progress of a run: a bar on a terminal, a line now and then elsewhere."""

import sys
import time
from collections.abc import Sequence
from typing import TextIO

from tqdm import tqdm

from polarax.planning.stacks import Stack

# Between two lines where the output is no terminal: enough to see life in a log file, not enough to fill it.
_SECONDS_BETWEEN_LINES = 15.0


class Progress:
    """Counts matrices, operations and bytes, and says whether reading or computing bounds the run; a context manager.

    Args:
        stacks: What is to be measured.
        stream: Where to write; None writes nothing.
    """

    def __init__(self, stacks: Sequence[Stack], stream: TextIO | None = sys.stderr):
        matrices = sum(len(stack.pairs) for stack in stacks)
        self._matrices, self._operations = matrices, sum(stack.operations for stack in stacks)
        self._stream = stream
        self._done, self._operations_done, self._bytes_done = 0, 0.0, 0
        self._read_seconds, self._compute_seconds = 0.0, 0.0
        self._started = self._last_line = time.monotonic()
        self._bar = None
        if stream is not None and stream.isatty():
            self._bar = tqdm(total=matrices, unit=" matrices", file=stream, dynamic_ncols=True)

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()
        elif self._stream is not None and self._done == self._matrices:
            self._line()

    def advance(self, stack: Stack, read_seconds: float, compute_seconds: float) -> None:
        """Notes a finished stack.

        Args:
            stack: The stack.
            read_seconds: Time that was spent waiting for its data: reading goes on while others are computed.
            compute_seconds: Its computing time, without compilation.
        """
        self._done += len(stack.pairs)
        self._operations_done += stack.operations
        self._bytes_done += stack.bytes_stored
        self._read_seconds += read_seconds
        self._compute_seconds += compute_seconds
        if self._bar is not None:
            self._bar.set_postfix_str(self._rate(), refresh=False)
            self._bar.update(len(stack.pairs))
        elif self._stream is not None and time.monotonic() - self._last_line >= _SECONDS_BETWEEN_LINES:
            self._last_line = time.monotonic()
            if self._done < self._matrices:  # the last line is written on exit
                self._line()

    def _rate(self) -> str:
        computed = self._operations_done / 1e9 / max(self._compute_seconds, 1e-9)
        read = self._bytes_done / 1e6 / max(time.monotonic() - self._started, 1e-9)
        bound = "reading" if self._read_seconds > self._compute_seconds else "computing"
        return f"{computed:.1f} GFLOP/s, {read:.1f} MB/s read, bound by {bound}"

    def _line(self) -> None:
        elapsed = time.monotonic() - self._started
        share = self._operations_done / self._operations if self._operations else 1.0
        left = elapsed / share - elapsed if share else float("inf")
        print(
            f"{self._done}/{self._matrices} matrices, {elapsed:.0f} s, about {left:.0f} s left, {self._rate()}",
            file=self._stream,
            flush=True,
        )
