"""The triangular factor of very tall matrices, block by block (sequential TSQR).

R of W = Q R is updated by one block of rows after the other, R' of [R; block]: Q is never formed and memory is a few
blocks, however many rows there are. As stable as Householder QR of the whole (Demmel, Grigori, Hoemmen and Langou 2012,
"Communication-optimal parallel and sequential QR and LU factorizations").
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from polarax.kernels.row_blocks import fold_row_blocks
from polarax.kernels.sequential import one_at_a_time


def triangle_by_blocks(columns_of: Callable[..., jax.Array], *stacks: jax.Array) -> jax.Array:
    """R of columns_of(*stacks), up to the signs of its rows.

    Args:
        columns_of: Maps the same rows of every stack, (..., b, n) each, to the matrix that is decomposed, (..., b, k)
            in the working dtype; row by row.
        *stacks: (..., m, n) as stored, m >= k.

    Returns:
        (..., k, k), upper triangular; finite input alone gives a finite result.
    """
    cols = jax.eval_shape(columns_of, *stacks).shape[-1]

    def following(triangle, *blocks):
        return _triangle(jnp.concatenate([triangle, columns_of(*blocks)], axis=-2))

    return fold_row_blocks(lambda *blocks: _triangle(columns_of(*blocks)), following, *stacks, block_rows=cols)


def _triangle(x):
    return one_at_a_time(lambda a: jnp.linalg.qr(a, mode="r"), x)
