import json
import sys
import types
import urllib.parse

import numpy as np
import pytest

from polarax.loaders import CheckpointError, open_checkpoint
from polarax.loaders.hub_cache import cache_folder, resolve_hub_path
from polarax.loaders.stores.hub import HubPath, parse_hub_path, token_for

COMMIT = "0123456789abcdef0123456789abcdef01234567"
OTHER = "f" * 40
NAME = "owner/Some.Model-1B"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """An empty cache, and an environment that says nothing else."""
    for variable in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_TOKEN", "HF_HUB_OFFLINE", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.delenv("HF_TOKEN_PATH", raising=False)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # nobody listens
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "home/hub"


def weights(value):
    return {"w": np.full((2, 3), value, np.float32)}


def value(checkpoint):
    return float(checkpoint.read("w").result()[0, 0])


@pytest.fixture
def cached(cache, save):
    """A model in the cache as the hub's library lays it out: links to blobs."""

    def put(commit, content, refs=("main",), name=NAME):
        folder = cache / f"models--{name.replace('/', '--')}"
        snapshot = folder / "snapshots" / commit
        for part in (snapshot, folder / "refs", folder / "blobs"):
            part.mkdir(parents=True, exist_ok=True)
        save(folder / "blobs" / commit, weights(content))
        (snapshot / "model.safetensors").symlink_to(f"../../blobs/{commit}")
        for ref in refs:
            (folder / "refs" / ref).parent.mkdir(parents=True, exist_ok=True)
            (folder / "refs" / ref).write_text(commit)
        return snapshot

    return put


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("hf://o/n", HubPath("o", "n", "main", "")),
        ("hf://o/n/", HubPath("o", "n", "main", "")),
        ("hf://o/n@v1.0", HubPath("o", "n", "v1.0", "")),
        ("hf://o/n@refs/pr/3", HubPath("o", "n", "refs/pr/3", "")),
        ("hf://o/n@a%2Fb/x/y.safetensors", HubPath("o", "n", "a/b", "x/y.safetensors")),
        ("hf://o/n/sub/dir", HubPath("o", "n", "main", "sub/dir")),
        ("o/n", None),
        ("/o/n", None),
    ],
)
def test_hub_paths(source, expected):
    assert parse_hub_path(source) == expected


@pytest.mark.parametrize("source", ["hf://", "hf://o", "hf://o/n@", "hf://datasets/o/n", "hf://o/n/../x", "hf://../x"])
def test_what_is_no_hub_path(source):
    with pytest.raises(CheckpointError, match="expected hf://owner/name"):
        open_checkpoint(source)


def test_the_cache_is_used_by_name_revision_and_commit(cached):
    cached(COMMIT, 1, refs=("main", "refs/pr/3"))
    cached(OTHER, 2, refs=("v2",))
    assert value(open_checkpoint(f"hf://{NAME}")) == 1
    assert value(open_checkpoint(NAME)) == 1
    assert value(open_checkpoint(f"hf://{NAME}@refs/pr/3")) == 1
    assert value(open_checkpoint(f"hf://{NAME}@v2")) == 2
    assert value(open_checkpoint(f"hf://{NAME}@{OTHER}")) == 2
    assert value(open_checkpoint(f"hf://{NAME}@v2/model.safetensors")) == 2


def test_a_local_path_goes_before_the_cache(cached, tmp_path, save):
    cached(COMMIT, 1)
    (tmp_path / NAME).mkdir(parents=True)
    save(tmp_path / NAME / "model.safetensors", weights(5))
    assert value(open_checkpoint(NAME)) == 5


def test_a_name_that_is_nowhere(cache):
    with pytest.raises(CheckpointError, match="no such file or folder"):
        open_checkpoint("some/model")


