"""The floor: what matrix products and memory reach on this device, by whichever library is fastest.

Products are square and large enough to be limited by arithmetic; bandwidth is STREAM's copy and
triad (McCalpin 1995) on arrays beyond the caches, bytes read and written counted once each.
"""

import functools

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from jax import lax

from benchmarks import device, peers
from benchmarks.cases import Case, Record, raced
from benchmarks.options import Options
from benchmarks.shapes import shrunk
from benchmarks.timing import Contestant

# (dtype of the operands, dtype of the result)
_PRODUCTS = (("float32", "float32"), ("float64", "float64"), ("bfloat16", "float32"))
# Elements of each array of the bandwidth test: 256 MiB in float32, beyond most last-level caches.
_STREAM_LENGTH = 2**26


def cases(options: Options) -> list[Case]:
    """Products in each dtype, then bandwidth."""
    sizes = (1024, 2048) if options.short else (2048, 4096)
    if jax.default_backend() != "cpu" and not options.short:
        sizes = (4096, 8192)
    sizes = [shrunk(size, options.shrink) for size in sizes]
    products = [
        Case(
            f"product {size}, {operand} in, {result} out",
            functools.partial(_products, options, size, operand, result),
        )
        for operand, result in _PRODUCTS
        if operand != "float64" or device.has_float64()
        for size in sizes
    ]
    return [*products, Case("copy and triad", functools.partial(_streams, options))]


def _products(options, size, operand, result) -> list[Record]:
    rng = np.random.default_rng(options.seed)
    dtype = np.dtype(ml_dtypes.bfloat16 if operand == "bfloat16" else operand)
    left, right = (rng.standard_normal((size, size)).astype(dtype) for _ in range(2))

    def product(x, y):
        return lax.dot(x, y, precision=lax.Precision.HIGHEST, preferred_element_type=result)

    contestants = [device.contestant("jax", product, (device.put(left), device.put(right)), dtype=result)]
    # In bfloat16 the libraries differ in what they accumulate and return; jax's is the one asked.
    on_host = jax.default_backend() == "cpu"
    for library in peers.libraries(options.peers, options.threads):
        if operand != "bfloat16" and library.name in ("torch", "numpy" if on_host else ""):
            contestants.append(_their_product(library, left, right))
    return raced(
        contestants,
        options,
        case=f"product {size} {operand}",
        rows=size,
        cols=size,
        operand=operand,
        operations=2.0 * size**3,
    )


def _their_product(library, left, right):
    left, right = library.put(left), library.put(right)

    def call():
        left @ right
        library.wait()

    return Contestant(library.name, call, about={"dtype": str(left.dtype).rpartition(".")[2]})


def _streams(options) -> list[Record]:
    length = shrunk(_STREAM_LENGTH // (4 if options.short else 1), options.shrink)
    rng = np.random.default_rng(options.seed)
    first = device.put(rng.random(length, np.float32))
    second = device.put(rng.random(length, np.float32))
    streams = {
        "copy": (lambda x, y: jnp.copy(x), 2),
        "triad": (lambda x, y: x + jnp.float32(3.0) * y, 3),
    }
    records = []
    for name, (function, arrays) in streams.items():
        contestants = [device.contestant("jax", function, (first, second), dtype="float32")]
        for library in peers.libraries(options.peers, options.threads):
            if library.name == "torch":
                contestants.append(_their_stream(library, name, first, second))
        records += raced(
            contestants,
            options,
            case=f"{name} of {length} float32",
            rows=length,
            cols=1,
            bytes=4 * length * arrays,
        )
    return records


def _their_stream(library, name, first, second):
    one, other = (library.put(np.array(array)) for array in (first, second))

    def call():
        one.clone() if name == "copy" else one.add(other, alpha=3.0)
        library.wait()

    return Contestant(library.name, call, about={"dtype": "float32"})
