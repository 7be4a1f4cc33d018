"""What lies beside a model's weights and describes it, such as the number of attention heads.

Hugging Face calls that config.json, and of an adapter adapter_config.json. Meta and Mistral call it params.json, and
have other names for what is in it (`TransformerArgs` in mistral_inference/args.py).
"""

import json
from collections.abc import Mapping
from typing import Any

from polarax.loaders.checkpoint import CheckpointError
from polarax.loaders.stores.store import Store

CONFIG = "config.json"
ADAPTER_CONFIG = "adapter_config.json"
_META_NAME = "params.json"
_LARGEST = 2**22  # bytes; the largest published ones, with names for thousands of classes, are below 1 MB


# What config.json calls the settings of params.json. Those that have one name in both are kept.
_HUGGING_FACE = {
    "dim": "hidden_size",
    "n_layers": "num_hidden_layers",
    "n_heads": "num_attention_heads",
    "n_kv_heads": "num_key_value_heads",
    "hidden_dim": "intermediate_size",
    "tied_embeddings": "tie_word_embeddings",
}
_KEPT = ("head_dim", "vocab_size")


def read_adapter_config(store: Store) -> Mapping[str, Any] | None:
    """The object in a folder's adapter_config.json; None if there is none that can be read."""
    return _read_object(store, ADAPTER_CONFIG)


def read_config(store: Store, meta: bool = False) -> Mapping[str, Any] | None:
    """The object in a folder's config.json, of a model with Meta's names completed from params.json.

    It only decides how fused matrices are split and rows are ordered, so one that cannot be read counts as none:
    servers answer in many ways where they have no such file.

    Args:
        store: Of the folder.
        meta: Whether the model has Meta's names.

    Returns:
        The settings, under the names of Hugging Face; None if there are none.
    """
    settings = _read_object(store, CONFIG)
    params = _read_object(store, _META_NAME) if meta else None
    if params is None:
        return settings
    names = _HUGGING_FACE | {name: name for name in _KEPT}
    translated = {names[name]: value for name, value in params.items() if name in names and value is not None}
    return translated | (settings or {})


def _read_object(store: Store, name: str) -> dict[str, Any] | None:
    try:
        text = store.wait(store.read(name, 0, None), name)
        settings = json.loads(text.tobytes()) if text is not None and len(text) <= _LARGEST else None
    except (CheckpointError, EOFError, ValueError, RecursionError):
        return None
    return settings if isinstance(settings, dict) else None
