"""What a web server may do wrong, and what it may do that is right."""

import collections
import contextlib
import json
import socket
import threading
import time
import traceback

import numpy as np
import pytest

from polarax.loaders import CheckpointError, Wanted, open_checkpoint, pair_checkpoints
from polarax.loaders.stores import http_client

WEIGHTS = {f"w{i}": np.full((64, 64), i, np.float32) for i in range(8)}


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    """The same waits as for users, but short: 0.3 s of silence, 0.5 s more for all of `WEIGHTS`."""
    patience = http_client.Patience(
        tries=3, progress=1 << 20, first_pause=0.01, longest_pause=0.05, idle=0.3, slowest=1 << 18
    )
    monkeypatch.setattr(http_client, "PATIENCE", patience)


@pytest.fixture
def url(web, save):
    save(web.root / "m.safetensors", WEIGHTS)
    return web.url + "m.safetensors"


def check(checkpoint):
    for name, read in zip(WEIGHTS, checkpoint.read_many([Wanted(name) for name in WEIGHTS]), strict=True):
        np.testing.assert_array_equal(read.result(timeout=20), WEIGHTS[name])


def failing(url, problem):
    """What opening, or else reading, says."""
    begin = time.monotonic()
    with pytest.raises(CheckpointError, match=problem) as caught:
        check(open_checkpoint(url))
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400
    assert "m.safetensors" in str(caught.value)
    assert time.monotonic() - begin < 10


@pytest.mark.parametrize("fault", ["500", "502", "503", "504", "429", "408", "drop", "hang", "trickle"])
@pytest.mark.parametrize("before", [0, 1])
def test_what_may_pass_is_tried_again(web, url, fault, before):
    web.faults["/m.safetensors"] = ["none"] * before + [fault, fault]
    check(open_checkpoint(url))
    assert not web.faults["/m.safetensors"]


@pytest.mark.parametrize("before", [0, 1])
@pytest.mark.parametrize(
    ("fault", "problem"),
    [
        ("503", "the server answers HTTP 503 .tried 3 times"),
        ("drop", r"the connection was dropped after \d+ of \d+ bytes .tried 3 times"),
        ("hang", "the server sent nothing for 0.3 s .tried 3 times"),
        ("trickle", "the server is slower than 256 KiB/s .tried 3 times"),
    ],
)
def test_what_does_not_pass_is_given_up(web, url, fault, problem, before):
    web.faults["/m.safetensors"] = ["none"] * before + [fault] * 50
    failing(url, problem)
    assert len(web.requests) == before + 3


@pytest.mark.parametrize("before", [0, 1])
@pytest.mark.parametrize(
    ("fault", "problem"),
    [
        ("400", "HTTP 400"),
        ("401", "wants to know who asks .HTTP 401.*HF_TOKEN"),
        ("403", "no permission .HTTP 403"),
        ("404", "no such file|the file is gone"),
        ("whole", "does not serve parts of files"),
        ("shifted", r"sends bytes \d+-\d+ where \d+-\d+ were asked for"),
        ("length", r"sends \d+ bytes where \d+ were announced"),
        ("long", "sends more than the"),
        ("gzip", "sends the file as 'gzip'"),
    ],
)
def test_what_will_not_pass_is_an_error_at_once(web, url, fault, problem, before):
    web.faults["/m.safetensors"] = ["none"] * before + [fault] * 50
    failing(url, problem)
    assert len(web.requests) == before + 1


def test_a_download_goes_on_where_it_stopped(web, url):
    checkpoint = open_checkpoint(url)
    web.faults["/m.safetensors"] = ["drop", "drop"]
    web.requests.clear()
    check(checkpoint)
    starts = [int(request.range.removeprefix("bytes=").split("-")[0]) for request in web.requests]
    assert starts == sorted(set(starts))
    assert len(starts) == 3
    assert starts[1] - starts[0] == sum(array.nbytes for array in WEIGHTS.values()) // 2


def test_a_server_that_keeps_dropping_but_brings_something_each_time(web, url, monkeypatch):
    monkeypatch.setattr(http_client, "PATIENCE", http_client.PATIENCE._replace(progress=100))
    checkpoint = open_checkpoint(url)
    web.faults["/m.safetensors"] = ["drop"] * 8
    check(checkpoint)


def test_neighbours_are_one_request_and_connections_are_kept(web, url):
    checkpoint = open_checkpoint(url)
    web.requests.clear()
    check(checkpoint)
    assert len(web.requests) == 1


def test_a_file_that_changes_between_requests(web, url, save):
    checkpoint = open_checkpoint(url)
    assert checkpoint.read("w1").result()[0, 0] == 1
    save(web.root / "m.safetensors", {name: -array for name, array in WEIGHTS.items()})
    with pytest.raises(CheckpointError, match=r"m\.safetensors: tensor 'w1': cannot be read: it changed"):
        checkpoint.read("w1").result()


