"""Sampled controls of a first look: the base with random changes of the pair's size, looked at as the post is."""

from collections.abc import Callable

import jax
from jax import lax

from polarax.measuring.entry_sums import Entries, drawn_sums
from polarax.measuring.sampled_controls import columns_of_controls, controls_of, draw_change, draws_of, key_of_draw
from polarax.metrics import Readings
from polarax.planning.measurement import Measurement


def sampled_looks(
    before: Entries,
    base: jax.Array,
    change: jax.Array,
    values: jax.Array,
    keys: jax.Array,
    readings: Readings,
    measurement: Measurement,
    *,
    unit: jax.Array,
    look: Callable[[jax.Array, jax.Array, jax.Array, jax.Array], Readings],
) -> Readings:
    """The columns of the sampled controls of a pair that has been looked at.

    Of the change's spectrum the leading values are known: its kind of draw has these in random directions, and the rest
    of its size as isotropic noise.

    Args:
        before: The base's entries.
        base: (m, n), over their unit, in float32.
        change: (m, n), over its unit, in float32.
        values: Leading singular values of the change, over its unit, (b,), float32.
        keys: (2,), uint32, of `matrix_key`.
        readings: Of the pair.
        measurement: Its draws are what is drawn of each kind.
        unit: Of the change, ().
        look: Reads a post, (m, n), from that and its change, both over the unit, the norm of the change, and <W_b, D>
            over the units of both.
    """
    ratio = (before.unit / unit).astype(base.dtype)

    def read(item):
        kind, number = item
        drawn = draw_change(key_of_draw(keys, kind, number), kind, change, values)
        read = look(base * ratio + drawn, drawn, *drawn_sums(before, drawn, unit))
        return {metric: read[metric] for metric in measurement.sampled}

    drawn = lax.map(read, draws_of(measurement))
    return columns_of_controls(controls_of(drawn, measurement), readings, readings["change_norm"])
