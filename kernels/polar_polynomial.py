"""Polar factor by matrix products alone: odd quintics with minimax coefficients.

X <- X (a I + b X^T X + c (X^T X)^2) maps every singular value x to a x + b x^3 + c x^5. Each step takes the quintic
that brings the interval in which the singular values are known to lie closest to 1 (Amsel, Persson, Musco and Gower,
arXiv:2505.16932), but for the cushion of its lower end below. Once the interval is at 1 they are the Newton-Schulz
coefficients (15, -10, 3) / 8, which converge cubically.

A step is three products, two of them symmetric. Give a tall matrix's n x n factor R, of W = Q R, rather than W itself;
iterating on polynomials in W^T W instead would multiply the rounding of W^T W by up to a^2 = 70 a step.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from polarax.kernels.gram import gram
from polarax.kernels.products import frobenius, matmul
from polarax.kernels.sequential import one_at_a_time
from polarax.kernels.steps import IN_ONE_PROGRAM, Steps, joined_norms

# A matrix this much taller than wide is better reduced to its n x n factor by QR before it is iterated on: 4 m n^2
# operations against 4 m n^2 a step.
TALL = 1.5

# Relative to the bound on s_1: singular values down to here converge within the schedule. Smaller ones are found by the
# residual; float32 does not hold them, float64 has cheaper routes for them.
_SMALLEST = {"float32": 1e-6, "float64": 1e-9}

# A step brings some singular values down to the lower end of its interval, so the schedule must not start lower than it
# has to: on a well-conditioned matrix that would cost half the digits. The bound comes from the Gram matrix and is
# believed where its square stands out of the rounding by this factor.
_TRUSTED = 1e2

# The quintic of a step is made for no lower an end than this, relative to the upper one. The best one for a lower end
# maps some large singular values close to that end, and rounding, relative to the largest, stays with them: of weights
# with a condition number of 1e4 the factor then errs by 3e-5 per direction in float32, with the cushion by 3e-6, as by
# QDWH, and takes no more steps. From Amsel et al., who have 0.024 for the same reason.
_CUSHION = 0.025

# Newton-Schulz steps after the schedule, for the last digits or for singular values below _SMALLEST.
_EXTRA_STEPS = 8

# The interval's upper end is approached from below: rounding must not carry a singular value past it.
_SAFETY = 1.01

_NEWTON_SCHULZ = (15 / 8, -10 / 8, 3 / 8)
_NEWTON_SCHULZ_FROM = 0.9


class Iterated(NamedTuple):
    """An orthonormal polar factor and how it was reached."""

    factor: jax.Array  # (..., m, n), m >= n
    steps: jax.Array  # (), int32: steps of the whole stack
    residual: jax.Array  # (...), ||P^T P - I||_F / sqrt(n): not small where x is rank-deficient or too ill-conditioned


class _State(NamedTuple):
    """How far an iteration is."""

    factor: jax.Array  # (..., m, n)
    square: jax.Array  # its Gram matrix, (..., n, n)
    step: jax.Array  # (), int32
    residual: jax.Array  # (...)


def polynomial_polar(x: jax.Array, steps: Steps = IN_ONE_PROGRAM) -> Iterated:
    """Polar factor of a tall stack, (..., m, n) with m >= n, in float32 or float64; finite entries.

    Full column rank is assumed, and checked by the residual.

    Args:
        x: The stack.
        steps: How the steps are carried out: the factor stays where the rows of x are.
    """
    norm = steps.over_rows(frobenius, (x,), join=joined_norms)
    factor = steps.mapped(_over, (x,), norm)  # first, so that squares stay in range
    start = steps.small(_started, steps.over_rows(gram, (factor,)))
    factor = steps.mapped(_over, (factor,), start.bound)
    tolerance = orthogonality_tolerance(x)

    def unfinished(state):
        return steps.small(_unfinished, start.first, state.step, state.residual, tolerance=tolerance)

    def advance(state):
        polynomial = steps.small(_polynomial, state.square, start.first, state.step)
        factor = steps.mapped(matmul, (state.factor,), polynomial)
        square = steps.over_rows(gram, (factor,))
        return _State(factor, square, *steps.small(_after_step, square, state.step))

    first = _State(factor, start.square, start.step, start.residual)
    last = steps.repeat_while(unfinished, advance, first)
    return Iterated(last.factor, last.step, last.residual)


class _Start(NamedTuple):
    """What an iteration starts from."""

    bound: jax.Array  # (...), on s_1
    square: jax.Array  # the Gram matrix over the square of this bound, (..., n, n)
    first: jax.Array  # (...), int32: place in the schedule
    step: jax.Array  # (), int32: 0
    residual: jax.Array  # (...)


def _over(x, norm):
    return x / jnp.where(norm > 0, norm, 1)[..., None, None]


def _started(square):
    # ||G||_F >= s_1^2 is at most sqrt(n) too large, its square root n^(1/4): two steps more than with s_1 itself.
    bound = jnp.sqrt(frobenius(square))
    square = square / jnp.where(bound > 0, bound, 1)[..., None, None] ** 2
    # Every matrix starts at the last interval that still holds all its singular values, and ends with Newton-Schulz.
    _, ends = minimax_schedule(_SMALLEST[square.dtype.name])
    first = jnp.sum(jnp.asarray(ends) <= one_at_a_time(_smallest_bound, square)[..., None], axis=-1, dtype=jnp.int32)
    return _Start(bound, square, jnp.maximum(first, 1) - 1, jnp.int32(0), orthogonality_residual(square))


def _unfinished(first, step, residual, *, tolerance):
    schedule, _ = minimax_schedule(_SMALLEST[residual.dtype.name])
    wanted = (first + step < len(schedule)) | (residual > tolerance)
    return jnp.any(wanted & (first + step < len(schedule) + _EXTRA_STEPS))


def _polynomial(square, first, step):
    """a I + b X^T X + c (X^T X)^2 of this step, (..., n, n)."""
    schedule, _ = minimax_schedule(_SMALLEST[square.dtype.name])
    quintics = jnp.asarray((*schedule, *(_EXTRA_STEPS * [_NEWTON_SCHULZ])), square.dtype)
    a, b, c = jnp.moveaxis(quintics[jnp.minimum(first + step, len(quintics) - 1)], -1, 0)[..., None, None]
    return a * jnp.eye(square.shape[-1], dtype=square.dtype) + b * square + c * gram(square)


def _after_step(square, step):
    return step + 1, orthogonality_residual(square)


@functools.cache
def minimax_schedule(smallest: float) -> tuple[tuple[tuple[float, float, float], ...], tuple[float, ...]]:
    """The successive quintics for singular values in [smallest, 1].

    Returns:
        Coefficients (a, b, c) of each step, and the lower end of the interval that each step starts from, relative to
        its upper end, ascending. Where the steps end, Newton-Schulz is as good and has 1 as its fixed point.
    """
    low, high = smallest, 1.0
    schedule: list[tuple[float, float, float]] = []
    ends: list[float] = []
    while low / high < _NEWTON_SCHULZ_FROM:
        ends.append(low / high)
        scale = high * _SAFETY
        quintic = minimax_quintic(max(low / high, _CUSHION))
        a, b, c = (value / scale**power for value, power in zip(quintic, (1, 3, 5), strict=True))
        schedule.append((a, b, c))
        values = np.geomspace(low, high, 100_001)
        mapped = np.polyval([c, 0, b, 0, a, 0], values)
        low, high = float(mapped.min()), float(mapped.max())
    return tuple(schedule), tuple(ends)


def minimax_quintic(low: float) -> tuple[float, float, float]:
    """(a, b, c) that minimise max |1 - (a x + b x^3 + c x^5)| over [low, 1], by the exchange algorithm of Remez.

    The error of the best one is attained with alternating signs at low, two inner points and 1.
    """
    inner = low + (1 - low) * np.array([0.25, 0.75])
    for _ in range(100):
        points = np.array([low, *inner, 1.0])
        system = np.stack([points, points**3, points**5, [1, -1, 1, -1]], axis=1)
        a, b, c, _ = np.linalg.solve(system, np.ones(4))
        # The inner extrema: a + 3 b x^2 + 5 c x^4 = 0.
        squares = np.sort(np.roots([5 * c, 3 * b, a]).real)
        extrema = np.clip(np.sqrt(np.maximum(squares, 0)), low, 1)
        if np.max(np.abs(extrema - inner)) < 1e-14:
            break
        inner = extrema
    return float(a), float(b), float(c)


def _smallest_bound(square):
    """Lower bound on the smallest singular value, (): 1 / sqrt(trace(G^-1)); 0 where rounding may have made it."""
    lower = lax.linalg.cholesky(square, symmetrize_input=False)
    identity = jnp.eye(square.shape[-1], dtype=square.dtype)
    inverse = lax.linalg.triangular_solve(lower, identity, left_side=True, lower=True)  # G^-1 = L^-T L^-1
    lowest = 1 / jnp.sum(inverse**2)  # 1 / trace(G^-1) <= s_r^2
    trusted = lowest > _TRUSTED * jnp.finfo(square.dtype).eps  # False for the NaN of a failed factorisation
    return jnp.where(trusted, jnp.sqrt(lowest), 0)


def orthogonality_residual(square: jax.Array) -> jax.Array:
    """||G - I||_F / sqrt(n) of a factor's Gram matrix, (..., n, n)."""
    size = square.shape[-1]
    return frobenius(square - jnp.eye(size, dtype=square.dtype)) / math.sqrt(size)


def orthogonality_tolerance(x: jax.Array) -> float:
    """The residual at which a factor of x counts as orthonormal: rounding of its Gram matrix grows like sqrt(n) eps."""
    return (16 + 4 * math.sqrt(x.shape[-1])) * float(jnp.finfo(x.dtype).eps)
