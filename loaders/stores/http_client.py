"""Byte ranges over HTTP: redirects, retries of what may pass, one clear line for what will not.

Tensorstore's http driver follows no redirect and has no deadline; a hub sends every file elsewhere, under an address
that is signed for an hour. Hence this client, which blocks. Connections, TLS and proxies are urllib3's; redirects and
retries are not: which may be followed, what is tried again, and how long all of it may take, is decided here.
"""

import base64
import contextlib
import random
import re
import socket
import ssl
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from polarax.loaders.stores.addresses import redact
from polarax.loaders.stores.files import StoreError, unfilled

if TYPE_CHECKING:  # urllib3 takes a while to import, and few read from the web
    import urllib3

    from polarax.loaders.stores.connections import Connections, Line


class Patience(NamedTuple):
    """How long a server is waited for."""

    tries: int = 5  # in a row that bring less than `progress` bytes
    progress: int = 1 << 20
    first_pause: float = 0.2  # seconds, doubled from try to try
    longest_pause: float = 5.0
    idle: float = 30.0  # seconds without a byte, after which a connection is abandoned
    slowest: float = 128 * 1024  # bytes per second; a slower one is abandoned too


PATIENCE = Patience()

_MOST_REDIRECTS = 10
_SHORT = 64 * 1024  # bytes of the page that comes with a redirect
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_MAY_PASS = frozenset({408, 425, 429, 500, 502, 503, 504})
_CONTENT_RANGE = re.compile(r"bytes (?:(\d+)-(\d+)|\*)/(\d+|\*)")
_MOST_BYTES = 32 << 20  # asked for by one request: no more than this is lost with a connection


class MayPass(Exception):
    """A failure that is worth another try."""

    def __init__(self, message: str, wait: float = 0.0):
        """Args: what happened; seconds to wait that the server asks for."""
        super().__init__(redact(message))
        self.wait = wait


class Answer(NamedTuple):
    """An answer whose body has not been read."""

    status: int
    headers: Mapping[str, str]  # whatever case is asked for
    url: str  # where it came from, after redirects
    body: "urllib3.HTTPResponse"


class Span(NamedTuple):
    """Which part of a file an answer holds."""

    start: int
    stop: int
    size: int | None  # bytes of the whole file, if the server says


class HttpClient:
    """Sends GET requests; safe to use from many threads."""

    def __init__(self, token_for: Callable[[str], str | None] = lambda url: None):
        """Args: `token_for` gives the bearer token that a URL may be shown, if there is one."""
        self._token_for = token_for
        self._lock = threading.Lock()
        self._made: Connections | None = None

    @contextlib.contextmanager
    def get(self, url: str, first: int | None = None, last: int | None = None) -> Iterator[Answer]:
        """Asks for a file, or the bytes first to last (inclusive) of it, following redirects.

        Raises:
            MayPass: If there is no answer, or one that says to try again.
            StoreError: If it redirects in circles, from https to http, or to something that is not the web.
        """
        headers = {"Accept-Encoding": "identity", "User-Agent": "polarax"}
        if first is not None:
            headers["Range"] = f"bytes={first}-{last}"
        expected = _MOST_BYTES if first is None or last is None else last - first + 1
        for _ in range(_MOST_REDIRECTS + 1):
            with self._one(url, headers, expected) as answer:
                if answer.status not in _REDIRECTS:
                    if answer.status in _MAY_PASS:
                        raise MayPass(f"the server answers HTTP {answer.status}", _retry_after(answer.headers))
                    yield answer
                    return
                target = answer.headers.get("Location")
                answer.body.read(_SHORT)  # to its end, so that the connection can be kept
            if not target:
                raise StoreError(f"the server redirects (HTTP {answer.status}) without saying where")
            before, url = urllib.parse.urlsplit(url).scheme, urllib.parse.urljoin(url, target)
            scheme = urllib.parse.urlsplit(url).scheme
            if scheme not in ("http", "https"):
                raise StoreError("the server redirects to an address that is not http or https")
            if (before, scheme) == ("https", "http"):  # anyone on the way could send other bytes
                raise StoreError("the server redirects from https to http, where nothing shows who answers")
        raise StoreError(f"the server redirects more than {_MOST_REDIRECTS} times")

    @contextlib.contextmanager
    def _one(self, url: str, headers: dict[str, str], expected: int) -> Iterator[Answer]:
        """One request without redirects. The connection is kept if the body was read to its end."""
        from polarax.loaders.stores.connections import HTTPError, Line

        parts = urllib.parse.urlsplit(url)
        headers = headers | self._authorization(url, parts)
        address = urllib.parse.urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2], fragment=""))
        with Line() as line:
            watch = _Watch(line, PATIENCE.idle + expected / PATIENCE.slowest)
            body = None
            try:
                body = self._connections().get(address, headers, PATIENCE.idle)
                yield Answer(body.status, body.headers, url, body)
            except MayPass as error:
                if watch.rang:
                    raise MayPass(_too_slow()) from error
                raise
            except (OSError, HTTPError) as error:
                raise _failure(error, watch.rang, parts.hostname, answered=body is not None) from error
            finally:
                watch.stop()
                if body is not None:
                    body.close()  # and the connection, unless all of the body was read

    def _connections(self) -> "Connections":
        from polarax.loaders.stores.connections import Connections

        with self._lock:
            if self._made is None:
                self._made = Connections()
            return self._made

    def _authorization(self, url: str, parts: urllib.parse.SplitResult) -> dict[str, str]:
        if parts.username is not None:
            login = f"{urllib.parse.unquote(parts.username)}:{urllib.parse.unquote(parts.password or '')}"
            return {"Authorization": "Basic " + base64.b64encode(login.encode()).decode()}
        token = self._token_for(url)
        return {"Authorization": f"Bearer {token}"} if token else {}


