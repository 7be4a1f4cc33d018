"""Scalars on their way to a file and back."""

import math

import pytest

from polarax.errors import UsageError
from polarax.tracking import JsonlWriter, read_jsonl


def test_lines_read_back(tmp_path):
    path = tmp_path / "new/spectra.jsonl"
    writer = JsonlWriter(path)
    writer.write(0, {"a": 0.1, "b": math.nan})
    writer.write(5, {})
    JsonlWriter(path).write(10, {"a": math.inf})  # a run that goes on
    found = read_jsonl(path)
    assert sorted(found) == [0, 10]
    assert found[0]["a"] == 0.1 and math.isnan(found[0]["b"]) and math.isnan(found[10]["a"])
    assert "NaN" not in path.read_text() and "Infinity" not in path.read_text()


def test_a_line_cut_short_is_left_out(tmp_path):
    path = tmp_path / "spectra.jsonl"
    JsonlWriter(path).write(0, {"a": 1.0})
    with path.open("a") as file:
        file.write('{"step": 5, "a"')
    assert read_jsonl(path) == {0: {"a": 1.0}}
    JsonlWriter(path).write(5, {"a": 2.0})  # a run that was stopped there goes on
    assert read_jsonl(path) == {0: {"a": 1.0}, 5: {"a": 2.0}}


def test_process_0_alone_writes(tmp_path, monkeypatch):
    path = tmp_path / "new/spectra.jsonl"
    writer = JsonlWriter(path)
    monkeypatch.setattr("jax.process_index", lambda: 1)  # JAX may start after the writer is made
    writer.write(0, {"a": 1.0})
    assert not list(tmp_path.iterdir())
    JsonlWriter(path, every_process=True).write(0, {"a": 1.0})
    assert read_jsonl(path) == {0: {"a": 1.0}}


@pytest.mark.parametrize(("text", "message"), [("nonsense\n", "line 1"), ('{"a": 1}\n', "line 1"), ("[1]\n", "line 1")])
def test_a_file_of_something_else(tmp_path, text, message):
    path = tmp_path / "spectra.jsonl"
    path.write_text(text)
    with pytest.raises(UsageError, match=message):
        read_jsonl(path)


def test_no_file(tmp_path):
    with pytest.raises(UsageError, match="cannot be read"):
        read_jsonl(tmp_path / "nowhere.jsonl")
