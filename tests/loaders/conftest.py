"""Files to read, written byte by byte or by the reference library, and a web server for them."""

import functools
import http.server
import json
import pathlib
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

SPELLINGS = {
    "float64": "F64",
    "float32": "F32",
    "float16": "F16",
    "bfloat16": "BF16",
    "float8_e4m3fn": "F8_E4M3",
    "float8_e5m2": "F8_E5M2",
    "int64": "I64",
    "int32": "I32",
    "int16": "I16",
    "int8": "I8",
    "uint64": "U64",
    "uint32": "U32",
    "uint16": "U16",
    "uint8": "U8",
    "bool": "BOOL",
}


@pytest.fixture(scope="session")
def dtypes() -> dict[str, np.dtype]:
    """Safetensors' spelling of every dtype that can be read, and the dtype itself."""
    return {
        spelling: np.dtype(getattr(np, name, None) or getattr(ml_dtypes, name)) for name, spelling in SPELLINGS.items()
    }


@pytest.fixture
def save() -> Callable[[pathlib.Path, Mapping[str, np.ndarray]], pathlib.Path]:
    """Writes arrays with the reference library."""

    def write(path: pathlib.Path, arrays: Mapping[str, np.ndarray]) -> pathlib.Path:
        safetensors.numpy.save_file(dict(arrays), path)
        return path

    return write


@pytest.fixture
def save_raw() -> Callable[..., pathlib.Path]:
    """Writes a header, true or false, and data."""

    def write(path: pathlib.Path, header: Any, data: bytes = b"", length: int | None = None):
        text = header if isinstance(header, bytes) else json.dumps(header).encode()
        size = len(text) if length is None else length
        path.write_bytes(size.to_bytes(8, "little") + text + data)
        return path

    return write


class Request(NamedTuple):
    """One request that the web server got."""

    path: str
    range: str | None  # "bytes=8-15"


class WebServer(NamedTuple):
    """A web server on loopback."""

    url: str  # ends in a slash
    root: pathlib.Path  # the folder that it serves
    requests: list[Request]


class _Handler(http.server.SimpleHTTPRequestHandler):
    """Serves files by byte range, as buckets do; what Python brings along knows no ranges."""

    protocol_version = "HTTP/1.1"

    def __init__(self, *args: Any, log: list[Request], **kwargs: Any):
        self.log = log
        super().__init__(*args, **kwargs)

    def do_GET(self) -> None:
        wanted = self.headers.get("Range")
        self.log.append(Request(self.path, wanted))
        if self.path.startswith("/moved/"):
            self._answer(302, b"", Location="/elsewhere")
            return
        if self.path.startswith("/secret/"):
            self._answer(403, b"who are you?\n" * 1000)
            return
        file = pathlib.Path(self.translate_path(self.path))
        if not file.is_file():
            self._answer(404, b"")
            return
        data = file.read_bytes()
        if wanted is None:
            self._answer(200, data)
            return
        first, last = wanted.removeprefix("bytes=").split("-")
        part = data[int(first) : int(last) + 1 if last else None]
        if not part:
            self._answer(416, b"")
            return
        span = f"bytes {first}-{int(first) + len(part) - 1}/{len(data)}"
        self._answer(206, part, Content_Range=span)

    def _answer(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture
def web(tmp_path: pathlib.Path) -> Iterator[WebServer]:
    """A web server on loopback that serves an empty folder."""
    root = tmp_path / "web"
    root.mkdir()
    log: list[Request] = []
    handler = functools.partial(_Handler, directory=str(root), log=log)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield WebServer(f"http://127.0.0.1:{server.server_port}/", root, log)
    server.shutdown()
    server.server_close()
    thread.join()
