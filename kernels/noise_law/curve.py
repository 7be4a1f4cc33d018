"""Where isotropic noise takes single values of a base: the curve of the noise law, and a point of it for each value.

The law and its equations: docs, definitions, "Singular values under noise". A point T = w^2, w = u + i v, of the upper
half plane stands for the singular value z > 0 of the post at which

    q(T) = z^2 = T X^2 + delta X,   X = 1 + sd^2 sum 1 / (T - s_i^2),   delta = sd^2 (m - n)

is real: one v for each u, the largest. Along that curve the number N of singular values above z falls from n to 0, and
the k-th of them, from 0, lies at N = k + 1/2. Both conditions are imaginary parts of analytic functions of T, so that
Newton's method in the plane takes one complex step for both. It is kept in a bracket of u, which counts taken on the
curve narrow, and may leave the curve only a little; what is left of both equations at its end is the certificate.

Each point is sought as an offset from the base's own value, and every sum is taken in the unit b = Im T, in which no
term is larger than 1: float32 holds all of it, for any size of the noise.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jax import lax

from polarax.kernels.sides import Shape, entry_count, longer_side, root, shorter_side

Result = TypeVar("Result")

_STEPS = 80  # at most; about 12 are usual
_NEAR = 0.2  # |Im q| / Im T below which a point counts as on the curve, and a step takes both equations


class Noise(NamedTuple):
    """Bases and the noise that is added to them, in the unit s_1 = 1."""

    s: jax.Array  # (..., b), descending
    more: int  # values that equal the last of these and are not among them
    sd: jax.Array  # standard deviation of an entry, (...)
    extra: jax.Array  # m - n, ()

    def total(self, terms: jax.Array) -> jax.Array:
        """The sum over all values of the base of terms, (points, b), of these."""
        return jnp.sum(terms, axis=-1) + self.more * terms[..., -1]


class Points(NamedTuple):
    """What stands for values of the post, each beside its value s of the base; (points,)."""

    offset: jax.Array  # u - s
    v: jax.Array
    shift: jax.Array  # z - s
    density: jax.Array  # values per unit of z
    residual: jax.Array  # what is left of both equations


class Resolvent(NamedTuple):
    """The sums that a point T says everything by; (points,)."""

    t: jax.Array  # T
    ratio: jax.Array  # Re (T - s_i^2) / Im T, (points, b)
    sums: list[jax.Array]  # of the first three powers of h_i = Im T / (T - s_i^2)
    near: jax.Array  # sd^2 / Im T
    x: jax.Array  # X
    q: jax.Array  # z^2


class _Point(NamedTuple):
    """The equations at points T, (points,)."""

    on_curve: jax.Array  # Im q / Im T: 0 on the curve, negative below
    excess: jax.Array  # N - target
    to_curve: jax.Array  # factor of v^2 that brings the point to the curve at its u, by Newton's method
    step: jax.Array  # Newton's step of w for both equations, in the unit v
    shift: jax.Array  # as of `Points`
    density: jax.Array


class _Search(NamedTuple):
    """Where the points are, between which bounds, and what was found there, (points,)."""

    steps: jax.Array  # ()
    settled: jax.Array  # whether no point took the last step, ()
    found: jax.Array  # whether this point stands still
    low: jax.Array  # bounds of the offset
    high: jax.Array
    v_low: jax.Array  # bounds of v at this offset
    v_high: jax.Array
    points: Points  # with shift, density and residual where they were before the last step


def noise_of(
    s_base: jax.Array, change_norm: jax.Array, *, shape: Shape, tail: jax.Array | None = None
) -> tuple[Noise, jax.Array]:
    """Bases with changes of norm ||D||_F, and the unit s_1 of each, (...).

    Args:
        s_base: Singular values of the base, (..., b), descending; zeros are allowed.
        change_norm: ||D||_F, (...).
        shape: (m, n) of the matrix, m an operand or a number.
        tail: What each value that is not given is taken for, (...); 0 by default. Not needed where all are given.

    Returns:
        Unit and sd are NaN where the base is zero or anything is not finite.
    """
    s, more = s_base, shorter_side(shape) - s_base.shape[-1]
    if more:
        rest = jnp.broadcast_to(jnp.zeros((), s.dtype) if tail is None else tail, s.shape[:-1])
        s, more = jnp.concatenate([s, rest[..., None]], axis=-1), more - 1
    unit = jnp.where((s[..., 0] > 0) & jnp.isfinite(s[..., 0] + s[..., -1]), s[..., 0], jnp.nan)
    sd = jnp.broadcast_to(change_norm / unit / root(entry_count(shape)), unit.shape)
    sd = jnp.where(jnp.isfinite(sd), sd, jnp.nan)
    extra = jnp.asarray(longer_side(shape) - shorter_side(shape), s.dtype)
    return Noise(s / unit[..., None], more, sd, extra), unit


def of_each(
    solve: Callable[..., Result], noise: Noise, *operands: jax.Array, still: Any, at_once: int | None = None
) -> Result:
    """What `solve` says of each base, (...).

    Args:
        solve: Maps the noise of one base, and what the operands have of it, to a pytree of arrays.
        noise: Of all bases.
        operands: (..., k) each.
        still: What it says where there is no noise: a number for each array.
        at_once: How many bases are solved for together; one by default.

    Returns:
        What `solve` returns, with leading axes; NaN where sd is.
    """
    moves = noise.sd > 0
    given = [jnp.where(_beside(moves, x), x, 1) for x in (noise.s, noise.sd, *operands)]
    flat = [x.reshape(-1, *x.shape[moves.ndim :]) for x in given]
    if at_once:  # in rounds of one size, which are one program
        rounds = -(-moves.size // at_once)
        at_once = -(-moves.size // rounds)
        flat = [jnp.resize(x, (rounds * at_once, *x.shape[1:])) for x in flat]
    results = lax.map(lambda one: solve(noise._replace(s=one[0], sd=one[1]), *one[2:]), flat, batch_size=at_once)

    def placed(x, unmoved):
        x = x[: moves.size].reshape(moves.shape + x.shape[1:])
        return jnp.where(_beside(moves, x), x, _beside(jnp.where(noise.sd == 0, unmoved, jnp.nan), x))

    return jax.tree.map(placed, results, still)


def _beside(x, values):
    """x, (...), with an axis of 1 for each further one of values."""
    return x.reshape(x.shape + (1,) * (values.ndim - x.ndim))


def points_of(index: jax.Array, noise: Noise) -> Points:
    """The points of the values of these indices, from 0, of one base. O(points b) a step."""
    s, sd, extra = noise.s, noise.sd, noise.extra
    size = s.shape[0] + noise.more
    anchor, target = s[index], index + jnp.asarray(0.5, s.dtype)
    top = 2 * sd * (jnp.sqrt(size + extra) + jnp.sqrt(size))  # above every curve
    floor = 0.02 * sd  # at no value of the base is the curve so low: a point above it is in a gap
    tolerance = 20 * jnp.finfo(s.dtype).eps * (size + extra)

    def advance(search):
        offset, v, *_ = search.points
        point = _evaluate(anchor, offset, v, target, noise)
        f, excess = point.on_curve, point.excess
        left = jnp.maximum(jnp.abs(f), jnp.abs(excess))
        in_gap = (f > 0) & (v < floor)
        # Beside a small u the curve is steep in N: there a step must start closer to it, and at most halve u.
        halved = -(anchor + offset) / 2
        near = (jnp.abs(f) < jnp.where(point.step.real * v < halved, _NEAR / 200, _NEAR)) & ~in_gap
        certain = (jnp.abs(f) < _NEAR / 20) & (jnp.abs(excess) > 0.02 + size * jnp.abs(f))
        agreed = certain & (point.step.real * excess > 0)
        decided = in_gap | agreed
        low = jnp.where(decided & (excess > 0), offset, search.low)
        high = jnp.where(decided & (excess < 0), offset, search.high)
        # Both equations at once, by no more than the height of the curve at a time ...
        step = jnp.where(jnp.abs(point.step) <= 1, point.step, jnp.sign(excess) / 2) * v
        moved = jnp.where(in_gap, jnp.sign(excess) * jnp.inf, offset + jnp.maximum(step.real, halved))
        outside = (near | in_gap) & ~((moved > low) & (moved < high))
        bound = jnp.where(moved > low, high, low)
        # ... or up or down to the curve ...
        v_low, v_high = jnp.where(f < 0, v, search.v_low), jnp.where(f > 0, v, search.v_high)
        level = v * jnp.sqrt(jnp.clip(point.to_curve, 1 / 4096, 64))
        level = jnp.where((level > v_low) & (level < v_high), level, (v_low + v_high) / 2)
        # ... or from above at another u. What solves both equations takes one step more, and stands still.
        still = search.found | ((left < tolerance) & ~(near & ~outside))
        here = still | ~(near | outside)
        risen = jnp.where(outside, top, jnp.where(near, jnp.clip(v + step.imag, v / 4, 4 * v), level))
        return _Search(
            search.steps + 1,
            jnp.all(search.found),
            search.found | (left < tolerance),
            low,
            high,
            jnp.where(here, v_low, 0),
            jnp.where(here, v_high, 2 * top),
            Points(
                jnp.where(here, offset, jnp.where(outside, (offset + bound) / 2, moved)),
                jnp.where(still, v, risen),
                point.shift,
                point.density,
                left,
            ),
        )

    # Far below the noise u is that of a base of zeros, nearly.
    below = (size - target) / size
    start = (
        jnp.maximum(anchor, sd * jnp.maximum(below * size**0.5, below ** (1 / 3) * (size * extra) ** 0.25 / 2)) - anchor
    )
    zeros = jnp.zeros_like(anchor)
    bounds = -anchor, 1 + top - anchor, zeros, zeros + 2 * top
    first = _Search(
        jnp.asarray(0), jnp.asarray(False), zeros > 0, *bounds, Points(start, zeros + top, zeros, zeros, zeros)
    )
    return lax.while_loop(lambda search: (search.steps < _STEPS) & ~search.settled, advance, first).points


def resolvent(anchor: jax.Array, offset: jax.Array, v: jax.Array, noise: Noise) -> Resolvent:
    """At T = (anchor + offset + i v)^2, of one base; (points,) each."""
    s, sd = noise.s, noise.sd
    u = anchor + offset
    t = lax.complex((u - v) * (u + v), 2 * u * v)
    real = ((anchor[:, None] - s) + offset[:, None]) * ((anchor[:, None] + s) + offset[:, None]) - (v * v)[:, None]
    ratio = real / t.imag[:, None]
    # The powers of h = 1 / (ratio + i), in real arithmetic: a complex one is slow.
    square = 1 / (ratio * ratio + 1)
    re, im = ratio * square, -square
    re2, im2 = re * re - im * im, 2 * re * im
    re3, im3 = re * re2 - im * im2, re * im2 + im * re2
    sums = [lax.complex(noise.total(x), noise.total(y)) for x, y in ((re, im), (re2, im2), (re3, im3))]
    near = sd * (sd / t.imag)
    x = 1 + near * sums[0]
    return Resolvent(t, ratio, sums, near, x, t * x * x + sd**2 * noise.extra * x)


def _evaluate(anchor, offset, v, target, noise):
    sd, extra, u = noise.sd, noise.extra, anchor + offset
    t, ratio, (h1, h2, h3), near, x, q = resolvent(anchor, offset, v, noise)
    w, b, delta = lax.complex(u, v), t.imag, sd**2 * extra
    # X = 1 + near h1 and dX/dT = -near h2 / b.
    moved = near * h1
    t_unit, delta_unit = t * (sd / b) ** 2, extra * near**2
    d = x * x - (2 * t_unit * x + delta_unit) * h2  # dq / dT
    f = x.real**2 - x.imag**2 + 2 * t_unit.real * x.real * h1.imag + delta_unit * h1.imag
    lift = offset * (2 * anchor + offset) - v * v + (t * moved * (x + 1) + delta * x).real  # q - anchor^2
    z = jnp.sqrt(jnp.maximum(q.real, 0))
    # F is the logarithm of the determinant, pi N its imaginary part with that of log(d) / 2; both derivatives times b.
    phase = (
        _argument(ratio)
        + noise.more * jnp.arctan2(1.0, ratio[:, -1])
        + extra * (_angle(q) / 2 - _angle(x))
        + (h1 * (t_unit * h1 + near * extra)).imag
        + _angle(d) / 2
    )
    slope = d / 2 * (h1 / x + x * (t * h1 + b * extra) / q)
    bend = -4 * x * near * h2 + 2 * t_unit * (near * h2 * h2 + 2 * x * h3) + 2 * delta_unit * h3
    density = h1 / b * (z / x) + x * (t * h1 / b + extra) / z
    return _Point(
        on_curve=f,
        excess=phase / jnp.pi - target,
        to_curve=1 - 2 * f / (f + (d * w).real / u),
        step=u / w * _common_zero(d - f, f, slope + bend / (2 * d), phase - jnp.pi * target),
        shift=lift / (z + anchor),
        density=jnp.abs(density.imag) / jnp.pi,
    )


def _argument(ratio):
    """The sum over the last axis of the arguments of ratio + i, each between 0 and pi, by products of eight.

    The product of two numbers of the upper half plane has an argument between 0 and 2 pi: where it left the half plane
    it is turned back, and pi is counted. Few arguments are left to take, and the sum of counts is exact.
    """
    ratio = jnp.pad(ratio, [(0, 0)] * (ratio.ndim - 1) + [(0, -ratio.shape[-1] % 8)], constant_values=jnp.inf)
    im = 1 / (jnp.abs(ratio) + 1)
    re, turns = jnp.sign(ratio) * (1 - im), jnp.zeros_like(ratio[..., 0])
    for _ in range(3):
        a, b = jnp.split(re, 2, axis=-1)
        c, d = jnp.split(im, 2, axis=-1)
        re, im = a * b - c * d, a * d + b * c
        back = im < 0
        re, im, turns = jnp.where(back, -re, re), jnp.abs(im), turns + jnp.sum(back, axis=-1)
    return jnp.pi * turns + jnp.sum(jnp.arctan2(im, re), axis=-1)


def _common_zero(first, value, second, other):
    """The complex step x at which Im(value i + first x) and Im(other i + second x) are 0."""
    determinant = first.imag * second.real - first.real * second.imag
    return lax.complex(
        (other * first.real - value * second.real) / determinant,
        (value * second.imag - other * first.imag) / determinant,
    )


def _angle(x):
    return jnp.arctan2(x.imag, x.real)
