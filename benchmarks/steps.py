"""Runs the cases of a suite in a process of their own, each under a hard limit.

A deadlock inside a native call never returns to the interpreter, so a case that hangs can only be
ended from outside: its process is killed, the case is reported, and a new process goes on with the
next one.
"""

import contextlib
import faulthandler
import importlib
import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import NamedTuple

from benchmarks import cases as cases_module
from benchmarks.cases import Record, one_line
from benchmarks.options import Options

# Seconds to start a process and import its libraries and jax's backend, before its first case.
_START_LIMIT = 180.0
# What a case may go over a suite's time before it is ended.
_GRACE = 20.0
# A worker that was not ended from outside (its parent is gone) ends itself this much later.
_ORPHAN_MARGIN = 60.0


class Problem(NamedTuple):
    """Something that was not measured, or failed while it was."""

    suite: str
    case: str
    what: str
    failed: bool  # False for what was left out for lack of time


class Gathered(NamedTuple):
    """What a run has found so far."""

    records: list[Record]
    problems: list[Problem]


def run_module(
    suite: str,
    module: str,
    options: Options,
    gathered: Gathered,
    *,
    deadline: float,
    show: Callable[[str], None],
) -> None:
    """Runs every case of one module of a suite.

    Args:
        suite: Name of the suite.
        module: Dotted name of the module, which has `cases(options)`.
        options: What was asked for.
        gathered: Gets the records, with `suite`, and what went wrong, as it comes: an interrupted run
            keeps what it had.
        deadline: `time.monotonic()` after which no further case is begun.
        show: Told each case as it begins and ends.
    """
    position: int | None = 0
    while position is not None:
        worker = _Worker(module, options, position, deadline)
        try:
            position = _follow(worker, suite, options, deadline, show, *gathered)
        finally:
            worker.end()


def _follow(worker, suite, options, deadline, show, records, problems):
    """Follows one worker to its end; returns the case to go on with, or None when all are done."""
    label, index, began, limit = "start", -1, time.monotonic(), _START_LIMIT
    while True:
        end = min(began + limit, max(deadline, began) + _GRACE)
        event = worker.next_event(end - time.monotonic())
        if event is None:
            cut_off = end < began + limit
            what = "cut off: the suite's time was up" if cut_off else f"killed after {limit:.0f} s (--limit)"
            show(f"{suite}: {label}: {what}")
            problems.append(Problem(suite, label, what, failed=not cut_off))
            return None if index < 0 else index + 1
        kind, *content = event
        if kind == "start":
            index, label, limit = content
            began = time.monotonic()
        elif kind == "records":
            records += [{"suite": suite, **record} for record in content[0]]
            problems += _errors_in(content[0], suite, label)
            show(f"{suite}: {label}: {time.monotonic() - began:.1f} s")
        elif kind == "failed":
            show(f"{suite}: {label}: {content[0]}")
            problems.append(Problem(suite, label, content[0], failed=True))
        elif kind == "left out":
            for left_out in content[0]:
                problems.append(Problem(suite, left_out, "left out: no time", failed=False))
            show(f"{suite}: {len(content[0])} case(s) left out: no time")
        elif kind == "crashed":
            what = f"process ended with {content[0]}"
            show(f"{suite}: {label}: {what}")
            problems.append(Problem(suite, label, what, failed=True))
            return None if index < 0 else index + 1
        else:
            return None


def _errors_in(records, suite, label):
    """One problem for each contestant and error; only polarax's own count as failures."""
    errors = {(record["contestant"], record["error"]) for record in records if "error" in record}
    problems = [
        Problem(suite, label, f"{name}: {error}", failed=name.startswith("polarax")) for name, error in sorted(errors)
    ]
    late = sorted({record["contestant"] for record in records if "left_out" in record})
    if late:
        problems.append(Problem(suite, label, f"no time for {', '.join(late)}", failed=False))
    return problems


class _Worker:
    """A process that runs the cases from a position on."""

    def __init__(self, module, options, position, deadline):
        context = multiprocessing.get_context("spawn")
        self._receiver, sender = context.Pipe(duplex=False)
        seconds = deadline - time.monotonic()
        self._process = context.Process(target=_serve, args=(sender, module, options, position, seconds), daemon=False)
        self._process.start()
        sender.close()

    def next_event(self, seconds):
        """The next event, or None if there is none within so many seconds."""
        if not self._receiver.poll(max(0.0, seconds)):
            return None
        try:
            return self._receiver.recv()
        except EOFError:
            self._process.join(_GRACE)
            return ("crashed", _exit_in_words(self._process.exitcode))

    def end(self):
        """Kills the process with all that it started."""
        if self._process.pid is not None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)
        self._process.kill()
        self._process.join()
        self._receiver.close()


def _serve(connection: Connection, module: str, options: Options, position: int, seconds: float):
    os.setsid()  # a group of its own, so that what it starts ends with it
    deadline = cases_module.deadline = time.monotonic() + seconds
    try:
        cases = importlib.import_module(module).cases(options)
    except Exception as error:
        connection.send(("failed", one_line(error)))
        cases = []
    for index, case in enumerate(cases[position:], position):
        if time.monotonic() >= deadline:
            connection.send(("left out", [later.label for later in cases[index:]]))
            break
        limit = case.patience * options.limit
        connection.send(("start", index, case.label, limit))
        faulthandler.dump_traceback_later(limit + _ORPHAN_MARGIN, exit=True)
        try:
            records = case.run()
        except Exception as error:
            connection.send(("failed", one_line(error)))
        else:
            connection.send(("records", records))
        faulthandler.cancel_dump_traceback_later()
    connection.send(("end",))


def _exit_in_words(code):
    if code is not None and code < 0:
        return f"signal {signal.Signals(-code).name}"
    return f"exit code {code}"