class _Watch:
    """Cuts a connection that takes longer than it may: a socket's own time limit begins anew with every byte."""

    def __init__(self, line: "Line", seconds: float):
        self.rang = False
        self._line = line
        self._timer = threading.Timer(seconds, self._ring)
        self._timer.daemon = True
        self._timer.start()

    def stop(self) -> None:
        self._timer.cancel()

    def _ring(self) -> None:
        self.rang = True
        self._line.cut()


def _failure(error: Exception, slow: bool, host: str | None, *, answered: bool) -> MayPass | StoreError:
    """How a failed request is reported: as worth another try, or not.

    A server that cannot be trusted, or speaks no TLS that is understood, is not asked again.

    Args:
        error: What was raised.
        slow: Whether the connection was cut because it took too long.
        host: Of the server.
        answered: Whether the head of the answer had come.
    """
    from polarax.loaders.stores.connections import causes_of, is_timeout

    if slow:
        return MayPass(_too_slow())
    causes = causes_of(error)
    for cause in causes:
        if is_timeout(cause):
            return MayPass(f"the server sent nothing for {PATIENCE.idle:.3g} s")
        if isinstance(cause, socket.gaierror):
            if cause.errno == socket.EAI_NONAME:
                return StoreError(f"there is no host {host!r}")
            return MayPass(f"the host {host!r} is not found: {cause.strerror}")
        if isinstance(cause, ssl.SSLCertVerificationError):
            return StoreError(f"the server's certificate is not trusted: {cause.verify_message}")
        if isinstance(cause, (ssl.SSLEOFError, ssl.SSLZeroReturnError, ssl.SSLSyscallError)):
            break  # the connection was dropped
        if isinstance(cause, ssl.SSLError) and not answered:
            return StoreError(f"no secure connection with the server: {cause.reason or cause}")
    return MayPass(f"the connection failed: {_brief(causes[-1])}")


