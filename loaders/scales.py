"""Scales of weights that are stored in one byte: which tensor holds them, and which of them each element takes.

A weight is what is stored times its scale, whatever that is called: DeepSeek's and transformers' `weight_scale_inv` is
the inverse of what the weight was multiplied by when it was made (`weight_dequant` in DeepSeek-V3's
inference/kernel.py: ``y = x * s``). So are `weight_scale` of compressed-tensors, fbgemm, ModelOpt and vLLM, Mistral's
`qscale_weight`, and Flax's `kernel_scale` (`dequantize` in flax/linen/fp8_ops.py).
"""

import functools
import json
import math
from collections.abc import Container, Mapping, Sequence
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from polarax.loaders.checkpoint import Checkpoint
from polarax.loaders.scale_names import Place, further_parts, is_further_name, is_scale_name, place_of, plain_name

_FLOATS = frozenset(map(np.dtype, (ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2)))
_INTEGER = np.dtype(np.int8)
_SCALE_TYPES = frozenset(map(np.dtype, (np.float64, np.float32, np.float16, ml_dtypes.bfloat16)))

# Powers of two, as the OCP Microscaling Formats (MX) Specification has them, section 5.4.1: the byte is the exponent.
# Some libraries store them as plain bytes; those are known as such by the block of the specification alone, section
# 5.2: 32 numbers along a row.
_POWERS = np.dtype(ml_dtypes.float8_e8m0fnu)
_BYTES = np.dtype(np.uint8)
_MX_BLOCK = (1, 32)

# Sides of square blocks, and lengths of parts of rows, that are tried where config.json says nothing: DeepSeek's first.
_BLOCK_SIDES = (128, 16, 32, 64, 256, 512)


class Scale(NamedTuple):
    """The scale of a weight: a number for each block of its elements."""

    weight: str  # the tensor with the numbers of one byte
    tensor: str  # where it is stored itself
    axes: tuple[int, ...]  # the weight's axes that its own stand for, in their order; none if it is one number
    blocks: tuple[int, ...]  # sides of a block along the weight's axes; the last ones may be cut short

    def part(self, positions: Sequence[range]) -> tuple[slice, ...] | None:
        """What to read of the scale for the elements at some positions along the weight's axes."""
        return tuple(slice(*_bounds(positions[axis], self.blocks[axis])) for axis in self.axes) or None

    def arrange(self, array: np.ndarray) -> np.ndarray:
        """What was read, float32, with an axis for each of the weight's, of length 1 where one number is for all."""
        if array.dtype == _BYTES:
            array = array.view(_POWERS)
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

    known: dict[str, Scale]  # by the name that the model has for the weight: how it is to be read
    unclear: dict[str, str]  # others, by the tensor's name: what they are, in words, and why they cannot be read
    parts: dict[str, str]  # every tensor that is part of a weight in `unclear`, with its name
    renamed: dict[str, str]  # tensors without a scale that are listed under another name: that one, and their own


def find_scales(checkpoint: Checkpoint) -> Scales:
    """The scaled weights of a checkpoint, from names, types, shapes and configuration; reads no tensor.

    A weight is known if it is of a type of one byte, float8 or int8, there is one scale for it and nothing else, and
    the shape of the scale says what each number is for: all of it, a slice along one axis, or a block of the size that
    config.json gives or, where that says nothing, of 128 x 128 or another size in use. Whole numbers are known
    with a scale for all or for each row only: with finer ones they may be two of four bits each.
    """
    scales = Scales({}, {}, {}, {})
    names = checkpoint.names()
    everything = set(names)
    scales.renamed.update(_renamed(names, everything))
    named = [name for name in names if is_scale_name(name)]
    if not named:
        return scales
    further = any(is_further_name(name) for name in names)
    block_size = _BlockSize(checkpoint)
    of_weight: dict[str, list[Place]] = {}
    for scale in named:
        place = place_of(scale, lambda name: name in everything and is_one_byte(checkpoint.dtype(name)))
        if place is not None:
            of_weight.setdefault(place.weight, []).append(place)
    for weight, places in of_weight.items():
        beside = [place.scale for place in places]
        beside += [name for name in further_parts(places[0], everything) if name not in beside] if further else []
        listed = places[0].listed
        if listed != weight and listed in everything:
            scale_or_reason: Scale | str = f", and {listed} is there as well"
        else:
            scale_or_reason = _scale(checkpoint, weight, beside, block_size)
        if isinstance(scale_or_reason, Scale):
            scales.known[listed] = scale_or_reason
            continue
        scales.unclear[weight] = f"{checkpoint.dtype_name(weight)} with the scale {beside[0]}{scale_or_reason}"
        for name in beside:
            scales.parts.setdefault(name, weight)
    return scales


def _renamed(names: Sequence[str], everything: Container[str]) -> dict[str, str]:
    """The tensors that torchao's first version wrote as they are, by their own names."""
    renamed = {}
    for name in names:
        listed = plain_name(name) if name.endswith("_data") else None
        if listed is not None and listed not in everything:
            if not any(f"{listed}:{joint}scale" in everything for joint in ("", "_")):
                renamed[listed] = name
    return renamed


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
    scale_type = checkpoint.dtype(scale)
    if scale_type not in _SCALE_TYPES and scale_type not in (_POWERS, _BYTES):
        return f", which is of type {checkpoint.dtype_name(scale)}"
    if scale_type == _POWERS and weight.endswith("qdata") and not _in_rows(checkpoint, weight):
        return ", whose order is not written down"
    transposed = checkpoint.is_transposed(weight)
    shape, scale_shape = checkpoint.shape(weight), checkpoint.shape(scale)
    stored = shape[::-1] if transposed else shape
    last = weight.rpartition(".")[2] == "kernel"
    layout = None
    if scale_type in (_POWERS, _BYTES) and dtype != _INTEGER:
        layout = _layout(stored, scale_shape, last, _MX_BLOCK)
    if layout is None and scale_type == _BYTES:
        return f", which is of type {checkpoint.dtype_name(scale)}"
    if layout is None:
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
    return Scale(weight, scale, axes, blocks)


def _in_rows(checkpoint: Checkpoint, weight: str) -> bool:
    """Whether torchao's file says that the scales of a weight lie in rows, not in the tiles that tensor cores take.

    Both have as many numbers, and where the tiles fit without padding the same shape.
    """
    text = checkpoint.file_metadata.get(weight.removesuffix(":qdata"), "")
    if weight.endswith("_qdata"):
        layer, _, own = weight.removesuffix("_qdata").rpartition("._")
        text = checkpoint.file_metadata.get(f"{layer}.{own}", "")
    try:
        return json.loads(text)["_data"]["is_swizzled_scales"] is False
    except (ValueError, KeyError, TypeError, RecursionError):
        return False


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
