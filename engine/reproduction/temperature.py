"""Scaling as temperature: queries and keys scaled by c against attention's softmax at temperature 1/c^2."""

import dataclasses

import jax.numpy as jnp
import numpy as np
from flax import nnx

from polarax.evaluation import Decoder, DecoderConfig
from polarax.evaluation.programs import run_model
from polarax.reproduction.weights import parameters, with_parameters

AGREES = 1e-5
"""Relative difference of scores up to which two models in float32 are the same: rounding leaves about a tenth of it."""

_SCALED = tuple(f"layers.self_attn.{name}_proj.{kind}" for name in "qk" for kind in ("kernel", "bias"))
_EVERY = 8  # places whose scores over the vocabulary are compared: one of so many


def why_not_exact(config: DecoderConfig) -> list[str]:
    """Why scaled queries and keys are no temperature in such a model; nothing where they are one."""
    reasons = []
    if config.query_key_norms:
        reasons.append(
            "queries and keys are normalised after their projections, which takes a factor of these away again: "
            "scores stay as they are"
        )
    if config.attention_cap:
        reasons.append(
            f"scores are bounded softly by {config.attention_cap:g}: a factor before the bound is not the same factor "
            "behind it"
        )
    return reasons


def scaled(model: Decoder, c: float) -> Decoder:
    """The decoder with the weights and biases of queries and keys times c."""
    found = parameters(model)
    return with_parameters(
        model, {name: found[name] * jnp.asarray(c, found[name].dtype) for name in _SCALED if name in found}
    )


def at_temperature(model: Decoder, c: float) -> Decoder:
    """The decoder whose attention is a softmax at temperature 1/c^2: of c^2 times the scores, behind their bound."""
    config = model.config
    changed = dataclasses.replace(
        config, attention_scale=config.attention_scale * c**2, attention_cap=config.attention_cap * c**2
    )
    other = nnx.merge(*nnx.split(model))
    other.config = changed
    return other


def difference(first: Decoder, second: Decoder, tokens: np.ndarray) -> float:
    """||scores of the first - scores of the second|| / ||scores of the second|| on a window of tokens."""
    row, none = np.asarray(tokens, np.int32)[None], np.zeros(1, np.int32)
    lengths = np.array([row.shape[1]], np.int32)
    scores = [
        np.asarray(model.scores(run_model(model, row, none, lengths)[0][:, ::_EVERY]), np.float64)
        for model in (first, second)
    ]
    return float(np.linalg.norm(scores[0] - scores[1]) / np.linalg.norm(scores[1]))
