"""Method "polar": the polar factor by QDWH, and the eigenvectors of what it leaves (`polarax.kernels.svd_polar`).

For devices on which matrix products alone are fast. A stack with a matrix that this cannot handle gets "lapack".
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax

from polarax.kernels.methods.lapack import Lapack
from polarax.kernels.methods.method import Method
from polarax.kernels.svd_polar import svd_by_polar
from polarax.kernels.thin_svd import Parts, without_vectors


class PolarFactor(Method):
    """Decomposes by polar factors."""

    name = "polar"

    def svd_of_tall(self, tall: jax.Array, *, vectors: bool) -> Parts:
        """As `Method.svd_of_tall`."""
        left, values, right, accurate = svd_by_polar(tall)
        parts = (left, values, right) if vectors else without_vectors(values)
        fall_back = functools.partial(Lapack().svd_of_tall, vectors=vectors)
        return lax.cond(jnp.all(accurate), lambda _: parts, fall_back, tall)

    def suits(self, platform: str, *, fast_float64: bool) -> bool:
        """Where there is no float64 worth the name: on TPUs and on GPUs made for graphics."""
        return not fast_float64