def test_redirects_are_followed_once_and_remembered(web, url):
    web.redirects["/a/m.safetensors"] = "../b/m.safetensors"
    web.redirects["/b/m.safetensors"] = url + "?signed=1"
    check(open_checkpoint(web.url + "a/m.safetensors"))
    assert [request.path for request in web.requests] == [
        "/a/m.safetensors",
        "/b/m.safetensors",
        "/m.safetensors?signed=1",
        "/m.safetensors?signed=1",
    ]


def test_an_address_whose_signature_is_over_is_asked_for_again(web, url):
    web.redirects["/a/m.safetensors"] = url + "?signed=1"
    checkpoint = open_checkpoint(web.url + "a/m.safetensors")
    web.redirects["/a/m.safetensors"] = url + "?signed=2"
    web.faults["/m.safetensors?signed=1"] = ["403"] * 50
    check(checkpoint)
    assert [request.path for request in web.requests[-3:]] == [
        "/m.safetensors?signed=1",
        "/a/m.safetensors",
        "/m.safetensors?signed=2",
    ]
    web.faults["/m.safetensors?signed=2"] = ["403"] * 50
    with pytest.raises(CheckpointError, match="no permission"):
        checkpoint.read("w0").result()


def test_redirects_in_circles_and_elsewhere(web):
    web.redirects["/m.safetensors"] = "/m.safetensors"
    failing(web.url + "m.safetensors", "redirects more than 10 times")
    web.redirects["/m.safetensors"] = "file:///etc/passwd"
    failing(web.url + "m.safetensors", "an address that is not http or https")


def test_a_token_is_shown_to_the_hub_alone(web, url, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "secret")
    open_checkpoint(url)
    assert {request.token for request in web.requests} == {None}
    monkeypatch.setenv("HF_ENDPOINT", web.url.rstrip("/"))
    web.requests.clear()
    web.redirects["/a/m.safetensors"] = url.replace("127.0.0.1", "localhost")
    open_checkpoint(web.url + "a/m.safetensors")
    assert [request.token for request in web.requests] == ["Bearer secret", None]


def test_a_login_in_the_address(web, url):
    open_checkpoint(url.replace("//", "//me:pass%20word@"))
    assert web.requests[0].token == "Basic bWU6cGFzcyB3b3Jk"


def test_a_proxy_of_the_environment_is_asked(web, monkeypatch):
    for variable in ("no_proxy", "NO_PROXY", "HTTP_PROXY"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("http_proxy", web.url)
    address = "http://models.invalid/m.safetensors"
    web.faults[address] = ["403"]
    failing(address, "no permission")
    assert [request.path for request in web.requests] == [address]


class Proxy:
    """A proxy on loopback that takes one login, passes nothing on, and answers what it is told to."""

    def __init__(self, answer=b"HTTP/1.1 403 no\r\nContent-Length: 0\r\n\r\n"):
        self.heads = []
        self._answer = answer
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port = self._server.getsockname()[1]
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self):
        with contextlib.suppress(OSError):  # closed
            while True:
                with self._server.accept()[0] as connection:
                    self.heads.append(connection.recv(10_000).decode())
                    connection.sendall(self._answer)

    def close(self):
        self._server.close()


