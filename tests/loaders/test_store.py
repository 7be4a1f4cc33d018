import json

import numpy as np
import pytest

from polarax.loaders import CheckpointError, open_checkpoint

WEIGHTS = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "e": np.zeros((0, 3), np.float32)}


def refused(source, problem):
    with pytest.raises(CheckpointError, match=problem) as caught:
        open_checkpoint(source)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600


def test_a_file_by_url(web, save):
    save(web.root / "a b%.safetensors", WEIGHTS)
    checkpoint = open_checkpoint(web.url + "a%20b%25.safetensors")
    for name, expected in WEIGHTS.items():
        np.testing.assert_array_equal(checkpoint.read(name).result(), expected)


def test_a_folder_by_url(web, save):
    (web.root / "model").mkdir()
    save(web.root / "model/model.safetensors", WEIGHTS)
    for source in (web.url + "model", web.url + "model/"):
        np.testing.assert_array_equal(open_checkpoint(source).read("a").result(), WEIGHTS["a"])


def test_an_index_by_url(web, save):
    save(web.root / "one.safetensors", {"a": WEIGHTS["a"]})
    save(web.root / "two.safetensors", {"b": WEIGHTS["a"] + 1})
    index = {"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}}
    (web.root / "model.safetensors.index.json").write_text(json.dumps(index))
    for source in (web.url, web.url + "model.safetensors.index.json"):
        checkpoint = open_checkpoint(source)
        np.testing.assert_array_equal(checkpoint.read("b").result(), WEIGHTS["a"] + 1)


def test_only_headers_and_the_rows_asked_for_are_fetched(web, save):
    path = save(web.root / "m.safetensors", {"w": np.zeros((1000, 250), np.float32)})
    checkpoint = open_checkpoint(web.url + "m.safetensors")
    checkpoint.read("w", slice(500, 502)).result()
    data_start = path.stat().st_size - 1_000_000
    assert [request.range for request in web.requests] == [
        "bytes=0-131071",  # the length of the header, the header, and the size of the file
        f"bytes={data_start + 500_000}-{data_start + 501_999}",
    ]


def test_a_query_goes_along(web, save):
    save(web.root / "m.safetensors", WEIGHTS)
    open_checkpoint(web.url + "m.safetensors?token=1")
    assert {request.path for request in web.requests} == {"/m.safetensors?token=1"}


@pytest.mark.parametrize("keep", [0, 3, 8, 30, -1, -8])
def test_a_truncated_file_by_url(web, save, keep):
    path = save(web.root / "m.safetensors", WEIGHTS)
    path.write_bytes(path.read_bytes()[:keep])
    refused(web.url + "m.safetensors", r"m\.safetensors: .*(truncated|is empty|has only 3 bytes)")


def test_an_empty_file_in_a_folder_by_url(web):
    (web.root / "model.safetensors").touch()
    refused(web.url, r"/model\.safetensors: is empty")


def test_nothing_there(web):
    refused(web.url + "no.safetensors", r"/no\.safetensors: no such file")
    refused(web.url + "no", "no checkpoint there; looked for model.safetensors and model.safetensors.index.json")
    refused(web.url + "no.safetensors.index.json", "no such file")
    refused(web.url + "pytorch_model.bin", "pickle")


def test_a_missing_shard_by_url(web):
    index = {"weight_map": {"a": "one.safetensors"}}
    (web.root / "model.safetensors.index.json").write_text(json.dumps(index))
    refused(web.url, r"one\.safetensors: no such file; model\.safetensors\.index\.json names it")


def test_no_permission_is_one_short_line(web):
    refused(web.url + "secret/m.safetensors", r"m\.safetensors: cannot be read: no permission .HTTP 403")


def test_a_scheme_that_no_store_has():
    refused("ftp://host/m.safetensors", "expected a path, or an http, https, s3, gs, hf or file URL")
    refused("file://elsewhere/m.safetensors", "cannot name the host 'elsewhere'")


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("http://[::1/m.safetensors", "expected a path or a URL: Invalid IPv6 URL"),
        ("http://127.0.0.1:99999/m.safetensors", "Port out of range"),
        ("http:///m.safetensors", "names no host"),
        ("http://host..name/m.safetensors", "the address cannot be understood: "),
    ],
)
def test_what_is_no_address(url, problem):
    refused(url, problem)
