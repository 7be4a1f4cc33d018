"""Whether two changes of one matrix go the same way: the cosine of the angle between them, as vectors of m n entries.

For a fixed D_1, and D_2 = U S V^T whose U or V is uniformly distributed (whatever S is), the cosine has mean 0 and
variance exactly 1 / (m n): docs/definitions.md, "Posts against each other".
"""

import jax
import jax.numpy as jnp

from polarax.kernels.products import frobenius


def change_cosine(first: jax.Array, second: jax.Array) -> jax.Array:
    """<D_1, D_2> / (||D_1|| ||D_2||) of changes (..., m, n), float32 or float64; NaN where one of them is zero.

    Example:
        >>> import jax.numpy as jnp
        >>> change = jnp.array([[1.0, 2.0], [0.0, -2.0]])
        >>> float(change_cosine(change, -3 * change))
        -1.0
    """
    return jnp.clip(inner_of_directions(first, second, (frobenius(first), frobenius(second))), -1, 1)


def inner_of_directions(first: jax.Array, second: jax.Array, norms: tuple[jax.Array, jax.Array]) -> jax.Array:
    """<D_1, D_2> over given norms, (...): of some rows of two changes, their part in the cosine."""
    directions = []
    for change, norm in zip((first, second), norms, strict=True):
        directions.append(change / jnp.where(norm > 0, norm, jnp.nan)[..., None, None])
    return jnp.sum(directions[0] * directions[1], axis=(-2, -1))
