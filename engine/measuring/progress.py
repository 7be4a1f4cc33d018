"""Progress of a run: a bar on a terminal, a line now and then elsewhere, one of all processes on the first."""

import sys
import time
from collections.abc import Sequence
from typing import TextIO

from tqdm import tqdm

from polarax.hosts import Hosts
from polarax.planning.stacks import Stack

# Between two lines where the output is no terminal: enough to see life in a log file, not enough to fill it.
_SECONDS_BETWEEN_LINES = 15.0
# Of all operations, before which the time that is left can't be told: starting up outweighs them.
_TELLING_SHARE = 0.01


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
        self._read_seconds, self._compute_seconds, self._busy_seconds = 0.0, 0.0, 0.0
        self._started = self._last_line = time.monotonic()
        self._start_up = 0.0  # seconds before the first stack was read
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

    def advance(
        self, stack: Stack, read_seconds: float, compute_seconds: float, busy_seconds: float | None = None
    ) -> None:
        """Notes a finished stack.

        Args:
            stack: The stack.
            read_seconds: Time that was spent waiting for its data: reading goes on while others are computed.
            compute_seconds: Time that was spent waiting for its readings: others are read and compiled meanwhile.
            busy_seconds: Time in which it was computed, if that is more.
        """
        if not self._done and busy_seconds is not None:
            self._start_up = max(time.monotonic() - self._started - read_seconds - busy_seconds, 0.0)
        self._done += len(stack.pairs)
        self._operations_done += stack.operations
        self._bytes_done += stack.bytes_stored
        self._read_seconds += read_seconds
        self._compute_seconds += compute_seconds
        self._busy_seconds += compute_seconds if busy_seconds is None else busy_seconds
        if self._bar is not None:
            self._bar.set_postfix_str(self._rate(), refresh=False)
            self._bar.update(len(stack.pairs))
        elif self._stream is not None and time.monotonic() - self._last_line >= _SECONDS_BETWEEN_LINES:
            self._last_line = time.monotonic()
            if self._done < self._matrices:  # the last line is written on exit
                self._line()

    def _rate(self) -> str:
        computed = self._operations_done / 1e9 / max(self._busy_seconds, 1e-9)
        read = self._bytes_done / 1e6 / max(time.monotonic() - self._started, 1e-9)
        bound = "reading" if self._read_seconds > self._compute_seconds else "computing"
        return f"{computed:.1f} GFLOP/s, {read:.1f} MB/s read, bound by {bound}"

    def _line(self) -> None:
        elapsed = time.monotonic() - self._started
        left = _time_left(elapsed - self._start_up, self._operations_done, self._operations)
        print(
            f"{self._done}/{self._matrices} matrices, {elapsed:.0f} s, {left}, {self._rate()}",
            file=self._stream,
            flush=True,
        )


class SharedProgress:
    """Progress of a run that several processes are at: each says its own with its beats, and process 0 prints all.

    The others print a line at their start and one at their end. A context manager.

    Args:
        hosts: The processes.
        pieces: What is divided among them.
        stream: Where to write.
    """

    def __init__(self, hosts: Hosts, pieces: Sequence[Stack], stream: TextIO = sys.stderr):
        self._hosts, self._stream = hosts, stream
        self._matrices = sum(len(piece.pairs) for piece in pieces)
        self._operations = sum(piece.operations for piece in pieces)
        self._done, self._operations_done, self._busy = 0, 0.0, 0.0
        self._started = self._last_line = time.monotonic()

    def __enter__(self) -> "SharedProgress":
        self._hosts.note(done=0, operations=0.0, busy=0.0)
        if self._hosts.first:
            self._print(f"{self._matrices} matrices to measure, on {self._hosts.processes} processes")
            self._hosts.listener = self._listen
        else:
            self._print(f"{self._hosts}: joined")
        return self

    def __exit__(self, *_: object) -> None:
        self._hosts.listener = None
        if not self._hosts.first:
            self._print(f"{self._hosts}: measured {self._done} matrices in {time.monotonic() - self._started:.0f} s")

    def advance(
        self, stack: Stack, read_seconds: float, compute_seconds: float, busy_seconds: float | None = None
    ) -> None:
        """Notes a finished stack, as `Progress.advance` does."""
        self._done += len(stack.pairs)
        self._operations_done += stack.operations
        self._busy += read_seconds + compute_seconds
        self._hosts.note(done=self._done, operations=self._operations_done, busy=self._busy)

    def _listen(self) -> None:
        """On process 0, in the thread that hears all."""
        now = time.monotonic()
        if now - self._last_line < _SECONDS_BETWEEN_LINES:
            return
        self._last_line = now
        heard = self._hosts.heard
        done = min(self._matrices, sum(said.get("done", 0) for said in heard.values()))
        operations = sum(said.get("operations", 0.0) for said in heard.values())
        elapsed = now - self._started
        left = _time_left(elapsed, operations, self._operations)
        rates = {
            process: said["operations"] / said["busy"] for process, said in heard.items() if said.get("busy", 0.0) > 0
        }
        slowest = ""
        if rates:
            process = min(rates, key=lambda one: rates[one])
            slowest = f", slowest {self._hosts.named(process)} at {rates[process] / 1e9:.1f} GFLOP/s"
        self._print(f"{done}/{self._matrices} matrices, {elapsed:.0f} s, {left}{slowest}")

    def _print(self, line: str) -> None:
        print(line, file=self._stream, flush=True)


def _time_left(elapsed: float, done: float, operations: float) -> str:
    """In words, from the share of the operations that is done."""
    share = min(1.0, done / operations) if operations else 1.0
    if share < _TELLING_SHARE:
        return "no time known yet"
    return f"about {elapsed / share - elapsed:.0f} s left"
