"""Joining the processes of a run, before any device is touched, and leaving them.

`jax.distributed.initialize` returns when all processes are there, and aborts when they are not in time, without saying
which. So each process announces itself in the folder of the run beforehand, and process 0 says there who is missing.
"""

import contextlib
import json
import os
import re
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import jax

from polarax.errors import INPUT_ERRORS, RunError, UsageError
from polarax.hosts.clusters import Cluster
from polarax.hosts.coordination import Hosts, _here
from polarax.hosts.ending import end_now, held_back, on_abort, on_abort_as_usual
from polarax.results.directory import PROCESSES_FOLDER
from polarax.results.shelf import Shelf

_LOOK_SECONDS = 2.0
# Begins the names of threads that compute; one that is still there at the end is at what nobody waits for.
LANES = "polarax-lanes"
# JAX's own limits are longer than ours, which say more.
_SLACK_SECONDS = 60
# What process 0 waits for others to leave, all being done.
_LEAVE_SECONDS = 20.0


@contextlib.contextmanager
def joined(cluster: Cluster, folder: str | os.PathLike, seconds: int) -> Iterator[Hosts]:
    """The processes of a run while it lasts.

    Args:
        cluster: Which they are.
        folder: Of the run, a path or a URL that all of them see.
        seconds: Limit for all to be there.

    Raises:
        UsageError: This process cannot take its part, or the processes do not fit together: a port in use, a number
            that is there twice, a folder that some do not see.
        RunError: A process is gone, or the folder cannot be written.
    """
    shelf = Shelf.open(folder)
    starting = _Starting(cluster, shelf.within(PROCESSES_FOLDER), seconds)
    with starting, held_back() as written:
        on_abort(lambda: starting.refused(written()))
        _initialize(cluster, seconds)
    hosts = Hosts(cluster, jax._src.distributed.global_state.client, host_name(cluster))
    on_abort(hosts.abandoned)
    try:
        hosts.meet(seconds)
        _check_shared(hosts, shelf.within(PROCESSES_FOLDER), seconds)
        _here.append(hosts)
        yield hosts
        hosts.leave(_LEAVE_SECONDS)
    except BaseException as error:
        hosts.fail(_said(error))
        raise
    finally:
        if hosts in _here:
            _here.remove(hosts)
        with contextlib.suppress(RuntimeError):
            jax.distributed.shutdown()
        on_abort_as_usual()
    if any(thread.name.startswith(LANES) for thread in threading.enumerate()):
        end_now("", 0)  # at what others have done meanwhile: nobody waits for it


def host_name(cluster: Cluster) -> str:
    """This host, and the address by which it reaches the coordinator where there is one."""
    name = socket.gethostname()
    host, _, port = cluster.address.rpartition(":")
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect((host.strip("[]"), int(port)))  # sends nothing
            return f"{name}, {probe.getsockname()[0]}"
    except OSError:
        return name


def _initialize(cluster: Cluster, seconds: int) -> None:
    # A process that ends is for `Hosts` to notice and name; JAX would abort all others at once. And SIGTERM ends one.
    jax.config.update("jax_enable_recoverability", True)
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(
            cluster.address,
            cluster.processes,
            cluster.process,
            initialization_timeout=seconds + _SLACK_SECONDS,
            heartbeat_timeout_seconds=seconds + _SLACK_SECONDS,
        )
    except RuntimeError as error:
        if "Failed to start RPC server" in str(error):
            port = cluster.address.rpartition(":")[2]
            raise UsageError(f"Process 0 cannot coordinate at port {port} of this host: it is in use.") from error
        raise UsageError(f"Process {cluster.process} cannot join {cluster.address}: {error}") from error


def _check_shared(hosts: Hosts, shelf: Shelf, seconds: float) -> None:
    """Refuses a folder that is another one on another host."""
    if hosts.first:
        token = secrets.token_hex(8)
        shelf.put("token", token.encode())
        hosts.put("token", token)
    token = hosts.get("token", seconds)
    end = time.monotonic() + min(seconds, 10)  # shared file systems show a new file a little later
    while shelf.get("token") != token.encode():
        if time.monotonic() > end:
            raise UsageError(
                f"{hosts} does not see the folder {shelf.location} of {hosts.named(0)}: it must be on a file system "
                "that all hosts share, or in a bucket."
            )
        time.sleep(0.2)
    hosts.barrier("started", seconds)
    if hosts.first:
        shelf.delete("")


