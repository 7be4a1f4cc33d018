"""Matrices with a prescribed spectrum: what the kernels are tested on.

A matrix is U diag(s) V^T with U and V random from the Haar measure, as LAPACK's test matrix generator makes it. The
spectra are modes 1 to 5 of its `dlatms`, the kinds its SVD drivers are tested on (`ddrvbd`: zero, identity, evenly
spaced, the same near underflow and near overflow), deficient ranks, and what language models have: a bulk and spikes.

Everything is made in float64 by numpy from a seed and rounded to the dtype asked for, so a reference has to start from
the array returned, not from the spectrum.
"""

import zlib
from collections.abc import Callable

import ml_dtypes
import numpy as np

# Tall, wide, square, and the degenerate ones.
SHAPES = ((24, 24), (60, 17), (17, 60), (1, 9), (9, 1), (1, 1))
WORKING_DTYPES = ("float32", "float64")


def _geometric(size: int, smallest: float) -> np.ndarray:
    return smallest ** (np.arange(size) / max(size - 1, 1))


def _arithmetic(size: int, smallest: float) -> np.ndarray:
    return np.linspace(1, smallest, size) if size > 1 else np.ones(1)


def _one_large(size: int, smallest: float) -> np.ndarray:
    return np.where(np.arange(size) == 0, 1.0, smallest)


def _one_small(size: int, smallest: float) -> np.ndarray:
    return np.where(np.arange(size) == size - 1, smallest, 1.0) if size > 1 else np.ones(1)


def _clustered(size: int, spread: float) -> np.ndarray:
    """Four groups of values, each within `spread` of its centre."""
    centres = np.array([1, 0.5, 0.25, 0.1])[np.arange(size) * 4 // size]
    return np.sort(centres * (1 + spread * np.linspace(-1, 1, size)))[::-1]


def _deficient(size: int, rank: int) -> np.ndarray:
    """Evenly spaced values in [0.5, 1], and exact zeros after `rank` of them."""
    return np.where(np.arange(size) < rank, np.linspace(1, 0.5, size), 0.0)


def _llm_like(size: int, rng: np.random.Generator) -> np.ndarray:
    """A bulk, a few spikes above it, and a tail that ends at 1e-5 of the largest."""
    spikes, tail = size // 16 + 1, size // 8
    bulk = np.sort(rng.uniform(0.3, 1, max(size - spikes - tail, 0)))[::-1]
    largest = 30.0
    values = np.concatenate(
        [
            largest * _geometric(spikes, 0.1),
            bulk,
            np.geomspace(0.3, 1e-5 * largest, tail + 1)[1:],
        ]
    )
    return values[:size]


def spectrum(kind: str, size: int, dtype: str, rng: np.random.Generator) -> np.ndarray:
    """Singular values of a kind, (size,), descending; `dtype` sets what is ill-conditioned or near overflow."""
    info = ml_dtypes.finfo(dtype)
    eps, tiny, largest = float(info.eps), float(info.tiny), float(info.max)
    makers: dict[str, Callable[[], np.ndarray]] = {
        "zero": lambda: np.zeros(size),
        "identity": lambda: np.ones(size),
        "mild": lambda: _arithmetic(size, 0.2),
        "separated": lambda: _geometric(size, 0.02),
        "arithmetic": lambda: _arithmetic(size, eps),
        "geometric": lambda: _geometric(size, eps),
        "log_uniform": lambda: np.sort(eps ** rng.uniform(0, 1, size))[::-1],
        "one_large": lambda: _one_large(size, 10 * eps),
        "one_small": lambda: _one_small(size, 10 * eps),
        "clustered": lambda: _clustered(size, 4 * eps),
        "near_underflow": lambda: _arithmetic(size, eps) * (tiny / eps),
        "near_overflow": lambda: _arithmetic(size, eps) * (largest * eps),
        "rank_deficient": lambda: _deficient(size, (size + 1) // 2),
        "rank_one": lambda: _deficient(size, 1),
        "llm_like": lambda: _llm_like(size, rng),
    }
    return makers[kind]()


SPECTRA = (
    "zero",
    "identity",
    "mild",
    "separated",
    "arithmetic",
    "geometric",
    "log_uniform",
    "one_large",
    "one_small",
    "clustered",
    "near_underflow",
    "near_overflow",
    "rank_deficient",
    "rank_one",
    "llm_like",
)
KINDS = (*SPECTRA, "gaussian")
# Full rank with a condition number of at most 50: a float32 result can be compared entry by entry.
WELL_CONDITIONED = ("identity", "mild", "separated", "clustered")
# Planted rank of those that have one.
RANKS = {
    "zero": lambda size: 0,
    "rank_one": lambda size: 1,
    "rank_deficient": lambda size: (size + 1) // 2,
}


def generator(*key: object) -> np.random.Generator:
    """A random generator of its own for every key, the same on every machine."""
    return np.random.default_rng(zlib.crc32(repr(key).encode()))


def orthonormal(rows: int, cols: int, rng: np.random.Generator) -> np.ndarray:
    """Orthonormal columns, (rows, cols), rows >= cols, from the Haar measure (Stewart 1980)."""
    q, r = np.linalg.qr(rng.standard_normal((rows, cols)))
    return q * np.where(np.diag(r) < 0, -1.0, 1.0)


def with_spectrum(values: np.ndarray, rows: int, cols: int, rng: np.random.Generator) -> np.ndarray:
    """U diag(values) V^T with random U and V, (rows, cols), float64; min(rows, cols) values."""
    size = min(rows, cols)
    scale = np.max(values) if np.max(values) > 0 else 1.0  # near under- and overflow only at the very end
    left, right = orthonormal(rows, size, rng), orthonormal(cols, size, rng)
    return (left * (values / scale)) @ right.T * scale


def matrix(kind: str, shape: tuple[int, int], dtype: str = "float32", seed: int = 0) -> np.ndarray:
    """A matrix of one of `KINDS`, in a floating-point dtype given by name (bfloat16 and f8 types too)."""
    rng = generator("matrix", kind, shape, dtype, seed)
    if kind == "gaussian":
        made = rng.standard_normal(shape)
    else:
        made = with_spectrum(spectrum(kind, min(shape), dtype, rng), *shape, rng)
    return made.astype(ml_dtypes.finfo(dtype).dtype)


def drifted(base: np.ndarray, drift: float, seed: int = 0) -> np.ndarray:
    """base plus an isotropic random change with ||D||_F = drift ||base||_F, in the dtype of base."""
    wide = base.astype(np.float64)
    change = generator("drift", base.shape, seed).standard_normal(base.shape)
    change *= drift * np.linalg.norm(wide) / np.linalg.norm(change)
    return (wide + change).astype(base.dtype)
