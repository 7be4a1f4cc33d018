"""Which matrices are divided by rows over devices, and what users are told of it."""

import dataclasses

import numpy as np
import pytest

import polarax
from polarax.metrics import GROUPS, Group, Metric, quick_groups, register
from polarax.planning.comparison_plan import plan_posts
from polarax.planning.measurement import Measurement
from polarax.planning.selection import Selection

TALL, WIDE, SMALL = (300, 20), (20, 200), (20, 20)
MEASURED = Measurement()
# By the estimate for "gram" in float64: four arrays of the matrix's size and twelve of 20 x 20, and the pair as it is.
BYTES = {shape: 8 * (4 * shape[0] * shape[1] + 12 * 20 * 20) + 2 * 4 * shape[0] * shape[1] for shape in (TALL, WIDE)}


def plan(measurement=MEASURED, *, devices=4, device_bytes=BYTES[TALL]):
    rng = np.random.default_rng(0)
    shapes = {"embed_tokens.weight": TALL, "lm_head.weight": WIDE}
    shapes |= {f"layers.{layer}.self_attn.q_proj.weight": SMALL for layer in range(3)}
    base = polarax.open_checkpoint({n: rng.normal(size=shape).astype(np.float32) for n, shape in shapes.items()})
    sizes = {"devices": devices, "device_bytes": device_bytes, "memory_bytes": 2**30}
    return plan_posts(base, {"": base}, Selection(), measurement, **sizes)


def divided(plan):
    return {stack.shape for stack in plan.stacks if stack.row_devices > 1}


def test_what_fits_stays_whole():
    room = BYTES[TALL] / 0.9 + 1
    assert not divided(plan(device_bytes=room)) and not plan(device_bytes=room).rows_divided
    assert not divided(plan(device_bytes=None)) and not plan(device_bytes=None).rows_divided


def test_what_does_not_fit_is_divided_over_all_devices():
    found = plan()
    assert divided(found) == {TALL}
    (line,) = found.rows_divided
    assert "embed_tokens" in line and "300 x 20" in line and "divided over 4" in line
    both = plan(device_bytes=BYTES[WIDE])
    assert divided(both) == {TALL, (200, 20)}  # a wide one as its transpose
    assert len(both.rows_divided) == 2 and "20 x 200" in "".join(both.rows_divided)


def test_matrices_that_are_divided_need_no_padding():
    for stack in plan().stacks:
        assert stack.size == (len(stack.pairs) if stack.row_devices > 1 else 4)


@pytest.mark.parametrize(
    "measurement",
    [
        Measurement(quick_groups(), quick=True),
        Measurement(control_draws=1),
    ],
)
def test_what_takes_whole_matrices_says_so(measurement):
    found = plan(measurement, device_bytes=1000)
    assert not divided(found)
    assert found.rows_divided and all("not divided" in line for line in found.rows_divided)


def test_headlines_by_products_are_divided():
    measurement = Measurement(("polar",), by_products=True, dtype="float32")
    assert TALL in divided(plan(measurement, device_bytes=1000))


def test_one_device_is_all_there_is():
    found = plan(devices=1)
    assert not divided(found)
    (line,) = found.rows_divided
    assert "embed_tokens" in line and line.endswith("on a device")


def test_what_another_package_reads_of_stored_entries_takes_whole_matrices():
    def read(pair):
        return {"largest": abs(pair.base).max(axis=(-2, -1))}

    register(Group("entries", "Entries", vectors=False, stored=True), [Metric("largest", "largest entry")], read)
    try:
        assert not divided(plan(dataclasses.replace(MEASURED, groups=("scaling", "entries"))))
        assert divided(plan(dataclasses.replace(MEASURED, groups=("scaling",))))
    finally:
        del GROUPS["entries"]
