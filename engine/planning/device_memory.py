"""What a matrix takes of a device's memory, and which are divided by rows because one device has no room for them.

Estimates, for accelerators: there a program holds whole matrices in the working dtype, where on CPU it goes by blocks
of rows.
"""

import math
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from polarax.kernels.methods import method_named
from polarax.loaders import short_name
from polarax.planning.measurement import Measurement
from polarax.planning.stacks import Member, Stack, stored_bytes, work_bytes

# Of a device's memory, what programs and what is fragmented leave for arrays.
_FOR_ARRAYS = 0.9


class DeviceMemory(NamedTuple):
    """The devices of a process that a matrix can be divided over."""

    number: int = 1
    bytes: int | None = None  # memory of one; None where that is not known, or shared as on CPU

    @property
    def bytes_for_arrays(self) -> float:
        """Memory of one that arrays may take."""
        return math.inf if self.bytes is None else self.bytes * _FOR_ARRAYS


class OnDevice(NamedTuple):
    """Memory that a matrix takes with its posts, in bytes."""

    by_rows: int  # in proportion to its rows: each device has its part of them
    squares: int  # of r x r arrays, on one device

    def each(self, devices: int) -> int:
        """What the first of some devices has of it."""
        return math.ceil(self.by_rows / devices) + self.squares


def on_device(measurement: Measurement, member: Member) -> OnDevice:
    """What a matrix takes, with its posts."""
    if measurement.quick:
        return OnDevice(work_bytes(measurement, False, member) + stored_bytes(member), 0)
    m, n = max(member[0].shape), min(member[0].shape)
    arrays, squares = method_named(measurement.method).device_arrays
    itemsize = np.dtype(measurement.dtype).itemsize
    return OnDevice(itemsize * arrays * m * n + stored_bytes(member), itemsize * squares * n**2)


def divided_by_rows(stack: Stack, measurement: Measurement, devices: DeviceMemory) -> Stack:
    """The stack with its matrices divided over the devices, if one has no room for such a matrix; else as it is."""
    if devices.number == 1 or not measurement.divides_rows:
        return stack
    if on_device(measurement, stack.members[0]).each(1) <= devices.bytes_for_arrays:
        return stack
    # One after another over all devices: no padding.
    return stack._replace(size=len(stack.pairs), lanes=1, devices=1, row_devices=devices.number)


def lines_on_rows(stacks: Iterable[Stack], measurement: Measurement, devices: DeviceMemory) -> list[str]:
    """What users are told: which matrices are divided, and why; which a device may have no room for all the same."""
    lines, told = [], set()
    for stack in stacks:
        needs = on_device(measurement, stack.members[0])
        whole, each = needs.each(1), needs.each(stack.row_devices)
        kind = stack.shape, whole
        if whole <= devices.bytes_for_arrays or kind in told:
            continue
        told.add(kind)
        pair = stack.pairs[0]
        line = (
            f"{short_name(pair.name)} ({pair.shape[0]} x {pair.shape[1]}) takes about {_gib(whole)}, "
            f"of {_gib(devices.bytes_for_arrays)} on a device"
        )
        if stack.row_devices > 1:
            line += f": its rows are divided over {stack.row_devices}"
            if each > devices.bytes_for_arrays:
                line += f", and the first still has {_gib(each)}"
        elif devices.number > 1:
            line += ": not divided by rows, since what is measured takes it whole"
        lines.append(line)
    return lines


def _gib(count: float) -> str:
    return f"{count / 2**30:.3g} GiB"
