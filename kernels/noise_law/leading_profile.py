"""Over which base vectors the leading vectors of base + noise spread.

Of W + sd G the resolvent is, in the base's frame, that of W at moved points w1 = z / X and w2 = T / w1 (Dozier and
Silverstein 2007; Hachem, Loubaton and Najim 2007; T, X and z as in `curve`). At the point of a singular value of the
post the imaginary parts of its diagonal say how that value's vectors spread: of right ones w1 / (T - s_j^2) over the
right base vectors, of left ones w2 / (T - s_j^2) over the left ones and 1 / w1 over each of the m - n dimensions
outside. z is real there, so that w1 and w2 have one imaginary part, and in its unit these are, without their sign,

    right: (|w1|^2 + s_j^2) / |T - s_j^2|^2,   left: (|w2|^2 + s_j^2) / |T - s_j^2|^2,   outside: 1 / |w1|^2.

Where a value stands alone these are the shares of perturbation theory, sd^2 (s_i^2 + s_j^2) / (s_i^2 - s_j^2)^2.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from polarax.kernels.noise_law.curve import Noise, resolvent


class LeadingProfile(NamedTuple):
    """The leading post vectors, i = 1..count, and their shares in the base vectors, which with those outside sum to 1.

    Two sides: first the longer one, then the shorter.
    """

    shares: jax.Array  # in the first base vectors, (2, count, near)
    inside: jax.Array  # what is in the base's space at all, near or not, (2, count); 1 of the shorter side
    largest: jax.Array  # the quantile of the largest singular value, ()


def leading_profile(noise: Noise, offset: jax.Array, v: jax.Array, *, near: int) -> LeadingProfile:
    """Where the leading vectors go.

    Args:
        noise: One base and its noise.
        offset: Of the points of the leading values from these, (count,).
        v: Of these points, (count,).
        near: How many leading base vectors.
    """
    # Values closer than their rounding are one.
    v = jnp.maximum(v, 4 * jnp.finfo(v.dtype).eps)
    at = resolvent(noise.s[: v.shape[0]], offset, v, noise)
    size = jnp.abs(at.t)
    # In the unit |T|, which w1 and w2 have for their product.
    w1 = jnp.abs(at.q) / (size * jnp.abs(at.x) ** 2)
    w = jnp.stack([1 / w1, w1])
    terms = (w[..., None] + noise.s**2 / size[:, None]) / (1 + at.ratio**2)
    outside = noise.extra * (at.t.imag / size) ** 2 / w1
    inside = noise.total(terms)
    total = inside + jnp.stack([outside, jnp.zeros_like(outside)])
    largest = jnp.sqrt(jnp.maximum(at.q[0].real, 0))
    return LeadingProfile(terms[..., :near] / total[..., None], inside / total, largest)
