"""Over which base vectors the leading vectors of base + noise spread: the law on the real axis.

Of W + sd G the resolvent is, in the base's frame, that of W at moved points w1, w2 (Dozier and Silverstein 2007;
Hachem, Loubaton and Najim 2007). In terms of T = w1 w2 everything is explicit:

    X = 1 + sd^2 sum_j 1 / (T - s_j^2),   z^2 = T X^2 + delta X,   w1 = z / X,   w2 = T / w1,   delta = sd^2 (m - n).

A point z of the spectrum belongs to T = (u + i v)^2 with the largest v >= 0 for which z^2 is real (for m = n this is
Biane's curve, 1997). u parametrises the spectrum: the number of singular values above z, to relative order 1/r, is

    N = (1 / pi) Im[sum_j log(T - s_j^2) + (m - n) log w1 + (z - w1)(z - w2) / sd^2] + (1 / 2 pi) arg d(z^2)/dT,

and singular value i lies at N = i - 1/2. There the imaginary parts of the resolvent's diagonal say how its vectors
spread: of right ones w1 / (T - s_j^2) over the right base vectors, of left ones w2 / (T - s_j^2) over the left ones and
1 / w1 over each of the m - n dimensions outside. Where a value stands alone, v = sd / sqrt(2) and these are the shares
of perturbation theory, sd^2 (s_i^2 + s_j^2) / (s_i^2 - s_j^2)^2.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

# Of values behind the first ones, so many times as far from these as they are apart, several stand as one: what they do
# depends on their distance, of which they have the mean square right.
_APART = 8
# Halvings of the range in which a value's place is sought, and Newton steps to the curve: at every halving, and last.
# The steps rise to the root; they double the digits.
_HALVINGS, _STEPS, _LAST_STEPS = 46, 8, 12
# Of a value that stands alone v is sd / sqrt(2), of others more: what is below this counts as a gap.
_LEAST = 0.25
_GAP = 1e-6


class LeadingProfile(NamedTuple):
    """The leading post vectors, i = 1..count, and their shares in the base vectors, which with `outside` sum to 1."""

    values: jax.Array  # mean singular values, (count,)
    longer: jax.Array  # shares of the vectors of the longer side in the first base vectors, (count, near)
    shorter: jax.Array  # those of the shorter side, (count, near)
    inside_longer: jax.Array  # what is in the base's space at all, near or not, (count,)
    inside_shorter: jax.Array  # 1: the shorter side has no outside, (count,)


def leading_profile(
    squares: jax.Array, counts: jax.Array, sd: jax.Array, free: jax.Array, *, count: int, near: int
) -> LeadingProfile:
    """Where the leading vectors go.

    Args:
        squares: Squared singular values of the base, descending, (b,), of order 1.
        counts: How many values each stands for, (b,); 1 for the first `near`.
        sd: Standard deviation of the noise, (), above 0.
        free: m - n, ().
        count: How many leading vectors.
        near: How many leading base vectors.
    """
    values = jnp.sqrt(squares)
    squares, counts = _grouped(squares, counts, near)
    total = jnp.sum(counts)
    targets = jnp.arange(count, dtype=sd.dtype) + 0.5

    def halve(_, bounds):
        low, high = bounds
        u = (low + high) / 2
        v = _on_curve(u, _STEPS, squares, counts, sd, free)
        more = _count_above(_at(u, v, squares, counts, sd, free), squares, counts, sd, free) > targets
        return jnp.where(more, u, low), jnp.where(more, high, u)

    top = values[0] + 2 * sd * (jnp.sqrt(total + free) + jnp.sqrt(total))
    bounds = jnp.zeros(count, sd.dtype), jnp.broadcast_to(top, (count,))
    low, high = lax.fori_loop(0, _HALVINGS, halve, bounds)
    u = (low + high) / 2
    v = jnp.maximum(_on_curve(u, _LAST_STEPS, squares, counts, sd, free), _LEAST * sd)
    point = _at(u, v, squares, counts, sd, free)
    z = jnp.sqrt(jnp.maximum(point.z_squared.real, jnp.finfo(sd.dtype).tiny))
    w1 = z / point.x
    a, b = point.real[:, :near], point.imag[:, None]
    # Im w / (a + i b), without the sign, which is minus.
    w = jnp.stack([w1 * point.t / (w1 * w1), w1])[..., None]
    spread = jnp.abs(w.imag * a - w.real * b) / (a**2 + b**2)
    a, q = point.real, 1 / (point.real**2 + b**2)
    inside = jnp.sum(jnp.abs(w.imag * a - w.real * b) * q * counts, axis=-1)
    outside = jnp.stack([free * jnp.abs((1 / w1).imag), jnp.zeros_like(z)])
    longer, shorter = spread / (inside + outside)[..., None]
    inside_longer, inside_shorter = inside / (inside + outside)
    return LeadingProfile(z, longer, shorter, inside_longer, inside_shorter)


class _Point(NamedTuple):
    """Points of the curve, (count,)."""

    real: jax.Array  # Re (T - s_j^2), (count, b)
    imag: jax.Array  # Im T
    t: jax.Array  # T
    x: jax.Array  # X
    total: jax.Array  # sum_j 1 / (T - s_j^2)
    z_squared: jax.Array
    slope: jax.Array  # d(z^2)/dT
    excess: jax.Array  # 1 - Im z / v: 1 on the curve, above 1 below it
    excess_slope: jax.Array  # its derivative by v


def _at(u, v, squares, counts, sd, free):
    """The law at T = (u + i v)^2."""
    values = jnp.sqrt(squares)
    a = (u[:, None] - values) * (u[:, None] + values) - v[:, None] ** 2
    b = 2 * u * v
    q = 1 / (a**2 + b[:, None] ** 2)
    weighted = q * counts
    first, first_a = jnp.sum(weighted, axis=-1), jnp.sum(weighted * a, axis=-1)
    second, second_a = jnp.sum(weighted * q, axis=-1), jnp.sum(weighted * q * a, axis=-1)
    total = lax.complex(first_a, -b * first)  # sum 1 / (T - s^2)
    squared = lax.complex(first - 2 * b**2 * second, -2 * b * second_a)  # sum 1 / (T - s^2)^2
    t = lax.complex((u - v) * (u + v), b)
    chi, slope_x, delta = sd**2 * total, -(sd**2) * squared, sd**2 * free
    x = 1 + chi
    moved = t * chi * (2 + chi) + delta * chi  # z^2 - T - delta
    eta = chi * (2 + chi) + 2 * t * x * slope_x + delta * slope_x  # dz^2/dT - 1
    # z^2 = X (T X + delta), each of which turns by less than a half turn: below the curve z is beyond its square root.
    turn = (jnp.angle(x) + jnp.angle(t * x + delta)) / 2
    size = jnp.sqrt(jnp.abs(t + delta + moved))
    z = lax.complex(size * jnp.cos(turn), size * jnp.sin(turn))
    near_real = jnp.cos(turn) > 0.1  # where Im z is had from z^2, without the difference of w and what it was moved by
    from_square = 1 - (b + moved.imag) / (2 * v * jnp.where(near_real, z.real, 1))
    excess = jnp.where(near_real, from_square, 1 - z.imag / v)
    return _Point(
        real=a,
        imag=b,
        t=t,
        x=x,
        total=total,
        z_squared=t + delta + moved,
        slope=1 + eta,
        excess=excess,
        excess_slope=-(((1 + eta) * lax.complex(u, v) / z).real - 1 + excess) / v,
    )


def _on_curve(u, steps, squares, counts, sd, free):
    """v above u, 0 in gaps, or nearly.

    1 / excess is concave in v^2 (for m = n, where excess is a sum of 1 / (d + v^2)), so that Newton's steps from below
    rise to the root. A step that leaves the bracket is replaced by its middle.
    """
    least = jnp.broadcast_to((_LEAST * sd) ** 2, u.shape)
    most = jnp.broadcast_to(4 * sd**2 * (jnp.sum(counts) + free), u.shape)
    gap = _at(u, jnp.sqrt(least), squares, counts, sd, free).excess < 1

    def step(_, state):
        square, low, high = state
        v = jnp.sqrt(square)
        point = _at(u, v, squares, counts, sd, free)
        above = point.excess < 1
        low, high = jnp.where(above, low, square), jnp.where(above, square, high)
        fits = (point.excess > 0) & (point.excess_slope < 0)
        moved = square + 2 * v * point.excess * (1 - point.excess) / jnp.where(fits, point.excess_slope, -1)
        fits &= (moved >= low) & (moved <= high)
        return jnp.where(fits, moved, jnp.sqrt(low * high)), low, high

    square, _, _ = lax.fori_loop(0, steps, step, (least, least, most))
    return jnp.where(gap, _GAP * sd, jnp.sqrt(square))


def _count_above(point, squares, counts, sd, free):
    """How many singular values are above z."""
    angles = jnp.sum(counts * jnp.arctan2(point.imag[:, None], point.real), axis=-1)
    pushed = sd**2 * (point.total * (point.t * point.total + free)).imag
    return (angles - free * jnp.angle(point.x) + pushed + jnp.angle(point.slope) / 2) / np.pi


def _grouped(squares, counts, near):
    """The spectrum with groups of its rest standing for their mean square: growing ones, a hundred for 8192 values."""
    place, ends = near, [*range(near)]
    while place < squares.shape[0]:
        ends.append(place)
        place += 1 + (place - near) // _APART
    group = np.searchsorted(ends, np.arange(squares.shape[0]), side="right") - 1
    weights = jax.ops.segment_sum(counts, group, len(ends), indices_are_sorted=True)
    sums = jax.ops.segment_sum(counts * squares, group, len(ends), indices_are_sorted=True)
    return sums / jnp.where(weights > 0, weights, 1), weights
