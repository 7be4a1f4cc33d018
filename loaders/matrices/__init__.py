"""Matrices inside tensors: what a stored tensor's axes mean, and where each matrix lies in it."""

from polarax.loaders.matrices.inventory import Inventory, identities, take_inventory
from polarax.loaders.matrices.role_map import RoleMap, RoleMapSource, parse_role_map
from polarax.loaders.matrices.view import View, read_views

__all__ = [
    "Inventory",
    "RoleMap",
    "RoleMapSource",
    "View",
    "identities",
    "parse_role_map",
    "read_views",
    "take_inventory",
]