def _said(error: BaseException) -> str:
    """One line for the other processes."""
    if isinstance(error, KeyboardInterrupt):
        return "interrupted"
    text = " ".join(str(error).split())
    return text if isinstance(error, (*INPUT_ERRORS, RunError)) else f"{type(error).__name__}: {text}"


class _Starting:
    """Announces this process until it has joined, and ends it if others are missing; a context manager.

    An announcement counts if it changes: what an earlier run left behind does not, and no clocks are compared.
    """

    def __init__(self, cluster: Cluster, shelf: Shelf, seconds: int):
        self._cluster, self._shelf, self._seconds = cluster, shelf, seconds
        self._said: dict[str, Any] = {
            "name": host_name(cluster),
            "processes": cluster.processes,
            "life": secrets.token_hex(8),
        }
        self._done = threading.Event()
        self._seen: dict[int, dict] = {}  # alive, as process 0 sees them
        self._first: dict[str, dict] = {}
        self._thread = threading.Thread(target=self._announce, name="polarax-starting", daemon=True)

    def __enter__(self) -> "_Starting":
        try:
            self._put()
        except RunError as error:
            raise UsageError(str(error)) from error
        self._thread.start()
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if error is not None:
            self._said["failed"] = _said(error)
            self._put()
            time.sleep(3 * _LOOK_SECONDS)  # for the others to see it
        self._done.set()
        self._thread.join(_LOOK_SECONDS)

    def refused(self, written: str) -> str:
        """What is said when JAX aborts this process while it joins, after it has written why."""
        reason = re.search(r"absl::Status: ([^\n]*)", written)
        return (
            f"polarax: process {self._cluster.process} of {self._cluster.processes} ({self._said['name']}): could not "
            f"join {self._cluster.address} ({reason[1] if reason else 'no reason was given'}). Is --num_processes the "
            "same everywhere, and is nothing else running there?"
        )

    def _put(self):
        self._said["number"] = self._said.get("number", 0) + 1
        self._shelf.put(str(self._cluster.process), json.dumps(self._said).encode())

    def _announce(self):
        end = time.monotonic() + self._seconds
        while not self._done.wait(_LOOK_SECONDS):
            try:
                self._put()
                # Process 0 sees all: the others leave it the time to say who is missing.
                late = time.monotonic() - end
                problem = self._look(late > (3 * _LOOK_SECONDS if 0 in self._seen else 0))
            except RunError as error:
                problem = str(error)
            if problem and not self._done.is_set():
                self._said["failed"] = problem
                with contextlib.suppress(RunError):
                    self._put()
                if self._cluster.process == 0:
                    time.sleep(3 * _LOOK_SECONDS)
                who = f"process {self._cluster.process} of {self._cluster.processes} ({self._said['name']})"
                end_now(f"polarax: {who}: {problem}")

    def _look(self, late: bool) -> str:
        """What is wrong; "" if nothing is."""
        mine = self._cluster.process
        processes = range(self._cluster.processes) if mine == 0 else [0]
        names = {name for name in self._shelf.list() if name.isdigit()} if mine == 0 else {"0"}
        for name in names - {str(mine)}:
            said = self._read(name)
            if said is None or self._first.setdefault(name, said) == said:
                continue
            self._seen[int(name)] = said
            who = f"process {name} ({said['name']})"
            if said.get("failed"):
                return said["failed"] if name == "0" and mine != 0 else f"{who} failed: {said['failed']}"
            if said["processes"] != self._cluster.processes:
                return (
                    f"{who} was started with --num_processes={said['processes']}, this one with "
                    f"{self._cluster.processes}."
                )
        if not late:
            return ""
        absent = [str(process) for process in processes if process != mine and process not in self._seen]
        where = f"at {self._shelf.location}"
        if absent:
            return f"process {', '.join(absent)} did not start within {self._seconds} s: no sign of it {where}."
        others = ", ".join(f"process {one} ({said['name']})" for one, said in sorted(self._seen.items()))
        whoever = "all" if mine == 0 else "this process and process 0 have"
        return (
            f"{whoever} announced themselves {where}, but they did not meet at {self._cluster.address} within "
            f"{self._seconds} s: {others}. Is it the address of process 0, and reachable from all hosts?"
        )

    def _read(self, name):
        text = self._shelf.get(name)
        try:
            return json.loads(text) if text else None
        except ValueError:
            return None
