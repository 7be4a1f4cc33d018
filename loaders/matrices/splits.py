"""Where the parts of a fused matrix lie in it: rows of queries, keys and values, or of gate and up."""

from collections.abc import Callable, Mapping
from typing import NamedTuple, TypeAlias

from polarax.loaders.matrices.heads import Heads


class Part(NamedTuple):
    """Rows of a fused matrix: a slice of them, or one of them seen as an array of `factors`."""

    role: str
    rows: slice | None  # where the part is one run of rows
    factors: tuple[int, ...] = ()  # otherwise: the rows as an array of this shape,
    cut: tuple[slice, ...] = ()  # and what of it belongs to the part


class Surroundings(NamedTuple):
    """What a split may depend on, other than the number of rows."""

    inputs: int  # columns of the fused matrix
    config: Mapping
    heads: Heads | None  # None if the configuration does not tell
    attention_width: int | None  # inputs of the output projection of the same layer
    hidden_units: int | None  # inputs of the feed-forward layer's second matrix
    expert_biases: bool  # experts have biases, as only those of gpt-oss have


Split: TypeAlias = Callable[[int, Surroundings], tuple[Part, ...] | None]

_QKV = ("q", "k", "v")


def _runs(roles: tuple[str, ...], sizes: tuple[int, ...]) -> tuple[Part, ...]:
    parts, start = [], 0
    for role, size in zip(roles, sizes, strict=True):
        parts.append(Part(role, slice(start, start + size)))
        start += size
    return tuple(parts)


def _equal(*roles: str) -> Split:
    def split(size: int, around: Surroundings) -> tuple[Part, ...] | None:
        rows, rest = divmod(size, len(roles))
        return None if rest or not rows else _runs(roles, (rows,) * len(roles))

    return split


def _thirds(size: int, around: Surroundings) -> tuple[Part, ...] | None:
    """Three of one size; anything else would be another layout under the same name."""
    square = size == 3 * around.inputs or (around.heads is not None and size == 3 * around.heads.width)
    return _equal(*_QKV)(size, around) if square or size == 3 else None


def _blocks(size: int, around: Surroundings) -> tuple[Part, ...] | None:
    """All queries, then all keys, then all values; of keys and values there are as many, possibly fewer heads."""
    heads = around.heads
    queries = heads.width if heads is not None else around.attention_width
    if queries is None or not 0 < queries < size or (size - queries) % 2:
        return None
    keys = (size - queries) // 2
    if keys > queries or (heads is not None and keys != heads.keys * heads.size):
        return None
    return _runs(_QKV, (queries, keys, keys))


def _heads(size: int, around: Surroundings) -> tuple[Part, ...] | None:
    """The queries, keys and values of the first head, then those of the second."""
    heads = around.heads
    if heads is None or size != 3 * heads.width or heads.keys != heads.queries:
        return None
    everything = slice(None)
    return tuple(
        Part(role, None, (heads.queries, 3, heads.size), (everything, slice(place, place + 1), everything))
        for place, role in enumerate(_QKV)
    )


def _groups(size: int, around: Surroundings) -> tuple[Part, ...] | None:
    """Heads that share keys and values: their queries, the key, the value; then the next group's."""
    heads = around.heads
    if heads is None or heads.queries % heads.keys:
        return None
    queries = heads.queries // heads.keys
    if size != heads.keys * (queries + 2) * heads.size:
        return None
    everything = slice(None)
    spans = (slice(0, queries), slice(queries, queries + 1), slice(queries + 1, queries + 2))
    return tuple(
        Part(role, None, (heads.keys, queries + 2, heads.size), (everything, span, everything))
        for role, span in zip(_QKV, spans, strict=True)
    )


def _falcon(size: int, around: Surroundings) -> tuple[Part, ...] | None:
    """One of the three orders of Falcon; BLOOM has the first one only."""
    config = around.config
    falcon = config.get("model_type") in ("falcon", "RefinedWeb", "RefinedWebModel")
    # The first 40B models were published before the setting had a name; they gave the number of key heads.
    grouped = config.get("new_decoder_architecture", config.get("model_type") == "RefinedWeb")
    if grouped:
        return _groups(size, around)
    if config.get("multi_query", falcon):
        return _blocks(size, around)
    return _heads(size, around)


def _chatglm(size: int, around: Surroundings) -> tuple[Part, ...] | None:
    """Runs of all queries, keys and values where heads share keys; else head by head."""
    groups = _setting(around, "multi_query_group_num")
    if not around.config.get("multi_query_attention"):
        return _heads(size, around)
    if around.heads is None or groups is None:
        return None
    return _blocks(size, around._replace(heads=around.heads._replace(keys=groups)))


def _internlm(size: int, around: Surroundings) -> tuple[Part, ...] | None:
    """Groups in InternLM 2; other code has other orders under the same name."""
    return _groups(size, around) if str(around.config.get("model_type", "")).startswith("internlm") else None


def _experts(size: int, around: Surroundings) -> tuple[Part, ...] | None:
    """Gate and up of an expert: one after the other, but row by row in gpt-oss."""
    if not around.expert_biases:
        return _equal("gate", "up")(size, around)
    if size % 2:
        return None
    everything = slice(None)
    return tuple(
        Part(role, None, (size // 2, 2), (everything, slice(place, place + 1)))
        for place, role in enumerate(("gate", "up"))
    )


def _up(size: int, around: Surroundings) -> tuple[Part, ...] | None:
    """Gate and up, where the matrix has twice the rows that the next one takes."""
    return _equal("gate", "up")(size, around) if around.hidden_units and size == 2 * around.hidden_units else None


def _latent(size: int, around: Surroundings) -> tuple[Part, ...] | None:
    """The second matrix of latent attention: of each head the keys that are not rotated, then the values."""
    keys, values = (_setting(around, name) for name in ("qk_nope_head_dim", "v_head_dim"))
    if keys is None or values is None or size % (keys + values):
        return None
    spans = {"k_b": slice(0, keys), "v_b": slice(keys, keys + values)}
    heads = size // (keys + values)
    if heads == 1:
        return tuple(Part(role, span) for role, span in spans.items())
    return tuple(Part(role, None, (heads, keys + values), (slice(None), span)) for role, span in spans.items())


def _latents(size: int, around: Surroundings) -> tuple[Part, ...] | None:
    """The first matrices of latent attention: the queries' latent vector, then that of keys and values."""
    queries = _setting(around, "q_lora_rank")
    return None if queries is None or queries >= size else _runs(("q_a", "kv_a"), (queries, size - queries))


def _setting(around: Surroundings, name: str) -> int | None:
    """A size in the configuration; None if there is none."""
    value = around.config.get(name)
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None


SPLITS: Mapping[str, Split] = {
    "halves": _equal("gate", "up"),
    "kv": _equal("k", "v"),
    "cross_kv": _equal("cross_k", "cross_v"),
    "thirds": _thirds,
    "blocks": _blocks,
    "heads": _heads,
    "falcon": _falcon,
    "chatglm": _chatglm,
    "internlm": _internlm,
    "experts": _experts,
    "up": _up,
    "latent": _latent,
    "latents": _latents,
}
"""From the number of rows, and what is around them, to the parts; None where these do not tell."""
