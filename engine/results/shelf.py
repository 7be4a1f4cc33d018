"""A folder of small objects that several processes share: on a file system, or in a bucket.

All of it is TensorStore's key-value layer. An object appears whole or not at all: the driver for files renames what it
has written, and a bucket shows an object when its upload is complete. So nothing here needs a file that says that
another one is complete.
"""

import contextlib
import os
import pathlib
import urllib.parse
from typing import Any

import tensorstore as ts

from polarax.errors import RunError
from polarax.loaders import CheckpointError
from polarax.loaders.stores.addresses import redact_location
from polarax.loaders.stores.bucket import BucketError, Failure, open_kvstore, wait
from polarax.loaders.stores.files import StoreError
from polarax.loaders.stores.store import local_path
from polarax.results.arrays import os_error

DEFAULT_SECONDS = 60.0
BUCKET_SCHEMES = ("gs", "s3")

_CHECK = {
    "gs": {
        Failure.NO_PERMISSION: "check that GOOGLE_APPLICATION_CREDENTIALS, or what gcloud has stored, may list, read, "
        "write and delete objects there",
        Failure.NO_BUCKET: "check the name of the bucket, which must exist",
        Failure.NO_ANSWER: "check the network, and TENSORSTORE_GCS_HTTP_URL if it is set",
    },
    "s3": {
        Failure.NO_PERMISSION: "check that AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, the profile or the role may "
        "list, read, write and delete objects there",
        Failure.NO_BUCKET: "check the name of the bucket, which must exist, and AWS_REGION",
        Failure.NO_ANSWER: "check the network, and AWS_ENDPOINT_URL if it is set",
    },
}


def is_bucket(location: str | os.PathLike) -> bool:
    """Whether a location is the URL of a bucket rather than a path."""
    return isinstance(location, str) and urllib.parse.urlsplit(location).scheme.lower() in BUCKET_SCHEMES


class _Unusual(RunError):
    """A request that the server does not understand, perhaps."""


