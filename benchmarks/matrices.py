"""Matrices whose singular values are known before they are made.

The classes are those of LAPACK's test matrix generator (xLATMS, LAPACK Working Note 41) and of its
SVD driver test (xDRVBD: entries scaled towards underflow and overflow), and weights such as language
models have: a Marchenko-Pastur bulk, spikes above it, a tail of small values below.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import scipy.fft

# Width of a cluster of singular values: far above eps of float32, far below any gap of a weight.
_CLUSTER_WIDTH = 1e-5
# Two rounds of sign flips and cosine transforms; one leaves the identity recognisable.
_MIXING_ROUNDS = 2
# Share of the smallest singular values that bends down towards the condition number asked for.
_TAIL_SHARE = 0.1
# One singular value in this many stands above the bulk.
_SPIKE_EVERY = 50
# The largest spike over the edge of the bulk.
_SPIKE_HEIGHT = 12.0
# Of a fine-tune's change, in squared norm: what lies in few directions. The rest is noise.
_LOW_RANK_SHARE = 0.5
_CHANGE_RANK_DIVISOR = 16


class Matrix(NamedTuple):
    """A matrix with its singular values."""

    entries: np.ndarray  # (m, n), float64
    values: np.ndarray  # (min(m, n),), float64, descending


class MatrixClass(NamedTuple):
    """A way to prescribe singular values."""

    name: str
    # (r, condition, rng) -> r values in [0, 1], not necessarily ordered
    spectrum: Callable[[int, float, np.random.Generator], np.ndarray]
    # The largest singular value, from the limits of the dtype that will hold the matrix.
    scale: Callable[[np.finfo], float] = lambda limits: 1.0
    full_rank: bool = True


def _clustered_high(size, condition, rng):
    few = max(1, size // 8)
    low = np.geomspace(0.5, 1 / condition, few)
    return np.concatenate([1 - _CLUSTER_WIDTH * rng.random(size - few), low])


def _clustered_low(size, condition, rng):
    few = max(1, size // 8)
    high = np.geomspace(1, 0.1, few)
    return np.concatenate([high, (1 + _CLUSTER_WIDTH * rng.random(size - few)) / condition])


def _geometric(size, condition, rng):
    return np.geomspace(1, 1 / condition, size)


def _arithmetic(size, condition, rng):
    return np.linspace(1, 1 / condition, size)


def _one_large(size, condition, rng):
    values = np.full(size, 1 / condition)
    values[0] = 1
    return values


def _one_small(size, condition, rng):
    values = np.ones(size)
    values[-1] = 1 / condition
    return values


def _log_uniform(size, condition, rng):
    return condition ** -rng.random(size)


def _half_rank(size, condition, rng):
    kept = math.ceil(size / 2)
    return np.concatenate([np.geomspace(1, 0.1, kept), np.zeros(size - kept)])


def _zero(size, condition, rng):
    return np.zeros(size)


CLASSES = (
    MatrixClass("clustered at 1", _clustered_high),
    MatrixClass("clustered at 1/cond", _clustered_low),
    MatrixClass("geometric", _geometric),
    MatrixClass("arithmetic", _arithmetic),
    MatrixClass("one large", _one_large),
    MatrixClass("one small", _one_small),
    MatrixClass("log-uniform", _log_uniform),
    # The scales of xDRVBD: the underflow threshold over eps, the overflow threshold times eps.
    MatrixClass("near underflow", _geometric, lambda limits: float(limits.tiny / limits.eps)),
    MatrixClass("near overflow", _geometric, lambda limits: float(limits.max * limits.eps)),
    MatrixClass("rank-deficient", _half_rank, full_rank=False),
    MatrixClass("zero", _zero, full_rank=False),
)


def of_class(kind: MatrixClass, rows: int, cols: int, *, condition: float, dtype: str, seed: int) -> Matrix:
    """A matrix of one class.

    Args:
        kind: One of `CLASSES`.
        rows: m.
        cols: n.
        condition: Largest over smallest singular value, where the class has a smallest one.
        dtype: "float32" or "float64": the dtype that will hold the matrix and limits its scale.
        seed: Of the spectrum and of the singular vectors.
    """
    rng = np.random.default_rng(seed)
    values = kind.spectrum(min(rows, cols), condition, rng) * kind.scale(np.finfo(dtype))
    return with_spectrum(values, rows, cols, rng)


def language_model_weight(rows: int, cols: int, *, condition: float, seed: int | Sequence[int]) -> Matrix:
    """A weight as a language model has it: bulk, spikes, and a tail down to s_1 / condition.

    The bulk follows the Marchenko-Pastur law of a Gaussian matrix of this shape and unit variance
    over sqrt(max(m, n)); the matrix as a whole is scaled to entries of about 0.02.
    """
    rng = np.random.default_rng(seed)
    values = language_model_spectrum(rows, cols, condition)
    values *= 0.02 * math.sqrt(rows * cols) / np.linalg.norm(values)
    return with_spectrum(values, rows, cols, rng)


def fine_tuned(base: np.ndarray, *, drift: float, seed: int | Sequence[int]) -> np.ndarray:
    """The base after a change of relative size `drift`: half in few directions, half noise."""
    rng = np.random.default_rng(seed)
    rows, cols = base.shape
    scale = np.max(np.abs(base), initial=0.0) or 1.0  # so that squares neither over- nor underflow
    rank = max(1, min(rows, cols) // _CHANGE_RANK_DIVISOR)
    directions = rng.standard_normal((rows, rank)) / np.arange(1, rank + 1)
    structured = directions @ rng.standard_normal((rank, cols))
    noise = rng.standard_normal((rows, cols))
    change = math.sqrt(_LOW_RANK_SHARE) * structured / np.linalg.norm(structured)
    change += math.sqrt(1 - _LOW_RANK_SHARE) * noise / np.linalg.norm(noise)
    size = drift * np.linalg.norm(base / scale) / np.linalg.norm(change)
    return base + scale * size * change


def with_spectrum(values: np.ndarray, rows: int, cols: int, rng: np.random.Generator | int) -> Matrix:
    """A matrix with these singular values and random orthonormal singular vectors.

    The vectors are products of random signs and cosine transforms: orthonormal to working accuracy,
    spread over all entries, and made in m n log(m n) operations, so that shapes of large models are
    as easy as small ones (a QR factorisation of a Gaussian takes minutes there).

    Args:
        values: (min(m, n),), >= 0, in any order.
        rows: m.
        cols: n.
        rng: Source of the signs, or a seed.

    Raises:
        ValueError: The number of values is not min(m, n).
    """
    values = np.sort(np.asarray(values, np.float64))[::-1].copy()
    if values.shape != (min(rows, cols),):
        raise ValueError(f"Expected {min(rows, cols)} values. Got shape={values.shape}.")
    rng = np.random.default_rng(rng)
    largest = values[0] if values.size and values[0] > 0 else 1.0
    entries = np.zeros((rows, cols))
    np.fill_diagonal(entries, values / largest)  # scaled, so that the transforms cannot overflow
    for axis, size in ((0, rows), (1, cols)):
        for _ in range(_MIXING_ROUNDS):
            signs = rng.choice((-1.0, 1.0), size)
            entries *= signs[:, None] if axis == 0 else signs
            entries = scipy.fft.dct(entries, axis=axis, norm="ortho", overwrite_x=True)
    return Matrix(entries * largest, values)


def language_model_spectrum(rows: int, cols: int, condition: float) -> np.ndarray:
    """The singular values of `language_model_weight` up to a factor, descending."""
    size = min(rows, cols)
    values = _marchenko_pastur(size, size / max(rows, cols))
    spikes = max(1, size // _SPIKE_EVERY)
    values[:spikes] = values[0] * _SPIKE_HEIGHT ** np.linspace(1, 0.05, spikes)
    tail = max(1, int(_TAIL_SHARE * size))
    wanted = values[0] / condition
    bend = np.linspace(0, 1, tail + 1)[1:] ** 4
    values[-tail:] *= (min(wanted, values[-1]) / values[-1]) ** bend
    return np.sort(values)[::-1]


def _marchenko_pastur(size, ratio):
    """Quantiles of the singular values of a Gaussian matrix with r / max(m, n) = ratio, descending."""
    low, high = 1 - math.sqrt(ratio), 1 + math.sqrt(ratio)
    # In s = sqrt(eigenvalue) the density is sqrt((s^2 - low^2)(high^2 - s^2)) / s up to a factor.
    grid = np.linspace(low, high, 4097)
    middle = (grid[1:] + grid[:-1]) / 2
    density = np.sqrt((middle**2 - low**2) * (high**2 - middle**2)) / middle
    share = np.concatenate([[0.0], np.cumsum(density)])
    return np.interp((np.arange(size)[::-1] + 0.5) / size, share / share[-1], grid)


def weight_pairs(rows: int, cols: int, count: int, *, dtype: np.dtype, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """A stack of language-model-like weights and the same after a fine-tune, (count, rows, cols).

    Condition numbers are spread over 1e3 to 1e5 (rounding to a 16-bit dtype brings the larger ones
    down, as it does in published checkpoints), changes are 1% of the norm.
    """
    base = np.empty((count, rows, cols), dtype)
    post = np.empty_like(base)
    for index in range(count):
        own = [seed, rows, cols, index]
        condition = 10 ** np.random.default_rng(own).uniform(3, 5)
        weight = language_model_weight(rows, cols, condition=condition, seed=own).entries
        base[index] = weight
        post[index] = fine_tuned(weight, drift=0.01, seed=[*own, 1])
    return base, post
