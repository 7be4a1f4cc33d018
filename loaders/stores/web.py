"""Files of a web server, under one address; wherever it redirects."""

import threading
import urllib.parse
from collections.abc import Callable, Sequence

from polarax.loaders.stores.files import CHANGED, LARGEST_LOAD, Head, StoreError
from polarax.loaders.stores.http_client import (
    Answer,
    HttpClient,
    Span,
    check_encoding,
    persist,
    receive,
    size_of_unsatisfied,
    span_of,
)

_SIGNED_AGAIN = frozenset({400, 401, 403, 404, 410})  # how a signed address answers once it has expired


class WebFiles:
    """The files below an address, whose query, if it has one, is sent with each request."""

    threads = 16  # a server's answer takes a while to begin, so many are awaited together
    head_bytes = 128 * 1024  # most headers of a sharded model fit, so that each shard takes one request

    def __init__(self, url: str, client: HttpClient):
        """Args: address of the folder; what to ask by."""
        self._parts = urllib.parse.urlsplit(url)
        self._client = client
        self._lock = threading.Lock()
        self._moved: dict[str, str] = {}  # where each file was last found
        self._versions: dict[str, tuple[int | None, str | None]] = {}  # size and ETag, as first seen

    def url(self, key: str) -> str:
        """Address of a file."""
        path = self._parts.path.rstrip("/") + "/" + urllib.parse.quote(key)
        return urllib.parse.urlunsplit(self._parts._replace(path=path))

    def names(self) -> tuple[str, ...] | None:
        """See `Files`: the web has no lists."""
        return None

    def size(self, key: str) -> int | None:
        """See `Files`: known once a part of the file was read."""
        return self._versions.get(key, (None, None))[0]

    def head(self, key: str, count: int) -> Head | None:
        """See `Files`."""
        try:
            span, data = self._part(key, 0, count - 1)
        except EOFError:
            return Head(b"", 0)
        return None if span is None else Head(data, span.size)

    def load(self, key: str) -> bytes | None:
        """See `Files`."""
        found: list[bytes] = []

        def take(answer: Answer) -> None:
            if answer.status != 200:
                raise StoreError(_meaning(answer.status))
            check_encoding(answer)
            data = answer.body.read(LARGEST_LOAD + 1)
            if len(data) > LARGEST_LOAD:
                raise StoreError(f"more than {LARGEST_LOAD} bytes are too many")
            found.append(data)

        there = persist(lambda buffers, progress: self._ask(key, None, None, take), [])
        return found[-1] if there else None

    def fill(self, key: str, start: int, buffers: Sequence[memoryview]) -> bool:
        """See `Files`."""
        position = start

        def some(rest: Sequence[memoryview], progress: Callable[[int], None]) -> bool:
            def advance(count: int) -> None:
                nonlocal position
                position += count
                progress(count)

            def take(answer: Answer) -> None:
                span = self._span(key, answer, position, last)
                if span.stop <= last:
                    raise EOFError(f"ends at byte {span.stop}, expected {last + 1}")
                receive(answer, rest, advance)

            last = position + sum(map(len, rest)) - 1
            return last < position or self._ask(key, position, last, take)

        return persist(some, buffers)

    def _part(self, key: str, first: int, last: int) -> tuple[Span | None, bytes]:
        """The bytes first to last, or as many as the file has of them."""
        found: list[tuple[Span, bytes]] = []

        def take(answer: Answer) -> None:
            span = self._span(key, answer, first, last)
            data = bytearray(span.stop - span.start)
            receive(answer, [memoryview(data)], lambda count: None)
            found.append((span, bytes(data)))

        there = persist(lambda buffers, progress: self._ask(key, first, last, take), [])
        return found[-1] if there else (None, b"")

    def _ask(self, key: str, first: int | None, last: int | None, take: Callable[[Answer], None]) -> bool:
        """One request for a file, at the address where it was last found, else at its own; False if there is none."""
        moved = self._moved.get(key)
        for url in [moved, self.url(key)] if moved else [self.url(key)]:
            with self._client.get(url, first, last) as answer:
                if url == moved and answer.status in _SIGNED_AGAIN:
                    continue
                if answer.status in (404, 410):
                    return False
                if answer.url != url:
                    self._moved[key] = answer.url
                take(answer)
                return True
        raise AssertionError("the last address is answered for above")

    def _span(self, key: str, answer: Answer, first: int, last: int) -> Span:
        """What part of a file an answer holds; refuses every other answer."""
        if answer.status == 416:
            size = size_of_unsatisfied(answer)
            self._check(key, size, None)
            raise EOFError(f"ends at byte {first if size is None else size} or before, expected {last + 1}")
        if answer.status == 200:
            raise StoreError("the server does not serve parts of files (byte ranges); download the checkpoint")
        if answer.status != 206:
            raise StoreError(_meaning(answer.status))
        span = span_of(answer, first, last)
        self._check(key, span.size, answer.headers.get("ETag"))
        return span

    def _check(self, key: str, size: int | None, tag: str | None) -> None:
        """Refuses a file that is not the one first seen under this name."""
        if tag is not None and tag.startswith("W/"):
            tag = None  # a weak one says nothing about bytes
        with self._lock:
            size_before, tag_before = self._versions.get(key, (None, None))
            if None not in (size, size_before) and size != size_before:
                raise StoreError(CHANGED)
            if None not in (tag, tag_before) and tag != tag_before:
                raise StoreError(CHANGED)
            self._versions[key] = (size_before if size is None else size, tag_before or tag)


def _meaning(status: int) -> str:
    """A final status in words."""
    if status == 401:
        return "the server wants to know who asks (HTTP 401); a token of the hub is taken from HF_TOKEN"
    if status == 403:
        return "no permission (HTTP 403)"
    return f"the server answers HTTP {status}"
