"""The reference that results are judged by: a one-sided Jacobi SVD in extended precision.

Jacobi's method rotates pairs of columns until all are orthogonal, and finds small singular values
more accurately than any method that first reduces to bidiagonal form (Demmel and Veselic 1992). It
runs in numpy's long double: 64 bits of mantissa on x86, so that float64 results can be judged too.
(mpmath would do, but takes minutes where this takes a second.)
"""

from typing import NamedTuple

import numpy as np

# Rounding unit of the reference. Where long double is float64 (ARM on macOS, Windows), errors of
# float64 results say little and are left out.
EPS = float(np.finfo(np.longdouble).eps)
EXTENDED = EPS < 1e-18

# Sweeps needed are about log2 of the size; graded matrices take a few more.
_MAX_SWEEPS = 40


class Reference(NamedTuple):
    """An SVD in long double, r = min(m, n)."""

    left: np.ndarray  # (m, r); columns of zero singular values are zero
    values: np.ndarray  # (r,), descending
    right: np.ndarray  # (n, r)


def svd(x: np.ndarray) -> Reference:
    """Thin SVD of a finite matrix in long double.

    Raises:
        RuntimeError: The columns are not orthogonal after 40 sweeps.
    """
    x = np.asarray(x)
    if x.shape[0] < x.shape[1]:
        right, values, left = svd(x.T)
        return Reference(left, values, right)
    work, scale = _scaled(x)
    size = work.shape[1]
    order = np.argsort(-np.sum(work * work, axis=0), kind="stable")
    columns = work[:, order]
    right = np.eye(size, dtype=np.longdouble)[:, order]
    for _ in range(_MAX_SWEEPS):
        if not _sweep(columns, right):
            break
    else:
        raise RuntimeError(f"Jacobi did not converge for a matrix of shape {x.shape}.")
    values = np.sqrt(np.sum(columns * columns, axis=0))
    order = np.argsort(-values, kind="stable")
    columns, values, right = columns[:, order], values[order], right[:, order]
    left = np.divide(columns, values, out=np.zeros_like(columns), where=values > 0)
    return Reference(left, values * scale, right)


def rotation_difference(base: Reference, post: Reference) -> float:
    """nf = ||P_p^T P_b - I||_F / sqrt(r) of a pair of full rank, by the polar factors."""
    if base.left.shape[0] < base.right.shape[0]:  # wide: the transposes
        base, post = (Reference(ref.right, ref.values, ref.left) for ref in (base, post))
    factors = [ref.left @ ref.right.T for ref in (base, post)]
    difference = factors[1].T @ factors[0] - np.eye(len(base.values), dtype=np.longdouble)
    return float(np.sqrt(np.sum(difference**2) / len(base.values)))


def _scaled(x):
    """The matrix over a power of two near its largest entry, and that power: squares stay in range."""
    work = np.array(x, np.longdouble)
    largest = np.max(np.abs(work), initial=0)
    if not np.isfinite(largest):
        raise ValueError("The reference needs finite entries.")
    scale = np.ldexp(np.longdouble(1), int(np.frexp(largest)[1])) if largest > 0 else 1
    return work / scale, scale


def _sweep(columns, right):
    """Rotates every pair of columns once, in place; says whether any pair was rotated.

    Pairs are visited as a round-robin tournament, so that each round's pairs are disjoint and one
    array operation serves them all.
    """
    size = columns.shape[1]
    players = size + size % 2
    seats = np.arange(players)
    rotated = False
    tolerance = EPS * np.sqrt(np.longdouble(columns.shape[0]))
    for _ in range(players - 1):
        first, second = seats[: players // 2], seats[players // 2 :][::-1]
        real = (first < size) & (second < size)
        low, high = np.minimum(first, second)[real], np.maximum(first, second)[real]
        rotated |= _rotate(columns, right, low, high, tolerance)
        seats = np.concatenate([seats[:1], np.roll(seats[1:], 1)])
    return rotated


def _rotate(columns, right, low, high, tolerance):
    left_part, right_part = columns[:, low], columns[:, high]
    alpha = np.sum(left_part * left_part, axis=0)
    beta = np.sum(right_part * right_part, axis=0)
    gamma = np.sum(left_part * right_part, axis=0)
    needed = np.abs(gamma) > tolerance * np.sqrt(alpha * beta)
    if not needed.any():
        return False
    zeta = np.where(needed, (beta - alpha) / np.where(needed, 2 * gamma, 1), 0)
    sign = np.where(zeta < 0, -1, 1)
    tangent = np.where(needed, sign / (np.abs(zeta) + np.sqrt(1 + zeta * zeta)), 0)
    cosine = 1 / np.sqrt(1 + tangent * tangent)
    sine = cosine * tangent
    for array in (columns, right):
        one, other = array[:, low], array[:, high]
        array[:, low], array[:, high] = cosine * one - sine * other, sine * one + cosine * other
    return True
