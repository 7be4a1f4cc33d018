"""Low-rank adapters (LoRA): saved beside the weights of a model, or alone, and read as the model that they make."""

from polarax.loaders.adapters.adapted_checkpoint import AdaptedCheckpoint
from polarax.loaders.adapters.on_base import is_adapter, on_base
from polarax.loaders.adapters.unmerged import with_adapters

__all__ = ["AdaptedCheckpoint", "is_adapter", "on_base", "with_adapters"]
