"""Checkpoints: their files, what their tensors are, which of two belong together, reading them."""

from polarax.loaders.architectures import ROLES, Identity, identify
from polarax.loaders.checkpoint import Checkpoint, CheckpointError, Read
from polarax.loaders.formats import open_checkpoint
from polarax.loaders.matrices import RoleMap, View, parse_role_map
from polarax.loaders.pairing import Pair, Skipped, pair_checkpoints

__all__ = [
    "ROLES",
    "Checkpoint",
    "CheckpointError",
    "Identity",
    "Pair",
    "Read",
    "RoleMap",
    "Skipped",
    "View",
    "identify",
    "open_checkpoint",
    "pair_checkpoints",
    "parse_role_map",
]
