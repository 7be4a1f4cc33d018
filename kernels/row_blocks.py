"""Reductions over the rows of stored matrices, block by block on CPU.

Before a reduction or a product starts, XLA on CPU writes out its whole operand: float64 or float32 copies of matrices
that are stored in bfloat16, in fresh pages each time. A block's copies are small and stay in the caches.
"""

from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp
from jax import lax

Sums = TypeVar("Sums")

# Rows of a block, or a share of the columns, whichever is more: each block adds to a result of the columns squared.
_BLOCK_ROWS, _BLOCK_SHARE = 512, 4


def reduce_row_blocks(
    function: Callable[..., Sums],
    *stacks: jax.Array,
    combine: Callable[[jax.Array, jax.Array], jax.Array] = jnp.add,
) -> Sums:
    """function(*stacks), from its values on blocks of rows on CPU, on the whole elsewhere.

    Args:
        function: Maps the same rows of every stack, (..., b, n) each, to a pytree of arrays without that axis.
        *stacks: (..., m, n), as stored.
        combine: Makes one result of two, leaf by leaf.
    """
    return lax.platform_dependent(*stacks, cpu=lambda *x: _by_blocks(function, combine, *x), default=function)


def rows_of_block(columns: int) -> int:
    """Rows that `reduce_row_blocks` takes at a time on CPU, at least, of a matrix with so many columns."""
    return max(_BLOCK_ROWS, columns // _BLOCK_SHARE)


def fold_row_blocks(
    first: Callable[..., Sums], following: Callable[..., Sums], *stacks: jax.Array, block_rows: int
) -> Sums:
    """A fold over blocks of at least `block_rows` rows, of which there is at least one.

    Args:
        first: Maps the first rows of every stack to a pytree of arrays; the first block also has the rows that are left
            over.
        following: Maps that pytree and the next rows of every stack to the next one.
        *stacks: (..., m, n), as stored.
        block_rows: Rows of a block.
    """
    axis, rows = stacks[0].ndim - 2, stacks[0].shape[-2]
    count = max(1, rows // block_rows)
    block = rows // count
    lead = rows - (count - 1) * block
    bits = [_as_bits(x) for x in stacks]

    def floats(parts):
        return [x if x.dtype == stack.dtype else x.view(stack.dtype) for x, stack in zip(parts, stacks, strict=True)]

    def step(index, sums):
        start = lead + index * block
        return following(sums, *floats(lax.dynamic_slice_in_dim(x, start, block, axis) for x in bits))

    sums = first(*floats(lax.slice_in_dim(x, 0, lead, axis=axis) for x in bits))
    return lax.fori_loop(0, count - 1, step, sums) if count > 1 else sums


def _by_blocks(function, combine, *stacks):
    def following(sums, *blocks):
        return jax.tree.map(combine, sums, function(*blocks))

    return fold_row_blocks(function, following, *stacks, block_rows=rows_of_block(stacks[0].shape[-1]))


def _as_bits(x):
    """Integers in place of small floats, of which XLA on CPU would carry a float32 copy through the loop."""
    small = jnp.issubdtype(x.dtype, jnp.floating) and x.dtype.itemsize < 4
    return x.view(f"uint{8 * x.dtype.itemsize}") if small else x
