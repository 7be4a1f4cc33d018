"""Queries and keys scaled by c against attention's softmax at temperature 1/c^2, for every kind of decoder."""

import numpy as np
import pytest

from polarax.evaluation import Decoder, load_decoder, measure
from polarax.evaluation.measuring import Settings
from polarax.reproduction.temperature import AGREES, at_temperature, difference, scaled, why_not_exact
from tests.engine.evaluation import models
from tests.engine.evaluation.reference import decode

FACTORS = (0.37, 1.9)


def _decoder(folder, kind) -> Decoder:
    config = models.CONFIGS[kind]
    return load_decoder(models.save(folder / kind, config, models.tensors_of(config)))


@pytest.mark.parametrize("kind", ["llama", "llama_biases", "mistral", "qwen2", "gemma"])
def test_scaling_is_a_temperature(kind, tmp_path):
    model, tokens = _decoder(tmp_path, kind), models.text(40)
    assert why_not_exact(model.config) == []
    for c in FACTORS:
        assert difference(scaled(model, c), at_temperature(model, c), tokens) < AGREES
        assert difference(scaled(model, c), model, tokens) > 100 * AGREES


@pytest.mark.parametrize("kind", ["llama", "llama_biases", "qwen2"])
def test_both_sides_against_float64(kind, tmp_path):
    config, tokens, c = models.CONFIGS[kind], models.text(24), 1.3
    tensors = models.tensors_of(config)
    model, row = _decoder(tmp_path, kind), tokens[None]
    names = [name for name in tensors if ".q_proj." in name or ".k_proj." in name]
    of_weights = decode(config, tensors | {name: c * tensors[name].astype(np.float64) for name in names}, tokens).scores
    size = config.get("head_dim", config["hidden_size"] // config["num_attention_heads"])
    of_scale = decode(config | {"query_pre_attn_scalar": size / c**4}, tensors, tokens).scores
    np.testing.assert_allclose(of_weights, of_scale, rtol=1e-9, atol=1e-9)
    for changed in (scaled(model, c), at_temperature(model, c)):
        error = np.linalg.norm(np.asarray(changed(row))[0] - of_scale) / np.linalg.norm(of_scale)
        assert error < AGREES


@pytest.mark.parametrize(("kind", "word"), [("qwen3", "normalised"), ("gemma2", "bounded"), ("gemma3", "normalised")])
def test_where_it_is_none(kind, word, tmp_path):
    model, tokens = _decoder(tmp_path, kind), models.text(40)
    assert word in " ".join(why_not_exact(model.config))
    for c in FACTORS:
        assert difference(scaled(model, c), at_temperature(model, c), tokens) > 10 * AGREES
    if model.config.query_key_norms:  # the norms take the factor away again
        assert difference(scaled(model, 4.0), model, tokens) < 1e-3


def test_attention_gets_flatter_as_it_is_heated(tmp_path):
    model, tokens = _decoder(tmp_path, "llama"), models.text(200)
    found = [measure(scaled(model, c), tokens, None, Settings(window=32)) for c in (1e-3, 0.5, 1.0, 2.0)]
    entropies = [each.attention_entropy.mean() for each in found]
    assert entropies == sorted(entropies, reverse=True)
    # At infinite temperature every visible token alike: the mean of log(count) over a window's places.
    assert entropies[0] == pytest.approx(np.log(np.arange(1, 33)).mean(), abs=0.05)
