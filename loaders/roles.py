"""What a matrix does in its model: one record for each role, from which everybody reads."""

import enum
from collections.abc import Mapping
from typing import NamedTuple

OTHER = "other"


class Place(enum.Enum):
    """Where in a model a role is."""

    OUTSIDE = "outside the layers"
    ATTENTION = "attention"
    FEED_FORWARD = "feed-forward"
    UNKNOWN = "unknown"


class Side(enum.Enum):
    """What the rows or the columns of a matrix (out, in) are."""

    RESIDUAL = "the residual stream"
    HEADS = "attention heads, each of several numbers"
    LATENT = "a latent vector between two matrices"
    UNITS = "hidden units"
    TOKENS = "tokens of the vocabulary, or classes"
    OTHER = "something else, or several of these"


class Role(NamedTuple):
    """One role.

    `divided_by_rows` is how the tracker groups square matrices: models are divided over devices by columns and by rows
    in turn (Megatron-LM, arXiv:1909.08053), and matrices of one group are divided alike.
    """

    name: str
    place: Place
    rows: Side
    columns: Side
    divided_by_rows: bool = False  # by columns otherwise
    tracked: bool = True  # in training, though nobody asks for it; false of what is large and seldom asked about


_OUTSIDE, _ATTENTION, _FEED_FORWARD = Place.OUTSIDE, Place.ATTENTION, Place.FEED_FORWARD
_RESIDUAL, _HEADS, _LATENT, _UNITS, _TOKENS, _SOME = Side

_RECORDS = (
    Role("embed", _OUTSIDE, _TOKENS, _RESIDUAL, tracked=False),  # token embedding
    Role("position", _OUTSIDE, _SOME, _RESIDUAL, tracked=False),  # learned position embedding, absolute or relative
    Role("token_type", _OUTSIDE, _SOME, _RESIDUAL, tracked=False),  # segment embedding
    Role("patch", _OUTSIDE, _RESIDUAL, _SOME, tracked=False),  # image patches into the residual stream
    Role("q", _ATTENTION, _HEADS, _RESIDUAL),  # queries
    Role("k", _ATTENTION, _HEADS, _RESIDUAL),  # keys
    Role("v", _ATTENTION, _HEADS, _RESIDUAL),  # values
    Role("qkv", _ATTENTION, _SOME, _RESIDUAL),  # queries, keys and values in one matrix that could not be split
    Role("q_a", _ATTENTION, _LATENT, _RESIDUAL),  # latent attention: down to the queries' latent vector
    Role("q_b", _ATTENTION, _HEADS, _LATENT),  # latent attention: queries from it
    Role("kv_a", _ATTENTION, _LATENT, _RESIDUAL),  # latent attention: down to the latent vector of keys and values
    Role("kv_b", _ATTENTION, _HEADS, _LATENT),  # latent attention: keys and values from it
    Role("k_b", _ATTENTION, _SOME, _LATENT),  # the two by themselves, as GGUF keeps them
    Role("v_b", _ATTENTION, _SOME, _LATENT),
    Role("o", _ATTENTION, _RESIDUAL, _HEADS, divided_by_rows=True),  # output projection
    Role("cross_q", _ATTENTION, _HEADS, _RESIDUAL),  # the same four of a decoder's attention to the encoder
    Role("cross_k", _ATTENTION, _HEADS, _RESIDUAL),
    Role("cross_v", _ATTENTION, _HEADS, _RESIDUAL),
    Role("cross_o", _ATTENTION, _RESIDUAL, _HEADS),
    Role("gate", _FEED_FORWARD, _UNITS, _RESIDUAL),  # gate of a gated unit
    Role("up", _FEED_FORWARD, _UNITS, _RESIDUAL),  # into the hidden units
    Role("gate_up", _FEED_FORWARD, _UNITS, _RESIDUAL),  # both in one matrix that could not be split
    Role("down", _FEED_FORWARD, _RESIDUAL, _UNITS, divided_by_rows=True),  # back to the residual stream
    Role("router", _FEED_FORWARD, _SOME, _RESIDUAL),  # mixture of experts: which experts take a token
    Role("shared_router", _FEED_FORWARD, _SOME, _RESIDUAL),  # how much of the shared expert a token takes
    Role("pooler", _OUTSIDE, _SOME, _RESIDUAL),  # sentence representation from the first token
    Role("head", _OUTSIDE, _TOKENS, _RESIDUAL, tracked=False),  # output head, over the vocabulary or over classes
    Role(OTHER, Place.UNKNOWN, _SOME, _SOME),
)

ROLE: Mapping[str, Role] = {role.name: role for role in _RECORDS}
"""The record of a role, by its name."""

ROLES: tuple[str, ...] = tuple(ROLE)
"""Every role that a table can give, in display order."""
