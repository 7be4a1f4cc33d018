"""Files in buckets (s3://, gs://) and whatever else tensorstore has a URL for, by its key-value layer."""

import enum
import os
import re
import threading
import urllib.parse
from collections.abc import Sequence
from typing import Any

import tensorstore as ts

from polarax.loaders.stores.addresses import redact
from polarax.loaders.stores.files import CHANGED, LARGEST_LOAD, Head, StoreError
from polarax.loaders.stores.http_client import PATIENCE

# Tensorstore's defaults wait through 32 tries with growing pauses, minutes for a name that does not
# resolve.
_RETRIES = {"max_retries": 4, "initial_delay": "200ms", "max_delay": "2s"}
_CONTEXT = ts.Context(
    {
        "s3_request_retries": _RETRIES,
        "gcs_request_retries": _RETRIES,
        "cache_pool": {"total_bytes_limit": 0},
    }
)

_LIST_SECONDS = 60.0  # a folder whose objects take longer to list holds far more than a checkpoint
_DETAILS = re.compile(r" \[[\w-]+='")  # where TensorStore appends the server's headers and page
_REASON_LENGTH = 300  # characters of a message that are repeated: it may quote a server's whole page


class Failure(enum.Enum):
    """Why TensorStore could not read or write: what a message begins with, and how TensorStore puts it."""

    PAST_THE_END = "", re.compile(r"OUT_OF_RANGE")
    NO_PERMISSION = "no permission: ", re.compile(r"PERMISSION_DENIED|UNAUTHENTICATED|HTTP (?:response )?code:? 40[13]")
    NO_BUCKET = "no such bucket: ", re.compile(r"NOT_FOUND|NoSuchBucket")
    NO_ANSWER = "", re.compile(r"CURL error|UNAVAILABLE|DEADLINE_EXCEEDED")
    OTHER = "", re.compile("")

    def __init__(self, message: str, pattern: re.Pattern[str]):
        self.message = message
        self.pattern = pattern

    @classmethod
    def of(cls, error: Exception) -> "Failure":
        """What an error of TensorStore means.

        Its status code, and that of the server, are in the text alone: in Python its errors have no attributes, and
        nearly all are of one type, ValueError.
        """
        return next(failure for failure in cls if failure.pattern.search(str(error)))


class BucketError(StoreError):
    """A bucket that cannot be read or written, with what kind of failure it is."""

    def __init__(self, failure: Failure, message: str):
        super().__init__(message)
        self.failure = failure


class BucketFiles:
    """The files of one folder of a key-value store."""

    threads = 16
    head_bytes = 128 * 1024

    def __init__(self, kv: ts.KvStore):
        self._kv = kv
        self._lock = threading.Lock()
        self._generations: dict[str, Any] = {}  # as first seen

    def names(self) -> tuple[str, ...]:
        """See `Files`."""
        keys = wait(self._kv.list(), _LIST_SECONDS)
        names = [key.decode(errors="surrogateescape") for key in keys]
        return tuple(sorted(name for name in names if name and "/" not in name and name[0] != "."))

    def size(self, key: str) -> int | None:
        """See `Files`: tensorstore does not tell."""
        return None

    def head(self, key: str, count: int) -> Head | None:
        """See `Files`."""
        try:
            data = self._read(key, 0, count)
        except EOFError:  # a file that is smaller than that
            data = self.load(key)
            return None if data is None else Head(data, len(data))
        return None if data is None else Head(data, None)

    def load(self, key: str) -> bytes | None:
        """See `Files`."""
        return self._read(key, 0, None)

    def fill(self, key: str, start: int, buffers: Sequence[memoryview]) -> bool:
        """See `Files`."""
        stop = start + sum(map(len, buffers))
        if stop == start:
            return True
        data = self._read(key, start, stop)
        if data is None:
            return False
        if len(data) != stop - start:
            raise StoreError(f"the server sends {len(data)} bytes where {stop - start} were asked for")
        view = memoryview(data)
        for buffer in buffers:
            buffer[:] = view[: len(buffer)]
            view = view[len(buffer) :]
        return True

    def _read(self, key: str, start: int, stop: int | None) -> bytes | None:
        expected = LARGEST_LOAD if stop is None else stop - start
        future = self._kv.read(key, byte_range=slice(start, stop))
        result = wait(future, PATIENCE.idle * PATIENCE.tries + expected / PATIENCE.slowest)
        if result.state == "missing":
            return None
        generation = result.stamp.generation
        with self._lock:
            if self._generations.setdefault(key, generation) != generation:
                raise StoreError(CHANGED)
        return result.value


