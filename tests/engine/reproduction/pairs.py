"""A base and a post of a family, with a tokenizer and texts."""

import pathlib

import numpy as np
import tokenizers
from tokenizers import models as tokenizer_models
from tokenizers import pre_tokenizers

from tests.engine.evaluation import models

WORDS = [f"w{number}" for number in range(models.VOCABULARY)]


def save_tokenizer(folder: pathlib.Path) -> None:
    """A token for each word."""
    vocabulary = {word: number for number, word in enumerate(WORDS)}
    tokenizer = tokenizers.Tokenizer(tokenizer_models.WordLevel(vocabulary, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))


def save_pair(folder: pathlib.Path, kind: str, drift: float = 0.02) -> None:
    """folder/base and folder/post, whose matrices differ by random numbers of that relative size."""
    config, rng = models.CONFIGS[kind] | {"eos_token_id": 95}, np.random.default_rng(7)
    base = models.tensors_of(config)
    post = {
        name: (x + (x.ndim == 2) * drift * np.sqrt(np.mean(x**2)) * rng.standard_normal(x.shape)).astype(np.float32)
        for name, x in base.items()
    }
    for name, tensors in (("base", base), ("post", post)):
        save_tokenizer(models.save(folder / name, config, tensors))


def save_text(path: pathlib.Path, count: int, seed: int = 1) -> pathlib.Path:
    """So many words at random."""
    path.write_text(" ".join(WORDS[token] for token in models.text(count, seed)))
    return path
