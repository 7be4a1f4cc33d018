"""Checkpoints: their files, what their tensors are, which of two belong together, reading them."""

from polarax.loaders.adapters import on_base
from polarax.loaders.architectures import Identity, identify
from polarax.loaders.checkpoint import Checkpoint, CheckpointError, Read, Wanted
from polarax.loaders.labels import model_name, short_name
from polarax.loaders.matrices import RoleMap, View, parse_role_map, read_views
from polarax.loaders.opening import open_checkpoint
from polarax.loaders.pairing import Coverage, LeftOut, Pair, Paired, Pairing, SideCoverage, Skipped, pair_checkpoints
from polarax.loaders.roles import ROLES
from polarax.loaders.steps import find_steps
from polarax.loaders.writing import Draft, open_draft, rounded, write_checkpoint

__all__ = [
    "ROLES",
    "Checkpoint",
    "CheckpointError",
    "Coverage",
    "Draft",
    "Identity",
    "LeftOut",
    "Pair",
    "Paired",
    "Pairing",
    "Read",
    "RoleMap",
    "SideCoverage",
    "Skipped",
    "View",
    "Wanted",
    "find_steps",
    "identify",
    "model_name",
    "on_base",
    "open_checkpoint",
    "open_draft",
    "pair_checkpoints",
    "parse_role_map",
    "read_views",
    "rounded",
    "short_name",
    "write_checkpoint",
]
