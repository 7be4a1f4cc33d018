"""Changes of random directions, stack by stack.

Every stack is (count, m, n), float64. A change of a given spectrum is U diag(d) V^T with U and V from the Haar measure:
what the reading's control assumes, and nothing else.
"""

import numpy as np

from benchmarks.judging.spectra import reduced

# The spectrum of what training did to the same weight.
REAL = "that of the real change"

# Spectra that say how much of a change is in how few directions; r is the shorter side.
SPECTRA = {
    "rank 1": lambda r: np.ones(1),
    "rank 4": lambda r: np.ones(min(4, r)),
    "rank 16": lambda r: np.ones(min(16, r)),
    "rank r/4": lambda r: np.ones(max(1, r // 4)),
    "k^-0.7": lambda r: np.arange(1, r + 1) ** -0.7,
    "k^-1": lambda r: np.arange(1, r + 1) ** -1.0,
}


def spectrum_of(name: str, real: np.ndarray, short: int) -> np.ndarray:
    """A spectrum by its name, (k,), up to a factor.

    Args:
        name: `REAL`, or one of `SPECTRA`.
        real: Singular values of the real change.
        short: The shorter side.
    """
    return reduced(real, short) if name == REAL else SPECTRA[name](short)


def haar(rng: np.random.Generator, count: int, side: int, rank: int) -> np.ndarray:
    """Orthonormal columns in random directions, (count, side, rank).

    The QR decomposition of a Gaussian matrix with the signs of R's diagonal taken out: F. Mezzadri, Notices of the AMS
    54 (2007).
    """
    q, r = np.linalg.qr(rng.standard_normal((count, side, rank)))
    return q * np.sign(np.diagonal(r, axis1=1, axis2=2))[:, None, :]


def with_spectra(rng: np.random.Generator, values: np.ndarray, rows: int, cols: int) -> np.ndarray:
    """Matrices with these singular values in random directions, (count, rows, cols).

    Args:
        rng: Source of the directions.
        values: (count, k), k at most the shorter side.
        rows: m.
        cols: n.
    """
    count, rank = values.shape
    left, right = haar(rng, count, rows, rank), haar(rng, count, cols, rank)
    return (left * values[:, None, :]) @ right.swapaxes(1, 2)


def isotropic(rng: np.random.Generator, count: int, rows: int, cols: int) -> np.ndarray:
    """Independent normal entries, (count, rows, cols)."""
    return rng.standard_normal((count, rows, cols))


def of_size(changes: np.ndarray, bases: np.ndarray, drift: np.ndarray) -> np.ndarray:
    """The changes, each scaled to a Frobenius norm of `drift` times its base's.

    Args:
        changes: (count, m, n).
        bases: Alike.
        drift: (count,).
    """
    norms = [np.linalg.norm(x, axis=(1, 2)) for x in (bases, changes)]
    return changes * (drift * norms[0] / norms[1])[:, None, None]
