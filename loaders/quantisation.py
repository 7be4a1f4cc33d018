"""Which tensors hold quantised weights that are not read: numbers that mean nothing without what is beside them.

Seen from names, dtypes and shapes alone, as the libraries write them: GPTQ and AWQ (``qweight``, ``qzeros``,
``scales``), bitsandbytes (``weight.absmax``, ``weight.quant_state.*``, ``SCB``), compressed-tensors
(``weight_packed``), MXFP4 (``*_blocks``, ``*_scales``), and FP8 or integer weights whose scale is not understood;
those whose scale is, `scaled_checkpoint` reads.
"""

from collections.abc import Mapping
from typing import NamedTuple

from polarax.loaders.checkpoint import Checkpoint
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
    _Scheme(_SCALED, ".weight", tuple(f".{scale}" for scale in _SCALES), one_byte=True),
    _Scheme(_SCALED, ".kernel", (".scale",), one_byte=True),
)

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
    if not any(name.endswith(_COMPANIONS) for name in names):  # the usual case, and some 90,000 names in large models
        return kinds
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
    return kinds
