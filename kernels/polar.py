"""Polar factor P of W = P H: the orthonormal matrix nearest to W.

P = U V^T over the singular values that are numerically not zero. For full rank that is the factor with orthonormal
columns (rows, if W is wide); for a rank-deficient W it is the partial isometry of the canonical polar decomposition
(Higham 2008, Functions of Matrices, section 8.1), the only part of the factor that W determines.

`method`: "polynomial" and "qdwh" iterate towards P without any decomposition, and say by their residual when W is
rank-deficient or too ill-conditioned; "svd" and "gram" read P off the SVD of that method. "auto" takes "gram" for
float32 on CPU, where float64 costs little, and "polynomial" elsewhere; what fails to converge gets "svd".
"""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from polarax.kernels.polar_polynomial import TALL, Iterated, orthogonality_tolerance, polynomial_polar
from polarax.kernels.polar_qdwh import qdwh_polar
from polarax.kernels.products import frobenius, matmul, promote, transpose
from polarax.kernels.sequential import one_at_a_time
from polarax.kernels.svd import svd
from polarax.kernels.thin_svd import Svd, numerical_rank

POLAR_METHODS = ("auto", "gram", "polynomial", "qdwh", "svd")


class Polar(NamedTuple):
    """A polar factor and how accurate it is."""

    factor: jax.Array  # P, (..., m, n)
    rank: jax.Array  # (...), int32: numerical rank of W, and of P; r where an iteration converged
    steps: jax.Array  # (...), int32: iterations, as many as the slowest of the stack took; 0 by a direct method
    residual: jax.Array  # (...): ||P P^T P - P||_F / sqrt(rank), zero for a perfect isometry


def polar(x: jax.typing.ArrayLike, /, *, method: str = "auto") -> Polar:
    """Polar factor of every matrix of a stack.

    Args:
        x: (..., m, n), floating-point, tall or wide.
        method: One of `POLAR_METHODS`.

    Returns:
        A `Polar` in the working dtype; NaN for a matrix with NaN or Inf, zero for a zero matrix. A matrix that an
        iteration asked for by name cannot handle has a residual that is not small.

    Raises:
        ValueError: Unknown method, or x is not a floating-point array of shape (..., m, n) with m, n >= 1.

    Example:
        >>> import numpy as np
        >>> from polarax import kernels
        >>> kernels.polar(np.diag([5.0, 0.5]).astype("float32")).factor.round(6).tolist()
        [[1.0, 0.0], [0.0, 1.0]]
    """
    if method not in POLAR_METHODS:
        raise ValueError(f"Unknown polar method {method!r}. Expected one of {', '.join(POLAR_METHODS)}.")
    return _polar(x, functools.partial(_by_method, method))


def polar_by_products(x: jax.typing.ArrayLike, /) -> Polar:
    """`polar` as "auto" computes it on accelerators, on every platform: by polynomials, and SVDs where these fail."""
    return _polar(x, _polynomial_or_svd)


def _polar(x, of_tall):
    x = promote(x)
    if 0 in x.shape[-2:]:
        raise ValueError(f"Matrices must have at least one row and one column. Got shape={x.shape}.")
    wide = x.shape[-2] < x.shape[-1]
    tall = transpose(x) if wide else x
    finite = jnp.all(jnp.isfinite(tall), axis=(-2, -1))
    result = of_tall(jnp.where(finite[..., None, None], tall, 0))
    factor = jnp.where(finite[..., None, None], result.factor, jnp.nan)
    return Polar(
        transpose(factor) if wide else factor,
        jnp.where(finite, result.rank, 0).astype(jnp.int32),
        jnp.where(finite, result.steps, 0).astype(jnp.int32),
        jnp.where(finite, result.residual, jnp.nan),
    )


