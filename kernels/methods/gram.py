"""Method "gram": float64 Gram matrices (`polarax.kernels.gram`).

Float64 vectors found so are refined by products (`polarax.kernels.refine`); where that is not enough, U comes from QR,
and singular values below 1e-8 s_1 stay unresolved. As `auto` takes it, "lapack" decomposes those matrices.
"""

import contextlib
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from polarax.kernels.gram import RESOLVED, eigenvalue_roots, gram, right_frame
from polarax.kernels.methods.gram_route import GramRoute
from polarax.kernels.methods.lapack import Lapack
from polarax.kernels.methods.method import Method
from polarax.kernels.methods.route import Route
from polarax.kernels.polar_polynomial import orthogonality_tolerance
from polarax.kernels.products import matmul, transpose
from polarax.kernels.refine import refine_svd
from polarax.kernels.row_blocks import rows_of_block
from polarax.kernels.sequential import one_at_a_time
from polarax.kernels.thin_svd import Parts, without_vectors

# Relative to s_1: down to here the vectors that the Gram route gives are orthonormal to float32's accuracy, since
# columns i, j of U have an inner product of about eps s_1^2 / (s_i s_j).
_VECTORS = 1e-5

# What a pair holds at once: n x n arrays, and blocks of rows, both in float64; and the pair as it is stored once more.
# Counted in XLA's buffer assignment, and measured as peak resident memory.
_SQUARE_ARRAYS, _BLOCK_ARRAYS = 12, 15
# Where rows are not taken by blocks: base and change, and the parts of them that products are taken of, in float64.
_CONVERTED_ARRAYS = 4


class Gram(Method):
    """Decomposes float64 Gram matrices.

    Args:
        fallback: Decomposes what this is not accurate enough for.
    """

    name = "gram"
    device_arrays = _CONVERTED_ARRAYS, _SQUARE_ARRAYS

    def __init__(self, fallback: Method | None = None):
        self._fallback = fallback

    def svd_of_tall(self, tall: jax.Array, *, vectors: bool) -> Parts:
        """As `Method.svd_of_tall`."""
        if self._fallback is None:
            parts, accurate = _by_gram(tall, vectors)
            return lax.cond(accurate, lambda _: parts, _by_gram_and_qr, tall) if vectors else parts
        fall_back = functools.partial(self._fallback.svd_of_tall, vectors=vectors)

        def gram_or_fallback(tall):
            parts, accurate = _by_gram(tall, vectors)
            return lax.cond(accurate, lambda _: parts, fall_back, tall)

        if not (vectors and tall.dtype == jnp.float64):
            return gram_or_fallback(tall)
        # LAPACK's SVD in float64 takes less time on CPU than Gram matrix and refinement: 0.7 of it at 1536 x 1536.
        return lax.platform_dependent(tall, cpu=fall_back, default=gram_or_fallback)

    def scope(self) -> contextlib.AbstractContextManager[Any]:
        """Float64, whatever the caller's setting."""
        return jax.enable_x64(True)

    def route(self, *, change_values: bool, dtype: jax.typing.DTypeLike) -> Route[Any, Any, Any]:
        """As `Method.route`: a `GramRoute`."""
        return GramRoute(change_values=change_values, dtype=dtype)

    @property
    def fallback(self) -> Method | None:
        """As `Method.fallback`."""
        return self._fallback

    def suits(self, platform: str, *, fast_float64: bool) -> bool:
        """Where there is float64 worth the name: on CPUs and data-centre GPUs."""
        return fast_float64

    def for_auto(self) -> Method:
        """With LAPACK for what is not accurate enough."""
        return Gram(Lapack())

    def work_bytes(self, m: int, n: int, *, itemsize: int, stored_bytes: int, posts: int, between: bool) -> int:
        """As `Method.work_bytes`."""
        blocks = _BLOCK_ARRAYS * min(m, rows_of_block(n))
        return 8 * n * (_SQUARE_ARRAYS * n + blocks) + stored_bytes


def _by_gram(tall, vectors):
    """The SVD, and whether the route was accurate enough for every matrix."""
    dtype = tall.dtype
    with jax.enable_x64(True):
        scaled, unit = _scaled(tall)
        gram_matrix = gram(scaled)
        if vectors:
            values, rows, _ = right_frame(gram_matrix, lambda rows: gram(matmul(scaled, transpose(rows))))
            right = transpose(rows)
            if dtype == jnp.float64:
                left, values, right, _, residual = refine_svd(scaled, right)
                accurate = jnp.all(residual <= orthogonality_tolerance(scaled))
            else:
                left = matmul(scaled, right) / jnp.where(values > 0, values, 1)[..., None, :]
                smallest = values[..., -1]
                accurate = jnp.all((smallest > 0) & (smallest >= _VECTORS * values[..., 0]))
            parts = left.astype(dtype), (values * unit).astype(dtype), right.astype(dtype)
        else:
            values, resolved = _values_by_gram(scaled, gram_matrix)
            # What float64 does not resolve, float32 does not hold.
            accurate = jnp.all(resolved) | (dtype != jnp.float64)
            parts = without_vectors((values * unit).astype(dtype))
    return parts, accurate


def _by_gram_and_qr(tall):
    """The SVD by the Gram matrix with U from a QR decomposition of W V: orthonormal whatever the rank."""
    with jax.enable_x64(True):
        scaled, unit = _scaled(tall)
        values, rows, _ = right_frame(gram(scaled), lambda rows: gram(matmul(scaled, transpose(rows))))
        right = transpose(rows)
        left, triangle = one_at_a_time(lambda x: tuple(jnp.linalg.qr(x)), matmul(scaled, right))
        signs = jnp.where(jnp.diagonal(triangle, axis1=-2, axis2=-1) < 0, -1, 1)
        parts = left * signs[..., None, :], values * unit, right
        return tuple(part.astype(tall.dtype) for part in parts)


def _scaled(tall):
    """The matrices in float64, divided by their largest entries; these, (..., 1)."""
    wide_range = tall.astype(jnp.float64)
    unit = jnp.max(jnp.abs(wide_range), axis=(-2, -1), initial=0)[..., None]
    return wide_range / jnp.where(unit > 0, unit, 1)[..., None], unit


def _values_by_gram(tall, gram_matrix):
    """Singular values, and for each matrix whether all were large enough; vectors only where small ones need them."""
    values = eigenvalue_roots(gram_matrix)

    def with_vectors():
        frame = right_frame(gram_matrix, lambda rows: gram(matmul(tall, transpose(rows))))
        return frame.values, frame.resolved

    blurred = jnp.any(values[..., -1] < RESOLVED * values[..., 0])
    return lax.cond(blurred, with_vectors, lambda: (values, jnp.ones(values.shape[:-1], bool)))