def span_of(answer: Answer, first: int, last: int) -> Span:
    """Which bytes an answer of status 206 holds: those asked for, or as many of them as the file has.

    Raises:
        StoreError: If it holds others, or says one length here and another there.
    """
    header = answer.headers.get("Content-Range", "")
    match = _CONTENT_RANGE.fullmatch(header.strip())
    if match is None or match[1] is None:
        raise StoreError(f"the server sends a part of the file without saying which (Content-Range {header[:80]!r})")
    start, stop = int(match[1]), int(match[2]) + 1
    size = None if match[3] == "*" else int(match[3])
    ends_early = size is not None and stop == size < last + 1
    if start != first or not (stop == last + 1 or ends_early):
        raise StoreError(f"the server sends bytes {start}-{stop - 1} where {first}-{last} were asked for")
    length = answer.headers.get("Content-Length")
    if length is not None and length.strip() != str(stop - start):
        raise StoreError(f"the server sends {length[:20]} bytes where {stop - start} were announced")
    check_encoding(answer)
    return Span(start, stop, size)


def check_encoding(answer: Answer) -> None:
    """Refuses a body that was compressed though nobody asked for it."""
    encoding = answer.headers.get("Content-Encoding", "identity")
    if encoding.strip().lower() not in ("", "identity"):
        raise StoreError(f"the server sends the file as {encoding[:20]!r}; expected it as it is")


def size_of_unsatisfied(answer: Answer) -> int | None:
    """Bytes of the file, from an answer of status 416."""
    match = _CONTENT_RANGE.fullmatch(answer.headers.get("Content-Range", "").strip())
    return int(match[3]) if match is not None and match[3] != "*" else None


def receive(answer: Answer, buffers: Sequence[memoryview], progress: Callable[[int], None]) -> None:
    """Fills buffers with a body that must be exactly as long.

    Args:
        answer: The answer.
        buffers: What to fill, one after the other.
        progress: Called with the number of bytes that arrived, each time some do.

    Raises:
        MayPass: If the body ends before.
        StoreError: If it is longer.
    """
    total, done = sum(map(len, buffers)), 0
    for buffer in buffers:
        while buffer:
            count = answer.body.readinto(buffer[: 1 << 20])
            if not count:
                raise MayPass(f"the connection was dropped after {done} of {total} bytes")
            buffer, done = buffer[count:], done + count
            progress(count)
    if answer.body.read(1):
        raise StoreError(f"the server sends more than the {total} bytes that were asked for")


Action = Callable[[Sequence[memoryview], Callable[[int], None]], bool]
"""Fills buffers and reports the number of bytes as they arrive; gives False if there is no such file."""


def persist(action: Action, buffers: Sequence[memoryview]) -> bool:
    """Fills buffers by an action that may have to be repeated, each time for the part that is still to be filled.

    Args:
        action: What to repeat.
        buffers: What to fill.

    Raises:
        StoreError: If it kept failing.
    """
    done, tries = 0, 0
    total = sum(map(len, buffers))

    def progress(count: int) -> None:
        nonlocal done
        done += count

    while True:
        before = done
        try:
            while True:
                if not action(_first_bytes(unfilled(buffers, done), _MOST_BYTES), progress):
                    return False
                if done >= total:
                    return True
        except MayPass as error:
            tries = 1 if done - before >= PATIENCE.progress else tries + 1
            if tries >= PATIENCE.tries:
                raise StoreError(f"{error} (tried {tries} times)") from error
            time.sleep(pause(tries, error.wait))


def pause(tries: int, wait: float = 0.0) -> float:
    """Seconds before the next try: what the server asks for, or doubled each time; in part random."""
    longest = PATIENCE.longest_pause
    return max(min(wait, longest), min(longest, PATIENCE.first_pause * 2 ** (tries - 1)) * random.uniform(0.75, 1.25))


def _first_bytes(buffers: Iterator[memoryview], count: int) -> list[memoryview]:
    taken = []
    for buffer in buffers:
        taken.append(buffer[:count])
        count -= len(taken[-1])
        if count <= 0:
            break
    return taken


def _retry_after(headers: Mapping[str, str]) -> float:
    text = headers.get("Retry-After", "")
    return float(text) if text.isdecimal() and len(text) < 6 else 0.0


def _too_slow() -> str:
    return f"the server is slower than {PATIENCE.slowest / 1024:.3g} KiB/s"


def _brief(error: Exception) -> str:
    return redact(getattr(error, "strerror", None) or str(error) or type(error).__name__)[:200]
