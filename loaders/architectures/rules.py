"""How a table says what a tensor is: rules for one tensor, names of a family of architectures."""

import re
from collections.abc import Mapping
from typing import NamedTuple, TypeAlias


class Identity(NamedTuple):
    """What a tensor is in its model."""

    layer: int | None  # counted from 0; None outside the layers, or if unknown
    role: str  # one of ROLES
    expert: int | None  # counted from 0; None if it is not one expert's


class Rule(NamedTuple):
    """What one tensor is, and what its axes are.

    `axes` has a word for each axis of the tensor as a `Checkpoint` shows it: "o" output, "i" input, "L" layers,
    "E" experts, "p" outputs of several matrices that `split` tells apart, "1" an axis of length one. Alternatives
    stand apart by "|", and the size of the residual stream decides between them.
    """

    role: str  # of the whole where it is not split
    axes: str = "o i"
    split: str = ""  # one of `polarax.loaders.matrices.splits.SPLITS`
    turn: tuple[int, int] = (0, 1)  # (1, 2): the second of two layers that share a number
    interleaved: bool = False  # queries or keys whose rows are in Meta's order, not in Hugging Face's


Table: TypeAlias = Mapping[str, str | Rule]
"""Names of tensors, without ".weight" at their end, to a rule; a role alone is a rule for (out, in)."""


class Architecture:
    """How a family of models names its tensors.

    Attributes:
        name: Of the family, for messages.
        prefixes: What the family itself has before the names below; "" for nothing. Where no table has a rule for a
            name after one of these, they are looked for after any prefix.
        layers: What may stand before a layer's number.
        in_layer: Name inside a layer to rule; "{expert}" stands for an expert's number.
        outside: Name outside the layers to rule.
        copies: Name to the name outside the layers whose values it always has.
        tied: The head is the embedding, unless config.json says that it is not.
        model_types: Where config.json says one of these, this table is asked first.
        layer_axis: Where the layers' axis is in a tensor that holds all layers.
        follows: One of `layers` to another, from whose last layer it counts on.
        anywhere: False where the names have a meaning only after one of `prefixes`.
        blocks: Those of `layers` whose number is a place in a block of layers that repeats; the tensor holds the layers
            at that place in all blocks.
    """

    def __init__(
        self,
        name: str,
        *,
        prefixes: tuple[str, ...],
        layers: tuple[str, ...],
        in_layer: Table,
        outside: Table,
        copies: Mapping[str, str] | None = None,
        tied: bool = False,
        model_types: tuple[str, ...] = (),
        layer_axis: int = 0,
        follows: Mapping[str, str] | None = None,
        blocks: tuple[str, ...] = (),
        anywhere: bool = True,
    ):
        self.name = name
        self.prefixes = prefixes
        self.layers = tuple(normal(prefix) for prefix in layers)
        self.in_layer = _rules(in_layer)
        self.outside = _rules(outside)
        self.copies = dict(copies or {})
        self.tied = tied
        self.model_types = model_types
        self.layer_axis = layer_axis
        self.follows = dict(follows or {})
        self.blocks = blocks
        self.anywhere = anywhere


def _rules(table: Table) -> dict[str, Rule]:
    return {normal(name): Rule(rule) if isinstance(rule, str) else rule for name, rule in table.items()}


# Added by tools around a module, whatever its architecture, and so anywhere in a name: torch.compile, FSDP of PyTorch
# and of fairscale, activation checkpointing, Lightning, DistributedDataParallel, DeepSpeed, Opacus, PEFT, Flax Linen.
# PEFT keeps a module that is trained in full twice. `modules_to_save` holds the trained one; `original_module`, which
# is as before, is no wrapper word, so that it does not take the other one's place.
_WRAPPERS = (
    "_orig_mod",
    "_orig_module",
    "_fsdp_wrapped_module",
    "_fpw_module",
    "_checkpoint_wrapped_module",
    "_forward_module",
    "_module",
    "module",
    "base_layer",
    r"modules_to_save\.[^.]+",
    r"base_model\.model",
    "params",
)
_WRAPPED = re.compile(rf"(?:(?<=\.)|^)(?:(?:{'|'.join(_WRAPPERS)})\.)+")
_STATES = ("state.", "train_state.")  # of training, of which the parameters are a part: in front alone
_LEAVES = (".weight", ".kernel", ".embedding")
_FLAX_NUMBER = re.compile(r"_([0-9]+)(?=\.|$)")  # "layers_0" where others write "layers.0"

# Flax NNX keeps an array in a variable, whose only field this is; attention has values of its own.
_VARIABLE = ".value"
_VALUES = re.compile(r"(?:attn|attention|self|mha)[^.]*(?:\.[0-9]+)?\.value$", re.IGNORECASE)


def normal(name: str) -> str:
    """A name with dots between its parts and before its numbers."""
    return _FLAX_NUMBER.sub(r".\1", name.replace("/", "."))


def without_variable(name: str) -> str:
    """A name without the field ".value" in which Flax NNX keeps an array.

    >>> without_variable("layers.attn.q_einsum.w.value")
    'layers.attn.q_einsum.w'
    >>> without_variable("encoder.layer.0.attention.self.value")
    'encoder.layer.0.attention.self.value'
    """
    if name.endswith(_VARIABLE) and not _VALUES.search(name):
        return name.removesuffix(_VARIABLE)
    return name


def without_wrappers(name: str) -> str:
    """A name in its normal form, without what tools around a model put into it, wherever that is.

    >>> without_wrappers("_orig_mod.model.layers.3._checkpoint_wrapped_module.mlp.up_proj.base_layer.weight")
    'model.layers.3.mlp.up_proj.weight'
    """
    name = without_variable(normal(name))
    while True:
        name = _WRAPPED.sub("", name)
        if not name.startswith(_STATES):
            return name
        name = name.partition(".")[2]


def plain(name: str) -> str:
    """A name in its normal form, without wrappers and without ".weight" or its like.

    >>> plain("params/layers_3/mlp/kernel")
    'layers.3.mlp'
    """
    name = without_wrappers(name)
    for leaf in _LEAVES:
        if name.endswith(leaf):
            return name.removesuffix(leaf)
    return name
