"""Connections to web servers by urllib3: kept ones, TLS, the proxies of the environment. Each can be cut from outside.

urllib3 has no limit for a whole answer: its limits start again with every byte. So each connection hands its socket to
the `Line` of the thread that uses it, as soon as it has one, before a proxy is asked.
"""

import contextlib
import os
import socket
import threading
import urllib.parse
import urllib.request
from typing import Any

import urllib3
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.exceptions import HTTPError, LocationValueError, NewConnectionError
from urllib3.exceptions import TimeoutError as WaitError
from urllib3.util import make_headers

from polarax.loaders.stores.files import StoreError

_KEPT = 16  # connections to one server: as many as there are threads that read (`WebFiles.threads`)
_SCHEMES = ("http", "https")  # that a proxy is spoken to by

__all__ = ["Connections", "HTTPError", "Line", "causes_of", "is_timeout"]

_used = threading.local()  # the line of the thread


class Line:
    """The socket that a thread's request uses, whatever is built on it; it can be cut by any other thread."""

    def __init__(self) -> None:
        self._socket: socket.socket | None = None
        self._lock = threading.Lock()

    def __enter__(self) -> "Line":
        _used.line = self
        return self

    def __exit__(self, *error: Any) -> None:
        _used.line = None
        self._replace(None)

    def hold(self, used: socket.socket) -> None:
        """Duplicates the handle of a socket: this one stays valid when the socket is closed or wrapped for TLS."""
        self._replace(socket.socket(fileno=os.dup(used.fileno())))

    def cut(self) -> None:
        """Ends the connection: a read that waits for its bytes finds it closed."""
        with self._lock, contextlib.suppress(OSError):  # closed meanwhile
            if self._socket is not None:
                self._socket.shutdown(socket.SHUT_RDWR)

    def _replace(self, new: socket.socket | None) -> None:
        with self._lock:
            old, self._socket = self._socket, new
        if old is not None:
            old.close()


def _hold(used: socket.socket | None) -> None:
    line = getattr(_used, "line", None)
    if line is not None and used is not None:
        line.hold(used)


class _Connection(HTTPConnection):
    def _new_conn(self) -> socket.socket:
        made = super()._new_conn()
        _hold(made)
        return made

    def request(self, *args: Any, **options: Any) -> None:
        _hold(self.sock)  # of a kept connection
        super().request(*args, **options)


class _SecureConnection(HTTPSConnection):
    def _new_conn(self) -> socket.socket:
        made = super()._new_conn()
        _hold(made)
        return made

    def request(self, *args: Any, **options: Any) -> None:
        _hold(self.sock)
        super().request(*args, **options)


class _Pool(urllib3.HTTPConnectionPool):
    ConnectionCls = _Connection


class _SecurePool(urllib3.HTTPSConnectionPool):
    ConnectionCls = _SecureConnection


class Connections:
    """Connections to any number of servers, kept for the next request; safe to use from many threads."""

    def __init__(self) -> None:
        self._managers: dict[str, urllib3.PoolManager] = {}  # by the proxy, with its login; "" for none
        self._lock = threading.Lock()

    def get(self, url: str, headers: dict[str, str], idle: float) -> urllib3.HTTPResponse:
        """Sends a GET request and waits for the head of the answer; follows no redirect and repeats nothing.

        Args:
            url: Without a login.
            headers: What is sent along.
            idle: Seconds of silence after which a connection is given up.

        Raises:
            StoreError: If the address cannot be one.
            HTTPError, OSError: If there is no answer.
        """
        try:
            response = self._manager(urllib.parse.urlsplit(url)).urlopen(
                "GET",
                url,
                headers=headers,
                timeout=urllib3.Timeout(connect=idle, read=idle),
                redirect=False,
                retries=False,
                preload_content=False,
                decode_content=False,
                enforce_content_length=False,  # whoever reads knows how much was to come
            )
            assert isinstance(response, urllib3.HTTPResponse)  # there are others in browsers
            return response
        except LocationValueError as error:
            raise StoreError(f"the address cannot be understood: {error}") from error

    def _manager(self, parts: urllib.parse.SplitResult) -> urllib3.PoolManager:
        """The connections by which a server is reached: straight, or by the proxy that the environment names."""
        try:
            parts.port  # noqa: B018
        except ValueError as error:
            raise StoreError(str(error)) from error
        if not parts.hostname:
            raise StoreError("the address names no host")
        proxy = urllib.request.getproxies().get(parts.scheme) or ""
        if proxy and urllib.request.proxy_bypass(parts.hostname):
            proxy = ""
        with self._lock:
            if proxy not in self._managers:
                manager = _by_proxy(proxy) if proxy else urllib3.PoolManager(maxsize=_KEPT)
                manager.pool_classes_by_scheme = {"http": _Pool, "https": _SecurePool}
                self._managers[proxy] = manager
            return self._managers[proxy]


def _by_proxy(address: str) -> urllib3.ProxyManager:
    """Connections by a proxy, to which its login is shown: in a header, and never in a message."""
    parts = urllib.parse.urlsplit(address if "://" in address else f"http://{address}")
    if parts.scheme not in _SCHEMES or not parts.hostname:
        raise StoreError(f"the environment names a proxy of the kind {parts.scheme!r}; expected http or https")
    login = None
    if parts.username is not None:
        login = f"{urllib.parse.unquote(parts.username)}:{urllib.parse.unquote(parts.password or '')}"
    bare = urllib.parse.urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], "", "", ""))
    headers = make_headers(proxy_basic_auth=login) if login else {}
    return urllib3.ProxyManager(bare, maxsize=_KEPT, proxy_headers=headers)


def causes_of(error: Exception) -> list[Exception]:
    """An error, and what it was made of, the innermost last."""
    causes = [error]
    while True:
        inner = (causes[-1].__cause__, *causes[-1].args, getattr(causes[-1], "original_error", None))
        cause = next((error for error in inner if isinstance(error, Exception) and error not in causes), None)
        if cause is None:
            return causes
        causes.append(cause)


def is_timeout(error: Exception) -> bool:
    """Whether an error says that nothing came for too long."""
    return isinstance(error, (TimeoutError, WaitError)) and not isinstance(error, NewConnectionError)
