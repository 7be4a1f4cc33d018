"""Which stored tensor fills which parameter of a decoder: matrices by their roles, norms and biases by their names."""

import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from polarax.errors import UsageError
from polarax.loaders import Checkpoint, Read, View
from polarax.loaders.architectures import plain
from polarax.loaders.checkpoint import INTERLEAVED
from polarax.loaders.dtypes import is_floating
from polarax.loaders.matrices import take_inventory
from polarax.loaders.matrices.heads import language_model
from polarax.loaders.matrices.optimizer_state import OPTIMIZER

EMBEDDING, HEAD, LAST_NORM = "embed_tokens.embedding", "lm_head.kernel", "norm.scale"
MATRICES = {
    "q": "self_attn.q_proj",
    "k": "self_attn.k_proj",
    "v": "self_attn.v_proj",
    "o": "self_attn.o_proj",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "down": "mlp.down_proj",
}
"""The module of a role in a layer."""

# Norms of a layer, as transformers and the decoder's own tree call them, llama.cpp, Meta, and Gemma's own code.
_NORMS = {
    "input_layernorm": ("input_layernorm", "attn_norm", "attention_norm", "pre_attention_norm"),
    "post_attention_layernorm": ("post_attention_layernorm", "post_attention_norm"),
    "pre_feedforward_layernorm": ("pre_feedforward_layernorm", "pre_ffw_norm"),
    "post_feedforward_layernorm": ("post_feedforward_layernorm", "post_ffw_norm"),
    "self_attn.q_norm": ("self_attn.q_norm", "attn_q_norm", "attention.q_norm", "attn._query_norm", "attn.query_norm"),
    "self_attn.k_norm": ("self_attn.k_norm", "attn_k_norm", "attention.k_norm", "attn._key_norm", "attn.key_norm"),
}
_NORM_OF = {name: norm for norm, names in _NORMS.items() for name in names}
_AFTER_FEED_FORWARD = "post_feedforward_layernorm"
_BEFORE_FEED_FORWARD = "ffn_norm"  # of llama.cpp and Meta, whether or not outputs are normalised too
_LAST_NORMS = ("norm", "output_norm", "final_norm", "model.norm", "transformer.norm", "language_model.model.norm")
_IN_LAYER = re.compile(r"^((?:.*?\.)?(?:layers?|blk|blocks?)\.)(?:([0-9]+)\.)?(.+)$")
_OF_NO_PARAMETER = re.compile(r"(?:inv_freq|rope_freqs|rope\.freqs)(?:\.weight)?$")  # saved with the parameters
_BIAS, _SCALE = ".bias", ".scale"


class Filler(NamedTuple):
    """What fills one parameter, or one layer of it."""

    tensor: str
    view: View | None = None  # of a matrix; None for a vector
    slices: tuple[slice, ...] | None = None  # of a vector of one layer, in a tensor of all

    def read(self, checkpoint: Checkpoint) -> Read:
        """Starts to read it: a matrix as (in, out), an embedding as (tokens, hidden)."""
        if self.view is None:
            return checkpoint.read(self.tensor, self.slices).then(np.ravel)
        read = self.view.read(checkpoint)
        return read if self.view.role == "embed" else read.then(np.transpose)


class Stored(NamedTuple):
    """The tensors of a checkpoint by the decoder's parameters, dotted, without "layers."."""

    settings: Mapping[str, Any]  # config.json of the language model
    outside: Mapping[str, Filler]
    in_layer: Mapping[str, Mapping[int, Filler]]
    left_over: tuple[str, ...]  # tensors of the layers that no parameter takes


