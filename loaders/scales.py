"""Scales of weights that are stored in one byte: which tensor holds them, and which of them each element takes.

A weight is what is stored times its scale, whatever that is called: DeepSeek's and transformers' `weight_scale_inv` is
the inverse of what the weight was multiplied by when it was made (`weight_dequant` in DeepSeek-V3's
inference/kernel.py: ``y = x * s``). So are `weight_scale` of compressed-tensors, fbgemm, ModelOpt and vLLM, Mistral's
`qscale_weight`, and Flax's `kernel_scale` (`dequantize` in flax/linen/fp8_ops.py).
"""

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from polarax.loaders.checkpoint import Checkpoint

# How the names of scales end, and what the name of the weight has in its place.
_ENDINGS = (("_scale_inv", ""), ("_scale", ""), (".qscale_weight", ".weight"))
_SCALES = tuple(ending for ending, _ in _ENDINGS)

# What says that a scale is not all there is to a weight: after its own name, and after that of its layer.
_FURTHER = ("_zero_point", "_scale_2", "_global_scale", "_g_idx", "_packed", ".absmax", ".quant_map")
_FURTHER_IN_LAYER = (
    *(".qzeros", ".g_idx", ".zero_point", ".zeros", ".scales", ".SCB", ".pre_quant_scale", ".smooth_scale"),
    *(".qscale_weight_2", ".scale_weight", ".weights_scaling_factor", ".scale", ".scale_inv"),
)

_FLOATS = frozenset(map(np.dtype, (ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2)))
_INTEGER = np.dtype(np.int8)
_SCALE_TYPES = frozenset(map(np.dtype, (np.float64, np.float32, np.float16, ml_dtypes.bfloat16)))

# Sides of square blocks, and lengths of parts of rows, that are tried where config.json says nothing: DeepSeek's first.
_BLOCK_SIDES = (128, 16, 32, 64, 256, 512)


class Scale(NamedTuple):
    """The scale of a weight: a number for each block of its elements."""

    tensor: str  # where it is stored
    axes: tuple[int, ...]  # the weight's axes that its own stand for, in their order; none if it is one number
    blocks: tuple[int, ...]  # sides of a block along the weight's axes; the last ones may be cut short

    def part(self, positions: Sequence[range]) -> tuple[slice, ...] | None:
        """What to read of the scale for the elements at some positions along the weight's axes."""
        return tuple(slice(*_bounds(positions[axis], self.blocks[axis])) for axis in self.axes) or None

    def arrange(self, array: np.ndarray) -> np.ndarray:
        """What was read, float32, with an axis for each of the weight's, of length 1 where one number is for all."""
        array = array.astype(np.float32)
        if len(self.axes) == len(self.blocks):
            return array.transpose(np.argsort(self.axes))
        shape = [1] * len(self.blocks)
        for axis in self.axes:
            shape[axis] = -1
        return array.reshape(shape)

    def lookups(self, shape: Sequence[int], positions: Sequence[range]) -> list[np.ndarray | None]:
        """For each of the weight's axes where in that array the scale of each position is; None if it has length 1."""
        return [
            None
            if block >= size
            else np.arange(along.start, along.stop, along.step) // block - _bounds(along, block)[0]
            for size, block, along in zip(shape, self.blocks, positions, strict=True)
        ]


class Scales(NamedTuple):
    """The weights of a checkpoint that have a scale beside them."""

    known: Mapping[str, Scale]  # by the weight's name: how it is to be read
    unclear: Mapping[str, str]  # the others: what they are, in words, and why they cannot be read
    parts: Mapping[str, str]  # every tensor that is part of a weight in `unclear`, with its name


def find_scales(checkpoint: Checkpoint) -> Scales:
    """The scaled weights of a checkpoint, from names, types, shapes and configuration; reads no tensor.

    A weight is known if it is of a type of one byte, float8 or int8, there is one scale for it and nothing else, and
    the shape of the scale says what each number is for: all of it, a slice along one axis, or a block of the size that
    config.json gives or, where that says nothing, of 128 x 128 or another size in use. Whole numbers are known
    with a scale for all or for each row only: with finer ones they may be two of four bits each.
    """
    known: dict[str, Scale] = {}
    unclear: dict[str, str] = {}
    parts: dict[str, str] = {}
    names = checkpoint.names()
    scales = [name for name in names if name.endswith(_SCALES)]
    if not scales:
        return Scales(known, unclear, parts)
    everything = set(names)
    further = any(name.endswith(_FURTHER + _FURTHER_IN_LAYER) for name in names)
    block_size = _BlockSize(checkpoint)
    of_weight: dict[str, list[str]] = {}
    for scale in scales:
        weight = next(scale.removesuffix(ending) + replaced for ending, replaced in _ENDINGS if scale.endswith(ending))
        if weight in everything and is_one_byte(checkpoint.dtype(weight)):
            of_weight.setdefault(weight, []).append(scale)
    for weight, beside in of_weight.items():
        if further:
            layer = weight.rpartition(".")[0]
            candidates = [weight + end for end in _FURTHER] + [layer + end for end in _FURTHER_IN_LAYER]
            beside = beside + [name for name in candidates if name in everything]
        scale_or_reason = _scale(checkpoint, weight, beside, block_size)
        if isinstance(scale_or_reason, Scale):
            known[weight] = scale_or_reason
            continue
        unclear[weight] = f"{checkpoint.dtype_name(weight)} with the scale {beside[0]}{scale_or_reason}"
        for name in beside:
            parts.setdefault(name, weight)
    return Scales(known, unclear, parts)


