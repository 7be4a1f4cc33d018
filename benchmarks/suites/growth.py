"""How time grows with the size n of square matrices."""

import dataclasses
import functools

import numpy as np

from benchmarks import device
from benchmarks.cases import Case, Record, raced
from benchmarks.engine import KERNELS, nominal_operations, pair_analysis
from benchmarks.matrices import weight_pairs
from benchmarks.options import Options
from benchmarks.shapes import shrunk
from benchmarks.suites.pairs import script_contestants

_SIZES = (256, 512, 1024, 2048, 4096)
_SHORT_SIZES = (128, 256, 512)


def cases(options: Options) -> list[Case]:
    """Small sizes first; the kernels and the whole analysis apart, as their times differ."""
    sizes = [shrunk(size, options.shrink) for size in (_SHORT_SIZES if options.short else _SIZES)]
    sizes = sorted(set(sizes))
    return [
        Case(f"{what}, n = {size}", functools.partial(race, options, size))
        for size in sizes
        for what, race in (("kernels", _kernels), ("pair analysis", _pairs))
    ]


def _weights(options, size):
    return weight_pairs(size, size, 1, dtype=np.dtype(np.float32), seed=options.seed)


def _kernels(options, size) -> list[Record]:
    base, post = (device.put(stack[0]) for stack in _weights(options, size))
    records = []
    for name in ("svd", "singular values", "nf"):
        kernel = KERNELS[name]
        contestant = device.contestant(
            f"polarax {name}",
            lambda base, post, kernel=kernel: kernel.ours(base, post, "auto"),
            (base, post),
            dtype="float32",
            method="auto",
        )
        records += raced(
            [contestant],
            options,
            case=f"{name} n={size}",
            rows=size,
            cols=size,
            count=1,
            size=size,
            operations=float(kernel.operations(size, size)),
        )
    return records


def _pairs(options, size) -> list[Record]:
    base, post = _weights(options, size)
    ours = device.put(base), device.put(post)
    contestants = [pair_analysis("polarax pair", *ours, dtype=device.dtypes()[0])]
    torch = tuple(peer for peer in options.peers if peer == "torch")
    contestants += [
        contestant._replace(name=f"{contestant.name} pair")
        for contestant in script_contestants(dataclasses.replace(options, peers=torch), base, post)
    ]
    return raced(
        contestants,
        options,
        case=f"pair n={size}",
        rows=size,
        cols=size,
        count=1,
        size=size,
        operations=nominal_operations(size, size),
    )