@pytest.fixture
def proxy(monkeypatch):
    for variable in ("no_proxy", "NO_PROXY", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.delenv(variable, raising=False)
    server = Proxy()
    yield server
    server.close()


class TestLoginOfAProxy:
    """What curl sends for http://me:pass%20word@proxy, and RFC 7617."""

    @pytest.mark.parametrize("scheme", ["http", "https"])
    def test_it_is_sent_to_the_proxy(self, proxy, monkeypatch, scheme):
        monkeypatch.setenv(f"{scheme}_proxy", f"http://me:pass%20word@127.0.0.1:{proxy.port}")
        with pytest.raises(
            CheckpointError, match="no permission|connection failed: Tunnel connection failed: 403"
        ) as e:
            open_checkpoint(f"{scheme}://models.invalid/m.safetensors")
        asked = {
            "http": "GET http://models.invalid/m.safetensors HTTP/1.1",
            "https": "CONNECT models.invalid:443 HTTP/1.",
        }
        for head in proxy.heads:
            assert head.startswith(asked[scheme])
            assert "proxy-authorization: basic bwu6cgfzcyb3b3jk\r\n" in head.lower()
            assert "\r\nauthorization:" not in head.lower()
        assert proxy.heads
        shown = "".join(traceback.format_exception(e.value))
        assert "pass" not in shown.replace("may pass", "").replace("MayPass", "").replace("bypass", "")
        assert "bWU6" not in shown

    def test_it_is_not_sent_to_the_server(self, web, url, monkeypatch, proxy):
        monkeypatch.setenv("http_proxy", f"http://me:secret@127.0.0.1:{proxy.port}")
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        check(open_checkpoint(url))
        assert not proxy.heads
        assert {request.token for request in web.requests} == {None}

    def test_nor_is_the_login_of_the_server_sent_to_the_proxy_as_its_own(self, proxy, monkeypatch):
        monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{proxy.port}")
        failing("http://me:secret@models.invalid/m.safetensors", "no permission")
        assert "\r\nproxy-authorization:" not in proxy.heads[0].lower()
        assert "me:secret" not in proxy.heads[0]

    def test_a_proxy_of_a_kind_that_is_not_spoken(self, monkeypatch):
        for variable in ("no_proxy", "NO_PROXY", "HTTP_PROXY"):
            monkeypatch.delenv(variable, raising=False)
        monkeypatch.setenv("http_proxy", "socks5://me:secret@127.0.0.1:9")
        failing("http://models.invalid/m.safetensors", "a proxy of the kind 'socks5'; expected http or https")


@pytest.mark.parametrize("end", ["Connection: close\r\n", ""])
@pytest.mark.parametrize("protocol", ["1.0", "1.1"])
def test_a_slow_answer_is_cut_whatever_the_server_says_of_the_connection(end, protocol, monkeypatch):
    """A connection that is not to be kept is no longer the client's to close while the answer is read."""
    monkeypatch.setattr(http_client, "PATIENCE", http_client.PATIENCE._replace(tries=1, idle=1))
    stop = threading.Event()

    def answer(connection):
        with connection, contextlib.suppress(OSError):
            connection.recv(10_000)
            head = f"HTTP/{protocol} 206 Partial\r\nContent-Range: bytes 0-131071/9999999\r\nContent-Length: 131072\r\n"
            connection.sendall(f"{head}{end}\r\n".encode())
            while not stop.wait(0.05):
                connection.sendall(b"x")

    def serve():
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=answer, args=server.accept()[:1], daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=serve, daemon=True).start()
        failing(f"http://127.0.0.1:{server.getsockname()[1]}/m.safetensors", "slower than 256 KiB/s .tried 1 times")
        stop.set()


def test_nobody_listens():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        failing(f"http://127.0.0.1:{taken.getsockname()[1]}/m.safetensors", "connection failed: Connection refused")


def test_a_server_that_never_answers():
    with socket.create_server(("127.0.0.1", 0)) as server:
        failing(f"http://127.0.0.1:{server.getsockname()[1]}/m.safetensors", "sent nothing for 0.3 s")


def test_a_server_that_speaks_something_else():
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(10)

        def answer():
            for _ in range(3):
                with server.accept()[0] as connection:
                    connection.recv(1000)
                    connection.sendall(b"220 ftp.example.com ready\r\n" * 3)

        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        failing(f"http://127.0.0.1:{server.getsockname()[1]}/m.safetensors", "connection failed: 220 ftp")
        thread.join()


def test_a_large_header_takes_a_second_request(web, save):
    arrays = {f"a-long-name-for-a-small-tensor-{i:05}": np.zeros(1, np.int8) for i in range(2000)}
    save(web.root / "m.safetensors", arrays)
    assert len(open_checkpoint(web.url + "m.safetensors").names()) == 2000
    assert [request.range.split("-")[0] for request in web.requests] == ["bytes=0", "bytes=131072"]


def test_shards_take_one_request_each_however_long_their_headers_are(web, save):
    shards = {
        "model-1.safetensors": {
            f"an-expert-with-a-long-name-number-{i:05}": np.zeros((1, 2), np.int8) for i in range(3000)
        },
        "model-2.safetensors": {f"w{i}": np.zeros((2, 2), np.float32) for i in range(5)},
        "model-3.safetensors": {"large": np.zeros((300, 300), np.float32)},
    }
    for file, arrays in shards.items():
        save(web.root / file, arrays)
    assert int.from_bytes((web.root / "model-1.safetensors").read_bytes()[:8], "little") > 128 * 1024
    index = {"weight_map": {name: file for file, arrays in shards.items() for name in arrays}}
    (web.root / "model.safetensors.index.json").write_text(json.dumps(index))
    checkpoint = open_checkpoint(web.url)
    assert len(checkpoint.names()) == 3006
    pairs, _ = pair_checkpoints(checkpoint, checkpoint)  # what a plan asks besides
    assert len(pairs) == 6
    requests = collections.Counter(request.path for request in web.requests)
    files = ("model.safetensors", "model.safetensors.index.json", "config.json", *shards)
    assert requests == {f"/{file}": 1 for file in files}


def test_an_index_that_knows_too_little_costs_a_second_request(web, save):
    arrays = {f"a-long-name-for-a-small-tensor-{i:05}": np.zeros(1, np.int8) for i in range(2000)}
    save(web.root / "m.safetensors", arrays)
    (web.root / "m.safetensors.index.json").write_text(
        json.dumps({"weight_map": {next(iter(arrays)): "m.safetensors"}})
    )
    assert len(open_checkpoint(web.url + "m.safetensors.index.json").names()) == 2000
    assert [request.path for request in web.requests][1:] == ["/m.safetensors"] * 2
