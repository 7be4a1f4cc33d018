"""What a first look takes of a matrix and its posts: operations and memory, from the shape alone."""

import math

from polarax.kernels import RANDOM_CHANGES
from polarax.kernels.leading_svd import OVERSAMPLING, iteration_operations

# Cycles of block Lanczos on weights with a bulk and spikes: of the base, whose vectors are unknown; of a post,
# which starts from them; of a change, of which one value is wanted.
_CYCLES_BASE, _CYCLES_POST, _CYCLES_CHANGE = 6, 3, 6

# Passes over the entries for sums and conversions, in operations an entry: of base and post, and of what has only one.
_PASSES = 30

# Arrays of the size of a matrix that are there at once, in float32, and blocks of columns of either side: XLA's buffer
# assignment.
_ARRAYS, _BLOCKS = 4, 12


def block_columns(m: int, n: int, top_k: int) -> int:
    """Columns that are iterated on."""
    return min(top_k + OVERSAMPLING, m, n)


def first_look_operations(m: int, n: int, *, columns: int, posts: int, draws: int = 0) -> float:
    """Floating-point operations, nominal: products with a few columns, almost all of them.

    Args:
        m: Rows.
        n: Columns.
        columns: That are iterated on.
        posts: How many there are.
        draws: Random changes of each kind that are read for each post.
    """
    drawn = len(RANDOM_CHANGES) * draws
    k = max(columns - OVERSAMPLING, 1)
    base, post, change = (
        iteration_operations(m, n, k, columns, cycles) for cycles in (_CYCLES_BASE, _CYCLES_POST, _CYCLES_CHANGE)
    )
    looks = base + posts * (post * (1 + drawn) + change)
    return looks + _PASSES * m * n * (1 + posts * (1 + drawn))


def first_look_bytes(
    m: int, n: int, *, columns: int, stored_itemsize: int, posts_bytes: int, between: bool, draws: int
) -> int:
    """Memory that a matrix takes while it is looked at, beside base and posts as they were given.

    Args:
        m: Rows.
        n: Columns.
        columns: That are iterated on.
        stored_itemsize: The largest of the stored types.
        posts_bytes: Of several posts, stacked; 0 for one.
        between: Whether posts are also related to each other.
        draws: Random changes of each kind.
    """
    wide = stored_itemsize if stored_itemsize > 4 else 0  # differences are taken in float64
    arrays = 4 * (_ARRAYS + 2 * between + 2 * (draws > 0)) + wide
    return math.ceil(arrays * m * n + 4 * _BLOCKS * (m + n) * columns + posts_bytes)
