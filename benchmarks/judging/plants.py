"""Planted effects: changes of which it is known what they are, over a background of random change.

All are of square matrices W = U diag(s) V^T. The background has the spectrum of a real change in random directions; the
same bases and backgrounds serve all sizes of an effect, so that a curve over sizes shows the size alone.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from benchmarks.judging import changes
from benchmarks.judging.spectra import Subject, reduced

# Steps that bring an exact rotation to the size asked for; each multiplies the error by about the drift.
_ROTATION_STEPS = 4


class Stage(NamedTuple):
    """Bases with their backgrounds, and what effects are made of."""

    left: np.ndarray  # U, (count, r, r)
    values: np.ndarray  # s, (count, r)
    right: np.ndarray  # V, (count, r, r)
    background: np.ndarray  # (count, r, r), each of its base's norm
    turning: np.ndarray  # independent normal numbers, (count, r, r)

    @property
    def norm(self) -> np.ndarray:
        """||W||, (count,)."""
        return np.linalg.norm(self.values, axis=1)

    @property
    def base(self) -> np.ndarray:
        """W, (count, r, r)."""
        return self.in_frame(np.zeros_like(self.left), self.values)

    def in_frame(self, inner: np.ndarray, diagonal: np.ndarray | None = None) -> np.ndarray:
        """U (inner + diag(diagonal)) V^T, (count, r, r)."""
        if diagonal is not None:
            inner = inner + diagonal[:, :, None] * np.eye(inner.shape[1])
        return self.left @ inner @ self.right.swapaxes(1, 2)


@dataclasses.dataclass(frozen=True)
class Plant:
    """An effect."""

    name: str
    told: str  # the kind of effect that should be named
    sizes: tuple[float, ...]
    axis: str  # what a size is
    threshold: float  # from which on the docs say that it is named
    lines: tuple[float, ...]  # what else it hangs on; the middle one is measured at all r
    line: str  # that, in words, for one of them
    change: Callable[[Stage, float, float], np.ndarray]  # post - base from size and line, (count, r, r)


def stage(subjects: Sequence[Subject], size: int, rng: np.random.Generator) -> Stage:
    """A base for each subject, of its spectrum, r = size, and the rest of what is random."""
    count = len(subjects)
    values = np.stack([reduced(subject.values, size) for subject in subjects])
    left, right = changes.haar(rng, count, size, size), changes.haar(rng, count, size, size)
    own = np.stack([reduced(subject.change, size) for subject in subjects])
    background = changes.with_spectra(rng, own, size, size)
    background *= (np.linalg.norm(values, axis=1) / np.linalg.norm(own, axis=1))[:, None, None]
    return Stage(left, values, right, background, rng.standard_normal((count, size, size)))


def turned_together(values: np.ndarray, turning: np.ndarray, norm: np.ndarray) -> np.ndarray:
    """R S R^T - S for rotations R such that it has the norms asked for, (count, r, r).

    R is the Cayley transform of a random skew-symmetric matrix, and so exactly orthogonal.

    Args:
        values: Diagonals of S, (count, r).
        turning: Numbers that make the rotation, (count, r, r).
        norm: (count,).
    """
    skew = (turning - turning.swapaxes(1, 2)) / 2
    eye = np.eye(values.shape[1])
    first_order = np.linalg.norm(skew * (values[:, None, :] - values[:, :, None]), axis=(1, 2))
    angle = norm / first_order
    for _ in range(_ROTATION_STEPS):
        half = skew * (angle / 2)[:, None, None]
        rotation = np.linalg.solve(eye - half, eye + half)
        change = (rotation * values[:, None, :]) @ rotation.swapaxes(1, 2) - values[:, :, None] * eye
        angle = angle * norm / np.linalg.norm(change, axis=(1, 2))
    return change


def _coordination(stage, size, drift):
    turned = turned_together(stage.values, stage.turning, drift * np.sqrt(size) * stage.norm)
    return stage.in_frame(turned) + drift * np.sqrt(1 - size) * stage.background


def _scaling(stage, size, drift):
    return size * stage.base + drift * stage.background


def _uneven(stage, size, drift):
    squares = stage.values**2
    factors = stage.turning[:, 0, :]
    factors = factors - (squares * factors).sum(1, keepdims=True) / squares.sum(1, keepdims=True)  # alpha stays 1
    moved = stage.values * factors
    moved *= (drift * np.sqrt(size) * stage.norm / np.linalg.norm(moved, axis=1))[:, None]
    return stage.in_frame(np.zeros_like(stage.left), moved) + drift * np.sqrt(1 - size) * stage.background


def _low_rank(stage, size, share):
    rank = max(1, round(size * stage.values.shape[1]))
    left, right = (np.linalg.qr(stage.turning[:, :, i * rank : (i + 1) * rank])[0] for i in range(2))
    change = left @ right.swapaxes(1, 2) * (stage.norm / np.sqrt(rank))[:, None, None]
    return _LOW_RANK_DRIFT * (np.sqrt(1 - share) * change + np.sqrt(share) * stage.background)


_DRIFTS = (0.003, 0.03, 0.3)
_LOW_RANK_DRIFT = 0.01
_SHARES = (0.02, 0.05, 0.08, 0.1, 0.12, 0.15, 0.2, 0.4)

PLANTS = {
    plant.name: plant
    for plant in (
        Plant(
            "coordination", "coordinated", _SHARES,
            "share of the change that turns both sides together", 0.1, _DRIFTS, "drift {:g}", _coordination,
        ),
        Plant(
            "scaling", "scaled up", (0.001, 0.003, 0.004, 0.005, 0.006, 0.008, 0.015, 0.05),
            "by how much all singular values were scaled", 0.005, _DRIFTS, "drift {:g}", _scaling,
        ),
        Plant(
            "uneven scaling", "uneven", _SHARES,
            "share of the change in singular values, each by its own factor", 0.1, _DRIFTS, "drift {:g}", _uneven,
        ),
        Plant(
            "low rank", "low rank", (1 / 64, 1 / 32, 1 / 16, 0.1, 0.15, 0.2, 0.25, 0.4),
            "rank of the change over r", 0.2, (0.0, 0.001, 0.01), "{:.1%} random", _low_rank,
        ),
    )
}  # fmt: skip
