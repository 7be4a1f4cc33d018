"""A picture of a large square array: the root mean square of its entries, block by block.

Q_U and Q_V are r x r with r in the thousands; a person looks at a few thousand cells. The root mean square loses no
weight: the squares of the picture, each times the entries of its block, sum to the squares of the array.
"""

import jax
import jax.numpy as jnp

# Cells on a side of the picture: what a small panel of a page can show.
LARGEST_PICTURE = 64


def block_magnitudes(x: jax.Array, /, *, limit: int = LARGEST_PICTURE) -> jax.Array:
    """Root mean square of the entries of each block.

    Args:
        x: (..., r, r), floating-point.
        limit: Blocks on a side, at most.

    Returns:
        (..., k, k) with blocks of b x b entries, b = ceil(r / limit), k = ceil(r / b); the last ones are smaller where
        b does not divide r. For r <= limit it is |x|.

    Raises:
        ValueError: x is not square, or limit < 1.

    Example:
        >>> import jax.numpy as jnp
        >>> from polarax.kernels import block_magnitudes
        >>> block_magnitudes(jnp.eye(4), limit=2).tolist()
        [[0.7071067690849304, 0.0], [0.0, 0.7071067690849304]]
    """
    size = x.shape[-1]
    if x.ndim < 2 or x.shape[-2] != size:
        raise ValueError(f"Input must have shape (..., r, r). Got shape={x.shape}.")
    if limit < 1:
        raise ValueError(f"limit must be at least 1. Got limit={limit}.")
    block = -(-size // limit)
    blocks = -(-size // block)
    padding = [(0, 0)] * (x.ndim - 2) + [(0, blocks * block - size)] * 2
    squares = jnp.pad(jnp.square(x), padding).reshape(*x.shape[:-2], blocks, block, blocks, block)
    lengths = jnp.minimum(block, size - block * jnp.arange(blocks))
    entries = lengths[:, None] * lengths
    return jnp.sqrt(jnp.sum(squares, axis=(-3, -1)) / entries.astype(x.dtype))