def list_stored(checkpoint: Checkpoint, config: Mapping[str, Any] | None = None) -> Stored:
    """Finds the parameters of a decoder in a checkpoint, from names and shapes.

    Args:
        checkpoint: Whose tensors to look at.
        config: Stands in where it has no configuration of its own.

    Raises:
        UsageError: The rows of queries or keys are in an order that cannot be undone.
    """
    inventory = take_inventory(checkpoint, config=config)
    outside: dict[str, Filler] = {}
    in_layer: dict[str, dict[int, Filler]] = {}
    left_over: list[str] = []
    modules: dict[str, list[View]] = {}  # the matrices of a module, by its name
    names = [name for name in checkpoint.names() if inventory.reasons.get(name) != OPTIMIZER]
    for name in names:
        views = inventory.views.get(name, ())
        for parameter, layer, view in _matrices(views):
            if view.row_order == INTERLEAVED:
                raise UsageError(f"{checkpoint.location}: the rows of {name} are in another order than can be used.")
            modules.setdefault(plain(name), []).append(view)
            if layer is None:
                outside.setdefault(parameter, Filler(name, view))
            else:
                in_layer.setdefault(parameter, {})[layer] = Filler(name, view)
    # Layers elsewhere are those of a tower for images or sound.
    homes = {place.home for place in map(_place, modules) if place is not None}
    normed = any(_NORM_OF.get(place.tail) == _AFTER_FEED_FORWARD for place in map(_place, names) if place is not None)
    for name in names:
        place = _place(name)
        if plain(name) in modules or not is_floating(checkpoint.dtype(name)):
            continue
        if place is not None and place.home not in homes:
            continue
        module = plain(name).removesuffix(_SCALE).removesuffix(_BIAS)
        layer, tail = (place.layer, place.tail) if place is not None else (None, "")
        norm = _NORM_OF.get(tail)
        if tail == _BEFORE_FEED_FORWARD:
            norm = "pre_feedforward_layernorm" if normed else "post_attention_layernorm"
        if norm is not None:
            fillers = in_layer.setdefault(f"{norm}{_SCALE}", {})
            fillers.update(_vectors(name, layer, checkpoint.shape(name)))
        elif module in modules and plain(name).endswith(_BIAS):
            matrices = modules[module]
            roles = {view.role for view in matrices}
            reordered = checkpoint.format == "GGUF" and roles & {"q", "k"} and _reorders(checkpoint)
            if len(roles) != 1 or reordered or matrices[0].layer is None or matrices[0].factors is not None:
                left_over.append(name)
            else:
                fillers = in_layer.setdefault(f"{MATRICES[matrices[0].role]}{_BIAS}", {})
                fillers.update(_vectors(name, layer, checkpoint.shape(name)))
        elif module in _LAST_NORMS or module.endswith(".language_model.norm"):
            outside[LAST_NORM] = Filler(name)
        elif tail and not _OF_NO_PARAMETER.search(name):
            left_over.append(name)
    settings = language_model(checkpoint.config or config)
    return Stored(settings, outside, in_layer, tuple(left_over))


def _matrices(views: tuple[View, ...]) -> Iterator[tuple[str, int | None, View]]:
    """Parameter, layer and view of the matrices that a decoder has."""
    for view in views:
        if view.layer is None and view.role in ("embed", "head"):
            yield {"embed": EMBEDDING, "head": HEAD}[view.role], None, view
        elif view.layer is not None and view.role in MATRICES and view.expert is None:
            yield f"{MATRICES[view.role]}.kernel", view.layer, view


class _Place(NamedTuple):
    """Where a name says that a tensor is, inside the layers."""

    home: str  # what stands before the layer's number
    layer: int | None  # None of a tensor of all layers
    tail: str  # behind it, without the leaf


def _place(name: str) -> _Place | None:
    match = _IN_LAYER.search(plain(name).removesuffix(_SCALE))
    return None if match is None else _Place(match[1], int(match[2]) if match[2] else None, match[3])


def _vectors(name: str, layer: int | None, shape: tuple[int, ...]) -> Mapping[int, Filler]:
    """The vectors of a tensor by layer: its own, or one for each layer in a tensor of all."""
    if layer is not None:
        return {layer: Filler(name)}
    return {number: Filler(name, slices=(slice(number, number + 1),)) for number in range(shape[0])}


def _reorders(checkpoint: Checkpoint) -> bool:
    """Whether llama.cpp's converter reordered queries and keys: their biases too, which are read as stored."""
    return (checkpoint.config or {}).get("model_type") == "llama"
