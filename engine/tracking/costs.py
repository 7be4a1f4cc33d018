"""What tracking costs, from shapes alone: operations, bytes, and the share of a training step."""

import dataclasses
import math
from collections.abc import Mapping

import numpy as np

from polarax.kernels.leading_svd import iteration_operations
from polarax.loaders import Skipped
from polarax.tracking.layout import Layout
from polarax.tracking.readings import Options

# Cycles of the iteration that a measurement takes, as seen in fine-tuning: one or two.
_CYCLES = 2

# Products of matrices with few columns, and decompositions, run at a part of the rate of a training step's products.
# Measured on two cores with AVX-512; accelerators differ.
_NARROW_SHARE = 0.25
_SQUARE_SHARE = 0.5

# Operations of a training step for each parameter and token: 2 forward, 4 backward (Kaplan et al., arXiv:2001.08361).
_STEP_OPERATIONS = 6

# One polar factor, in units of n^3: ten steps of three products by a quintic of the small side (kernels.polar).
_POLAR_STEPS = 10


@dataclasses.dataclass(frozen=True)
class TrackingPlan:
    """Expected costs. `print` it."""

    matrices: int
    operations: Mapping[str, float]  # floating-point operations of one measurement, by what they are for
    state_bytes: Mapping[str, int]  # what the state holds, by what it is
    tracked_bytes: int  # of the tracked parameters themselves
    every: int
    full_every: int | None
    step_operations: float | None  # of a training step; None if neither tokens nor seconds were given
    step_seconds: float | None
    skipped: tuple[Skipped, ...]

    @property
    def share(self) -> float | None:
        """Expected time of tracking over that of the loop without it; None if nothing is known of a step."""
        if self.step_operations is None:
            return None
        work = sum(self.operations[part] / _rate(part) for part in self.operations if part != "spectrum") / self.every
        if self.full_every is not None:
            work += self.operations["spectrum"] / _rate("spectrum") / self.full_every
        return work / self.step_operations

    def __str__(self) -> str:
        total = sum(self.operations.values())
        lines = [
            f"{self.matrices} matrices of {_bytes(self.tracked_bytes)} tracked, {len(self.skipped)} arrays left out",
            f"state: {_bytes(sum(self.state_bytes.values()))} ("
            + ", ".join(f"{what} {_bytes(size)}" for what, size in self.state_bytes.items() if size)
            + ")",
            f"one measurement: {total:.3g} operations ("
            + ", ".join(f"{what} {count:.2g}" for what, count in self.operations.items() if count)
            + ")",
        ]
        if self.share is not None:
            lines.append(f"every {self.every} steps: about {100 * self.share:.2g}% of the loop's time")
        if self.step_seconds is not None and self.share is not None:
            seconds = self.share * self.every * self.step_seconds
            lines.append(f"one measurement: about {seconds:.2g} s, at {self.step_seconds:.2g} s a step")
        return "\n".join(lines)


def plan_tracking(
    layout: Layout,
    leaves: Mapping[str, tuple[tuple[int, ...], np.dtype]],
    options: Options,
    every: int,
    full_every: int | None,
    parameters: int,
    step_seconds: float | None,
    tokens: int | None,
) -> TrackingPlan:
    """Counts what tracking a layout takes.

    Args:
        layout: Of the parameters.
        leaves: Shape and dtype of each leaf that it reads.
        options: Of the tracker.
        every: Steps between measurements.
        full_every: Steps between whole spectra.
        parameters: Of the model.
        step_seconds: Of a training step, if known; only shown.
        tokens: In a step, for its operations.
    """
    operations = dict.fromkeys(("change", "leading", "budget", "rotation", "spectrum"), 0.0)
    state = dict.fromkeys(("base", "frames", "polar factors", "right vectors", "spectra"), 0)
    state["base"] = sum(math.prod(shape) * dtype.itemsize for shape, dtype in leaves.values())
    for group in layout.groups:
        (m, n), count = group.shape, len(group.labels)
        size = np.dtype(group.dtype).itemsize
        k, b = options.count(group.shape), options.block(group.shape)
        operations["change"] += count * 8.0 * m * n
        if options.leading:
            operations["leading"] += count * (iteration_operations(m, n, k, b, _CYCLES) + 2.0 * m * n * k)
            state["frames"] += 2 * count * size * (m * k + n * b + b)
        if "budget" in options.metrics:
            operations["budget"] += count * float(2 * m * n**2 + 4 * n**3)
            state["right vectors"] += count * size * n * n
        if "rotation" in options.metrics:
            one = _POLAR_STEPS * 6 * n**3 + (6 * m * n**2 if m >= 1.5 * n else 0)
            kept = options.keeps_polar(group.stored)
            operations["rotation"] += count * float((1 if kept else 2) * one + 4 * m * n**2 + 2 * n**3)
            state["polar factors"] += count * size * m * n if kept else 0
        if {"budget", "rotation"} & set(options.metrics) or options.spectrum:
            state["spectra"] += count * size * n
        if options.spectrum:
            operations["spectrum"] += count * float(m * n**2 + 4 * n**3 / 3)
            state["spectra"] += count * size * n
    step_operations = None if tokens is None else float(_STEP_OPERATIONS) * parameters * tokens
    return TrackingPlan(
        len(layout.labels),
        operations,
        state,
        state["base"],
        every,
        full_every,
        step_operations,
        step_seconds,
        layout.skipped,
    )


def _rate(part: str) -> float:
    return _SQUARE_SHARE if part in ("budget", "rotation") else _NARROW_SHARE


def _bytes(count: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.3g} {unit}"
        count /= 1024
    return f"{count:.3g} TiB"
