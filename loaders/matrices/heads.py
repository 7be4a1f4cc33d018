"""The number of attention heads, from a model's configuration as Hugging Face writes it."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from polarax.loaders.architectures import Architecture

# Spellings of one setting; the first that is there counts.
_HEADS = ("num_attention_heads", "n_head", "n_heads", "num_heads")
_KEY_HEADS = ("num_key_value_heads", "num_kv_heads", "n_head_kv", "n_kv_heads")
_HIDDEN = ("hidden_size", "n_embd", "d_model", "n_embed", "dim")

_LANGUAGE_MODELS = ("text_config", "llm_config")  # the latter of InternVL


class Heads(NamedTuple):
    """How attention is divided into heads."""

    queries: int
    keys: int  # and as many of values
    size: int  # rows of one head

    @property
    def width(self) -> int:
        """Rows of all queries."""
        return self.queries * self.size


def language_model(config: Mapping | None) -> Mapping:
    """The part of a configuration that describes the language model; empty if there is none."""
    if not isinstance(config, Mapping):
        return {}
    for name in _LANGUAGE_MODELS:
        text = config.get(name)
        if isinstance(text, Mapping):
            return {**config, **text}
    return config


def hidden_size(config: Mapping) -> int | None:
    """Size of the residual stream; None if the configuration does not tell."""
    return _first(config, _HIDDEN)


def ties_embeddings(config: Mapping, architecture: Architecture | None) -> bool:
    """Whether the head of a model is its embedding: config.json leaves out what is its family's default.

    Args:
        config: Of the language model; empty if there is none.
        architecture: The table that knows the embedding's name, if there is one.
    """
    default = architecture is not None and architecture.tied and "model_type" in config
    return config.get("tie_word_embeddings", default) is True


def heads_of(config: Mapping) -> Heads | None:
    """The heads that a configuration describes; None if it does not tell."""
    queries = _first(config, _HEADS)
    size = _first(config, ("head_dim",))
    hidden = hidden_size(config)
    if queries is None:
        return None
    if size is None:
        if hidden is None or hidden % queries:
            return None
        size = hidden // queries
    falcon = config.get("model_type") in ("falcon", "RefinedWebModel", "gpt_bigcode")
    grouped = config.get("new_decoder_architecture", False)
    keys = 1 if config.get("multi_query", falcon) and not grouped else _first(config, _KEY_HEADS) or queries
    return Heads(queries, keys, size)


def _first(config: Mapping, names: tuple[str, ...]) -> int | None:
    for name in names:
        value: Any = config.get(name)
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            return value
    return None
