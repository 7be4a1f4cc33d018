"""What is added to a weight: a number times the product of two thin matrices, stored either way round."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from polarax.loaders.adapters.factor_names import Factors
from polarax.loaders.checkpoint import Checkpoint, Read, Wanted
from polarax.loaders.dtypes import is_floating

# Elements of a sum that are made at a time, in float64: what is made of them on the way stays in the processor's cache.
_CHUNK = 1 << 16


class Side(NamedTuple):
    """One of the two matrices of a product."""

    tensor: str
    transposed: bool  # it is the transpose of what is stored

    def wanted(self, along: slice | None, axis: int) -> Wanted:
        """What to read of it for some of its rows (axis 0) or columns (axis 1); None is all of it."""
        if along is None:
            return Wanted(self.tensor)
        return Wanted(self.tensor, (along,) if axis == int(self.transposed) else (slice(None), along))

    def arrange(self, stored: np.ndarray) -> np.ndarray:
        """The matrix, float64, from what was read."""
        return (stored.T if self.transposed else stored).astype(np.float64)


class Addition(NamedTuple):
    """What is added to a weight: scale times left times right."""

    left: Side  # (rows, rank)
    right: Side  # (rank, columns)
    scale: float
    alpha: str | None = None  # a number in a tensor that it is multiplied by too

    def wanted(self, cuts: Sequence[slice]) -> list[Wanted]:
        """What to read of its tensors for a part of the weight."""
        rows, columns = cuts
        wanted = [self.left.wanted(rows, 0), self.right.wanted(columns, 1)]
        return [*wanted, Wanted(self.alpha)] if self.alpha else wanted

    def add_to(self, weight: np.ndarray, parts: Sequence[Read], out: np.ndarray) -> None:
        """Fills `out` with the sum, rounded once.

        Args:
            weight: Part of the weight, (rows, columns), floating-point.
            parts: The reads of what `wanted` gives for that part.
            out: An array of that shape.
        """
        left, right = (side.arrange(part.result()) for side, part in zip((self.left, self.right), parts, strict=False))
        scale = self.scale * float(parts[2].result().reshape(())) if self.alpha else self.scale
        step = max(1, _CHUNK // max(1, weight.shape[1]))
        with np.errstate(over="ignore", invalid="ignore"):
            left *= scale
            for start in range(0, len(weight), step):
                rows = slice(start, start + step)
                total = left[rows] @ right
                total += weight[rows]
                out[rows] = total


def addition_of(
    factors: Factors, checkpoint: Checkpoint, weight: str, shape: Sequence[int], transposed: bool
) -> tuple[Addition, int] | str:
    """What factors add to a weight, and their rank; or why they cannot be added.

    Args:
        factors: Names of the two tensors.
        checkpoint: Holds them.
        weight: Name of the weight, for the reason.
        shape: Of the weight.
        transposed: Where the shapes leave it open: whether the weight is (in, out).
    """
    a, b = checkpoint.shape(factors.a), checkpoint.shape(factors.b)
    if len(shape) != 2 or len(a) != 2 or len(b) != 2:
        return f"LoRA factors of a weight of {len(shape)} axes: only those of matrices are added"
    for tensor in (factors.a, factors.b):
        if not is_floating(checkpoint.dtype(tensor)):
            return f"LoRA factor {tensor} is of type {checkpoint.dtype_name(tensor)}"
    makes = ""
    for flax in (factors.flax, not factors.flax):
        (rank, inputs), (outputs, rank_b) = (a[::-1], b[::-1]) if flax else (a, b)
        if rank != rank_b:
            continue
        first, second = Side(factors.a, flax), Side(factors.b, flax)  # (rank, in) and (out, rank)
        straight = Addition(second, first, 1.0, factors.alpha)
        turned = Addition(Side(first.tensor, not flax), Side(second.tensor, not flax), 1.0, factors.alpha)
        ways = [((outputs, inputs), straight), ((inputs, outputs), turned)]
        for made, addition in reversed(ways) if transposed or factors.of_embedding else ways:
            if made == tuple(shape):
                return addition, rank
            makes = makes or f"LoRA factors of another base: {weight} has shape {tuple(shape)}, they make {made}"
    return makes or f"LoRA factors that do not fit each other: {factors.a} {a}, {factors.b} {b}"
