"""What a random change of a size does to the front of a spectrum of which leading values and the norm are known."""

import jax
import jax.numpy as jnp

from polarax.kernels.noise_law import LeadingLaw, leading_law
from polarax.kernels.sides import Shape, shorter_side


def leading_null(values: jax.Array, norm: jax.Array, change_norm: jax.Array, *, shape: Shape, k: int) -> LeadingLaw:
    """The controls of spectral norm, leading subspaces and intruders under an isotropic change.

    Values that are not known stand as their root mean square.

    Args:
        values: The base's leading singular values, (..., b), descending, b <= min(m, n).
        norm: ||W_b||_F, (...).
        change_norm: ||D||_F, (...).
        shape: (m, n).
        k: Dimension of the subspaces.
    """
    others = shorter_side(shape) - values.shape[-1]
    if not others:
        return leading_law(values, change_norm, shape=shape, k=k)
    unit = jnp.where(values[..., 0] > 0, values[..., 0], jnp.nan)
    rest = (norm / unit) ** 2 - jnp.sum((values / unit[..., None]) ** 2, axis=-1)
    tail = unit * jnp.sqrt(jnp.maximum(rest, 0) / others)
    return leading_law(values, change_norm, shape=shape, k=k, tail=jnp.minimum(tail, values[..., -1]))
