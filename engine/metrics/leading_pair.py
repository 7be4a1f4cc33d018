"""What the metrics of a first look are read from: leading singular values and vectors, and sums over all entries."""

import dataclasses
import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from polarax.kernels.noise_law import LeadingLaw
from polarax.metrics.leading_null import leading_null


class LeadingPart(NamedTuple):
    """What a first look knows of one matrix; k = min(top_k, min(m, n)), and b >= k columns were iterated on."""

    norm: jax.Array  # ||W||_F, ()
    values: jax.Array  # the leading singular values, descending, (b,); the first k of them have converged
    rank: jax.Array  # how many of the k leading values are not numerically zero, (), int32
    left: jax.Array  # the k leading left singular vectors, (m, k), float32; zero where the value is
    right: jax.Array  # the right ones, (n, k), float32


@dataclasses.dataclass(frozen=True)
class LeadingPair:
    """Base and post at a first look."""

    shape: tuple[int, int]  # (m, n) of both
    base: LeadingPart
    post: LeadingPart
    change_norm: jax.Array  # ||D||_F, ()
    along: jax.Array  # <W_b, D> / ||W_b||^2, (), from the entries themselves
    in_frame: jax.Array  # U_b,k^T D V_b,k, (k, k)
    change_values: jax.Array | None  # leading singular values of D, (b,), of which the first is exact; None if unknown
    unchanged: jax.Array | None  # share of entries that are bitwise equal, (); None for a random change
    noise: jax.Array | None  # norm of the rounding of the stored types, (); None for a random change
    stored_base: jax.Array | None  # (m, n) as it is stored; None for a random change
    stored_post: jax.Array | None  # (m, n) as it is stored; None for a random change

    @property
    def top_k(self) -> int:
        """Leading singular vectors that are compared."""
        return self.in_frame.shape[-1]

    @property
    def sd(self) -> jax.Array:
        """Root mean square entry of the change, ()."""
        return self.change_norm / math.sqrt(math.prod(self.shape))

    @functools.cached_property
    def base_norm(self) -> jax.Array:
        """||W_b||_F, (); NaN where it is 0."""
        return jnp.where(self.base.norm > 0, self.base.norm, jnp.nan)

    @property
    def drift(self) -> jax.Array:
        """||D|| / ||W_b||, ()."""
        return self.change_norm / self.base_norm

    @property
    def growth(self) -> jax.Array:
        """||W_p||^2 / ||W_b||^2 - 1, (), without the difference of two numbers that are nearly the same."""
        return 2 * self.along + self.drift**2

    @functools.cached_property
    def leading_law(self) -> LeadingLaw:
        """What an isotropic random change of the same size does to the leading values and vectors."""
        return leading_null(self.base.values, self.base.norm, self.change_norm, shape=self.shape, k=self.top_k)
