"""What `make reproduce` does, on a tiny random model: instructions are written, a post is trained, experiments run."""

import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
import tokenizers
from tokenizers import models as tokenizer_models
from tokenizers import pre_tokenizers, trainers

import polarax
from polarax.evaluation import load_decoder, measure
from polarax.evaluation.measuring import Settings
from polarax.evaluation.tokens import encode, open_tokenizer, read_text
from polarax.reproduction import reproduce
from tests.engine.evaluation import models

EXAMPLES = pathlib.Path(__file__).resolve().parents[3] / "docs/examples"


def _run(script, **flags):
    command = [sys.executable, EXAMPLES / script, *(f"--{name}={value}" for name, value in flags.items())]
    done = subprocess.run(
        command, env=os.environ | {"JAX_PLATFORMS": "cpu"}, capture_output=True, text=True, timeout=200, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["llama", "qwen2"])
def test_a_post_is_trained_and_experimented_with(kind, tmp_path):
    train, test = tmp_path / "train.txt", tmp_path / "test.txt"
    _run("instructions.py", count=60, out=train)
    _run("instructions.py", count=15, seed=1, out=test)
    assert train.read_text().count("<|im_start|>assistant\nTask: ") == 60
    model = models.save(tmp_path / "model", models.CONFIGS[kind], models.tensors_of(models.CONFIGS[kind]))
    words = tokenizers.Tokenizer(tokenizer_models.WordLevel(unk_token="?"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.train([str(train)], trainers.WordLevelTrainer(vocab_size=models.VOCABULARY, special_tokens=["?"]))
    words.save(str(model / "tokenizer.json"))
    pair = tmp_path / "pair"
    printed = _run("fine_tune.py", model=model, text=train, out=pair, steps=20, length=24, learning_rate=0.01)
    assert "step 20: loss" in printed
    # The base is the model as it was; the post has learnt the text, and is one that can be compared.
    tokens = encode(open_tokenizer(pair / "post"), read_text(test))
    losses = [measure(load_decoder(path), tokens, None, Settings(window=24)).loss for path in (model, pair / "base")]
    assert losses[0] == losses[1]
    assert measure(load_decoder(pair / "post"), tokens, None, Settings(window=24)).loss < losses[0] - 1
    frame = polarax.compare(pair / "base", pair / "post", progress=False).frame()
    drifts = frame.set_index("role")["drift"]
    assert (drifts[drifts.index != "embed"] > 0).all() and np.all(drifts.get("embed", 0.0) == 0)
    found = reproduce(
        pair / "base", pair / "post", [test], tmp_path / "out", window=24, experiments="undo", factors=(2.0,)
    )
    assert json.loads((found.path / "reproduction.json").read_text())["temperature"]["largest_difference"] < 1e-5
