"""Rows of matrices.csv from the readings of a stack."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from polarax.loaders import Pair
from polarax.metrics import every_metric
from polarax.metrics.certificate import Convergence
from polarax.metrics.common_direction import beside_cosine
from polarax.metrics.status import JudgedBy, Status
from polarax.planning.measurement import Measurement
from polarax.planning.stacks import Stack


def as_stored(readings: Mapping[str, np.ndarray], stack: Stack) -> dict[str, np.ndarray]:
    """The readings of a stack without padding, left and right named for each matrix as it is stored."""
    readings = {name: values[: len(stack.pairs)] for name, values in readings.items()}
    transposed = np.array(stack.transposed)
    for left in [name for name in readings if "_left" in name]:
        right = left.replace("_left", "_right")
        both = readings[left], readings[right]
        swap = transposed.reshape(-1, *[1] * (both[0].ndim - 1))
        readings[left], readings[right] = (np.where(swap, *sides) for sides in (both[::-1], both))
    return readings


def make_row(pair: Pair, readings: Mapping[str, np.ndarray], index: int, measurement: Measurement) -> dict[str, Any]:
    """One row: plain Python values.

    Args:
        pair: The matrix.
        readings: Of its stack, as `as_stored` gives them.
        index: Its place there.
        measurement: What was measured.
    """
    row = {name: values[index].item() for name, values in readings.items() if values.ndim == 1}
    status, message = Status.of_readings(row, min(pair.shape))
    if status.meaningless:
        row = dict.fromkeys(row, math.nan)
    if (pair.stored_base, pair.stored_post) != (pair.dtype_base.name, pair.dtype_post.name):
        # They are of the dtype that was read, not of the quantised type it was stored in.
        row |= {metric.name: math.nan for metric in every_metric() if metric.of_stored_dtype and metric.name in row}
    if measurement.quick:
        row["converged"] = Convergence.of_readings(row).value
    if "change_cosine" in row:
        row |= beside_cosine(row, pair.shape)
    return {
        "name": pair.name,
        "layer": pair.layer,
        "role": pair.role,
        "expert": pair.expert,
        "rows": pair.shape[0],
        "cols": pair.shape[1],
        "dtype_base": pair.stored_base,
        "dtype_post": pair.stored_post,
        "status": message,
        "name_post": pair.name_post,
        "matched_by": pair.matched_by,
        **row,
        "control": _judged_by(row, status, measurement).value,
    }


def _judged_by(row: Mapping[str, Any], status: Status, measurement: Measurement) -> JudgedBy:
    if not measurement.quick:
        reach = row["control_reach"]
    else:  # none of a first look's controls depends on the smallest singular value
        reach = math.nan if status.meaningless else 0.0
    return JudgedBy.of_reach(reach, drawn=bool(measurement.draws))
