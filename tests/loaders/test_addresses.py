"""Nothing that is shown or stored has the login or the query of an address."""

import traceback

import numpy as np
import pytest

from polarax.loaders import CheckpointError, open_checkpoint, pair_checkpoints, write_checkpoint
from polarax.loaders.stores import http_client
from polarax.loaders.stores.addresses import redact, redact_location
from polarax.loaders.stores.files import StoreError

SECRETS = ("alibaba", "sesame", "opensaysme")


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    patience = http_client.Patience(tries=2, first_pause=0.01, longest_pause=0.01, idle=0.3)
    monkeypatch.setattr(http_client, "PATIENCE", patience)


def secret(url, query="?X-Amz-Signature=opensaysme&b=a%2Fb=="):
    """The same address with a login and a signature."""
    return url.replace("://", "://alibaba:sesame@") + query


def clean(text):
    assert not any(word in text for word in SECRETS), text
    return text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("https://alibaba:sesame@h:80/m", "https://***@h:80/m"),
        ("https://alibaba@h/m", "https://***@h/m"),
        ("https://alibaba:se@same@h/m: gone", "https://***@h/m: gone"),
        ("https://h/m?opensaysme", "https://h/m?***"),
        ("https://h/m?a=1&token=opensaysme: no such file", "https://h/m?***: no such file"),
        ("https://h/m?a=opensaysme; expected 3", "https://h/m?***; expected 3"),
        ("'https://h/m?a=opensaysme,b;c=d' and s3://k:sesame@b/c?d=e.", "'https://h/m?***' and s3://***@b/c?***."),
        ("https://h/a b/m?token=opensaysme is odd", "https://h/a b/m?*** is odd"),
        ("No control characters: '/a b/m?token=opensaysme'", "No control characters: '/a b/m?***'"),
        ("hf://owner/name@main and a@b.c", "hf://owner/name@main and a@b.c"),
        ("http:/alibaba:sesame@h/m?opensaysme is no run", "http:/***@h/m?*** is no run"),
        ("which of them? both", "which of them? both"),
        ("/home/me/what?/m.safetensors", "/home/me/what?/m.safetensors"),
    ],
)
def test_a_text(text, expected):
    assert redact(text) == expected
    assert redact(expected) == expected


@pytest.mark.parametrize(
    ("location", "expected"),
    [
        ("https://alibaba:sesame@h/a b?c d=open says me", "https://***@h/a b?***"),
        ("/data/what?=m", "/data/what?=m"),
        ("hf://owner/name@main", "hf://owner/name@main"),
        ("s3://bucket/m", "s3://bucket/m"),
    ],
)
def test_a_location(location, expected):
    assert redact_location(location) == expected


@pytest.mark.parametrize("error", [CheckpointError, StoreError, http_client.MayPass])
def test_every_error_of_reading(error):
    assert str(error("https://alibaba:sesame@h/m?token=opensaysme: gone")) == "https://***@h/m?***: gone"


def test_a_checkpoint_is_read_with_its_secrets_and_shown_without(web, save):
    save(web.root / "m.safetensors", {"a": np.eye(3, dtype=np.float32)})
    checkpoint = open_checkpoint(secret(web.url + "m.safetensors"))
    np.testing.assert_array_equal(checkpoint.read("a").result(), np.eye(3))
    asked = web.requests[-1]
    assert asked.token.startswith("Basic ") and asked.path == "/m.safetensors?X-Amz-Signature=opensaysme&b=a%2Fb=="
    shown = web.url.replace("://", "://***@")
    assert checkpoint.location == f"{shown}m.safetensors?***"
    assert checkpoint.store.path("m.safetensors") == f"{shown}m.safetensors?***"
    with pytest.raises(CheckpointError) as caught:
        checkpoint.read("b")
    assert clean(str(caught.value)) == f"{shown}m.safetensors?***: has no tensor 'b'"


@pytest.mark.parametrize(
    "name", ["m.safetensors", "", "m.safetensors.index.json", "m.gguf", "m.bin", "secret/m.safetensors"]
)
def test_what_cannot_be_opened(web, name):
    with pytest.raises(CheckpointError, match=r"\*\*\*") as caught:
        open_checkpoint(secret(web.url + name))
    clean(str(caught.value))


@pytest.mark.parametrize("fault", ["500", "drop", "hang", "long", "401", "404"])
def test_what_fails_while_it_is_read(web, save, fault):
    save(web.root / "m.safetensors", {"a": np.ones((3, 3), np.float32)})
    url = secret(web.url + "m.safetensors")
    checkpoint = open_checkpoint(url)
    web.faults["/m.safetensors" + url.partition("m.safetensors")[2]] = [fault] * 4
    with pytest.raises(CheckpointError, match=r"\*\*\*@.*m.safetensors\?\*\*\*") as caught:
        checkpoint.read("a").result()
    clean("".join(traceback.format_exception(caught.value)))


@pytest.mark.parametrize(
    "url", ["http://nowhere.invalid/m.safetensors", "http://127.0.0.1:9/a b/m.safetensors", "foo://h/m"]
)
def test_a_place_that_is_not_there(url):
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(secret(url))
    clean("".join(str(error) for error in (caught.value, caught.value.__cause__) if error is not None))


def test_checkpoints_that_have_nothing_in_common(web, save):
    for name in "ab":
        save(web.root / f"{name}.safetensors", {name: np.eye(3, dtype=np.float32)})
    with pytest.raises(CheckpointError, match=r"\?\*\*\* and http.*\?\*\*\* have no tensor in common") as caught:
        pair_checkpoints(*(open_checkpoint(secret(f"{web.url}{name}.safetensors")) for name in "ab"))
    clean(str(caught.value))


def test_writing(web, save, tmp_path):
    save(web.root / "m.safetensors", {"a": np.eye(3, dtype=np.float32)})
    checkpoint = open_checkpoint(secret(web.url + "m.safetensors"))
    with pytest.raises(CheckpointError, match="expected a replacement of shape") as caught:
        write_checkpoint(checkpoint, tmp_path / "out", {"a": np.zeros((2, 2), np.float32)})
    clean(str(caught.value))
