"""The folder that a checkpoint is in, wherever it is: byte ranges of its files, asked for ahead of time."""

import os
import re
import urllib.parse
import urllib.request
from collections.abc import Sequence
from concurrent.futures import Future
from typing import TypeVar

import numpy as np

from polarax.loaders.checkpoint import CheckpointError, brief_reason
from polarax.loaders.stores.addresses import redact_location
from polarax.loaders.stores.bucket import open_bucket
from polarax.loaders.stores.files import Files, Head, StoreError
from polarax.loaders.stores.http_client import HttpClient
from polarax.loaders.stores.hub import HubFiles, parse_hub_path, token_for
from polarax.loaders.stores.local import LocalFiles
from polarax.loaders.stores.threads import ReadThreads
from polarax.loaders.stores.web import WebFiles

_T = TypeVar("_T")
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.\-]*://")


def is_url(source: str) -> bool:
    """Whether `source` is a URL rather than a path."""
    return _URL.match(source) is not None


class Store:
    """A folder of files, wherever it is; it reads on its own threads.

    Attributes:
        location: The folder as a path or URL that ends in a slash, without login and query.
        head_bytes: How much to ask of a file of which nothing is known.
        is_local: Whether it is a folder of this machine.
    """

    def __init__(self, files: Files, location: str):
        """Args: how its files are read; where it is, for messages."""
        self.location = redact_location(location)
        self.head_bytes = files.head_bytes
        self.is_local = isinstance(files, LocalFiles)
        self._files = files
        self._threads = ReadThreads(files.threads)

    @classmethod
    def of_folder(cls, path: str) -> "Store":
        """The store of a local folder, given by its absolute path."""
        return cls(LocalFiles(path), path.rstrip("/") + "/")

    @classmethod
    def of_url(cls, url: str) -> "Store":
        """The store of a folder given by its URL, which may carry a query (``?token=...``), or by its hub path.

        Raises:
            CheckpointError: If there is no way to read such URLs.
        """
        hub = parse_hub_path(url)
        if hub is not None:
            return cls(HubFiles(hub, HttpClient(token_for)), url.rstrip("/") + "/")
        parts = urllib.parse.urlsplit(url)
        location = urllib.parse.urlunsplit(parts._replace(path=parts.path.rstrip("/") + "/"))
        if parts.scheme.lower() in ("http", "https"):
            return cls(WebFiles(location, HttpClient(token_for)), location)
        try:
            return cls(open_bucket(location), location)
        except StoreError as error:
            raise CheckpointError(
                f"{url}: cannot be opened; expected a path, or an http, https, s3, gs, hf or file URL: {error}"
            ) from error

    def path(self, key: str) -> str:
        """Path or URL of a file, for messages."""
        folder, query, hidden = self.location.partition("?") if is_url(self.location) else (self.location, "", "")
        return folder + key + query + hidden

    def files(self) -> tuple[str, ...] | None:
        """The files of the folder, sorted, without hidden ones; None where a store cannot tell.

        Raises:
            CheckpointError: If the store fails.
        """
        try:
            return self._files.names()
        except StoreError as error:
            raise CheckpointError(f"{self.location}: {error}") from error

    def size(self, key: str) -> int | None:
        """Size of a file in bytes; None where a store does not tell it before it is read.

        Raises:
            CheckpointError: If it is known that there is no such file, or that it is not a regular
                file.
        """
        try:
            return self._files.size(key)
        except StoreError as error:
            raise CheckpointError(f"{self.path(key)}: {error}") from error

    def read(self, key: str, start: int = 0, stop: int | None = None) -> Future:
        """Starts to read bytes [start, stop) of a file: a future array of uint8, None if there is no such file."""
        if stop is None:
            return self._threads.submit(_load, self._files, key)
        return self._threads.submit(_read, self._files, key, start, stop)

    def read_head(self, key: str, count: int) -> "Future[Head | None]":
        """Starts to read the first `count` bytes of a file, or as many as it has."""
        return self._threads.submit(self._files.head, key, count)

    def fill(self, key: str, start: int, buffers: Sequence[memoryview]) -> "Future[bool]":
        """Starts to read the bytes of a file from `start` on into buffers (of bytes), one after the other.

        The future gives False if there is no such file. Its errors are `StoreError` and, if the file ends before the
        buffers are full, EOFError.
        """
        return self._threads.submit(self._files.fill, key, start, buffers)

    def wait(self, future: "Future[_T]", key: str) -> _T:
        """What `read` or `read_head` was asked for, or None if there is no such file.

        Raises:
            EOFError: If the file ends before.
            CheckpointError: If the store fails in any other way.
        """
        try:
            return future.result()
        except StoreError as error:
            raise CheckpointError(f"{self.path(key)}: cannot be read: {brief_reason(error)}") from error


def _load(files: Files, key: str) -> np.ndarray | None:
    data = files.load(key)
    return None if data is None else np.frombuffer(data, np.uint8)


def _read(files: Files, key: str, start: int, stop: int) -> np.ndarray | None:
    data = np.empty(stop - start, np.uint8)  # here, not before: reads that still wait take no memory
    return data if start == stop or files.fill(key, start, [data.data]) else None


def local_path(source: str) -> str | None:
    """The absolute local path that a path or ``file://`` URL means; None for any other URL.

    Raises:
        CheckpointError: If a ``file://`` URL names another host, or a URL cannot be one.
    """
    if not is_url(source):
        return os.path.abspath(os.path.expanduser(source))
    try:
        parts = urllib.parse.urlsplit(source)
    except ValueError as error:
        raise CheckpointError(f"{source}: expected a path or a URL: {error}") from error
    if parts.scheme.lower() != "file":
        return None
    if parts.netloc not in ("", "localhost"):
        raise CheckpointError(f"{source}: a file URL cannot name the host {parts.netloc!r}")
    return os.path.abspath(urllib.request.url2pathname(parts.path))
