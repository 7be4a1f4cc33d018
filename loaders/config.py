"""config.json: what Hugging Face keeps beside a model's weights, such as the number of attention heads.

adapter_config.json is the same of an adapter.
"""

import json
from collections.abc import Mapping
from typing import Any

from polarax.loaders.checkpoint import CheckpointError
from polarax.loaders.stores.store import Store

CONFIG = "config.json"
ADAPTER_CONFIG = "adapter_config.json"
_LARGEST = 2**22  # bytes; the largest published ones, with names for thousands of classes, are below 1 MB


def read_config(store: Store, name: str = CONFIG) -> Mapping[str, Any] | None:
    """The object in a folder's config.json, or in another such file; None if there is none.

    One that cannot be read counts as none: servers answer in many ways where they have no such file. Without it fused
    matrices are split as far as shapes tell, and adapters have no scale, which is said.
    """
    try:
        text = store.wait(store.read(name, 0, None), name)
        settings = json.loads(text.tobytes()) if text is not None and len(text) <= _LARGEST else None
    except (CheckpointError, EOFError, ValueError, RecursionError):
        return None
    return settings if isinstance(settings, dict) else None
