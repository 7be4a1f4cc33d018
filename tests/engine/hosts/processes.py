"""Commands that several processes run together, on loopback, each with a hard limit."""

import os
import signal
import socket
import subprocess
import sys
import time
from typing import NamedTuple

from tests.engine.command import Done

_LIMIT = 150.0
COMMAND = ("-m", "polarax")
# The same, each finished piece half a second late.
SLOWLY = (
    "-c",
    "import sys, time; from polarax.cli import main; from polarax.results.parts import Parts; put = Parts.put; "
    "Parts.put = lambda *piece: (time.sleep(0.5), put(*piece)); sys.exit(main())",
)


def free_port() -> int:
    """A port that nobody listens at now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Running(NamedTuple):
    """Processes of one run, by their numbers."""

    processes: tuple[subprocess.Popen, ...]

    def ends(self) -> list[Done]:
        """How they ended, those that a signal ended with a negative code."""
        end = time.monotonic() + _LIMIT
        done = []
        try:
            for process in self.processes:
                out, err = process.communicate(timeout=max(1.0, end - time.monotonic()))
                done.append(Done(process.returncode, out, err))
        finally:
            self.kill()
        return done

    def kill(self, *which: int, how: int = signal.SIGKILL) -> None:
        """Sends a signal to some, or kills all."""
        for number in which or range(len(self.processes)):
            if self.processes[number].poll() is None:
                self.processes[number].send_signal(how)


def start(command, count, *arguments, port=None, numbers=None, each=None, program=COMMAND, environment=None) -> Running:
    """Starts a command in `count` processes.

    Args:
        command: Such as "compare".
        count: Which --num_processes says.
        *arguments: Flags of all.
        port: Of the coordinator; a free one by default.
        numbers: Which processes are started; all by default.
        each: Further flags by number.
        program: What runs it.
        environment: Further variables.
    """
    port = free_port() if port is None else port
    started = [
        subprocess.Popen(
            [
                sys.executable,
                *program,
                command,
                *map(str, arguments),
                f"--coordinator_address=127.0.0.1:{port}",
                f"--num_processes={count}",
                f"--process_id={number}",
                *(each or {}).get(number, ()),
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "JAX_PLATFORMS": "cpu", "OMP_NUM_THREADS": "1", **(environment or {})},
        )
        for number in (range(count) if numbers is None else numbers)
    ]
    return Running(tuple(started))
