"""Uploads in the order in which they are asked for, while whoever asked for them goes on."""

import collections
from collections.abc import Mapping
from concurrent.futures import Future

from polarax.errors import RunError
from polarax.loaders.stores.threads import ReadThreads
from polarax.results.shelf import Shelf

_SIDE_BY_SIDE = 16  # as many as reads of a bucket
_MOST_BYTES = 256 << 20  # that wait: whoever writes faster than the bucket takes it waits too


class Uploads:
    """Puts files onto a shelf; after a failure nothing more is put there, so that what is there stays in order."""

    def __init__(self, shelf: Shelf):
        self._shelf = shelf
        self._one_by_one, self._together = ReadThreads(1), ReadThreads(_SIDE_BY_SIDE)
        self._waiting: collections.deque[tuple[int, Future]] = collections.deque()  # bytes, and when they are there
        self._bytes = 0  # of all that wait
        self._failure: Exception | None = None

    def put(self, objects: Mapping[str, bytes]) -> None:
        """Uploads objects by their keys, side by side, when all that was asked for before is there.

        Raises:
            RunError: An earlier upload failed.
        """
        self._submit(sum(map(len, objects.values())), self._put, objects)

    def delete(self, key: str) -> None:
        """Deletes an object, and all those of a folder of this name. Order and errors as for `put`."""
        self._submit(0, self._delete, key)

    def fail(self, error: RunError) -> None:
        """Lets no more be uploaded, for this reason."""
        self._failure = self._failure or error

    def flush(self) -> None:
        """Waits until all is uploaded.

        Raises:
            RunError: An upload failed.
        """
        self._wait_until(lambda: not self._waiting)

    def _wait_until(self, enough):
        while not enough():
            size, done = self._waiting[0]
            done.result()
            self._waiting.popleft()
            self._bytes -= size
        if self._failure is not None:
            raise self._failure

    def _submit(self, size, function, *arguments):
        self._wait_until(lambda: not self._waiting or (self._bytes + size <= _MOST_BYTES and not self._first_done()))
        self._waiting.append((size, self._one_by_one.submit(self._unless_failed, function, *arguments)))
        self._bytes += size

    def _first_done(self):
        return self._waiting[0][1].done()

    def _unless_failed(self, function, *arguments):
        if self._failure is None:
            try:
                function(*arguments)
            except Exception as error:
                self._failure = error

    def _put(self, objects):
        for put in [self._together.submit(self._shelf.put, key, data) for key, data in objects.items()]:
            put.result()

    def _delete(self, key):
        self._shelf.swap(key, self._shelf.get(key), None)
        self._shelf.delete(f"{key}/")
