"""A web server on loopback that serves byte ranges, and does wrong what it is told to."""

import contextlib
import functools
import http.server
import pathlib
import select
import ssl
import threading
import time
from collections.abc import Iterator
from typing import Any, NamedTuple


class Request(NamedTuple):
    """One request that the web server got."""

    path: str
    range: str | None  # "bytes=8-15"
    token: str | None = None  # the Authorization header


class WebServer(NamedTuple):
    """A web server on loopback."""

    url: str  # ends in a slash
    root: pathlib.Path  # the folder that it serves
    requests: list[Request]
    faults: dict[str, list[str]]  # what goes wrong with the next requests for a path; see `_Handler`
    redirects: dict[str, str]  # path to address


class _Handler(http.server.SimpleHTTPRequestHandler):
    """Serves files by byte range, as buckets do; what Python brings along knows no ranges.

    Faults, one a request: a status; "drop" (half of the body, then the end), "hang" (nothing comes), "trickle"
    (a byte now and then), "whole" (no ranges), "long" (more than was asked for), "shifted" (other bytes),
    "length" (a wrong Content-Length), "gzip" (what nobody asked for), "none" (this one goes well).
    """

    protocol_version = "HTTP/1.1"

    def __init__(self, *args: Any, log: list[Request], faults: dict, redirects: dict, **kwargs: Any):
        self.log, self.faults, self.redirects = log, faults, redirects
        super().__init__(*args, **kwargs)

    def handle(self) -> None:
        with contextlib.suppress(ConnectionError, ssl.SSLError):  # the client gave up
            super().handle()

    def do_GET(self) -> None:
        wanted = self.headers.get("Range")
        self.log.append(Request(self.path, wanted, self.headers.get("Authorization")))
        coming = self.faults.get(self.path)
        fault = coming.pop(0) if coming else "none"
        if fault.isdecimal():
            self._answer(int(fault), b"what went wrong\n" * 1000)
            return
        if self.path in self.redirects:
            self._answer(302, b"elsewhere", Location=self.redirects[self.path])
            return
        if self.path.startswith("/secret/"):
            self._answer(403, b"who are you?\n" * 1000)
            return
        file = pathlib.Path(self.translate_path(self.path))
        if not file.is_file():
            self._answer(404, b"")
            return
        data = file.read_bytes()
        if wanted is None or fault == "whole":
            self._answer(200, data)
            return
        first, last = wanted.removeprefix("bytes=").split("-")
        part = data[int(first) : int(last) + 1 if last else None]
        if not part:
            self._answer(416, b"")
            return
        start = int(first) + (fault == "shifted")
        span = f"bytes {start}-{start + len(part) - 1}/{len(data)}"
        tag = f'"{file.stat().st_mtime_ns}"'
        if fault in ("drop", "hang", "trickle"):
            self._answer_badly(part, fault, Content_Range=span)
        elif fault == "long":
            self._answer(206, part + b"more", Content_Range=span, Transfer_Encoding="chunked")
        elif fault == "length":
            self._answer(206, part[:-1], Content_Range=span)
        elif fault == "gzip":
            self._answer(206, part, Content_Range=span, Content_Encoding="gzip")
        else:
            self._answer(206, part, Content_Range=span, ETag=tag)

    def _answer_badly(self, body: bytes, fault: str, **headers: str) -> None:
        self.send_response(206)
        self.send_header("Content-Length", str(len(body)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.close_connection = True
        if fault == "drop":
            self.wfile.write(body[: len(body) // 2])
        for position in range(100 if fault != "drop" else 0):  # ten seconds at most
            if fault == "trickle":
                self.wfile.write(body[position : position + 1])
            time.sleep(0.1)
            if select.select([self.connection], [], [], 0)[0]:  # the client has left
                break

    def _answer(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status)
        if "Transfer_Encoding" in headers:
            body = b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)
        else:
            self.send_header("Content-Length", str(len(body)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: Any) -> None:
        pass


@contextlib.contextmanager
def serve(root: pathlib.Path, tls: ssl.SSLContext | None = None) -> Iterator[WebServer]:
    """Serves a folder on loopback, over https if there is a certificate to show."""
    log: list[Request] = []
    faults: dict[str, list[str]] = {}
    redirects: dict[str, str] = {}
    handler = functools.partial(_Handler, directory=str(root), log=log, faults=faults, redirects=redirects)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    scheme = "http"
    if tls is not None:
        # Not in accept, where a client that is silent would keep out all others: each thread shakes hands for itself.
        server.socket = tls.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
        scheme = "https"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield WebServer(f"{scheme}://127.0.0.1:{server.server_port}/", root, log, faults, redirects)
    server.shutdown()
    server.server_close()
    thread.join()
