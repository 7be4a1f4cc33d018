"""Checkpoints of headers alone: as large as the models they stand for, and empty."""

import pathlib

import pytest

import polarax
from benchmarks.headers import all_tensors, main, write_headers


def test_headers_open_and_take_no_room(tmp_path):
    tensors = [("lm_head.weight", 5000, 4000), ("model.layers.0.mlp.up_proj.weight", 3000, 1000)]
    write_headers(tmp_path / "model", tensors, shards=2)
    checkpoint = polarax.open_checkpoint(tmp_path / "model")
    assert {name: checkpoint.shape(name) for name in checkpoint.names()} == {
        name: (rows, cols) for name, rows, cols in tensors
    }
    files = list((tmp_path / "model").glob("*.safetensors"))
    assert len(files) == 2
    assert sum(file.stat().st_size for file in files) > 2 * (5000 * 4000 + 3000 * 1000)
    assert sum(file.stat().st_blocks * 512 for file in files) < 2**20


def test_a_model_has_all_its_matrices():
    llama = list(all_tensors("llama-3.1-70b"))
    assert len(llama) == len({name for name, *_ in llama}) == 80 * 7 + 2
    assert len(list(all_tensors("deepseek-v3"))) == 45092
    assert "lm_head.weight" not in {name for name, *_ in all_tensors("qwen2.5-0.5b")}


@pytest.mark.parametrize("arguments", [[], ["llama-4", "folder"], ["llama-3.1-8b"]])
def test_usage(arguments, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    assert "Usage: python -m benchmarks.headers MODEL FOLDER, with one of qwen2.5-0.5b, " in capsys.readouterr().err
    assert not list(pathlib.Path().iterdir())
