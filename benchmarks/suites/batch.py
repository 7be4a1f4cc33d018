"""Many small matrices: a stack as the engine runs it, against one call for each."""

import dataclasses
import functools

import ml_dtypes
import numpy as np

from benchmarks import device
from benchmarks.cases import Case, Record, raced
from benchmarks.engine import in_lanes, nominal_operations, one_at_a_time
from benchmarks.matrices import weight_pairs
from benchmarks.options import Options
from benchmarks.shapes import shrunk
from benchmarks.suites.pairs import script_contestants

# A key or value projection of a small model.
_SHAPE = (192, 576)
_COUNTS = (1, 4, 16, 64, 256)
_SHORT_COUNTS = (1, 8, 64)


def cases(options: Options) -> list[Case]:
    """Small stacks first."""
    rows, cols = (shrunk(size, options.shrink) for size in _SHAPE)
    return [
        Case(f"{count} of {rows} x {cols}", functools.partial(_race, options, count, rows, cols))
        for count in (_SHORT_COUNTS if options.short else _COUNTS)
    ]


def _race(options, count, rows, cols) -> list[Record]:
    base, post = weight_pairs(rows, cols, count, dtype=np.dtype(ml_dtypes.bfloat16), seed=options.seed)
    dtype = device.dtypes()[0]
    contestants = [
        in_lanes("polarax stacked", base, post, dtype=dtype),
        one_at_a_time("polarax one at a time", base, post, dtype=dtype),
    ]
    # In the short form the other scripts have no time: they are loops, as the pairs suite shows.
    peers = tuple(peer for peer in options.peers if peer == "torch" or not options.short)
    contestants += script_contestants(dataclasses.replace(options, peers=peers), base, post)
    return raced(
        contestants,
        options,
        case=f"{count}x{rows}x{cols}",
        rows=rows,
        cols=cols,
        count=count,
        size=count,
        operations=nominal_operations(rows, cols, count),
    )