def is_one_byte(dtype: np.dtype | None) -> bool:
    """Whether a type has one byte or, as far as NumPy knows, does not exist."""
    return dtype is None or dtype.itemsize == 1


class _BlockSize:
    """What config.json says of blocks, read when it is first asked for."""

    def __init__(self, checkpoint: Checkpoint):
        self._checkpoint = checkpoint

    @functools.cached_property
    def sides(self) -> tuple[int, int] | None:
        return _configured(self._checkpoint.config or {})


def _configured(config: Mapping[str, Any]) -> tuple[int, int] | None:
    """The sides of the blocks, by transformers' name or by compressed-tensors'; None if it does not say one size."""
    nested = config.get("text_config")
    for settings in (config, nested if isinstance(nested, Mapping) else {}):
        quantization = settings.get("quantization_config")
        if not isinstance(quantization, Mapping):
            continue
        sizes = [quantization.get("weight_block_size")]
        groups = quantization.get("config_groups")
        for group in groups.values() if isinstance(groups, Mapping) else ():
            weights = group.get("weights") if isinstance(group, Mapping) else None
            if isinstance(weights, Mapping):
                length = weights.get("group_size")
                sizes += [weights.get("block_structure"), [1, length] if length else None]
        pairs = {tuple(size) for size in sizes if isinstance(size, list) and len(size) == 2}
        if len(pairs) == 1:
            rows, columns = pairs.pop()
            if all(type(side) is int and side > 0 for side in (rows, columns)):
                return rows, columns
    return None


def _scale(checkpoint: Checkpoint, weight: str, beside: list[str], block_size: _BlockSize) -> Scale | str:
    """The scale of a weight, or what to add to a line that says that it has one."""
    dtype, scale = checkpoint.dtype(weight), beside[0]
    if len(beside) > 1:
        return f" and with {beside[1]}"
    if dtype not in _FLOATS and dtype != _INTEGER:
        return ""
    if checkpoint.dtype(scale) not in _SCALE_TYPES:
        return f", which is of type {checkpoint.dtype_name(scale)}"
    transposed = checkpoint.is_transposed(weight)
    shape, scale_shape = checkpoint.shape(weight), checkpoint.shape(scale)
    stored = shape[::-1] if transposed else shape
    last = weight.rpartition(".")[2] == "kernel"
    layout = _layout(stored, scale_shape, last, None)
    if layout is None and dtype != _INTEGER:
        layout = _layout(stored, scale_shape, last, block_size.sides or _BLOCK_SIDES)
    if layout is None:
        sides = block_size.sides if dtype != _INTEGER else None
        words = f" in blocks of {sides}" if sides else ""
        return f", whose shape {scale_shape} does not fit {stored}{words}"
    axes, blocks = layout
    if transposed:
        axes, blocks = tuple(len(shape) - 1 - axis for axis in axes), blocks[::-1]
    return Scale(scale, axes, blocks)


@functools.lru_cache(maxsize=4096)  # very many tensors have few shapes
def _layout(
    shape: tuple[int, ...], scale: tuple[int, ...], last: bool, sides: tuple[int, ...] | None
) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
    """Axes and blocks (see `Scale`) of a scale, by its shape; None if it does not fit.

    Args:
        shape: Of the weight, as it is stored.
        scale: Shape of the scale.
        last: Whether a scale with one axis is along the weight's last one (Flax), not the first one.
        sides: None for a scale that is for all, or for a slice along axes; else the two sides of a block, or several
            lengths to try.
    """
    rank = len(shape)
    if rank < 2 or 0 in shape:
        return None
    if sides is None and math.prod(scale) == 1:
        return (), shape
    if sides is None and len(scale) == 1:
        axis = rank - 1 if last else 0
        blocks = tuple(1 if index == axis else size for index, size in enumerate(shape))
        return ((axis,), blocks) if scale[0] == shape[axis] else None
    if len(scale) != rank or any(count not in (1, size) for count, size in zip(scale[:-2], shape[:-2], strict=True)):
        return None
    leading = tuple(1 if count == size else size for count, size in zip(scale[:-2], shape[:-2], strict=True))
    (rows, columns), counts = shape[-2:], scale[-2:]
    if sides is not None and len(sides) == 2:
        tried = [sides]
    elif rank > 2 and rows == columns and (counts[0] == 1) != (counts[1] == 1):
        tried = []  # of fbgemm's experts, (experts, in, out), one scale of two has its axes in another order
    elif sides is None:
        tried = [(rows, columns), (1, columns), (rows, 1)]
    else:
        tried = [*((side, side) for side in sides), *((1, side) for side in sides)]
    fitting = next((pair for pair in tried if _counts(rows, columns, pair) == counts), None)
    return None if fitting is None else (tuple(range(rank)), (*leading, *fitting))


def _counts(rows: int, columns: int, sides: tuple[int, ...]) -> tuple[int, int]:
    """How many blocks there are in each direction."""
    return -(-rows // sides[0]), -(-columns // sides[1])


def _bounds(positions: range, block: int) -> tuple[int, int]:
    """The first block of some positions, and one past the last."""
    if not positions:
        return 0, 0
    low, high = sorted((positions[0], positions[-1]))
    return low // block, high // block + 1
