"""What pairing gives: pairs of matrices, and what is not compared with the reason why."""

import re
import sys
from typing import NamedTuple

import numpy as np

from polarax.loaders.matrices import View

_DIGITS = re.compile(r"[0-9]+")


class Pair(NamedTuple):
    """A matrix that both checkpoints have."""

    name: str  # the base's name of it: its tensor's, and in brackets which part of that it is
    layer: int | None
    role: str  # one of ROLES
    expert: int | None
    shape: tuple[int, ...]  # (out, in)
    dtype_base: np.dtype  # as it is read
    dtype_post: np.dtype
    name_post: str  # the post's name of it
    base: View  # where it is in the base, and how to read it
    post: View
    stored_base: str  # dtype in the store, in words: "bfloat16"; "Q4_1", "float8_e4m3fn, scaled" where it is decoded
    stored_post: str
    bytes_base: int  # in the store
    bytes_post: int
    matched_by: str = "name"  # how the two were found to belong together: one of MATCHED_BY


class Skipped(NamedTuple):
    """A tensor, or a matrix in one, that is not compared."""

    name: str  # the base's name of it, where the base has it
    reason: str


NAME, SPELLING, PREFIX, ALIAS, ROLE = MATCHED_BY = ("name", "spelling", "prefix", "alias", "role")
"""How a pair was found, the surest way first.

- name: the two names are equal;
- spelling: without wrapper words ("_orig_mod.", "base_layer.") and leaves (".weight", ".kernel") they are;
- prefix: they end alike, and so do the names around them;
- alias: the file's metadata say that the name stands for another tensor of the file, or it is a head where the other
  side's head is its embedding;
- role: they have the same layer, role and expert, as the parts of fused and stacked tensors do.
"""


def natural(name: str) -> str:
    """Sort key that puts numbers in a name in numerical order."""
    return _DIGITS.sub(_in_order, name)


def _in_order(digits: re.Match[str]) -> str:
    """A number as text that sorts by its size, before all letters: shorter ones first."""
    significant = digits[0].lstrip("0")
    return chr(min(len(significant), sys.maxunicode)) + significant
