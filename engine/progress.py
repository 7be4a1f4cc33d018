"""Progress of a run: a bar on a terminal, a line now and then elsewhere."""

import sys
import time
from typing import TextIO

from tqdm import tqdm

# Between two lines where the output is no terminal: enough to see life in a log file, not enough to fill it.
_SECONDS_BETWEEN_LINES = 15.0


class Progress:
    """Counts matrices and operations; a context manager.

    Args:
        matrices: How many there are.
        operations: Their floating-point operations.
        stream: Where to write; None writes nothing.
    """

    def __init__(self, matrices: int, operations: float, stream: TextIO | None = sys.stderr):
        self._matrices, self._operations, self._stream = matrices, operations, stream
        self._done, self._operations_done, self._compute_seconds = 0, 0.0, 0.0
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

    def advance(self, matrices: int, operations: float, seconds: float) -> None:
        """Notes a finished stack.

        Args:
            matrices: Its matrices.
            operations: Its floating-point operations.
            seconds: Its computing time, without compilation.
        """
        self._done += matrices
        self._operations_done += operations
        self._compute_seconds += seconds
        if self._bar is not None:
            self._bar.set_postfix_str(self._rate(), refresh=False)
            self._bar.update(matrices)
        elif self._stream is not None and time.monotonic() - self._last_line >= _SECONDS_BETWEEN_LINES:
            self._last_line = time.monotonic()
            if self._done < self._matrices:  # the last line is written on exit
                self._line()

    def _rate(self) -> str:
        return f"{self._operations_done / 1e9 / max(self._compute_seconds, 1e-9):.1f} GFLOP/s"

    def _line(self) -> None:
        elapsed = time.monotonic() - self._started
        share = self._operations_done / self._operations if self._operations else 1.0
        left = elapsed / share - elapsed if share else float("inf")
        print(
            f"{self._done}/{self._matrices} matrices, {elapsed:.0f} s, about {left:.0f} s left, {self._rate()}",
            file=self._stream,
            flush=True,
        )
