"""Thin singular value decomposition, W = U S V^T, and singular values alone.

`method="lapack"` is `jax.lax.linalg.svd`: LAPACK's divide and conquer (gesdd) on CPU, the platform's own solver
elsewhere. `method="gram"` decomposes the float64 Gram matrix (`polarax.kernels.gram`); float64 vectors found so are
refined by products (`polarax.kernels.refine`); where that is not enough, U comes from QR, and singular values below
1e-8 s_1 stay unresolved. `method="polar"` takes the polar factor by QDWH and the eigenvectors of
what it leaves (`polarax.kernels.svd_polar`); a stack with a matrix that this cannot handle gets "lapack". Wide matrices
are decomposed as their transpose: LAPACK's tall path is the faster one.

`method="auto"` takes the Gram matrix where there is float64 (CPU, GPU) and its accuracy is enough: for singular values
down to 1e-8 s_1; for float32 vectors down to 1e-5 s_1, below which U would lose its orthogonality; for float64 vectors
on GPU where refinement converges. The rest gets "lapack"; TPUs get "polar". On a GPU whose float64 is slow, ask for
"polar", as the engine does: what kind of GPU it is cannot be seen where programs are compiled.

Only "lapack" can be differentiated: derivatives would leave the float64 scope of "gram", and the loops of "polar" have
none in reverse mode.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from polarax.kernels.gram import RESOLVED, eigenvalue_roots, gram, right_frame
from polarax.kernels.polar_polynomial import orthogonality_tolerance
from polarax.kernels.products import matmul, promote, transpose
from polarax.kernels.refine import refine_svd
from polarax.kernels.sequential import by_leading_axes, one_at_a_time
from polarax.kernels.svd_polar import svd_by_polar

SVD_METHODS = ("auto", "gram", "lapack", "polar")

# Relative to s_1: down to here the vectors that the Gram route gives are orthonormal to float32's accuracy, since
# columns i, j of U have an inner product of about eps s_1^2 / (s_i s_j).
_GRAM_VECTORS = 1e-5


class Svd(NamedTuple):
    """A thin SVD, r = min(m, n)."""

    left: jax.Array  # U, (..., m, r), orthonormal columns
    values: jax.Array  # s, (..., r), descending, >= 0
    right: jax.Array  # V (not its transpose), (..., n, r), orthonormal columns


def svd(x: jax.typing.ArrayLike, /, *, method: str = "auto") -> Svd:
    """Thin SVD of every matrix of a stack.

    Args:
        x: (..., m, n), floating-point; bfloat16 and float16 are computed in float32.
        method: One of `SVD_METHODS`.

    Returns:
        An `Svd` in the working dtype. A matrix with NaN or Inf gives NaN throughout; a zero matrix gives zero values
        and some orthonormal vectors.

    Raises:
        ValueError: Unknown method, or x is not a floating-point array of shape (..., m, n) with m, n >= 1.

    Example:
        >>> import numpy as np
        >>> from polarax import kernels
        >>> u, s, v = kernels.svd(np.diag([3.0, 2.0]).astype("float32"))
        >>> s.tolist()
        [3.0, 2.0]
    """
    return _decompose(x, method, vectors=True)


def singular_values(x: jax.typing.ArrayLike, /, *, method: str = "auto") -> jax.Array:
    """Singular values alone, (..., min(m, n)), descending. Arguments and errors as for `svd`."""
    return _decompose(x, method, vectors=False).values


def numerical_rank(values: jax.Array, rows: int, cols: int) -> jax.Array:
    """Number of singular values above s_1 sqrt(max(m, n)) eps.

    `numpy.linalg.matrix_rank` has max(m, n) instead, LAPACK's bound for the worst case; in float32 that would call
    ordinary singular values of 1e-3 s_1 zero. Errors seen in practice stay below a few eps s_1.

    Args:
        values: (..., r), descending.
        rows: m.
        cols: n.

    Returns:
        (...), int32; 0 for a zero matrix and for one with NaN.
    """
    tolerance = values[..., :1] * (math.sqrt(max(rows, cols)) * jnp.finfo(values.dtype).eps)
    return jnp.sum((values > tolerance) & (values > 0), axis=-1).astype(jnp.int32)


def check_method(method: str) -> None:
    """Raises ValueError unless `method` is one of `SVD_METHODS`."""
    if method not in SVD_METHODS:
        raise ValueError(f"Unknown SVD method {method!r}. Expected one of {', '.join(SVD_METHODS)}.")


def _decompose(x, method, *, vectors):
    check_method(method)
    x = promote(x)
    if 0 in x.shape[-2:]:
        raise ValueError(f"Matrices must have at least one row and one column. Got shape={x.shape}.")
    wide = x.shape[-2] < x.shape[-1]
    finite = jnp.all(jnp.isfinite(x), axis=(-2, -1), keepdims=True)
    # XLA's threads on CPU take subnormal numbers for zero, but not everywhere: LAPACK's pivots then go wrong.
    clean = jnp.where(finite & (jnp.abs(x) >= jnp.finfo(x.dtype).tiny), x, 0)
    decompose = by_leading_axes(functools.partial(_decompose_tall, method=method, vectors=vectors))
    left, values, right = (_poison(part, finite) for part in decompose(transpose(clean) if wide else clean))
    return Svd(right, values, left) if wide else Svd(left, values, right)


def _decompose_tall(tall, *, method, vectors):
    if method == "lapack":
        return _by_lapack(tall, vectors)
    if method == "gram":
        found, enough = _by_gram(tall, vectors)
        return lax.cond(enough, lambda _: found, _by_gram_and_qr, tall) if vectors else found
    if method == "polar":
        return _by_polar_or_lapack(tall, vectors)
    by_gram = functools.partial(_by_gram_or_lapack, vectors=vectors)
    # LAPACK's SVD in float64 takes less time on CPU than Gram matrix and refinement: 0.7 of it at 1536 x 1536.
    by_lapack = functools.partial(_by_lapack, vectors=vectors)
    return lax.platform_dependent(
        tall,
        cpu=by_lapack if vectors and tall.dtype == jnp.float64 else by_gram,
        tpu=functools.partial(_by_polar_or_lapack, vectors=vectors),
        default=by_gram,
    )


def _by_lapack(tall, vectors):
    if not vectors:
        # jaxlib allocates the left vectors all the same, and without full_matrices=False all m x m of them.
        values = one_at_a_time(lambda a: lax.linalg.svd(a, full_matrices=False, compute_uv=False), tall)
        return _without_vectors(values)
    left, values, right_t = one_at_a_time(lambda a: tuple(lax.linalg.svd(a, full_matrices=False)), tall)
    return left, values, transpose(right_t)


def _by_gram(tall, vectors):
    """The SVD, and whether the route was accurate enough for every matrix."""
    dtype = tall.dtype
    with jax.enable_x64(True):
        scaled, unit = _scaled(tall)
        gram_matrix = gram(scaled)
        if vectors:
            values, right, _ = right_frame(gram_matrix, lambda vectors: gram(matmul(scaled, vectors)))
            if dtype == jnp.float64:
                left, values, right, _, residual = refine_svd(scaled, right)
                enough = jnp.all(residual <= orthogonality_tolerance(scaled))
            else:
                left = matmul(scaled, right) / jnp.where(values > 0, values, 1)[..., None, :]
                smallest = values[..., -1]
                enough = jnp.all((smallest > 0) & (smallest >= _GRAM_VECTORS * values[..., 0]))
            found = left.astype(dtype), (values * unit).astype(dtype), right.astype(dtype)
        else:
            values, resolved = _values_by_gram(scaled, gram_matrix)
            enough = jnp.all(resolved) | (dtype != jnp.float64)  # what float64 does not resolve, float32 does not hold
            found = _without_vectors((values * unit).astype(dtype))
    return found, enough


def _by_gram_and_qr(tall):
    """The SVD by the Gram matrix with U from a QR decomposition of W V: orthonormal whatever the rank."""
    with jax.enable_x64(True):
        scaled, unit = _scaled(tall)
        values, right, _ = right_frame(gram(scaled), lambda vectors: gram(matmul(scaled, vectors)))
        left, triangle = one_at_a_time(lambda x: tuple(jnp.linalg.qr(x)), matmul(scaled, right))
        signs = jnp.where(jnp.diagonal(triangle, axis1=-2, axis2=-1) < 0, -1, 1)
        found = left * signs[..., None, :], values * unit, right
        return tuple(part.astype(tall.dtype) for part in found)


def _scaled(tall):
    """The matrices in float64, divided by their largest entries; these, (..., 1)."""
    wide_range = tall.astype(jnp.float64)
    unit = jnp.max(jnp.abs(wide_range), axis=(-2, -1), initial=0)[..., None]
    return wide_range / jnp.where(unit > 0, unit, 1)[..., None], unit


def _values_by_gram(tall, gram_matrix):
    """Singular values, and for each matrix whether all were large enough; vectors only where small ones need them."""
    values = eigenvalue_roots(gram_matrix)

    def with_vectors():
        found = right_frame(gram_matrix, lambda vectors: gram(matmul(tall, vectors)))
        return found.values, found.resolved

    blurred = jnp.any(values[..., -1] < RESOLVED * values[..., 0])
    return lax.cond(blurred, with_vectors, lambda: (values, jnp.ones(values.shape[:-1], bool)))


def _by_gram_or_lapack(tall, vectors):
    found, enough = _by_gram(tall, vectors)
    return lax.cond(enough, lambda _: found, functools.partial(_by_lapack, vectors=vectors), tall)


def _by_polar_or_lapack(tall, vectors):
    left, values, right, found = svd_by_polar(tall)
    result = (left, values, right) if vectors else _without_vectors(values)
    return lax.cond(jnp.all(found), lambda _: result, functools.partial(_by_lapack, vectors=vectors), tall)


def _without_vectors(values):
    empty = jnp.zeros((*values.shape[:-1], 0, 0), values.dtype)
    return empty, values, empty


def _poison(part, finite):
    return jnp.where(finite if part.ndim == finite.ndim else finite[..., 0], part, jnp.nan)
