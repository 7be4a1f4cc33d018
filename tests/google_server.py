"""A bucket of Google Cloud Storage on loopback: a few lines that answer as Google's JSON API does.

TensorStore reads the address of the server once a process, so each test that needs it starts one of its own.
"""

import http.server
import json
import os
import threading
import urllib.parse

_OBJECTS = "/storage/v1/b/models/o"


class _Refused(Exception):
    """A status other than 200."""


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    objects: dict[str, tuple[bytes, int]]  # name -> content, generation
    lock = threading.Lock()

    def _answer(self):
        data = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = urllib.parse.urlsplit(self.path)
        asked = {name: values[0] for name, values in urllib.parse.parse_qs(parts.query).items()}
        headers: dict[str, str] = {}
        try:
            with self.lock:
                status, body = 200, self._found(parts.path, asked, data, headers)
        except _Refused as refused:
            status, body = refused.args[0], b'{"error": {"message": "refused"}}'
        if status == 200 and "Range" in self.headers:
            first, last = self.headers["Range"].removeprefix("bytes=").split("-")
            size, body = len(body), body[int(first) : int(last) + 1]
            status = 206 if body else 416
            headers["Content-Range"] = f"bytes {first}-{int(first) + len(body) - 1}/{size}"
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_POST = do_DELETE = _answer

    def _found(self, path, asked, data, headers):
        if path == _OBJECTS:
            first, end = asked.get("startOffset", ""), asked.get("endOffset", "\U0010ffff")
            names = sorted(name for name in self.objects if first <= name < end)
            return json.dumps({"items": [{"name": name, "generation": "1"} for name in names]}).encode()
        if path == "/upload" + _OBJECTS:
            self._check(asked["name"], asked)
            generation = self.objects.get(asked["name"], (b"", 0))[1] + 1
            self.objects[asked["name"]] = data, generation
            return json.dumps({"name": asked["name"], "generation": str(generation)}).encode()
        name = urllib.parse.unquote(path.removeprefix(_OBJECTS + "/"))
        if name not in self.objects:
            raise _Refused(404)
        if self.command == "DELETE":
            self._check(name, asked)
            del self.objects[name]
            return b""
        content, generation = self.objects[name]
        headers["x-goog-generation"] = str(generation)
        return content

    def _check(self, name, asked):
        if int(asked.get("ifGenerationMatch", -1)) not in (-1, self.objects.get(name, (b"", 0))[1]):
            raise _Refused(412)

    def log_message(self, *args):
        pass


def start(**objects: bytes) -> dict[str, tuple[bytes, int]]:
    """Starts a server with a bucket, gs://models, to which the environment leads; returns what is in it."""
    _Handler.objects = {name: (content, 1) for name, content in objects.items()}
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    os.environ["TENSORSTORE_GCS_HTTP_URL"] = f"http://127.0.0.1:{server.server_port}"
    os.environ["GOOGLE_AUTH_TOKEN_FOR_TESTING"] = "token"
    return _Handler.objects
