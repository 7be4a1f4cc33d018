"""Checkpoints over https: whom the client trusts, where it follows to, and connections that are cut."""

import contextlib
import datetime
import ipaddress
import pathlib
import socket
import ssl
import threading
from typing import NamedTuple

import numpy as np
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from polarax.loaders import CheckpointError, Wanted, open_checkpoint
from polarax.loaders.stores import http_client
from tests.web_server import serve

WEIGHTS = {f"w{i}": np.random.default_rng(i).normal(size=(64, 128)) for i in range(8)}
FILE = "m.safetensors"


class Identity(NamedTuple):
    """What a server shows, and the file that whoever trusts it has."""

    context: ssl.SSLContext
    certificate: pathlib.Path


@pytest.fixture(scope="session")
def identity(tmp_path_factory):
    """Makes self-signed certificates, by default one of this machine that holds today."""

    def make(name="127.0.0.1", days=(-1, 1)):
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "polarax test")])
        now = datetime.datetime.now(datetime.UTC)
        with contextlib.suppress(ValueError):
            name = ipaddress.ip_address(name)
        kind = x509.DNSName if isinstance(name, str) else x509.IPAddress
        identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
        usage = dict.fromkeys(
            ("content_commitment", "key_encipherment", "data_encipherment", "key_agreement", "crl_sign"), False
        )
        usage |= dict.fromkeys(("encipher_only", "decipher_only"), False)
        certificate = (
            x509.CertificateBuilder(subject, subject, key.public_key(), x509.random_serial_number())
            .not_valid_before(now + datetime.timedelta(days[0]))
            .not_valid_after(now + datetime.timedelta(days[1]))
            .add_extension(x509.SubjectAlternativeName([kind(name)]), critical=False)
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .add_extension(x509.KeyUsage(digital_signature=True, key_cert_sign=True, **usage), critical=True)
            .add_extension(identifier, critical=False)
            .sign(key, hashes.SHA256())
        )
        folder = tmp_path_factory.mktemp("identity")
        (folder / "certificate.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        (folder / "key.pem").write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(folder / "certificate.pem", folder / "key.pem")
        return Identity(context, folder / "certificate.pem")

    return make


@pytest.fixture(scope="session")
def this_machine(identity):
    return identity()


@pytest.fixture(autouse=True)
def surroundings(monkeypatch, tmp_path):
    """Nobody is trusted, no proxy is between, and waits are short."""
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "nobody.pem"))
    monkeypatch.setenv("SSL_CERT_DIR", str(tmp_path / "nobody"))
    monkeypatch.setenv("no_proxy", "*")
    patience = http_client.Patience(tries=3, first_pause=0.01, longest_pause=0.05, idle=2.0)
    monkeypatch.setattr(http_client, "PATIENCE", patience)


@pytest.fixture
def trust(monkeypatch):
    """Trusts an identity as a user does who has a certificate of their own."""
    return lambda identity: monkeypatch.setenv("SSL_CERT_FILE", str(identity.certificate))


@pytest.fixture
def root(tmp_path, save):
    """A folder to serve, with a checkpoint in it."""
    folder = tmp_path / "served"
    folder.mkdir()
    save(folder / FILE, WEIGHTS)
    return folder


@pytest.fixture
def secure(root, this_machine):
    """A server that shows a certificate of this machine."""
    with serve(root, this_machine.context) as server:
        yield server


def check(checkpoint):
    for name, read in zip(WEIGHTS, checkpoint.read_many([Wanted(name) for name in WEIGHTS]), strict=True):
        np.testing.assert_array_equal(read.result(timeout=20), WEIGHTS[name])


def refused_at_once(monkeypatch, url, problem):
    monkeypatch.setattr(http_client, "pause", lambda *_: pytest.fail("tried again"))
    with pytest.raises(CheckpointError, match=problem) as caught:
        open_checkpoint(url)
    message = str(caught.value)
    assert message.startswith(url) and "\n" not in message and len(message) < 300


class TestTrust:
    def test_a_certificate_that_the_environment_trusts(self, secure, this_machine, trust):
        trust(this_machine)
        check(open_checkpoint(secure.url + FILE))
        assert len(secure.requests) == 2  # header, then all tensors

    def test_one_that_nobody_vouches_for(self, secure, identity, trust, monkeypatch):
        problem = "the server's certificate is not trusted: self-signed certificate"
        refused_at_once(monkeypatch, secure.url + FILE, problem)
        trust(identity())  # somebody else
        refused_at_once(monkeypatch, secure.url + FILE, problem)
        assert not secure.requests

    @pytest.mark.parametrize(
        ("made", "problem"),
        [
            ({"name": "models.example"}, r"not trusted: .*mismatch, certificate is not valid for '127\.0\.0\.1'"),
            ({"days": (-9, -1)}, "not trusted: certificate has expired"),
            ({"days": (1, 9)}, "not trusted: certificate is not yet valid"),
        ],
    )
    def test_one_of_another_host_or_time(self, root, identity, trust, monkeypatch, made, problem):
        shown = identity(**made)
        trust(shown)
        with serve(root, shown.context) as server:
            refused_at_once(monkeypatch, server.url + FILE, problem)
        assert not server.requests

    def test_a_server_that_speaks_no_tls(self, web, monkeypatch):
        url = web.url.replace("http:", "https:") + FILE
        refused_at_once(monkeypatch, url, "no secure connection with the server: [A-Z_]+$")