class Shelf:
    """Objects by their keys, below one folder; every call waits for its answer, within a limit.

    Keys are names separated by slashes. Safe to use from many threads.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     shelf = Shelf.open(folder).within("taken")
        ...     shelf.create("stack-1", b"process 0"), shelf.create("stack-1", b"process 1")
        ...     shelf.get("stack-1"), shelf.list(), shelf.get("stack-2")
        (True, False)
        (b'process 0', ['stack-1'], None)
    """

    def __init__(self, kv: ts.KvStore, location: str, seconds: float = DEFAULT_SECONDS):
        """Args: where the keys are; their folder as it was given, without a slash at the end; limit of each call."""
        self._kv, self._given, self._seconds = kv, location, seconds

    @classmethod
    def open(cls, location: str | os.PathLike, seconds: float = DEFAULT_SECONDS) -> "Shelf":
        """The shelf at a path, or at a gs://, s3:// or file:// URL; nothing is read or made yet.

        Args:
            location: Of the folder; one on a file system is made by the first `put`.
            seconds: How long a call may take.

        Raises:
            RunError: There is no way to write to such a URL.
        """
        given = os.fspath(location)
        try:
            path = local_path(given)
            if path is not None:
                return cls(ts.KvStore.open({"driver": "file", "path": f"{path}/"}).result(), path, seconds)
            _check_bucket(given)
            return cls(open_kvstore(given.rstrip("/") + "/"), given.rstrip("/"), seconds)
        except (StoreError, CheckpointError) as error:
            raise RunError(f"{redact_location(given)}: cannot be opened: {error}.") from error

    @property
    def location(self) -> str:
        """Path or URL of the folder, for messages: without what may be secret."""
        return redact_location(self._given)

    def within(self, name: str) -> "Shelf":
        """The shelf of a folder below this one."""
        return Shelf(self._kv / f"{name.strip('/')}/", f"{self._given}/{name.strip('/')}", self._seconds)

    def put(self, key: str, data: bytes) -> None:
        """Writes an object, in place of one that is there.

        Raises:
            RunError: It cannot be written.
        """
        self._wait(self._kv.write(key, data), key, "written")

    def create(self, key: str, data: bytes) -> bool:
        """Writes an object unless there is one: `swap` from None."""
        return self.swap(key, None, data)

    def swap(self, key: str, before: bytes | None, after: bytes | None) -> bool:
        """Writes an object if it is what it was taken for; of several processes that try it at once, one succeeds.

        A bucket decides that by the condition that the request carries (If-None-Match and If-Match for S3, a generation
        for GCS), a file system by a lock on the object. What is there is read back, for servers that know no conditions
        and for an upload that was repeated because its answer was lost.

        Args:
            key: Of the object.
            before: Its content; None if there is to be none.
            after: What tells this process from all others; None to delete the object.

        Returns:
            Whether it is `after` now.

        Raises:
            RunError: It cannot be written.
        """
        there = self._wait(self._kv.read(key), key, "read")
        if before == (None if there.state == "missing" else there.value):
            with contextlib.suppress(_Unusual):
                self._wait(self._kv.write(key, after, if_equal=there.stamp.generation), key, "written")
            if (now := self.get(key)) != before or now == after:
                return now == after
            self._wait(self._kv.write(key, after), key, "written")  # the server takes no conditions, or says why not
        return self.get(key) == after

    def get(self, key: str) -> bytes | None:
        """The content of an object; None where there is none.

        Raises:
            RunError: It cannot be read.
        """
        result = self._wait(self._kv.read(key), key, "read")
        return None if result.state == "missing" else bytes(result.value)

    def list(self, prefix: str = "") -> list[str]:
        """The keys that begin with `prefix`, in order; of all folders below.

        Raises:
            RunError: They cannot be listed.
        """
        keys = self._wait(self._kv.list(_beginning_with(prefix)), prefix, "listed")
        return sorted(key.decode(errors="surrogateescape") for key in keys)

    def delete(self, prefix: str) -> None:
        """Deletes all objects whose keys begin with `prefix`, and on a file system the folders that they leave empty.

        Raises:
            RunError: They cannot be deleted.
        """
        self._wait(self._kv.delete_range(_beginning_with(prefix)), prefix, "deleted")
        if not is_bucket(self._given):
            _remove_empty(pathlib.Path(self._given, prefix.rpartition("/")[0]))

    def _wait(self, future: Any, key: str, what: str) -> Any:
        try:
            return wait(future, self._seconds)
        except (BucketError, EOFError) as error:
            place = redact_location(f"{self._given}/{key}".rstrip("/"))
            unusual = isinstance(error, BucketError) and error.failure is Failure.OTHER
            raise (_Unusual if unusual else RunError)(f"{place} cannot be {what}: {self._reason(error)}.") from error

    def _reason(self, error: BucketError | EOFError) -> str:
        if not is_bucket(self._given):
            cause = error.__cause__ or error
            return os_error(cause).strerror or " ".join(str(cause).split())
        failure = error.failure if isinstance(error, BucketError) else Failure.OTHER
        checks = _CHECK[urllib.parse.urlsplit(self._given).scheme.lower()]
        return f"{error}; {checks[failure]}" if failure in checks else str(error)


def _check_bucket(url: str) -> None:
    parts = urllib.parse.urlsplit(url)
    if not is_bucket(url):
        raise StoreError("expected a path, or a gs or s3 URL")
    if not parts.netloc or parts.query or parts.fragment:
        raise StoreError(f"expected {parts.scheme}://bucket/folder")


def _beginning_with(prefix: str) -> ts.KvStore.KeyRange:
    """The keys that begin with a text: up to the first one in the order of bytes that does not."""
    first = prefix.encode(errors="surrogateescape")
    end = first.rstrip(b"\xff")
    return ts.KvStore.KeyRange(first, end[:-1] + bytes([end[-1] + 1]) if end else b"")


def _remove_empty(folder: pathlib.Path) -> None:
    """Removes a folder and those below it, as far as they are empty."""
    for path, _, _ in os.walk(folder, topdown=False):
        with contextlib.suppress(OSError):  # it is not empty
            os.rmdir(path)
