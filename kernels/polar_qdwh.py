"""Polar factor by QDWH: dynamically weighted Halley iteration (Nakatsukasa, Bai and Gygi 2010).

X <- X (a I + b X^T X) (I + c X^T X)^(-1), the best rational step of type (3, 2) for singular values in [l, 1]; six
steps serve any condition number that float64 holds. While c is large the inverse is applied through the QR
factorisation of [sqrt(c) X; I], which is backward stable; from c <= 100 on through the Cholesky factor of I + c X^T X,
which costs half (Nakatsukasa and Higham 2013).

Nothing here notices that a matrix is rank-deficient: rounding takes the place of what is missing, and the factor comes
out orthonormal.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax import lax

from polarax.kernels.polar_polynomial import Iterated, orthogonality_residual
from polarax.kernels.products import frobenius, matmul, transpose
from polarax.kernels.sequential import one_at_a_time

# Nakatsukasa and Higham 2013: above, the Cholesky variant is not backward stable.
_CHOLESKY_FROM = 100.0


def qdwh_polar(x: jax.Array) -> Iterated:
    """Polar factor of a tall stack, (..., m, n) with m >= n; finite entries, full column rank (see the residual)."""
    factor, steps, residual = one_at_a_time(_qdwh, x)
    return Iterated(factor, jnp.max(steps, initial=0), residual)


@functools.cache
def halley_schedule(smallest: float) -> tuple[tuple[float, float, float], ...]:
    """Weights (a, b, c) of the successive steps for singular values in [smallest, 1]."""
    low = smallest
    schedule: list[tuple[float, float, float]] = []
    while 1 - low > 1e-15 and len(schedule) < 12:
        d = (4 * (1 - low**2) / low**4) ** (1 / 3)
        a = math.sqrt(1 + d) + math.sqrt(8 - 4 * d + 8 * (2 - low**2) / (low**2 * math.sqrt(1 + d))) / 2
        b = (a - 1) ** 2 / 4
        c = a + b - 1
        schedule.append((a, b, c))
        low = min(1.0, low * (a + b * low**2) / (1 + c * low**2))
    return tuple(schedule)


def _qdwh(x):
    norm = frobenius(x)
    factor = x / jnp.where(norm > 0, norm, 1)
    # frobenius(x) may be sqrt(n) times s_1; what lies below eps of it is rank deficiency.
    schedule = halley_schedule(float(jnp.finfo(x.dtype).eps) / 8)
    for a, b, c in schedule:
        step = _qr_step if c > _CHOLESKY_FROM else _cholesky_step
        factor = step(factor, a, b, c)
    residual = orthogonality_residual(matmul(transpose(factor), factor))
    return Iterated(factor, jnp.int32(len(schedule)), residual)


def _qr_step(x, a, b, c):
    rows, cols = x.shape
    stacked = jnp.concatenate([math.sqrt(c) * x, jnp.eye(cols, dtype=x.dtype)])
    q, _ = jnp.linalg.qr(stacked)
    return (b / c) * x + (a - b / c) / math.sqrt(c) * matmul(q[:rows], transpose(q[rows:]))


def _cholesky_step(x, a, b, c):
    z = jnp.eye(x.shape[1], dtype=x.dtype) + c * matmul(transpose(x), x)
    lower = lax.linalg.cholesky(z, symmetrize_input=False)
    half = lax.linalg.triangular_solve(lower, transpose(x), left_side=True, lower=True)
    inverse = lax.linalg.triangular_solve(lower, half, left_side=True, lower=True, transpose_a=True)
    return (b / c) * x + (a - b / c) * transpose(inverse)
