"""Whole programs as contestants: wall time from start to exit, and peak memory."""

import json
import os
import pathlib
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

ROOT = pathlib.Path(__file__).resolve().parent.parent

# What a failed program said last, kept in the error.
_LAST_CHARACTERS = 400
# ru_maxrss is in KiB on Linux and in bytes on macOS.
_MAXRSS_UNIT = 1 if sys.platform == "darwin" else 1024


class Usage(NamedTuple):
    """What a program took."""

    seconds: float
    peak_bytes: int  # resident; right as long as this process itself is small


class ProgramError(RuntimeError):
    """A program ended with an error, or was ended for taking too long."""


def run(command: Sequence[str], *, environment: Mapping[str, str], limit: float) -> Usage:
    """Runs a program from the root of the repository to its end.

    Args:
        command: Program and arguments.
        environment: Added to this process's own.
        limit: Seconds after which it is killed.

    Raises:
        ProgramError: It exited with another code than 0, or took longer than the limit.
    """
    start = time.perf_counter()
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env={**os.environ, **environment},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    killer = threading.Timer(limit, process.kill)
    killer.start()
    try:
        said = process.stderr.read()
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - start
    finally:
        killer.cancel()
        process.stderr.close()
        process.returncode = 0  # waited for already
    if seconds >= limit:
        raise ProgramError(f"ended after {limit:.0f} s: {' '.join(command[:4])}")
    if status:
        code = os.waitstatus_to_exitcode(status)
        raise ProgramError(f"exit code {code}: {' '.join(said[-_LAST_CHARACTERS:].split())}")
    return Usage(seconds, usage.ru_maxrss * _MAXRSS_UNIT)


class Program:
    """A contestant's call: runs a command and keeps what it took."""

    def __init__(
        self,
        command: Sequence[str],
        environment: Mapping[str, str],
        limit: float,
        outcome: Callable[[], Mapping[str, Any]] | None = None,
    ):
        self._command, self._environment, self._limit = list(command), environment, limit
        self._outcome = outcome  # read after each run
        self._kept: dict[str, Any] = {}

    def __call__(self) -> Usage:
        usage = run(self._command, environment=self._environment, limit=self._limit)
        outcome = self._outcome() if self._outcome else {}
        self._kept = {"peak_bytes": usage.peak_bytes, **outcome}
        return usage

    def memory(self) -> dict[str, Any]:
        """Peak memory and outcome of the last run."""
        return self._kept


def compare_command(base: pathlib.Path, post: pathlib.Path, out: pathlib.Path, *flags: str) -> list[str]:
    """`polarax compare`, into a folder that may hold an earlier run."""
    return [
        *(sys.executable, "-m", "polarax", "compare"),
        *(f"--base={base}", f"--post={post}", f"--out={out}", "--overwrite", *flags),
    ]


def run_seconds(out: pathlib.Path) -> dict[str, float]:
    """What run.json of a finished run says it spent: read_seconds, compile_seconds, ..."""
    seconds = json.loads((out / "run.json").read_text(encoding="utf-8"))["seconds"]
    return {f"run_{what}_seconds": float(taken) for what, taken in seconds.items()}


def cache_environment(folder: pathlib.Path) -> dict[str, str]:
    """Turns jax's compilation cache on, in a folder of its own."""
    return {"JAX_ENABLE_COMPILATION_CACHE": "true", "JAX_COMPILATION_CACHE_DIR": str(folder)}


def write_checkpoints(
    folder: pathlib.Path, arguments: Sequence[str], *, limit: float
) -> tuple[pathlib.Path, pathlib.Path]:
    """Writes base.safetensors and post.safetensors by `python -m benchmarks.checkpoints`.

    In a process of its own: the memory of this one is what the peak of a small program is seen over.

    Raises:
        ProgramError: It failed.
    """
    free = shutil.disk_usage(folder).free
    command = [sys.executable, "-m", "benchmarks.checkpoints", f"--folder={folder}", *arguments]
    run([*command, f"--most_bytes={free // 2}"], environment={}, limit=limit)
    return folder / "base.safetensors", folder / "post.safetensors"
