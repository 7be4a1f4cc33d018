"""Which contiguous run of a stored array a NumPy index needs: a pure plan, made before reading."""

import math
from typing import Any, NamedTuple, TypeAlias

Index: TypeAlias = slice | tuple[slice, ...] | None
"""What a read accepts: everything (None), a slice of the first axis, or slices of leading axes."""


class ElementRun(NamedTuple):
    """A contiguous run of elements of an array in C order, and how to cut the wanted part out."""

    start: int  # first element of the run
    stop: int  # one past its last element
    shape: tuple[int, ...]  # shape of the run as an array of its own
    cut: tuple[slice, ...]  # the wanted part of that array


def axis_slices(shape: tuple[int, ...], index: Index) -> tuple[slice, ...]:
    """One slice per axis of `shape`, completing `index` as NumPy would.

    Raises:
        TypeError: If `index` holds anything but slices.
        IndexError: If it has more slices than the array has axes.
    """
    given: tuple[Any, ...]
    given = () if index is None else index if isinstance(index, tuple) else (index,)
    for item in given:
        if not isinstance(item, slice):
            raise TypeError(f"index must hold slices only. Got {item!r} in {index!r}")
    if len(given) > len(shape):
        raise IndexError(f"index has {len(given)} slices, the array of shape {shape} {len(shape)} axes")
    return given + (slice(None),) * (len(shape) - len(given))


def plan_run(shape: tuple[int, ...], index: Index) -> ElementRun:
    """The shortest run of whole sub-arrays of an array in C order that holds `array[index]`.

    Leading axes from which one position is wanted narrow the run; the first axis from which several
    are wanted bounds it, from its first wanted position to its last. Positions that a step jumps
    over inside those bounds belong to the run.

    >>> run = plan_run((10, 4), slice(2, 5))
    >>> run.start, run.stop, run.shape
    (8, 20, (3, 4))

    Raises:
        TypeError: If `index` holds anything but slices.
        IndexError: If it has more slices than the array has axes.
    """
    wanted = [range(*item.indices(size)) for item, size in zip(axis_slices(shape, index), shape, strict=True)]
    if not all(wanted):
        return ElementRun(0, 0, tuple(map(len, wanted)), (slice(None),) * len(shape))

    start, count = 0, math.prod(shape)
    run_shape: list[int] = []
    run_cut: list[slice] = []
    bounded = False
    for axis, positions in enumerate(wanted):
        if bounded:
            low, high = 0, shape[axis]
            run_cut.append(_as_slice(positions))
        else:
            low, high = min(positions[0], positions[-1]), max(positions[0], positions[-1]) + 1
            stride = math.prod(shape[axis + 1 :])
            start, count = start + low * stride, (high - low) * stride
            bounded = len(positions) > 1
            run_cut.append(slice(None, None, positions.step))
        run_shape.append(high - low)
    return ElementRun(start, start + count, tuple(run_shape), tuple(run_cut))


def _as_slice(positions: range) -> slice:
    """The slice that picks `positions` (not empty), whichever way they run."""
    stop = positions[-1] + (1 if positions.step > 0 else -1)
    return slice(positions[0], stop if stop >= 0 else None, positions.step)
