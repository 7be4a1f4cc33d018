"""Byte ranges over HTTP: redirects, retries of what may pass, one clear line for what will not.

Tensorstore's http driver follows no redirect, has no deadline, and hands out bytes that would have to be copied once
more; a hub sends every file elsewhere, under an address that is signed for an hour. Hence this client: blocking, one
kept connection a thread and server, what it receives goes straight into the caller's buffers.
"""

import base64
import contextlib
import http.client
import random
import re
import socket
import ssl
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from polarax.loaders.stores.addresses import redact
from polarax.loaders.stores.files import StoreError, unfilled


class Patience(NamedTuple):
    """How long a server is waited for."""

    tries: int = 5  # in a row that bring less than `progress` bytes
    progress: int = 1 << 20
    first_pause: float = 0.2  # seconds, doubled from try to try
    longest_pause: float = 5.0
    idle: float = 30.0  # seconds without a byte, before a connection is given up
    slowest: float = 128 * 1024  # bytes per second; below, it is given up as well


PATIENCE = Patience()

_MOST_REDIRECTS = 10
_SHORT = 64 * 1024  # bytes of what a server adds to a redirect
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_MAY_PASS = frozenset({408, 425, 429, 500, 502, 503, 504})
_CONTENT_RANGE = re.compile(r"bytes (?:(\d+)-(\d+)|\*)/(\d+|\*)")
_MOST_BYTES = 32 << 20  # asked for by one request: what is lost when a connection is


class MayPass(Exception):
    """A failure that is worth another try."""

    def __init__(self, message: str, wait: float = 0.0):
        """Args: what happened; seconds to wait that the server asks for."""
        super().__init__(redact(message))
        self.wait = wait


class Answer(NamedTuple):
    """An answer whose body has not been read."""

    status: int
    headers: http.client.HTTPMessage
    url: str  # where it came from, after redirects
    body: http.client.HTTPResponse


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
        self._local = threading.local()

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
        parts = urllib.parse.urlsplit(url)
        headers = headers | self._authorization(url, parts)
        connections = self._local.__dict__.setdefault("connections", {})
        key = (parts.scheme, parts.netloc.rpartition("@")[2])
        limit = PATIENCE.idle + expected / PATIENCE.slowest
        connection, target, watch = None, "", None
        finished = False
        try:
            kept = connections.pop(key, None)
            if kept is not None:
                connection, target = kept
            while True:
                if connection is None:
                    connection, target = _connection(parts, PATIENCE.idle)
                watch = _Watch(connection, limit)
                try:
                    if connection.sock is None:
                        _connect(connection)
                    path = urllib.parse.urlunsplit(("", "", parts.path or "/", parts.query, ""))
                    connection.request("GET", target + path, headers=headers)
                    response = connection.getresponse()
                    break
                except (http.client.RemoteDisconnected, ConnectionError, BrokenPipeError):
                    if kept is None or watch.rang:
                        raise
                    # A kept connection that the server had closed meanwhile: not its fault, ask anew.
                    watch.stop()
                    connection.close()
                    connection, kept = None, None
            yield Answer(response.status, response.headers, url, response)
            finished = response.isclosed() and not response.will_close
        except MayPass as error:
            if watch is not None and watch.rang:
                raise MayPass(_too_slow()) from error
            raise
        except socket.gaierror as error:
            if error.errno == socket.EAI_NONAME:
                raise StoreError(f"there is no host {parts.hostname!r}") from error
            raise MayPass(f"the host {parts.hostname!r} is not found: {error.strerror}") from error
        except TimeoutError as error:
            raise MayPass(f"the server sent nothing for {PATIENCE.idle:.3g} s") from error
        except (OSError, http.client.HTTPException) as error:
            slow = watch is not None and watch.rang
            raise MayPass(_too_slow() if slow else f"the connection failed: {_brief(error)}") from error
        finally:
            if watch is not None:
                watch.stop()
            if finished:
                connections[key] = (connection, target)
            elif connection is not None:
                connection.close()

    def _authorization(self, url: str, parts: urllib.parse.SplitResult) -> dict[str, str]:
        if parts.username is not None:
            login = f"{urllib.parse.unquote(parts.username)}:{urllib.parse.unquote(parts.password or '')}"
            return {"Authorization": "Basic " + base64.b64encode(login.encode()).decode()}
        token = self._token_for(url)
        return {"Authorization": f"Bearer {token}"} if token else {}


class _Watch:
    """Cuts a connection that takes longer than it may: a socket's own time limit begins anew with every byte."""

    def __init__(self, connection: http.client.HTTPConnection, seconds: float):
        self.rang = False
        self._connection = connection
        self._timer = threading.Timer(seconds, self._ring)
        self._timer.daemon = True
        self._timer.start()

    def stop(self) -> None:
        self._timer.cancel()

    def _ring(self) -> None:
        self.rang = True
        with contextlib.suppress(OSError, TypeError):  # closed meanwhile
            # Not SSLSocket's own method: it takes the encryption off, and a reader would take what is still to come,
            # encrypted, for the file.
            socket.socket.shutdown(self._connection.sock, socket.SHUT_RDWR)


def _connection(parts: urllib.parse.SplitResult, timeout: float) -> tuple[http.client.HTTPConnection, str]:
    """How to connect to a server, by the proxy of the environment if there is one, and what goes before a path."""
    host = parts.hostname
    try:
        port = parts.port
    except ValueError as error:
        raise StoreError(str(error)) from error
    if not host:
        raise StoreError("the address names no host")
    proxy = urllib.request.getproxies().get(parts.scheme)
    secure = parts.scheme == "https"
    kind = http.client.HTTPSConnection if secure else http.client.HTTPConnection
    if not proxy or urllib.request.proxy_bypass(host):
        return kind(host, port, timeout=timeout), ""
    by = urllib.parse.urlsplit(proxy if "://" in proxy else f"http://{proxy}")
    if secure:
        connection = kind(by.hostname or "", by.port, timeout=timeout)
        connection.set_tunnel(host, port)
        return connection, ""
    return kind(by.hostname or "", by.port, timeout=timeout), f"http://{parts.netloc.rpartition('@')[2]}"


def _connect(connection: http.client.HTTPConnection) -> None:
    """Connects; servers that cannot be trusted, or speak no TLS that is understood, will not do so later either."""
    try:
        connection.connect()
    except ssl.SSLCertVerificationError as error:
        raise StoreError(f"the server's certificate is not trusted: {error.verify_message}") from error
    except (ssl.SSLEOFError, ssl.SSLZeroReturnError, ssl.SSLSyscallError):  # the connection was dropped
        raise
    except ssl.SSLError as error:
        raise StoreError(f"no secure connection with the server: {error.reason or error}") from error


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
        progress: Told the count of bytes that came, each time some did.

    Raises:
        MayPass: If the body ends before.
        StoreError: If it goes on.
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
"""Fills buffers, tells the count of bytes that came as they come; False: there is no such file."""


def persist(action: Action, buffers: Sequence[memoryview]) -> bool:
    """Fills buffers by an action that may have to be repeated; each time it gets what is left to fill.

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


def _retry_after(headers: http.client.HTTPMessage) -> float:
    text = headers.get("Retry-After", "")
    return float(text) if text.isdecimal() and len(text) < 6 else 0.0


def _too_slow() -> str:
    return f"the server is slower than {PATIENCE.slowest / 1024:.3g} KiB/s"


def _brief(error: Exception) -> str:
    return redact(getattr(error, "strerror", None) or str(error) or type(error).__name__)[:200]