def open_bucket(url: str) -> BucketFiles:
    """The files below a URL.

    Raises:
        StoreError: If tensorstore does not know such URLs.
    """
    return BucketFiles(open_kvstore(url))


def open_kvstore(url: str) -> ts.KvStore:
    """The keys below a URL that ends in a slash, by whatever driver TensorStore has for it; nothing is read yet.

    Raises:
        StoreError: If tensorstore does not know such URLs.
    """
    parts = urllib.parse.urlsplit(url)
    spec = _s3_spec(parts) if parts.scheme.lower() == "s3" else url
    try:
        return ts.KvStore.open(spec, context=_CONTEXT).result(timeout=PATIENCE.idle)
    except Exception as error:
        raise StoreError(_brief(error)) from error


def _s3_spec(parts: urllib.parse.SplitResult) -> dict[str, Any]:
    """What tensorstore takes in place of an s3 URL, of which it ignores what the environment says of its server."""
    environment = os.environ
    spec: dict[str, Any] = {
        "driver": "s3",
        "bucket": parts.netloc,
        "path": urllib.parse.unquote(parts.path.lstrip("/")),
    }
    endpoint = environment.get("AWS_ENDPOINT_URL_S3") or environment.get("AWS_ENDPOINT_URL")
    region = environment.get("AWS_REGION") or environment.get("AWS_DEFAULT_REGION")
    if endpoint:
        spec["endpoint"] = endpoint.rstrip("/")
        region = region or "us-east-1"  # goes into the signature; servers that are not Amazon's expect this one
    if region:
        spec["aws_region"] = region
    if environment.get("AWS_ACCESS_KEY_ID"):
        spec["aws_credentials"] = {"type": "environment"}
    elif environment.get("AWS_EC2_METADATA_DISABLED", "").lower() == "true" and not _has_profile():
        spec["aws_credentials"] = {"type": "anonymous"}  # public buckets need no more
    return spec


def _has_profile() -> bool:
    files = (
        os.environ.get("AWS_SHARED_CREDENTIALS_FILE", "~/.aws/credentials"),
        os.environ.get("AWS_CONFIG_FILE", "~/.aws/config"),
    )
    return "AWS_PROFILE" in os.environ or any(os.path.exists(os.path.expanduser(file)) for file in files)


def wait(future: Any, seconds: float) -> Any:
    """The result of a future of tensorstore, in bounded time.

    Raises:
        EOFError: If what was to be read is past the end of an object.
        BucketError: If there is none.
    """
    try:
        return future.result(timeout=seconds)
    except TimeoutError as error:
        future.cancel()
        raise BucketError(Failure.NO_ANSWER, f"no answer within {seconds:.3g} s") from error
    except Exception as error:
        failure = Failure.of(error)
        if failure is Failure.PAST_THE_END:
            raise EOFError(_brief(error)) from error
        raise BucketError(failure, failure.message + _brief(error)) from error


def _brief(error: Exception) -> str:
    text = _DETAILS.split(" ".join(str(error).split()), maxsplit=1)[0]
    text = redact(text)  # before it is cut: half of an address is none
    return text if len(text) <= _REASON_LENGTH else text[: _REASON_LENGTH - 3] + "..."
