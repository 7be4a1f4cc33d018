"""s3:// against moto's server, gs:// against a few lines that answer as Google's JSON API does, both on loopback."""

import json
import os
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import safetensors.numpy

from polarax.loaders import CheckpointError, Wanted, open_checkpoint, write_checkpoint
from polarax.loaders.stores import bucket, http_client

WEIGHTS = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.eye(200)}  # larger than what is asked for first


@pytest.fixture
def put(s3):
    """Puts an object."""
    return s3.put


def check(checkpoint):
    for name, array in WEIGHTS.items():
        np.testing.assert_array_equal(checkpoint.read(name).result(timeout=30), array)
    out = {name: np.zeros_like(array) for name, array in WEIGHTS.items()}
    for name, read in zip(out, checkpoint.read_many([Wanted(name, out=out[name]) for name in out]), strict=True):
        assert read.result(timeout=30) is out[name]
        np.testing.assert_array_equal(out[name], WEIGHTS[name])


@pytest.fixture
def stored(put):
    put("some/model/model.safetensors", safetensors.numpy.save(WEIGHTS))
    put("some/model/config.json", b"{}")
    return "s3://models/some/model"


def test_a_folder_and_a_file(stored):
    check(open_checkpoint(stored))
    check(open_checkpoint(stored + "/"))
    check(open_checkpoint(stored + "/model.safetensors"))


def test_shards_without_an_index_are_found_by_listing(put):
    for name, array in WEIGHTS.items():
        put(f"shards/{name} 1.safetensors", safetensors.numpy.save({name: array}))
    put("shards/below/c.safetensors", safetensors.numpy.save({"c": np.zeros(1)}))
    checkpoint = open_checkpoint("s3://models/shards")
    assert checkpoint.names() == ("a", "b")
    check(checkpoint)


def test_an_index(put):
    index = {"weight_map": {name: f"{name}.safetensors" for name in WEIGHTS}}
    put("indexed/model.safetensors.index.json", json.dumps(index).encode())
    for name, array in WEIGHTS.items():
        put(f"indexed/{name}.safetensors", safetensors.numpy.save({name: array}))
    check(open_checkpoint("s3://models/indexed"))


def test_a_copy_on_disk(stored, tmp_path):
    out = write_checkpoint(open_checkpoint(stored), tmp_path / "out", {"a": WEIGHTS["a"]})
    check(open_checkpoint(out))
    assert sorted(os.listdir(out)) == ["config.json", "model.safetensors"]


def refused(source, problem):
    with pytest.raises(CheckpointError, match=problem) as caught:
        open_checkpoint(source).read("a").result()
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600


def test_what_is_not_there(put):
    refused("s3://models/nothing/here", "no checkpoint there; looked for")
    refused("s3://models/nothing/m.safetensors", r"m\.safetensors: no such file")
    refused("s3://no-such-bucket/m", "no such bucket")


@pytest.mark.parametrize("keep", [0, 5, 100, -1])
def test_a_truncated_object(put, keep):
    put("cut/m.safetensors", safetensors.numpy.save(WEIGHTS)[:keep])
    refused("s3://models/cut/m.safetensors", r"m\.safetensors: .*(truncated|is empty|only 5 bytes)")


def test_an_object_that_changes_between_reads(stored, put):
    checkpoint = open_checkpoint(stored)
    put("some/model/model.safetensors", safetensors.numpy.save({name: -array for name, array in WEIGHTS.items()}))
    with pytest.raises(CheckpointError, match=r"model\.safetensors: tensor 'a': cannot be read: it changed"):
        checkpoint.read("a").result()


def test_an_endpoint_for_s3_alone_goes_first(stored, s3, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", s3.endpoint + "/")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-west-1")
    check(open_checkpoint(stored))


def test_public_objects_need_no_credentials(stored, monkeypatch):
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/nonexistent")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent")
    refused(stored, "no permission")  # moto's objects are private by default


def test_a_server_that_never_answers_is_given_up(put, monkeypatch):
    import socket

    monkeypatch.setattr(bucket, "PATIENCE", http_client.Patience(tries=1, idle=0.5, slowest=1e9))
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{silent.getsockname()[1]}")
        refused("s3://models/m.safetensors", r"m\.safetensors: cannot be read: no answer within 0.5")


# Tensorstore reads the address of Google's server once a process.
_GOOGLE = """
    import http.server, json, os, sys, threading, urllib.parse
    import numpy as np

    objects = {"dir/m one.safetensors": open(sys.argv[1], "rb").read(), "dir/x/y": b""}

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self):
            parts = urllib.parse.urlsplit(self.path)
            query = urllib.parse.parse_qs(parts.query)
            prefix = "/storage/v1/b/models/o"
            status, extra = 200, {}
            if parts.path == prefix:
                found = [name for name in objects if name.startswith(query.get("prefix", [""])[0])]
                body = json.dumps({"items": [{"name": name, "generation": "1"} for name in found]}).encode()
            else:
                body = objects.get(urllib.parse.unquote(parts.path.removeprefix(prefix + "/")))
                if body is None:
                    status, body = 404, b""
                elif "Range" in self.headers:
                    first, last = self.headers["Range"].removeprefix("bytes=").split("-")
                    size, body = len(body), body[int(first) : int(last) + 1]
                    status = 206 if body else 416
                    extra["Content-Range"] = f"bytes {first}-{int(first) + len(body) - 1}/{size}"
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("x-goog-generation", "1")
            for name, value in extra.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    os.environ["TENSORSTORE_GCS_HTTP_URL"] = f"http://127.0.0.1:{server.server_port}"
    os.environ["GOOGLE_AUTH_TOKEN_FOR_TESTING"] = "token"
    from polarax.loaders import CheckpointError, open_checkpoint

    checkpoint = open_checkpoint("gs://models/dir")
    assert set(checkpoint.names()) == {"a", "b"}, checkpoint.names()
    assert checkpoint.read("a").result().tolist() == [[0, 1, 2], [3, 4, 5]]
    assert checkpoint.read("b").result().trace() == 200
    assert open_checkpoint("gs://models/dir/m%20one.safetensors").names() == checkpoint.names()
    try:
        open_checkpoint("gs://models/none/m.safetensors")
    except CheckpointError as error:
        assert "no such file" in str(error), error
    print("read")
"""


def test_a_bucket_of_google(tmp_path):
    safetensors.numpy.save_file(WEIGHTS, tmp_path / "m.safetensors")
    command = [sys.executable, "-c", textwrap.dedent(_GOOGLE), str(tmp_path / "m.safetensors")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (0, "read\n"), done.stderr