def _by_method(method, tall):
    if method in ("svd", "gram"):
        return polar_from_svd(svd(tall, method="lapack" if method == "svd" else method))
    if method == "auto":
        on_cpu = _from_auto_svd if tall.dtype == jnp.float32 else _polynomial_or_svd
        return lax.platform_dependent(tall, cpu=on_cpu, default=_polynomial_or_svd)
    return _iterated(tall, polynomial_polar if method == "polynomial" else qdwh_polar)


def polar_from_svd(decomposition: Svd) -> Polar:
    """The polar factor that a thin SVD gives."""
    left, values, right = decomposition
    rank = numerical_rank(values, left.shape[-2], right.shape[-2])
    kept = jnp.arange(values.shape[-1]) < rank[..., None]
    factor = matmul(jnp.where(kept[..., None, :], left, 0), transpose(right))
    factor = jnp.where(jnp.isnan(values[..., :1, None]), jnp.nan, factor)
    return Polar(factor, rank, jnp.zeros_like(rank), _isometry_residual(factor, rank))


def _from_auto_svd(tall):
    return polar_from_svd(svd(tall))


def _polynomial_or_svd(tall):
    """By polynomials; matrices for which these did not converge are decomposed one after another."""
    nonzero = jnp.any(tall != 0, axis=(-2, -1))
    # Zero matrices, such as those that pad a stack, must not make it run to the last step.
    iterated = _iterated(jnp.where(nonzero[..., None, None], tall, _eye_like(tall)), polynomial_polar)
    failed = nonzero & ~(iterated.residual <= orthogonality_tolerance(tall))
    cleared = Polar(
        jnp.where(nonzero[..., None, None], iterated.factor, 0),
        jnp.where(nonzero, iterated.rank, 0),
        jnp.where(nonzero, iterated.steps, 0),
        jnp.where(nonzero, iterated.residual, 0),
    )
    return _by_svd_where(failed, tall, cleared)


def _by_svd_where(failed, tall, factors):
    """`factors`, with those of the matrices that failed, (...), from SVDs of these alone."""
    shape, batch = tall.shape[-2:], tall.shape[:-2]
    if 0 in batch:
        return factors
    matrices = tall.reshape((math.prod(batch), *shape))
    flat = jax.tree.map(lambda x: x.reshape((len(matrices), *x.shape[len(batch) :])), factors)
    order = jnp.argsort(~failed.reshape(-1), stable=True)  # those that failed in front
    count = jnp.sum(failed)

    def decompose(state):
        index, flat = state
        place = order[index]
        single = polar_from_svd(svd(matrices[place], method="lapack"))
        return index + 1, jax.tree.map(lambda x, new: x.at[place].set(new.astype(x.dtype)), flat, single)

    _, flat = lax.while_loop(lambda state: state[0] < count, decompose, (jnp.zeros_like(count), flat))
    return jax.tree.map(lambda x: x.reshape((*batch, *x.shape[1:])), flat)


def _eye_like(tall):
    rows, cols = tall.shape[-2:]
    return jnp.eye(rows, cols, dtype=tall.dtype)


def _iterated(tall: jax.Array, iterate: Callable[[jax.Array], Iterated]) -> Polar:
    rows, cols = tall.shape[-2:]
    if rows < TALL * cols:
        iterated = iterate(tall)
        factor = iterated.factor
    else:
        orthonormal, triangle = one_at_a_time(lambda a: tuple(jnp.linalg.qr(a)), tall)
        iterated = iterate(triangle)
        factor = matmul(orthonormal, iterated.factor)
    rank = jnp.full(tall.shape[:-2], cols, jnp.int32)
    return Polar(factor, rank, jnp.full_like(rank, iterated.steps), iterated.residual)


def _isometry_residual(factor, rank):
    """||P P^T P - P||_F / sqrt(rank): how far a tall P is from a partial isometry; 0 where the rank is 0."""
    gram = matmul(transpose(factor), factor)
    return frobenius(matmul(gram, gram) - gram) / jnp.sqrt(jnp.maximum(rank, 1).astype(factor.dtype))