def test_where_the_cache_is(monkeypatch, tmp_path):
    assert cache_folder() == str(tmp_path / "home/hub")
    monkeypatch.delenv("HF_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "me"))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert cache_folder() == str(tmp_path / "me/.cache/huggingface/hub")
    monkeypatch.setenv("HF_HUB_CACHE", "~/hub")
    assert cache_folder() == str(tmp_path / "me/hub")


def test_half_a_download_is_not_taken_for_a_model(cached):
    snapshot = cached(COMMIT, 1)
    (snapshot / "model.safetensors").rename(snapshot / "model-00001-of-00002.safetensors")
    shards = [f"model-0000{number}-of-00002.safetensors" for number in (1, 2)]
    index = {"weight_map": {"w": shards[0], "v": shards[1]}}
    (snapshot / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=rf"no whole copy of its weights; hf://{NAME} reads them"):
        open_checkpoint(NAME)
    assert resolve_hub_path(f"hf://{NAME}") == f"hf://{NAME}"


def test_offline_and_not_in_the_cache(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(CheckpointError, match="not in the cache .* HF_HUB_OFFLINE is set"):
        open_checkpoint(f"hf://{NAME}")


@pytest.fixture
def hub(web, monkeypatch, save):
    """A hub on loopback: its list of files, and a redirect to elsewhere for each."""
    monkeypatch.setenv("HF_ENDPOINT", web.url.rstrip("/"))
    (web.root / "cdn").mkdir()

    def put(revision, files, commit=COMMIT):
        page = web.root / "api/models" / NAME / "revision" / revision
        page.parent.mkdir(parents=True, exist_ok=True)
        page.write_text(json.dumps({"sha": commit, "siblings": [{"rfilename": file} for file in files]}))
        for number, file in enumerate(files):
            if file.endswith(".safetensors"):
                save(web.root / f"cdn/{commit[:1]}{number}", {f"w{number}": np.full((2, 3), number, np.float32)})
            else:
                (web.root / f"cdn/{commit[:1]}{number}").write_text("{}")
            address = f"/{NAME}/resolve/{commit}/{urllib.parse.quote(file)}"
            web.redirects[address] = f"{web.url}cdn/{commit[:1]}{number}?signature={number}".replace(
                "127.0.0.1", "localhost"
            )
        return web

    return put


def test_a_model_on_the_hub(hub, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "secret")
    web = hub("main", ["config.json", "model.safetensors", "other.safetensors"])
    checkpoint = open_checkpoint(f"hf://{NAME}")
    assert checkpoint.names() == ("w1",)
    assert float(checkpoint.read("w1").result()[1, 2]) == 1
    assert checkpoint.location == f"hf://{NAME}"
    assert web.requests[0].path == f"/api/models/{NAME}/revision/main"
    assert {request.token for request in web.requests if "/cdn/" not in request.path} == {"Bearer secret"}
    assert {request.token for request in web.requests if "/cdn/" in request.path} == {None}


def test_shards_without_an_index_are_found_by_the_list(hub):
    hub("v1", ["a.safetensors", "b c%.safetensors", "sub/d.safetensors"])
    assert open_checkpoint(f"hf://{NAME}@v1").names() == ("w0", "w1")
    assert open_checkpoint(f"hf://{NAME}@v1/b c%.safetensors").names() == ("w1",)
    assert open_checkpoint(f"hf://{NAME}@v1/sub").names() == ("w2",)


def test_a_branch_that_moves_meanwhile_is_read_as_it_was(hub, web):
    hub("main", ["model.safetensors"])
    checkpoint = open_checkpoint(f"hf://{NAME}")
    hub("main", ["model.safetensors"], commit=OTHER)
    web.requests.clear()
    assert float(checkpoint.read("w0").result()[0, 0]) == 0
    checkpoint.store.files()
    assert not [request for request in web.requests if OTHER in request.path or "/api/" in request.path]


@pytest.mark.parametrize(
    ("page", "problem"),
    [
        (None, "the hub has no model owner/Some.Model-1B with a revision 'main'"),
        ("[]", "does not answer as the hub does"),
        ("<html>", "does not answer as the hub does"),
        ('{"sha": "x", "siblings": [3]}', "does not answer as the hub does"),
        ('{"sha": "x", "siblings": []}', "no checkpoint there"),
    ],
)
def test_a_hub_that_has_it_not(hub, page, problem):
    web = hub("other", [])
    if page is not None:
        (web.root / "api/models" / NAME / "revision/main").write_text(page)
    with pytest.raises(CheckpointError, match=problem):
        open_checkpoint(f"hf://{NAME}")


def test_a_private_model(hub, web):
    hub("main", ["model.safetensors"])
    web.faults[f"/api/models/{NAME}/revision/main"] = ["401"] * 9
    with pytest.raises(CheckpointError, match="HTTP 401.*HF_TOKEN"):
        open_checkpoint(f"hf://{NAME}")


def test_the_token_of_a_login(tmp_path, monkeypatch):
    (tmp_path / "home").mkdir()
    (tmp_path / "home/token").write_text("of-the-file\n")
    assert token_for("http://127.0.0.1:9/x") == "of-the-file"
    assert token_for("http://127.0.0.1:8/x") is None
    monkeypatch.setenv("HF_TOKEN", "of-the-environment")
    assert token_for("http://127.0.0.1:9/x") == "of-the-environment"
    monkeypatch.setenv("HF_TOKEN", "two\r\nlines")
    assert token_for("http://127.0.0.1:9/x") is None


def test_the_token_that_only_the_library_of_the_hub_knows(tmp_path, monkeypatch):
    library = types.ModuleType("huggingface_hub")
    library.get_token = lambda: "of-the-notebook"
    monkeypatch.setitem(sys.modules, "huggingface_hub", library)
    assert token_for("http://127.0.0.1:9/x") == "of-the-notebook"
    assert token_for("http://127.0.0.1:8/x") is None
    (tmp_path / "home").mkdir()
    (tmp_path / "home/token").write_text("of-the-file")
    assert token_for("http://127.0.0.1:9/x") == "of-the-file"
    monkeypatch.setenv("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1")
    assert token_for("http://127.0.0.1:9/x") is None
