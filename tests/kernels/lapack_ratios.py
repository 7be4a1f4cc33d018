"""How LAPACK's test suite judges a decomposition: residuals in units of what rounding alone would leave.

Each ratio is about 1 for a good result and `THRESHOLD` is where LAPACK's drivers fail (svd.in of its test suite).
Everything is computed in float64 after scaling by a power of two, so near under- and overflow nothing is lost.
"""

import numpy as np

THRESHOLD = 50.0


def scaled(x: np.ndarray, *others: np.ndarray) -> list[np.ndarray]:
    """Arrays in float64, divided by one power of two that brings the largest entry of x close to 1."""
    x = np.asarray(x).astype(np.float64)
    largest = np.max(np.abs(x), initial=0.0)
    exponent = -int(np.frexp(largest)[1])
    return [np.ldexp(np.asarray(y).astype(np.float64), exponent) for y in (x, *others)]


def residual(x: np.ndarray, u: np.ndarray, s: np.ndarray, v: np.ndarray, dtype: str) -> float:
    """||A - U S V^T|| / (||A|| max(m, n) eps), in the spectral norm."""
    x, s = scaled(x, s)
    u, v = (np.asarray(y).astype(np.float64) for y in (u, v))
    norm = np.linalg.norm(x, 2)
    difference = np.linalg.norm(x - (u * s) @ v.T, 2)
    return difference / ((norm if norm > 0 else 1) * max(x.shape) * np.finfo(dtype).eps)


def orthogonality(u: np.ndarray, dtype: str) -> float:
    """||I - U^T U|| / (max(m, n) eps), in the spectral norm."""
    u = np.asarray(u).astype(np.float64)
    return np.linalg.norm(np.eye(u.shape[1]) - u.T @ u, 2) / (max(u.shape) * np.finfo(dtype).eps)


def value_error(x: np.ndarray, s: np.ndarray, dtype: str) -> float:
    """Largest error of a singular value over s_1 max(m, n) eps, against numpy in float64."""
    x, s = scaled(x, s)
    expected = np.linalg.svd(x, compute_uv=False)
    largest = expected[0] if expected[0] > 0 else 1
    return np.max(np.abs(s - expected)) / (largest * max(x.shape) * np.finfo(dtype).eps)
