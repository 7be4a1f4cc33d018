"""A matrix inside a stored tensor: what to read of it, and how to turn that into (out, in)."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from polarax.loaders.checkpoint import Checkpoint, Read


class View(NamedTuple):
    """One matrix of a tensor; the tensor itself, where it is one.

    `slices` is what is read; `arrange` makes the matrix of it: reshaped to `factors`, cut by `cut`, its axes put in
    `order`, flattened to `shape`.
    """

    tensor: str
    shape: tuple[int, int]  # (out, in)
    label: str = ""  # which part of the tensor, such as "[layer=2][q]"
    layer: int | None = None
    role: str = "other"
    expert: int | None = None
    slices: tuple[slice, ...] | None = None  # part of the tensor that is read; None is all of it
    factors: tuple[int, ...] | None = None  # shape of that, its axes factored; None leaves it as it is
    cut: tuple[slice, ...] | None = None  # part of the factored array; None is all of it
    order: tuple[int, ...] | None = None  # its axes, outputs before inputs; None leaves them
    rows: int | None = None  # only the first rows of the matrix; None is all of them
    row_order: str = (
        ""  # `INTERLEAVED` of queries and keys left in that order; "" is Hugging Face's, or there is but one
    )

    @property
    def name(self) -> str:
        """Of the matrix: the tensor's name and which part of it this is."""
        return self.tensor + self.label

    @property
    def is_plain(self) -> bool:
        """Whether the matrix is what is read, as it is."""
        return self.factors is None and self.cut is None and self.order is None

    def read_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Shape of what is read of the tensor, whose own is given: a matrix of a stack keeps the stack's axis."""
        cuts = self.slices or ()
        return (*(len(range(*cut.indices(size))) for cut, size in zip(cuts, shape, strict=False)), *shape[len(cuts) :])

    def read(self, checkpoint: Checkpoint) -> Read:
        """Starts to read the matrix: (out, in), in the stored dtype.

        Raises:
            CheckpointError: If the tensor is not there or has no dtype that can be read.
        """
        return checkpoint.read(self.tensor, self.slices).then(self.arrange)

    def arrange(self, array: np.ndarray) -> np.ndarray:
        """The matrix, from the part of the tensor that `slices` selects; a view of it where NumPy can."""
        if self.factors is not None:
            array = array.reshape(self.factors)
        if self.cut is not None:
            array = array[self.cut]
        if self.order is not None:
            array = array.transpose(self.order)
        whole = (math.prod(array.shape) // max(self.shape[1], 1), self.shape[1])
        return array.reshape(whole)[: self.rows]

    def place(self, matrix: np.ndarray, array: np.ndarray) -> None:
        """Puts the matrix back: the inverse of `arrange`.

        Args:
            matrix: (out, in), of the array's dtype.
            array: The part of the tensor that `slices` selects; where the matrix lies in it, it is changed.

        Raises:
            ValueError: If the view is of the first rows of a matrix alone, or a shape does not fit.
        """
        if self.rows is not None:
            raise ValueError(f"{self.name}: only a whole matrix can be put back")
        whole = np.ascontiguousarray(array)
        part = whole if self.factors is None else whole.reshape(self.factors)
        if self.cut is not None:
            part = part[self.cut]
        if self.order is not None:
            part = part.transpose(self.order)
        part[...] = matrix.reshape(part.shape)
        if whole is not array:
            array[...] = whole

    def first_rows(self, rows: int) -> "View":
        """The first rows of the matrix, of which only those are read where they lie together."""
        narrowed = self._replace(shape=(rows, self.shape[1]), label=f"{self.label}[rows={rows}]", rows=rows)
        if self.slices is None and self.is_plain:
            return narrowed._replace(slices=(slice(0, rows),))
        return narrowed


def read_views(views: Sequence[View], checkpoint: Checkpoint) -> list[Read]:
    """Starts to read several matrices; a tensor all of which several of them need is read once.

    Queries, keys and values that alternate head by head lie all over their tensor.

    Raises:
        CheckpointError: As `View.read`.
    """
    whole: dict[str, Read] = {}
    reads = []
    for view in views:
        if view.slices is not None:
            reads.append(view.read(checkpoint))
            continue
        if view.tensor not in whole:
            whole[view.tensor] = checkpoint.read(view.tensor)
        reads.append(whole[view.tensor].then(view.arrange))
    return reads