class TestRedirects:
    @pytest.fixture(autouse=True)
    def trusted(self, this_machine, trust):
        trust(this_machine)

    def test_to_another_server_without_the_login(self, root, secure, this_machine):
        with serve(root, this_machine.context) as other:
            secure.redirects["/moved.safetensors"] = other.url + FILE
            check(open_checkpoint(secure.url.replace("//", "//me:secret@") + "moved.safetensors"))
        assert [request.token is None for request in secure.requests] == [False]
        assert {request.token for request in other.requests} == {None}

    def test_from_http_to_https(self, web, secure):
        web.redirects["/moved.safetensors"] = secure.url + FILE
        check(open_checkpoint(web.url + "moved.safetensors"))

    def test_never_from_https_to_http(self, web, secure, root, monkeypatch):
        monkeypatch.setenv("HF_ENDPOINT", secure.url.rstrip("/"))
        monkeypatch.setenv("HF_TOKEN", "secret")
        (web.root / FILE).write_bytes((root / FILE).read_bytes())
        secure.redirects["/moved.safetensors"] = web.url + FILE
        refused_at_once(monkeypatch, secure.url + "moved.safetensors", "redirects from https to http")
        assert [request.token for request in secure.requests] == ["Bearer secret"]
        assert not web.requests
        web.redirects["/moved.safetensors"] = secure.url + "moved.safetensors"  # nor on a way that began without
        refused_at_once(monkeypatch, web.url + "moved.safetensors", "redirects from https to http")


class TestCutConnections:
    @pytest.fixture(autouse=True)
    def trusted(self, this_machine, trust):
        trust(this_machine)

    @pytest.mark.parametrize("fault", ["drop", "503", "hang", "trickle"])
    def test_a_download_goes_on(self, secure, monkeypatch, fault):
        impatient = http_client.PATIENCE._replace(idle=0.5, slowest=1 << 20)
        checkpoint = open_checkpoint(secure.url + FILE)
        monkeypatch.setattr(http_client, "PATIENCE", impatient)
        secure.faults["/" + FILE] = [fault]
        check(checkpoint)
        assert not secure.faults["/" + FILE]

    def test_what_is_read_after_the_cut_is_still_the_file(self, secure, root, monkeypatch):
        """The watch cuts while the rest of the answer has already come: it must not be taken as it is, encrypted."""
        watches = []

        class Watch(http_client._Watch):
            def __init__(self, *args):
                super().__init__(*args)
                watches.append(self)

        monkeypatch.setattr(http_client, "_Watch", Watch)
        content = (root / FILE).read_bytes()
        found, counts = bytearray(len(content)), []
        rest = memoryview(found)
        with (
            contextlib.suppress(http_client.MayPass),
            http_client.HttpClient().get(secure.url + FILE, 0, len(content) - 1) as answer,
        ):
            counts.append(answer.body.readinto(rest[:20_000]))
            watches[-1]._ring()
            http_client.receive(answer, [rest[counts[0] :]], counts.append)
        assert counts[0] > 0
        assert found[: sum(counts)] == content[: sum(counts)]

    def test_a_handshake_that_never_ends(self, monkeypatch):
        """Bytes now and then do not prolong it: of a handshake the limit of silence is one for all of it."""
        monkeypatch.setattr(http_client, "PATIENCE", http_client.Patience(tries=2, first_pause=0.01, idle=0.5))
        stop = threading.Event()

        def answer(connection):
            with connection, contextlib.suppress(OSError):
                connection.recv(10_000)
                connection.sendall(b"\x16\x03\x03\x3f\xff")  # the beginning of a record of 16383 bytes
                while not stop.wait(0.05):
                    connection.sendall(b"\0")

        def listen():
            with contextlib.suppress(OSError):
                while True:
                    threading.Thread(target=answer, args=server.accept()[:1], daemon=True).start()

        with socket.create_server(("127.0.0.1", 0)) as server:
            threading.Thread(target=listen, daemon=True).start()
            with pytest.raises(CheckpointError, match=r"the server sent nothing for 0.5 s \(tried 2 times"):
                open_checkpoint(f"https://127.0.0.1:{server.getsockname()[1]}/{FILE}")
            stop.set()
