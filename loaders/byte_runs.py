"""Which byte ranges to read: a pure plan, made before anything is read.

Tensors that lie beside each other in a file are read as one run, scattered into the buffers that they are wanted in;
small gaps between them are read along and dropped, because a request, or a seek, costs more than the bytes.
"""

from collections.abc import Sequence
from typing import NamedTuple


class Extent(NamedTuple):
    """A contiguous part of a file."""

    file: str
    start: int
    stop: int


class ByteRun(NamedTuple):
    """One contiguous read."""

    file: str
    start: int
    stop: int
    parts: tuple[int, ...]  # indices of the extents in it, in the order of their bytes; they do not overlap


def plan_byte_runs(extents: Sequence[Extent], gap: int, most_bytes: int) -> tuple[ByteRun, ...]:
    """Joins neighbours into runs.

    >>> a, b, c = Extent("f", 0, 10), Extent("f", 90, 95), Extent("f", 12, 20)
    >>> for run in plan_byte_runs([a, b, c], gap=4, most_bytes=100):
    ...     print(run.start, run.stop, run.parts)
    0 20 (0, 2)
    90 95 (1,)

    Args:
        extents: What is wanted, in the order in which it is wanted. Extents may repeat or overlap;
            those that do are read by runs of their own.
        gap: Bytes between two neighbours that are read along rather than skipped.
        most_bytes: Length of a run that is not exceeded by joining; a single longer extent is still
            one run.

    Returns:
        The runs, in the order in which their first extents are wanted. Empty extents are in none.
    """
    order = sorted(
        (index for index, extent in enumerate(extents) if extent.stop > extent.start),
        key=lambda index: (extents[index], index),
    )
    runs: list[ByteRun] = []
    for index in order:
        extent = extents[index]
        last = runs[-1] if runs else None
        if (
            last is not None
            and last.file == extent.file
            and 0 <= extent.start - last.stop <= gap
            and extent.stop - last.start <= most_bytes
        ):
            runs[-1] = last._replace(stop=extent.stop, parts=(*last.parts, index))
        else:
            runs.append(ByteRun(*extent, (index,)))
    return tuple(sorted(runs, key=lambda run: min(run.parts)))
