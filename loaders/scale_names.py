"""How libraries name a weight of one byte and its scale: from a scale's name to the weight's.

Most keep the weight's own name and add to it for the scale. Those that take a tensor of theirs apart to write it give
both parts new names: torchao (`flatten_tensor_state_dict` in torchao/prototype/safetensors/safetensors_support.py; its
first version joined names by a colon) and quanto (`QTensor.save_to_state_dict` in optimum/quanto/tensor/qtensor.py).
The weight is listed under the name that the model has for it, so that it meets the same weight in another checkpoint.
"""

import re
from collections.abc import Callable, Container
from typing import NamedTuple


class Place(NamedTuple):
    """A weight and its scale, as one library names them."""

    weight: str  # the tensor with the numbers of one byte
    scale: str
    listed: str  # the weight as the model calls it


class _Style(NamedTuple):
    scale: re.Pattern[str]  # of a scale's whole name
    weight: str  # the weight's, made of the groups of that
    listed: str


def _style(scale: str, weight: str, listed: str) -> _Style:
    return _Style(re.compile(scale, re.DOTALL), weight, listed)


# The first one counts whose weight is there. That a weight is scaled by the inverse of another scale is in the name
# only: see `scales`.
_STYLES = (
    _style(r"(.+)\._([^.:/]+)_scale", r"\1._\2_qdata", r"\1.\2"),  # torchao
    _style(r"(.+):_?scale", r"\1:qdata", r"\1"),  # its first version
    _style(r"(.+):_?scale", r"\1:_data", r"\1"),
    _style(r"(.+)\._scale", r"\1._data", r"\1"),  # quanto
    _style(r"(.+)_scale_inv", r"\1", r"\1"),
    _style(r"(.+)_scale", r"\1", r"\1"),
    _style(r"(.+)\.qscale_weight", r"\1.weight", r"\1.weight"),
)
_ENDINGS = ("_scale", ":scale", "_scale_inv", ".qscale_weight")

_PLAIN = re.compile(r"(.+):_data", re.DOTALL)

# What says that a scale is not all there is to a weight: after the name of the weight in each style, and after that of
# its layer.
_OF_WEIGHT = ("_zero_point", "_scale_2", "_global_scale", "_g_idx", "_packed", ".absmax", ".quant_map")
_OF_LAYER = (
    *(".qzeros", ".g_idx", ".zero_point", ".zeros", ".scales", ".SCB", ".pre_quant_scale", ".smooth_scale"),
    *(".qscale_weight_2", ".scale_weight", ".weights_scaling_factor", ".scale", ".scale_inv"),
)
_PARTS = ("zero_point", "per_tensor_scale", "act_pre_scale", "shift", "zeropoint")  # of torchao and quanto
_JOINTS = {
    "_qdata": ("_",),
    ":qdata": (":",),
    ":_data": (":", ":_"),
    "._data": ("._",),
}  # by the end of a weight's name
_FURTHER = (*_OF_WEIGHT, *_OF_LAYER, *(f"{joint}{part}" for joint in "_:" for part in _PARTS))


def is_scale_name(name: str) -> bool:
    """Whether a tensor is named as the scale of a weight is."""
    return name.endswith(_ENDINGS)


def place_of(scale: str, is_weight: Callable[[str], bool]) -> Place | None:
    """The weight that a scale is for; None if there is none.

    Args:
        scale: Name of a tensor.
        is_weight: Whether a name is that of a tensor which may be such a weight.
    """
    for style in _STYLES:
        match = style.scale.fullmatch(scale)
        if match is not None and is_weight(match.expand(style.weight)):
            return Place(match.expand(style.weight), scale, match.expand(style.listed))
    return None


def is_further_name(name: str) -> bool:
    """Whether a tensor may be one that says more of a weight than its scale does."""
    return name.endswith(_FURTHER)


def further_parts(place: Place, names: Container[str]) -> list[str]:
    """What else is stored of a weight, without which its numbers do not mean anything."""
    weight, layer = place.weight, place.weight.rpartition(".")[0]
    candidates = [weight + ending for ending in _OF_WEIGHT] + [layer + ending for ending in _OF_LAYER]
    for ending, joints in _JOINTS.items():
        if weight.endswith(ending):
            stem = weight.removesuffix(ending)
            candidates += [stem + joint + part for joint in joints for part in _PARTS]
    return [name for name in candidates if name in names]


def plain_name(name: str) -> str | None:
    """The model's name of a tensor that torchao's first version wrote as it is; None if it is named otherwise."""
    match = _PLAIN.fullmatch(name)
    return match[1] if match is not None else None
