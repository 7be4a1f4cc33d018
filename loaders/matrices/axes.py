"""From the words of a rule ("E i o") and a tensor's shape to the matrices in it."""

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from polarax.loaders.matrices.splits import Part
from polarax.loaders.matrices.view import View

_STACKED = {"L": "layer", "E": "expert", "1": ""}  # axes of which a matrix is at one position
_OUTPUTS = "op"


class Meaning(NamedTuple):
    """What the axes of a tensor are, one word each: see `polarax.loaders.architectures.Rule`."""

    axes: tuple[str, ...]

    @classmethod
    def parse(cls, text: str) -> "Meaning":
        """Reads "o i"."""
        return cls(tuple(text.split()))

    def fits(self, shape: Sequence[int]) -> bool:
        """Whether a tensor of this shape can have these axes."""
        return len(shape) == len(self.axes) and all(
            size == 1 for size, axis in zip(shape, self.axes, strict=True) if axis == "1"
        )

    def outputs(self, shape: Sequence[int]) -> int:
        """Rows of each matrix, of all parts together."""
        return math.prod(size for size, axis in zip(shape, self.axes, strict=True) if axis in _OUTPUTS)

    def inputs(self, shape: Sequence[int]) -> int:
        """Columns of each matrix."""
        return math.prod(size for size, axis in zip(shape, self.axes, strict=True) if axis == "i")

    def stacked(self, place: int = 0) -> "Meaning":
        """The same with an axis of layers at `place`."""
        return Meaning((*self.axes[:place], "L", *self.axes[place:]))

    def is_matrix(self) -> bool:
        """Whether there are both outputs and inputs."""
        return "i" in self.axes and not set(_OUTPUTS).isdisjoint(self.axes)


def matrices(
    tensor: str,
    shape: Sequence[int],
    meaning: Meaning,
    role: str,
    parts: Sequence[Part] | None,
    layer: int | None,
    expert: int | None,
    first_layer: int = 0,
    layer_step: int = 1,
) -> Iterator[View]:
    """Every matrix of a tensor.

    Args:
        tensor: Its name.
        shape: Its shape, which must fit.
        meaning: What its axes are.
        role: Of the whole, where it has no parts.
        parts: Of the axis "p"; None leaves it whole.
        layer: Where the name tells; an axis "L" does otherwise.
        expert: The same, for an axis "E".
        first_layer: Number of the first layer of an axis "L".
        layer_step: From each layer of it to the next.
    """
    stacks = [range(size) if axis in _STACKED else (None,) for size, axis in zip(shape, meaning.axes, strict=True)]
    for positions in itertools.product(*stacks):
        numbers = {"layer": layer, "expert": expert}
        label = ""
        for axis, position in zip(meaning.axes, positions, strict=True):
            if position is not None and _STACKED[axis]:
                number = first_layer + layer_step * position if axis == "L" else position
                numbers[_STACKED[axis]] = number
                label += f"[{_STACKED[axis]}={number}]"
        base = [slice(None) if position is None else slice(position, position + 1) for position in positions]
        for part in parts or (None,):
            view = _view(tensor, shape, meaning, base, part)
            part_label, part_role = (f"[{part.role}]", part.role) if part is not None else ("", role)
            yield view._replace(
                label=label + part_label, role=part_role, layer=numbers["layer"], expert=numbers["expert"]
            )


def _view(tensor: str, shape: Sequence[int], meaning: Meaning, base: list[slice], part: Part | None) -> View:
    """One matrix: at the positions of `base`, and of the axis "p" the rows of one part."""
    index = list(base)
    factors: list[int] = []
    cut: list[slice] = []
    outputs: list[int] = []
    inputs: list[int] = []
    alone: list[int] = []
    rows = 1
    for place, (size, axis) in enumerate(zip(shape, meaning.axes, strict=True)):
        target = inputs if axis == "i" else outputs if axis in _OUTPUTS else alone
        sizes: tuple[int, ...] = (1,) if axis in _STACKED else (size,)
        cuts: tuple[slice, ...] = (slice(None),)
        if axis == "p" and part is not None:
            if part.rows is not None:
                index[place] = part.rows
                sizes = (part.rows.stop - part.rows.start,)
            else:
                sizes, cuts = part.factors, part.cut
        target += range(len(factors), len(factors) + len(sizes))
        factors += sizes
        cut += cuts
        if axis in _OUTPUTS:
            rows *= math.prod(len(range(*c.indices(s))) for s, c in zip(sizes, cuts, strict=True))
    order = (*alone, *outputs, *inputs)
    columns = meaning.inputs(shape)
    read = tuple(slice(0, size).indices(size) != item.indices(size) for size, item in zip(shape, index, strict=True))
    factored = len(factors) != len(shape)
    return View(
        tensor,
        (rows, columns),
        slices=tuple(index) if any(read) else None,
        factors=tuple(factors) if factored else None,
        cut=tuple(cut) if factored else None,
        order=order if order != tuple(range(len(order))) else None,
    )
