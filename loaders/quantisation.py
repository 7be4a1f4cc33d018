"""Which tensors hold quantised weights that are not read: numbers that mean nothing without what is beside them.

Seen from names, dtypes and shapes alone, as the libraries write them: GPTQ and AWQ (``qweight``, ``qzeros``,
``scales``), bitsandbytes (``weight.absmax``, ``weight.quant_state.*``, ``SCB``), compressed-tensors
(``weight_packed``), MXFP4 (``*_blocks``, ``*_scales``), HQQ (``W_q``), AQLM (``codes``), Marlin (``B``), and FP8 or
integer weights whose scale is not understood; those whose scale is, `scaled_checkpoint` reads. Libraries and names are
more than anybody can list: a tensor of one byte beside anything that is called a scale or a zero point counts as well.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from polarax.loaders.checkpoint import Checkpoint
from polarax.loaders.dtypes import is_integer
from polarax.loaders.scales import find_scales, is_one_byte


class _Scheme(NamedTuple):
    """A way to store a weight in several tensors, whose names have one stem and these endings."""

    name: str
    weight: str
    companions: tuple[str, ...]  # any one of them beside the weight shows the scheme
    one_byte: bool = False  # only if the weight is of a type of one byte


_SCALED = "one byte and a scale"
# What else goes by the name of a scale; a weight that has one and no other is not read.
_SCALES = (
    *("scale", "scale_inv", "scale_weight", "weights_scaling_factor", "weight_scale_2", "weight_zero_point"),
    *("input_scale", "activation_scale"),
)
_NF4 = ("quant_state.bitsandbytes__nf4", "quant_state.bitsandbytes__fp4")
_NF4_PARTS = ("absmax", "quant_map", "nested_absmax", "nested_quant_map", *_NF4)

_SCHEMES = (
    _Scheme("GPTQ or AWQ", ".qweight", (".qzeros", ".scales", ".g_idx")),
    _Scheme(
        "compressed-tensors",
        ".weight_packed",
        (
            ".weight_scale",
            ".weight_shape",
            ".weight_zero_point",
            ".weight_g_idx",
            ".weight_global_scale",
        ),
    ),
    _Scheme("MXFP4", "_blocks", ("_scales",)),
    _Scheme("bitsandbytes 4-bit", ".weight", tuple(f".weight.{part}" for part in _NF4_PARTS)),
    _Scheme("bitsandbytes 8-bit", ".weight", (".SCB", ".weight_format")),
    _Scheme("HQQ", ".W_q", (".scale", ".zero", ".meta", ".quant_config", ".nbits", ".group_size", ".axis", ".shape")),
    _Scheme("AQLM", ".codes", (".codebooks", ".scales")),
    _Scheme("Marlin", ".B", (".s",)),
    _Scheme("EETQ", ".weight", (".weight_scales",)),
    _Scheme(_SCALED, ".weight", tuple(f".{scale}" for scale in _SCALES), one_byte=True),
    _Scheme(_SCALED, ".kernel", (".scale",), one_byte=True),
)

# The last part of a name that says: I am not a weight, but say what one means.
_SAYS_SCALE = re.compile(
    r"scale|scaling|zero_?point|^q?zeros?$|[._:]zeros?$|absmax|amax|^SCB$|_shift$|quant_(?:map|state)|codebook",
    re.IGNORECASE,
)
_WORDS = ("scal", "zero", "max", "scb", "shift", "quant_", "codebook")  # one of them is in each: quick to look for
_JOINT = re.compile(r"[.:/]")
_LARGEST_INTEGER = 4  # bytes: packed weights are in no larger ones, indices into something are

_COMPANIONS = tuple({ending for scheme in _SCHEMES for ending in scheme.companions})


def quantised(checkpoint: Checkpoint) -> Mapping[str, str]:
    """The quantised tensors of a checkpoint, weights and companions, with what each is in words.

    An 8-bit floating-point weight without a scale is not quantised: it is read as it is.
    """
    scales = find_scales(checkpoint)
    kinds, parts = dict(scales.unclear), dict(scales.parts)
    for weight, scale in scales.known.items():  # of a checkpoint that was opened without its scales
        kinds[weight] = f"{checkpoint.dtype_name(weight)} with the scale {scale.tensor}"
        parts[scale.tensor] = weight
    for name, weight in parts.items():
        kinds.setdefault(name, f"part of {weight} ({_SCALED})")
    names = dict.fromkeys(checkpoint.names())
    kinds |= {name: kind for name in names if (kind := checkpoint.undecoded(name))}
    _add_by_scheme(checkpoint, names, kinds)
    for name, beside in _weights_beside_scales(checkpoint, names, kinds):
        kinds.setdefault(name, f"{checkpoint.dtype_name(name)} with the scale {beside[0]}")
        for companion in beside:
            kinds.setdefault(companion, f"part of {name} ({_SCALED})")
    return kinds


def _add_by_scheme(checkpoint: Checkpoint, names: Mapping[str, None], kinds: dict[str, str]) -> None:
    """Adds the tensors of which a known way to store weights says what they are."""
    if not any(name.endswith(_COMPANIONS) for name in names):  # the usual case, and some 90,000 names in large models
        return
    for name in names:
        for scheme in _SCHEMES:
            if not name.endswith(scheme.weight):
                continue
            stem = name.removesuffix(scheme.weight)
            companions = [stem + ending for ending in scheme.companions if stem + ending in names]
            if not companions or (scheme.one_byte and not is_one_byte(checkpoint.dtype(name))):
                continue
            kind = scheme.name
            if scheme.one_byte:
                kind = f"{checkpoint.dtype_name(name)} with the scale {companions[0]}"
            kinds.setdefault(name, kind)
            for companion in companions:
                kinds.setdefault(companion, f"part of {name} ({scheme.name})")


def _weights_beside_scales(
    checkpoint: Checkpoint, names: Mapping[str, None], known: Mapping[str, str]
) -> Iterator[tuple[str, list[str]]]:
    """Other integers and numbers of one byte, with what is called a scale in their module or below their name."""
    scales: dict[str, list[str]] = {}
    for name in names:
        lowered = name.lower()
        if any(word in lowered for word in _WORDS) and _SAYS_SCALE.search(_last(name)):
            scales.setdefault(_module(name), []).append(name)
    if not scales:
        return
    for name in names:
        if name in known or not _may_be_packed(checkpoint, name):
            continue
        beside = scales.get(name, []) + scales.get(_module(name), [])
        if beside and name not in beside:
            yield name, _own_first(name, beside)


def _may_be_packed(checkpoint: Checkpoint, name: str) -> bool:
    """Whether a tensor's type is one that quantised weights are stored in, and its shape one that a weight can have."""
    dtype = checkpoint.dtype(name)
    if len(checkpoint.shape(name)) < 2 or dtype == np.dtype(np.bool_):
        return False
    return is_one_byte(dtype) or (is_integer(dtype) and dtype is not None and dtype.itemsize <= _LARGEST_INTEGER)


def _own_first(name: str, beside: Sequence[str]) -> list[str]:
    """The scales that begin as a weight does, if there are some; else all, which may be other weights' in part."""
    stem = name.removesuffix("_qdata")
    own = [scale for scale in beside if scale.startswith(stem)]
    return own or list(beside)


def _module(name: str) -> str:
    return name[: -len(_last(name)) - 1]


def _last(name: str) -> str:
    """The last part of a name."""
    return _JOINT.split(name)[-1]
