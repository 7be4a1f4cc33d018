"""Where files are kept: a local folder, a web server or a bucket, read by byte range."""

import os
import re
import stat
import urllib.parse
import urllib.request

import tensorstore as ts

from polarax.loaders.checkpoint import CheckpointError, brief_reason

# Tensorstore's defaults wait through 32 tries with growing pauses, minutes for a name that does not
# resolve.
_RETRIES = {"max_retries": 4, "initial_delay": "200ms", "max_delay": "2s"}
_CONTEXT = ts.Context(
    {
        "http_request_retries": _RETRIES,
        "s3_request_retries": _RETRIES,
        "gcs_request_retries": _RETRIES,
    }
)

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.\-]*://")
_REDIRECT = re.compile(r"\[HTTP code 30\d\]")


def is_url(source: str) -> bool:
    """Whether `source` is a URL rather than a path."""
    return _URL.match(source) is not None


class Store:
    """A folder of files, wherever it is.

    Attributes:
        location: The folder as a path or URL that ends in a slash.
    """

    def __init__(self, kv: ts.KvStore, location: str, folder: str | None = None):
        """Wraps a key-value store whose keys are file names.

        Args:
            kv: The store.
            location: Where it is, for messages.
            folder: Its absolute path where it is a local folder; it is then known which files there
                are.
        """
        self.location = location
        self._kv = kv
        self._folder = folder

    @classmethod
    def of_folder(cls, path: str) -> "Store":
        """The store of a local folder.

        Args:
            path: Absolute path.

        Raises:
            CheckpointError: If tensorstore cannot address such a path.
        """
        location = path.rstrip("/") + "/"
        try:
            kv = ts.KvStore.open({"driver": "file", "path": location}, context=_CONTEXT).result()
        except Exception as error:
            raise CheckpointError(f"{path!r}: cannot be opened: {error}") from error
        return cls(kv, location, folder=path)

    @classmethod
    def of_url(cls, url: str) -> "Store":
        """The store of a folder given by its URL, which may carry a query (``?token=...``).

        Raises:
            CheckpointError: If tensorstore does not know such URLs.
        """
        parts = urllib.parse.urlsplit(url)
        location = urllib.parse.urlunsplit(parts._replace(path=parts.path.rstrip("/") + "/"))
        try:
            kv = ts.KvStore.open(location, context=_CONTEXT).result()
        except Exception as error:
            raise CheckpointError(
                f"{url}: cannot be opened; expected a path, or an http, https, s3, gs or file URL: {error}"
            ) from error
        return cls(kv, location)

    def path(self, key: str) -> str:
        """Path or URL of a file, for messages."""
        parts = urllib.parse.urlsplit(self.location) if is_url(self.location) else None
        if parts is None or not parts.query:
            return self.location + key
        return urllib.parse.urlunsplit(parts._replace(path=parts.path + key))

    def files(self) -> tuple[str, ...] | None:
        """The files of the folder, sorted, without hidden ones; None where a store cannot tell."""
        if self._folder is None:
            return None
        try:
            return tuple(sorted(name for name in os.listdir(self._folder) if name[0] != "."))
        except OSError as error:
            raise CheckpointError(f"{self._folder}: cannot be listed: {error.strerror}") from error

    def size(self, key: str) -> int | None:
        """Size of a file in bytes; None where a store does not tell it before it is read.

        Raises:
            CheckpointError: If it is known that there is no such file, or that it is not a regular
                file.
        """
        if self._folder is None:
            return None
        path = self.path(key)
        try:
            status = os.stat(path)
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{path}: no such file") from error
        if stat.S_ISDIR(status.st_mode):
            raise CheckpointError(f"{path}: expected a file, found a folder")
        if not stat.S_ISREG(status.st_mode):
            raise CheckpointError(f"{path}: expected a regular file")
        return status.st_size

    def read(self, key: str, start: int = 0, stop: int | None = None) -> ts.Future:
        """Starts to read bytes [start, stop) of a file: a future `ts.KvStore.ReadResult`."""
        if start == stop:  # over http tensorstore would ask with HEAD, which not every server knows
            return _no_bytes()
        return self._kv.read(key, byte_range=slice(start, stop))

    def wait(self, future: ts.Future, key: str) -> bytes | None:
        """The bytes that `read` was asked for, or None if there is no such file.

        Raises:
            EOFError: If the file ends before them.
            CheckpointError: If the store fails in any other way.
        """
        try:
            result = future.result()
        except Exception as error:
            message = brief_reason(error)
            if "OUT_OF_RANGE" in message:
                raise EOFError(message) from error
            if _REDIRECT.search(message):
                message = "the server redirects elsewhere; give the address that it redirects to"
            raise CheckpointError(f"{self.path(key)}: cannot be read: {message}") from error
        return None if result.state == "missing" else result.value


def _no_bytes() -> ts.Future:
    promise: ts.Promise
    future: ts.Future
    promise, future = ts.Promise.new()
    stamp = ts.KvStore.TimestampedStorageGeneration()
    promise.set_result(ts.KvStore.ReadResult(state="value", value=b"", stamp=stamp))
    return future


def local_path(source: str) -> str | None:
    """The absolute local path that a path or ``file://`` URL means; None for any other URL.

    Raises:
        CheckpointError: If a ``file://`` URL names another host.
    """
    if not is_url(source):
        return os.path.abspath(os.path.expanduser(source))
    parts = urllib.parse.urlsplit(source)
    if parts.scheme.lower() != "file":
        return None
    if parts.netloc not in ("", "localhost"):
        raise CheckpointError(f"{source}: a file URL cannot name the host {parts.netloc!r}")
    return os.path.abspath(urllib.request.url2pathname(parts.path))
