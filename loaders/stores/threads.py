"""A few threads that read: like a thread pool, but never in the way of the interpreter's exit.

`concurrent.futures.ThreadPoolExecutor` finishes all that is queued before the interpreter may end; after an error that
would read gigabytes that nobody waits for, or wait for a server that does not answer. These threads are daemons.
"""

import queue
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any


class ReadThreads:
    """At most `count` threads, started as they are needed; they end when nothing refers to this object any more."""

    def __init__(self, count: int):
        self._count = count
        self._tasks: queue.SimpleQueue = queue.SimpleQueue()
        self._started = 0
        self._lock = threading.Lock()
        weakref.finalize(self, _end, self._tasks, count)

    def submit(self, function: Callable[..., Any], *arguments: Any) -> Future:
        """Calls a function on one of the threads, in the order of submission."""
        future: Future = Future()
        self._tasks.put((future, function, arguments))
        with self._lock:
            if self._started < self._count:
                self._started += 1
                threading.Thread(target=_work, args=(self._tasks,), name="polarax-read", daemon=True).start()
        return future


def _work(tasks: queue.SimpleQueue) -> None:
    while (task := tasks.get()) is not None:
        future, function, arguments = task
        if future.set_running_or_notify_cancel():
            try:
                value = function(*arguments)
            except BaseException as error:
                future.set_exception(error)
            else:
                future.set_result(value)
                del value
        del task, future, function, arguments  # an idle thread must not hold what it read


def _end(tasks: queue.SimpleQueue, count: int) -> None:
    for _ in range(count):
        tasks.put(None)
