"""Each kernel alone, every method beside every peer, at the shapes of the models, in one dtype."""

import functools

import numpy as np

from benchmarks import device, peers
from benchmarks.cases import Case, Record, raced
from benchmarks.engine import KERNELS, kernel_contestants
from benchmarks.matrices import weight_pairs
from benchmarks.options import Options
from benchmarks.shapes import CONFIGS, distinct_shapes, shrunk
from benchmarks.timing import Contestant

# Of the short form, which has no time for the others.
_SHORT_KERNELS = ("svd", "singular values", "nf")
_SHORT_PEERS = ("torch", "scipy gesdd")


def cases(options: Options) -> list[Case]:
    """Kernel by kernel, small shapes first."""
    shapes = {
        (shrunk(rows, options.shrink), shrunk(cols, options.shrink)): model
        for model in reversed(options.models)
        for rows, cols in distinct_shapes(CONFIGS[model])
    }
    names = [name for name in KERNELS if not options.short or name in _SHORT_KERNELS]
    dtypes = ("float32",) if options.short else sorted(device.dtypes())
    return [
        Case(
            f"{name}, {rows} x {cols}, {dtype}",
            functools.partial(_race, options, name, rows, cols, dtype, shapes[rows, cols]),
        )
        for rows, cols in sorted(shapes, key=np.prod)
        for name in names
        for dtype in dtypes
    ]


def _race(options, name, rows, cols, dtype, model) -> list[Record]:
    kernel = KERNELS[name]
    base, post = (stack[0] for stack in weight_pairs(rows, cols, 1, dtype=np.dtype(dtype), seed=options.seed))
    contestants = kernel_contestants(kernel, device.put(base), device.put(post), dtype=dtype, methods=options.methods)
    for library in peers.libraries(options.peers, options.threads):
        if not options.short or library.name in _SHORT_PEERS:
            contestants.append(_theirs(kernel, library, base, post))
    return raced(
        contestants,
        options,
        case=f"{name} {rows}x{cols} {dtype}",
        kernel=name,
        model=model,
        rows=rows,
        cols=cols,
        count=1,
        operations=float(kernel.operations(max(rows, cols), min(rows, cols))),
    )


def _theirs(kernel, library, base, post):
    dtype = base.dtype.name
    base, post = library.put(base), library.put(post)

    def call():
        with library.scope(base):
            kernel.theirs(library, base, post)
            library.wait()

    return Contestant(library.name, call, about={"dtype": dtype})
