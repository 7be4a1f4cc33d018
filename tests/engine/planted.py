"""Pairs of models with one known change, made with NumPy and SciPy alone."""

from collections.abc import Callable

import ml_dtypes
import numpy as np
import scipy.linalg

LAYERS = 4
SHAPES = {
    "self_attn.q_proj": (48, 48),
    "self_attn.k_proj": (48, 48),
    "self_attn.v_proj": (48, 48),
    "self_attn.o_proj": (48, 48),
    "mlp.up_proj": (96, 48),
    "mlp.down_proj": (48, 96),
}

Weights = dict[str, np.ndarray]
Change = Callable[[np.random.Generator, str, np.ndarray], np.ndarray]


def model(rng: np.random.Generator, condition: float = 20.0) -> Weights:
    """Weights in float64 with singular values in geometric progression and random vectors."""
    weights = {}
    for layer in range(LAYERS):
        for name, (rows, cols) in SHAPES.items():
            rank = min(rows, cols)
            left, right = haar(rng, rows, rank), haar(rng, cols, rank)
            weights[f"layers.{layer}.{name}.weight"] = (left * np.geomspace(condition, 1, rank)) @ right.T
    return weights


def changed(rng: np.random.Generator, weights: Weights, change: Change) -> Weights:
    """Every weight as `change(rng, name, weight)` makes it."""
    return {name: change(rng, name, w) for name, w in weights.items()}


def haar(rng: np.random.Generator, rows: int, cols: int) -> np.ndarray:
    """Orthonormal columns, uniformly distributed."""
    q, r = np.linalg.qr(rng.normal(size=(rows, cols)))
    return q * np.sign(np.diag(r))


def of_size(change: np.ndarray, w: np.ndarray, drift: float) -> np.ndarray:
    """The change, brought to this share of the norm of w."""
    return change * (drift * np.linalg.norm(w) / np.linalg.norm(change))


def gaussian(drift: float) -> Change:
    """Independent normal entries."""
    return lambda rng, name, w: w + of_size(rng.normal(size=w.shape), w, drift)


def concentrated(drift: float) -> Change:
    """Noise as training makes it: random directions, of which a few carry most."""

    def change(rng, name, w):
        rank = min(w.shape)
        noise = (haar(rng, w.shape[0], rank) * np.arange(1, rank + 1) ** -0.7) @ haar(rng, w.shape[1], rank).T
        return w + of_size(noise, w, drift)

    return change


def scaled(factor: float) -> Change:
    """All singular values times one factor."""
    return lambda rng, name, w: factor * w


def output_scaled(factor: float, drift: float) -> Change:
    """o times a factor; noise everywhere."""
    return lambda rng, name, w: gaussian(drift)(rng, name, w) * (factor if "o_proj" in name else 1.0)


def rotated(angle: float, *, together: bool = True) -> Change:
    """Left and right singular vectors turned by one small random rotation, or by it and its inverse."""

    def change(rng, name, w):
        left, values, right = np.linalg.svd(w, full_matrices=False)
        skew = rng.normal(size=(len(values), len(values)))
        turn = scipy.linalg.expm(angle * (skew - skew.T))
        return (left @ turn * values) @ (turn.T if together else turn) @ right

    return change


def uneven(spread: float) -> Change:
    """Each singular value times a factor of its own, vectors as they were."""

    def change(rng, name, w):
        left, values, right = np.linalg.svd(w, full_matrices=False)
        return (left * values * rng.uniform(1 - spread, 1 + spread, len(values))) @ right

    return change


def rank_one(drift: float) -> Change:
    """One random direction added."""
    return lambda rng, name, w: w + of_size(np.outer(*(rng.normal(size=side) for side in w.shape)), w, drift)


def few_directions(rank: int, drift: float) -> Change:
    """So many random directions added, of sizes that fall off."""

    def change(rng, name, w):
        left, right = (haar(rng, side, rank) for side in w.shape)
        return w + of_size((left * np.geomspace(1, 0.2, rank)) @ right.T, w, drift)

    return change


def outside(drift: float) -> Change:
    """Noise outside the column space of a tall weight and the row space of a wide one; noise elsewhere."""

    def change(rng, name, w):
        noise = rng.normal(size=w.shape)
        left, _, right = np.linalg.svd(w, full_matrices=False)
        if w.shape[0] > w.shape[1]:
            noise -= left @ (left.T @ noise)
        if w.shape[0] < w.shape[1]:
            noise -= noise @ right.T @ right
        return w + of_size(noise, w, drift)

    return change


def with_rows_apart(weights: Weights, ratio: float) -> Weights:
    """The same weights with rows of different norm, the last `ratio` times as long as the first."""
    return {name: w * np.geomspace(1, ratio, len(w))[:, None] for name, w in weights.items()}


def to_int4(rng: np.random.Generator, name: str, w: np.ndarray) -> np.ndarray:
    """w as 4-bit integers times a scale for each row."""
    scale = np.abs(w).max(axis=1, keepdims=True) / 7
    return np.round(w / scale) * scale


def dithered(rng: np.random.Generator, name: str, w: np.ndarray) -> np.ndarray:
    """w in bfloat16, rounded up or down by chance so that the mean is right."""
    bits = w.astype(np.float32).view(np.uint32) + rng.integers(0, 2**16, size=w.shape, dtype=np.uint32)
    return (bits & np.uint32(0xFFFF0000)).view(np.float32).astype(ml_dtypes.bfloat16)


def rounded(rng: np.random.Generator, name: str, w: np.ndarray) -> np.ndarray:
    """w in bfloat16, rounded to nearest."""
    return w.astype(np.float32).astype(ml_dtypes.bfloat16)
