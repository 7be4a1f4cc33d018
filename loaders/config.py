"""config.json: what Hugging Face keeps beside a model's weights, such as the number of attention heads."""

import json
from collections.abc import Mapping
from typing import Any

from polarax.loaders.checkpoint import CheckpointError
from polarax.loaders.stores.store import Store

_NAME = "config.json"
_LARGEST = 2**22  # bytes; the largest published ones, with names for thousands of classes, are below 1 MB


def read_config(store: Store) -> Mapping[str, Any] | None:
    """The object in a folder's config.json; None if there is none.

    It only decides how fused matrices are split, so one that cannot be read counts as none: servers answer in many ways
    where they have no such file.
    """
    try:
        text = store.wait(store.read(_NAME, 0, None), _NAME)
        settings = json.loads(text.tobytes()) if text is not None and len(text) <= _LARGEST else None
    except (CheckpointError, EOFError, ValueError, RecursionError):
        return None
    return settings if isinstance(settings, dict) else None
