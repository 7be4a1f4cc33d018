"""Small objects that processes share: the same on a file system and in a bucket, and what is said when it fails."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from polarax.errors import RunError
from polarax.results.shelf import Shelf


@pytest.fixture(params=["path", "file URL", "bucket"])
def shelf(request, tmp_path):
    """An empty one, below a folder whose name has a space."""
    if request.param == "bucket":
        return Shelf.open(request.getfixturevalue("s3").url + "/some/run%201/")
    path = tmp_path / "run 1"
    return Shelf.open(path if request.param == "path" else path.as_uri())


class TestObjects:
    def test_what_was_put_is_there(self, shelf):
        assert shelf.list() == [] and shelf.get("a") is None
        shelf.put("a", b"first")
        shelf.put("a", b"second")
        shelf.put("b/c d%20+", b"")
        assert shelf.get("a") == b"second" and shelf.get("b/c d%20+") == b""
        assert shelf.list() == ["a", "b/c d%20+"]

    def test_a_folder_below(self, shelf):
        below = shelf.within("parts/").within("3")
        below.put("a", b"1")
        assert shelf.list() == ["parts/3/a"] and below.list() == ["a"]
        assert below.location == f"{shelf.location}/parts/3"

    def test_a_prefix_is_one_of_characters(self, shelf):
        for key in ("a", "a/1", "a/2", "ab", "b"):
            if key != "a" or shelf.location.startswith("s3"):  # no file is beside a folder of the same name
                shelf.put(key, b"")
        assert shelf.list("a/") == ["a/1", "a/2"]
        assert shelf.list("ab") == ["ab"]
        shelf.delete("a/")
        assert "a/1" not in shelf.list() and "ab" in shelf.list()
        shelf.delete("")
        assert shelf.list() == []

    def test_what_is_not_there_is_deleted_all_the_same(self, shelf):
        shelf.delete("nothing/")
        assert shelf.list() == []


class TestSwap:
    def test_an_object_is_created_once(self, shelf):
        assert shelf.create("lock", b"mine")
        assert not shelf.create("lock", b"yours")
        assert shelf.get("lock") == b"mine"
        assert shelf.create("lock", b"mine")  # a request that is repeated, since its answer was lost

    def test_only_what_is_known_is_replaced(self, shelf):
        shelf.put("lock", b"1")
        assert not shelf.swap("lock", b"0", b"2")
        assert shelf.swap("lock", b"1", b"2")
        assert not shelf.swap("lock", b"1", None)
        assert shelf.swap("lock", b"2", None)
        assert shelf.get("lock") is None

    def test_of_many_at_once_one_succeeds(self, shelf):
        together = threading.Barrier(8)

        def take(number):
            own = Shelf.open(shelf.location)
            taken = []
            for stack in range(5):
                together.wait()
                if own.create(f"taken/{stack}", str(number).encode()):
                    taken.append(stack)
            return taken

        with ThreadPoolExecutor(8) as pool:
            taken = list(pool.map(take, range(8)))
        assert sorted(stack for mine in taken for stack in mine) == list(range(5))
        for number, mine in enumerate(taken):
            assert all(shelf.get(f"taken/{stack}") == str(number).encode() for stack in mine)


def refused(*words):
    return pytest.raises(RunError, match="(?s)" + ".*".join(words) + r".*\.\Z")


class TestErrors:
    def test_what_cannot_be_written_to(self):
        for url in ("https://someone:secret@host/run", "s3://", "s3:///run", "gs://bucket/run?token=secret"):
            with refused("cannot be opened: expected") as caught:
                Shelf.open(url)
            assert "secret" not in str(caught.value)

    def test_a_file_in_the_way(self, tmp_path):
        (tmp_path / "run").write_text("mine")
        shelf = Shelf.open(tmp_path / "run")
        with refused(r"run/a cannot be written: Not a directory"):
            shelf.put("a", b"")
        with refused("cannot be listed"):
            shelf.list()

    def test_no_such_bucket(self, s3):
        shelf = Shelf.open("s3://no-such-bucket/run")
        for call in (shelf.list, lambda: shelf.put("a", b""), lambda: shelf.create("a", b"")):
            with refused("s3://no-such-bucket/run", "no such bucket", "check the name of the bucket"):
                call()

    def test_no_permission(self, s3, monkeypatch):
        monkeypatch.delenv("AWS_ACCESS_KEY_ID")
        monkeypatch.setenv("AWS_CONFIG_FILE", "/nonexistent")
        monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent")
        with refused("s3://models/run/a cannot be read: no permission", "check that AWS_ACCESS_KEY_ID"):
            s3.put("run/a", b"private")
            Shelf.open("s3://models/run").get("a")

    def test_no_server(self, s3, monkeypatch):
        monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
        with refused("s3://models/run cannot be listed", "check the network, and AWS_ENDPOINT_URL"):
            Shelf.open("s3://models/run").list()

    def test_a_server_that_does_not_answer(self, s3, monkeypatch):
        import socket

        with socket.create_server(("127.0.0.1", 0)) as silent:
            monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{silent.getsockname()[1]}")
            with refused("a cannot be read: no answer within 0.2 s", "check the network"):
                Shelf.open("s3://models/run", seconds=0.2).get("a")
