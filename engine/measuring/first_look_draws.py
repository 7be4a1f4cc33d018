"""Sampled controls of a first look: the base with random changes of the pair's size, looked at as the post is."""

from collections.abc import Callable

import jax
from jax import lax

from polarax.measuring.entry_sums import Working
from polarax.measuring.sampled_controls import columns_of_controls, controls_of, draw_change, draws_of, key_of_draw
from polarax.metrics import Readings
from polarax.planning.measurement import Measurement


def sampled_looks(
    base: Working,
    change: Working,
    values: jax.Array,
    keys: jax.Array,
    readings: Readings,
    measurement: Measurement,
    *,
    look: Callable[[Working, Working], Readings],
) -> Readings:
    """The columns of the sampled controls of a pair that has been looked at.

    Of the change's spectrum the leading values are known: its kind of draw has these in random directions, and the rest
    of its size as isotropic noise.

    Args:
        base: The base.
        change: The change.
        values: Leading singular values of the change, over its unit, (b,), float32.
        keys: (2,), uint32, of `matrix_key`.
        readings: Of the pair.
        measurement: Its draws are what is drawn of each kind.
        look: Reads a post, from that and its change.
    """
    ratio = (change.unit / base.unit).astype(base.matrix.dtype)

    def read(item):
        kind, number = item
        drawn = draw_change(key_of_draw(keys, kind, number), kind, change.matrix, values)
        found = look(Working(base.matrix + ratio * drawn, base.unit), Working(drawn, change.unit))
        return {metric: found[metric] for metric in measurement.sampled}

    drawn = lax.map(read, draws_of(measurement))
    return columns_of_controls(controls_of(drawn, measurement), readings, readings["change_norm"])
