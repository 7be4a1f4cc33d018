"""Which layer, role and expert a tensor's name means: one table per family of architectures.

A table says how a family names its tensors; adding a family is adding a table. Nothing is guessed:
a name that no table knows gets role "other", and a layer number only if it is inside the layers of
a known family, so that the blocks of a vision tower beside a language model are not taken for
decoder layers.
"""

import re
from collections.abc import Mapping
from typing import NamedTuple

OTHER = "other"

ROLES: tuple[str, ...] = (
    "embed",  # token embedding
    "position",  # learned position embedding
    "token_type",  # segment embedding
    "q",  # attention: queries
    "k",  # attention: keys
    "v",  # attention: values
    "o",  # attention: output projection
    "gate",  # feed-forward: gate of a gated unit
    "up",  # feed-forward: into the hidden units
    "down",  # feed-forward: back to the residual stream
    "router",  # mixture of experts: which experts take a token
    "pooler",  # sentence representation from the first token
    "head",  # output head over the vocabulary
    OTHER,
)
"""Every role that a table can give, in display order."""


class Identity(NamedTuple):
    """What a tensor is in its model."""

    layer: int | None  # counted from 0; None outside the layers, or if unknown
    role: str  # one of ROLES
    expert: int | None  # counted from 0; None if it is not one expert's


class Architecture(NamedTuple):
    """How a family of models names its tensors, without the ".weight" at their end."""

    name: str
    prefixes: tuple[str, ...]  # what may stand before the names below; "" if nothing may
    layers: str  # what stands before a layer's number
    in_layer: Mapping[str, str]  # name inside a layer to role; "{expert}" stands for an expert's number
    outside: Mapping[str, str]  # name outside the layers to role


_BERT = Architecture(
    name="BERT",
    prefixes=("", "bert.", "roberta.", "electra.", "model.", "auto_model.", "0.auto_model."),
    layers="encoder.layer.",
    in_layer={
        "attention.self.query": "q",
        "attention.self.key": "k",
        "attention.self.value": "v",
        "attention.output.dense": "o",
        "intermediate.dense": "up",
        "output.dense": "down",
    },
    outside={
        "embeddings.word_embeddings": "embed",
        "embeddings.position_embeddings": "position",
        "embeddings.token_type_embeddings": "token_type",
        "pooler.dense": "pooler",
        "cls.predictions.decoder": "head",
        "lm_head.decoder": "head",
    },
)

# Llama and the families that kept its names: Mistral, Qwen2, Qwen2.5, Qwen3, Gemma 1 to 3.
_LLAMA = Architecture(
    name="Llama",
    prefixes=(
        "",
        "model.",
        "language_model.",
        "language_model.model.",
        "model.language_model.",
        "model.language_model.model.",
    ),
    layers="layers.",
    in_layer={
        "self_attn.q_proj": "q",
        "self_attn.k_proj": "k",
        "self_attn.v_proj": "v",
        "self_attn.o_proj": "o",
        "mlp.gate_proj": "gate",
        "mlp.up_proj": "up",
        "mlp.down_proj": "down",
        "mlp.gate": "router",  # Qwen2 and Qwen3 mixtures of experts
        "mlp.experts.{expert}.gate_proj": "gate",
        "mlp.experts.{expert}.up_proj": "up",
        "mlp.experts.{expert}.down_proj": "down",
    },
    outside={
        "embed_tokens": "embed",
        "lm_head": "head",
    },
)

ARCHITECTURES: tuple[Architecture, ...] = (_BERT, _LLAMA)
"""The tables, in the order in which they are asked."""

# Added by tools around a model, whatever its architecture: distributed training, torch.compile,
# Flax Linen.
_WRAPPERS = ("module.", "_orig_mod.", "params.")
_LEAVES = (".weight", ".kernel", ".embedding")
_FLAX_NUMBER = re.compile(r"_([0-9]+)(?=\.|$)")  # "layers_0" where others write "layers.0"
_NUMBER = re.compile(r"([0-9]{1,6})\.")
_EXPERT = re.compile(r"(?<=\bexperts\.)([0-9]{1,6})(?=\.)")


def identify(name: str) -> Identity:
    """The layer, role and expert of a tensor, from its name alone.

    >>> identify("model.layers.3.self_attn.o_proj.weight")
    Identity(layer=3, role='o', expert=None)
    >>> identify("vision_tower.encoder.layers.3.self_attn.q_proj.weight")
    Identity(layer=None, role='other', expert=None)
    """
    name = _plain(name)
    for architecture in ARCHITECTURES:
        for prefix in architecture.prefixes:
            if name.startswith(prefix):
                identity = _identify_in(architecture, name[len(prefix) :])
                if identity is not None:
                    return identity
    return Identity(None, OTHER, None)


def _plain(name: str) -> str:
    """A name without wrappers and without ".weight", with dots between its parts."""
    name = _FLAX_NUMBER.sub(r".\1", name.replace("/", "."))
    while name.startswith(_WRAPPERS):
        name = name.partition(".")[2]
    for leaf in _LEAVES:
        if name.endswith(leaf):
            return name.removesuffix(leaf)
    return name


def _identify_in(architecture: Architecture, name: str) -> Identity | None:
    """What one architecture makes of a name without its prefix; None if it is none of its own."""
    if name in architecture.outside:
        return Identity(None, architecture.outside[name], None)
    if not name.startswith(architecture.layers):
        return None
    number = _NUMBER.match(name, len(architecture.layers))
    if number is None:
        return None
    inside = name[number.end() :]
    expert = _EXPERT.search(inside)
    if expert is not None:
        inside = _EXPERT.sub("{expert}", inside, count=1)
    role = architecture.in_layer.get(inside, OTHER)
    return Identity(int(number[1]), role, int(expert[1]) if expert else None)
