"""What the processes of a run say to each other, and how each notices that another one is gone.

Everything is a short text under a key in the store of JAX's coordination service. A thread of each process says every
two seconds that it lives and what it is doing; process 0 listens to all, the others hear what it says of them.
"""

import contextlib
import json
import sys
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

from polarax.errors import RunError, UsageError
from polarax.hosts.clusters import Cluster
from polarax.hosts.ending import end_now

_ROOT = "polarax/"
_BEAT_SECONDS = 2.0
# Silence after which a process is taken to be gone: long enough for a host that swaps, and soon enough for all to end
# within a minute.
SILENT_SECONDS = 30.0
# How long a process that knows of a failure stays, for the others to hear of it.
_LINGER_SECONDS = 3 * _BEAT_SECONDS
# A wait is made of shorter ones, between which Python is heard (Ctrl-C).
_SLICE_SECONDS = 1.0

_here: list["Hosts"] = []


def current() -> "Hosts | None":
    """The processes that this one runs with; None if it is alone."""
    return _here[-1] if _here else None


class Hosts:
    """The processes of a run, from one of them.

    Args:
        cluster: Which they are.
        client: JAX's client of the coordination service, connected.
        name: Of the host that this one runs on.
    """

    def __init__(self, cluster: Cluster, client: Any, name: str):
        self.process, self.processes = cluster.process, cluster.processes
        self._client, self._name = client, name
        self._names: dict[int, str] = {self.process: name}
        self._note: dict[str, Any] = {"doing": "starting"}
        self._leaving = threading.Event()
        self._failing = threading.Lock()
        self._ticks = 0  # since the coordination service answered last
        self.heard: dict[int, dict[str, Any]] = {}  # what each said last; on process 0
        self._threads: list[threading.Thread] = []
        # Called on process 0 each time all were heard.
        self.listener: Callable[[], None] | None = None
        # On process 0: what is done when nobody writes any longer.
        self.last: list[Callable[[], None]] = []
        # Whether all is done, and nobody is needed any longer.
        self.complete = False

    @property
    def first(self) -> bool:
        """Whether this is process 0, which writes what all have found."""
        return self.process == 0

    def __str__(self) -> str:
        return f"process {self.process} of {self.processes} ({self._name})"

    def named(self, process: int) -> str:
        """Another one, with its host."""
        name = self._names.get(process)
        return f"process {process} ({name})" if name else f"process {process}"

    # ---- the store

    def put(self, key: str, value: Any) -> None:
        """Keeps a JSON-ready value under a key, whatever was there."""
        with self._reaching():
            self._client.key_value_set(_ROOT + key, json.dumps(value), allow_overwrite=True)

    def put_once(self, key: str, value: Any) -> bool:
        """Keeps a value if nothing is there; returns whether it did. One process alone succeeds."""
        try:
            self._client.key_value_set(_ROOT + key, json.dumps(value))
        except RuntimeError as error:
            if "ALREADY_EXISTS" in str(error):
                return False
            self._lost(error)
        return True

    def listing(self, folder: str) -> dict[str, Any]:
        """Name -> value of all keys FOLDER/name."""
        with self._reaching():
            found = self._client.key_value_dir_get(f"{_ROOT}{folder}/")
        return {key.rpartition("/")[2]: json.loads(value) for key, value in found}

    def get(self, key: str, seconds: float, *, whose: int = 0) -> Any:
        """What a process puts under a key, waited for.

        Raises:
            RunError: It was not there in time.
        """
        end = time.monotonic() + seconds
        while True:
            try:
                text = self._client.blocking_key_value_get(_ROOT + key, int(1000 * _SLICE_SECONDS))
                return json.loads(text)
            except RuntimeError as error:
                if "DEADLINE_EXCEEDED" not in str(error) and "NOT_FOUND" not in str(error):
                    self._lost(error)
            if time.monotonic() > end:
                raise RunError(f"{self.named(whose)} did not come to {key!r} within {seconds:.0f} s.")

    def from_first(self, key: str, value: Any, seconds: float) -> Any:
        """What process 0 gives for `value`, on all of them; JSON-ready.

        Raises:
            RunError: It was not there in time.
        """
        if self.first:
            self.put(key, value)
        return self.get(key, seconds)

    def barrier(self, name: str, seconds: float) -> None:
        """Waits until all are here.

        Raises:
            RunError: Some are not, in time; they are named, with what they were doing.
        """
        self.put(f"at/{name}/{self.process}", "")
        try:
            self._client.wait_at_barrier(_ROOT + name, int(1000 * seconds))
        except RuntimeError as error:
            there = self.listing(f"at/{name}")
            absent = [process for process in range(self.processes) if str(process) not in there]
            if not absent:
                self._lost(error)
            beats = self.listing("beat")
            said = "; ".join(
                f"{self.named(process)}, last {beats.get(str(process), {}).get('doing', 'not heard of')}"
                for process in absent
            )
            raise RunError(f"Waited {seconds:.0f} s for all processes to be {name}. Missing: {said}.") from error

    @contextlib.contextmanager
    def _reaching(self):
        try:
            yield
        except RuntimeError as error:
            self._lost(error)

    def _lost(self, error: BaseException) -> NoReturn:
        raise RunError(f"{self.named(0)}, which coordinates, cannot be reached: {_first_line(error)}") from error

    # ---- meeting

    def meet(self, seconds: float) -> None:
        """Exchanges names, and refuses processes that were started otherwise.

        Raises:
            UsageError: The same number runs twice, or the numbers of processes differ.
            RunError: One is missing.
        """
        mine = {"name": self._name, "processes": self.processes}
        if not self.put_once(f"process/{self.process}", mine):
            other = self.listing("process").get(str(self.process), {})
            self._names[self.process] = other.get("name", "?")
            raise UsageError(
                f"--process_id={self.process} is there twice: on {other.get('name', '?')} and on {self._name}."
            )
        self.put(f"beat/{self.process}", self._note)
        end = time.monotonic() + seconds
        while True:
            met = {int(process): said for process, said in self.listing("process").items()}
            self._names |= {process: said["name"] for process, said in met.items()}
            first = met.get(0, mine)
            if first["processes"] != self.processes:
                raise UsageError(
                    f"{self} was started with --num_processes={self.processes}, {self.named(0)} with "
                    f"{first['processes']}."
                )
            if len(met) == self.processes:
                break
            if time.monotonic() > end:
                absent = ", ".join(str(process) for process in range(self.processes) if process not in met)
                raise RunError(f"Joined, but then not heard of within {seconds:.0f} s: process {absent}.")
            time.sleep(0.05)
        self._start()

    def agree(self, name: str, mine: Mapping[str, Any], seconds: float) -> None:
        """Refuses to go on where this process was asked for something else than process 0, or sees something else.

        Raises:
            UsageError: What differs.
            RunError: Some did not come to it in time.
        """
        first = self.from_first(f"asked/{name}", mine, seconds)
        mine = json.loads(json.dumps(mine))
        differs = [key for key in {**first, **mine} if first.get(key) != mine.get(key)]
        if differs:
            what = "; ".join(f"{key} is {mine.get(key)} here, {first.get(key)} there" for key in differs)
            raise UsageError(f"{self} and {self.named(0)} were not asked the same, or do not see the same: {what}.")
        self.barrier(f"agreed on the {name}", seconds)

    # ---- watching

    def _start(self):
        self._threads = [
            threading.Thread(target=loop, name=f"polarax-{name}", daemon=True)
            for name, loop in (("watch", self._watch), ("guard", self._guard))
        ]
        for thread in self._threads:
            thread.start()

    def note(self, **what: Any) -> None:
        """Says what this process is doing, with the next beat."""
        self._note |= what

    def _watch(self):
        silent: dict[int, tuple[Any, int]] = {}
        number = 0
        while not self._leaving.wait(_BEAT_SECONDS):
            number += 1
            try:
                self.put(f"beat/{self.process}", self._note | {"number": number})
                failed = self.listing("failed")
                beats = self.listing("beat") if self.first else {}
            except RunError:
                continue  # the guard counts
            self._ticks = 0
            if failed:
                self._end(min(failed.values(), key=lambda failure: failure["process"]))
            if not self.first:
                continue
            left = self.listing("left")
            self.heard = {int(process): said for process, said in beats.items()}
            for process, said in self.heard.items():
                before, ticks = silent.get(process, (None, 0))
                gone_quiet = said == before and str(process) not in left and process != self.process
                gone_quiet = gone_quiet and not self.complete
                silent[process] = said, ticks + 1 if gone_quiet else 0
                if silent[process][1] * _BEAT_SECONDS >= SILENT_SECONDS:
                    message = f"not heard of for {SILENT_SECONDS:.0f} s; last {said.get('doing', 'not heard of')}"
                    self.put_once("failed/silent", {"process": process, "message": message})
            if self.listener is not None:
                self.listener()

    def _guard(self):
        """Ends this process when the coordination service does not answer any longer, in whatever call the watch is.

        Counts its own steps and not the clock: a process that was stopped itself is to hear first what it missed.
        """
        while not self._leaving.wait(1.0):
            self._ticks += 1
            if self._ticks >= SILENT_SECONDS:
                self.end(f"{self.named(0)}, which coordinates, has not answered for {SILENT_SECONDS:.0f} s.")

    def fail(self, message: str) -> None:
        """Lets all others end, with the reason; this process goes on to its own end."""
        self._leaving.set()
        try:
            self._client.key_value_set(
                f"{_ROOT}failed/{self.process}", json.dumps({"process": self.process, "message": message})
            )
        except RuntimeError:
            return
        if self.first:
            self._linger()

    def _end(self, failure: Mapping[str, Any]) -> NoReturn:
        process, message = failure["process"], failure["message"]
        if self.first:
            self._linger()
        self.end(f"{self.named(process)} failed: {message}")

    def _linger(self):
        """Process 0 holds the store: without it the others would be told of nothing but its absence."""
        time.sleep(_LINGER_SECONDS)

    def end(self, message: str) -> NoReturn:
        """Ends this process now, with a line."""
        with self._failing:
            end_now(f"polarax: {self}: {message}")
        raise AssertionError("ended")

    def abandoned(self) -> str:
        """What is said when JAX aborts this process: it does so when it has lost its coordination service."""
        return f"polarax: {self}: {self.named(0)}, which coordinates, is gone."

    # ---- the end

    def leave(self, seconds: float) -> None:
        """Leaves in order: process 0, which holds the store, last; then nobody writes any longer.

        Args:
            seconds: How long process 0 waits for the others; who has not left by then is named, and left behind.

        Raises:
            RunError: The store cannot be reached.
        """
        self.complete = True
        self.put(f"left/{self.process}", "")
        end = time.monotonic() + seconds
        while self.first:
            left = self.listing("left")
            absent = [process for process in range(self.processes) if str(process) not in left]
            if not absent:
                break
            if time.monotonic() > end:
                names = "; ".join(f"{self.named(one)}, last {self.heard.get(one, {}).get('doing')}" for one in absent)
                print(
                    f"polarax: {self}: not heard of again, and not needed: the others have done all. {names}",
                    file=sys.stderr,
                )
                break
            time.sleep(0.05)
        for finish in self.last:
            finish()
        self._leaving.set()
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join(_BEAT_SECONDS)


def _first_line(error: BaseException) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
