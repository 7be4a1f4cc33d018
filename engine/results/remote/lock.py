"""The lock of a run in a bucket: an object that names its writer, who changes it every few seconds.

A bucket knows nothing of processes: the lock of one that was killed stays. Whoever finds a lock watches it for longer
than a writer ever leaves it as it is, and takes it over if nothing happens. No clock is compared with that of another
machine. A writer that was stopped meanwhile finds, when it goes on, that the lock is not its own any more, and ends.
"""

import contextlib
import datetime
import json
import os
import pathlib
import socket
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator

from polarax.errors import RunError
from polarax.results.files import LOCK_FILE
from polarax.results.shelf import Shelf

BEAT_SECONDS = 5.0
# Longer than any pause of a writer that is at work: a beat, and the tries of a request that does not get through.
PATIENCE_SECONDS = 40.0


class Locked(RunError):
    """Another process is writing the run."""


@contextlib.contextmanager
def remotely_locked(shelf: Shelf, lost: Callable[[RunError], None], *, say: bool) -> Iterator[None]:
    """Keeps other processes from writing a run in a bucket.

    Args:
        shelf: Folder of the run.
        lost: Called, by another thread, when another process has taken the lock over.
        say: Print a line on standard error if a lock is there whose writer may be gone.

    Raises:
        Locked: Another process writes it.
        RunError: The bucket cannot be written.
    """
    writer = _Writer(shelf)
    writer.acquire(say)
    ended = threading.Event()
    beats = threading.Thread(target=writer.beat_until, args=(ended, lost), name="polarax-lock", daemon=True)
    beats.start()
    try:
        yield
    finally:
        ended.set()
        beats.join()
        with contextlib.suppress(RunError):  # the next one finds it and takes it over
            writer.release()


class _Writer:
    """A process that has, or wants, the lock of a run."""

    def __init__(self, shelf: Shelf):
        self._shelf = shelf
        self._about = {
            "process": os.getpid(),
            "host": socket.gethostname(),
            "since": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "machine": _machine(),
            "born": _born(os.getpid()),
            "token": uuid.uuid4().hex,
        }
        self._beats = 0

    def acquire(self, say: bool) -> None:
        there = None
        while not self._shelf.swap(LOCK_FILE, there, self._content()):
            there = self._shelf.get(LOCK_FILE)
            if there is not None and not _has_ended(_read(there)) and self._changes(there, say):
                raise Locked(
                    f"Another process is writing the run at {self._shelf.location}: {_described(_read(there))}. If it "
                    f"is not, delete {self._shelf.location}/{LOCK_FILE}."
                )

    def _changes(self, there: bytes, say: bool) -> bool:
        """Whether the lock changes within the time in which a writer that is at work would have changed it."""
        if say:
            print(
                f"The run at {self._shelf.location} is locked by {_described(_read(there))}; "
                f"waiting up to {PATIENCE_SECONDS:.0f} s to see whether it is still at work.",
                file=sys.stderr,
                flush=True,
            )
        end = time.monotonic() + PATIENCE_SECONDS
        while time.monotonic() < end:
            time.sleep(BEAT_SECONDS / 5)
            now = self._shelf.get(LOCK_FILE)
            if now != there:
                return now is not None
        return False

    def beat_until(self, ended: threading.Event, lost: Callable[[RunError], None]) -> None:
        """Changes the lock again and again; a request that fails is left to the next time."""
        while not ended.wait(BEAT_SECONDS):
            with contextlib.suppress(RunError):
                there = self._shelf.get(LOCK_FILE)
                self._beats += 1
                if self._is_mine(there) and self._shelf.swap(LOCK_FILE, there, self._content()):
                    continue
                if not self._is_mine(there := self._shelf.get(LOCK_FILE)):
                    by = "" if there is None else f" by {_described(_read(there))}"
                    lost(RunError(f"The lock of the run at {self._shelf.location} was taken away{by}."))
                    return

    def release(self) -> None:
        there = self._shelf.get(LOCK_FILE)
        if self._is_mine(there):
            self._shelf.swap(LOCK_FILE, there, None)

    def _is_mine(self, content: bytes | None) -> bool:
        return content is not None and _read(content).get("token") == self._about["token"]

    def _content(self) -> bytes:
        return (json.dumps(self._about | {"beats": self._beats}) + "\n").encode()


def _read(content: bytes) -> dict:
    try:
        about = json.loads(content)
    except ValueError:
        return {}
    return about if isinstance(about, dict) else {}


def _described(about: dict) -> str:
    if not about:
        return "a process that does not say which"
    return f"process {about.get('process')} on {about.get('host')}, since {about.get('since')}"


def _has_ended(about: dict) -> bool:
    """Whether the writer was a process of this machine that is no more; False where that is not known."""
    process = about.get("process")
    if not isinstance(process, int) or not _machine() or about.get("machine") != _machine():
        return False
    return _born(process) != about.get("born")


def _machine() -> str:
    """What tells this machine, since it was started, from all others, and one container from another; "" if unknown."""
    try:
        boot = pathlib.Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def _born(process: int) -> str:
    """When a process of this machine was started, in ticks of its clock; "" if it has ended."""
    try:
        text = pathlib.Path(f"/proc/{process}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    state, *fields = text.rpartition(")")[2].split()  # from field 3 of proc_pid_stat(5): a name may have spaces
    return "" if state in "ZX" else fields[18]
