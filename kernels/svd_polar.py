"""SVD by polar factor and eigendecomposition, for devices on which products are all that is fast.

W = P H, H = P^T W = V S V^T, and U = P V: one symmetric eigenproblem of size r is left (Higham and Papadimitriou 1994,
Parallel Computing 20; Nakatsukasa and Higham 2013, SIAM J. Sci. Comput. 35). On TPU that eigenproblem is products too:
jax solves it by spectral divide and conquer.

P comes from QDWH (`polarax.kernels.polar_qdwh`), which is backward stable, so that errors are a few eps s_1. Minimax
polynomials are not: their steps map large singular values to small ones on the way, and in float32 leave H with an
asymmetry of up to 1e-4 from condition 1e3 on. What P^T W has of it is part of the test that decides whether a
decomposition is good. P needs full rank: a rank-deficient matrix may be reported instead.
"""

import jax
import jax.numpy as jnp

from polarax.kernels.polar_polynomial import TALL, orthogonality_tolerance
from polarax.kernels.polar_qdwh import qdwh_polar
from polarax.kernels.products import frobenius, matmul, transpose
from polarax.kernels.sequential import one_at_a_time
from polarax.kernels.symmetric_eigen import eigh_ascending


def svd_by_polar(x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """The thin SVD of a tall stack, (..., m, r) with m >= r, float32 or float64, finite.

    Returns:
        U (..., m, r), s (..., r) descending, V (..., r, r), and for each matrix whether its polar factor is good:
        where it was not, the rest means nothing. A zero matrix gives zero values and unit vectors.
    """
    rows, cols = x.shape[-2:]
    if rows >= TALL * cols:
        orthonormal, triangle = one_at_a_time(lambda a: tuple(jnp.linalg.qr(a)), x)
        left, values, right, accurate = svd_by_polar(triangle)
        return matmul(orthonormal, left), values, right, accurate
    unit = jnp.max(jnp.abs(x), axis=(-2, -1), keepdims=True, initial=0)
    # A zero matrix, such as those that pad a stack, must not make the whole stack fall back.
    scaled = jnp.where(unit > 0, x / jnp.where(unit > 0, unit, 1), jnp.eye(rows, cols, dtype=x.dtype))
    polar = qdwh_polar(scaled)
    hermitian = matmul(transpose(polar.factor), scaled)
    asymmetry = frobenius(hermitian - transpose(hermitian)) / frobenius(scaled)
    hermitian = (hermitian + transpose(hermitian)) / 2
    vectors, signed = eigh_ascending(hermitian)
    # Rounding can make the smallest eigenvalues negative: the sign belongs to the left vector then.
    order = jnp.argsort(-jnp.abs(signed), axis=-1)
    signed = jnp.take_along_axis(signed, order, axis=-1)
    right = jnp.take_along_axis(vectors, order[..., None, :], axis=-1)
    left = matmul(polar.factor, right) * jnp.where(signed < 0, -1, 1)[..., None, :].astype(x.dtype)
    accurate = jnp.maximum(polar.residual, asymmetry) <= orthogonality_tolerance(x)
    return left, jnp.abs(signed) * unit[..., 0], right, accurate
