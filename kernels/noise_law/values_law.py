"""Where isotropic noise puts each singular value, and how far each spreads: quantiles of the noise law.

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

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from polarax.kernels.noise_law.finite_size import finite_size
from polarax.kernels.sides import Shape, entry_count, longer_side, root

# Values that are solved for; the others lie between. Of them at each end of the spectrum, and at its widest gaps:
_KNOTS, _END, _GAPS = 128, 32, 12
_STEPS = 80  # at most; about 12 are usual
_NEAR = 0.2  # |Im q| / Im T below which a point counts as on the curve, and a step takes both equations


class ValuesLaw(NamedTuple):
    """The singular values of base + noise."""

    values: jax.Array  # mean of each, (..., r), descending, unit of s
    std: jax.Array  # standard deviation of each, (..., r), unit of s
    shift: jax.Array  # values - s, (..., r), without its cancellation
    residual: jax.Array  # (...), what is left of the count equation at worst, in values: 1e-6 is a good solution


class _Noise(NamedTuple):
    """What a solution is for: everything in the unit s_1 = 1."""

    s: jax.Array  # (r,)
    sd: jax.Array  # ()
    extra: jax.Array  # m - n, ()


class _Point(NamedTuple):
    """The equations at points T, (points,)."""

    on_curve: jax.Array  # Im q / Im T: 0 on the curve, negative below
    excess: jax.Array  # N - target
    to_curve: jax.Array  # factor of v^2 that brings the point to the curve at its u, by Newton's method
    step: jax.Array  # Newton's step of w for both equations, in the unit v
    shift: jax.Array  # z - anchor
    density: jax.Array  # values per unit of z


class _Search(NamedTuple):
    """Where the points are, and between which bounds, (points,)."""

    steps: jax.Array  # ()
    offset: jax.Array  # u - anchor
    v: jax.Array
    low: jax.Array  # bounds of the offset
    high: jax.Array
    v_low: jax.Array  # bounds of v at this offset
    v_high: jax.Array
    left: jax.Array  # of the equations


def values_law(s_base: jax.Array, change_norm: jax.Array, *, shape: Shape) -> ValuesLaw:
    """The singular values of a base with an isotropic random change of norm ||D||_F. O(points r) a step.

    Args:
        s_base: Singular values of the base, (..., r), descending; zeros are allowed.
        change_norm: ||D||_F, (...).
        shape: (m, n) of the matrix, m an operand or a number.

    Returns:
        A `ValuesLaw`; NaN for a base that is zero or not finite.
    """
    s, norm = jnp.asarray(s_base), jnp.asarray(change_norm)
    size = s.shape[-1]
    largest = jnp.where((s[..., 0] > 0) & jnp.isfinite(s[..., 0]), s[..., 0], jnp.nan)
    sd = jnp.broadcast_to(norm / largest / root(entry_count(shape)), s.shape[:-1])
    extra = jnp.asarray(longer_side(shape) - size, s.dtype)
    solvable = (sd > 0) & jnp.isfinite(sd)
    relative = s / largest[..., None]
    flat = jnp.where(solvable[..., None], relative, 1).reshape((-1, size)), jnp.where(solvable, sd, 1).reshape(-1)
    shift, std, residual = lax.map(lambda one: _solve(_Noise(*one, extra)), flat)
    shift, std = (x.reshape(s.shape) * largest[..., None] for x in (shift, std))
    unmoved = jnp.where(sd == 0, 0, jnp.nan)  # no noise, or none that is a number
    shift, std = (jnp.where(solvable[..., None], x, unmoved[..., None]) for x in (shift, std))
    residual = jnp.where(solvable, residual.reshape(sd.shape), unmoved)
    return ValuesLaw(s + shift, std, shift, residual)


def _solve(noise):
    """Shift and standard deviation of every value, (r,), and the residual, of one spectrum."""
    size = noise.s.shape[0]
    knots = jnp.arange(size) if size <= _KNOTS else _knots(noise.s)
    shift, std, residual = _solve_at(knots, noise)
    if size > _KNOTS:
        index = jnp.arange(size)
        shift, std = (jnp.interp(index, knots, x) for x in (shift, std))
        values = noise.s + shift
        shift = shift + (lax.cummin(values) - values)  # 0 but where interpolation put two in the wrong order
    return shift, std, jnp.max(residual)


def _knots(s):
    """Indices of the values that are solved for, ascending, (_KNOTS,).

    Noise that is large beside the spacing smooths the displacement over the index; smaller noise hardly displaces. It
    jumps at gaps of the base, so that both sides of the widest gaps, relative to the values, are among the indices.
    """
    size = s.shape[0]
    ends = jnp.concatenate([jnp.arange(_END), jnp.arange(size - _END, size)])
    gaps = 1 - s[1:] / jnp.where(s[:-1] > 0, s[:-1], 1)
    before = lax.top_k(gaps[_END : size - _END], _GAPS)[1] + _END
    between = jnp.round(jnp.linspace(_END, size - _END - 1, _KNOTS - 2 * _END - 2 * _GAPS)).astype(before.dtype)
    return jnp.sort(jnp.concatenate([ends, before, before + 1, between]))


def _solve_at(knots, noise):
    """Shift, standard deviation and residual of the values of these indices."""
    s, sd, extra = noise
    size = s.shape[0]
    anchor, target = s[knots], knots + jnp.asarray(0.5, s.dtype)
    top = 2 * sd * (jnp.sqrt(size + extra) + jnp.sqrt(size))  # above every curve
    floor = 0.02 * sd  # at no value of the base is the curve so low: a point above it is in a gap
    tolerance = 20 * jnp.finfo(s.dtype).eps * (size + extra)

    def advance(search):
        _, offset, v, low, high, v_low, v_high, _ = search
        point = _evaluate(anchor, offset, v, target, noise)
        f, excess = point.on_curve, point.excess
        in_gap = (f > 0) & (v < floor)
        # Beside a small u the curve is steep in N: there a step must start closer to it, and at most halve u.
        halved = -(anchor + offset) / 2
        near = (jnp.abs(f) < jnp.where(point.step.real * v < halved, _NEAR / 200, _NEAR)) & ~in_gap
        agreed = (jnp.abs(excess) > 0.02 + size * jnp.abs(f)) & (point.step.real * excess > 0)
        decided = in_gap | agreed
        low = jnp.where(decided & (excess > 0), offset, low)
        high = jnp.where(decided & (excess < 0), offset, high)
        # Both equations at once, by no more than the height of the curve at a time ...
        step = jnp.where(jnp.abs(point.step) <= 1, point.step, jnp.sign(excess) / 2) * v
        moved = jnp.where(in_gap, jnp.sign(excess) * jnp.inf, offset + jnp.maximum(step.real, halved))
        outside = (near | in_gap) & ~((moved > low) & (moved < high))
        bound = jnp.where(moved > low, high, low)
        # ... or up or down to the curve ...
        v_low, v_high = jnp.where(f < 0, v, v_low), jnp.where(f > 0, v, v_high)
        level = v * jnp.sqrt(jnp.clip(point.to_curve, 1 / 4096, 64))
        level = jnp.where((level > v_low) & (level < v_high), level, (v_low + v_high) / 2)
        # ... or from above at another u.
        left = jnp.maximum(jnp.abs(f), jnp.abs(excess))
        found = left < tolerance
        here = found | ~(near | outside)
        return _Search(
            search.steps + 1,
            jnp.where(outside, (offset + bound) / 2, jnp.where(here, offset, moved)),
            jnp.where(found, v, jnp.where(outside, top, jnp.where(near, jnp.clip(v + step.imag, v / 4, 4 * v), level))),
            low,
            high,
            jnp.where(here, v_low, 0),
            jnp.where(here, v_high, 2 * top),
            left,
        )

    def unfinished(search):
        return (search.steps < _STEPS) & ~jnp.all(search.left < tolerance)

    # Far below the noise u is that of a base of zeros, nearly.
    below = (size - target) / size
    start = jnp.maximum(anchor, sd * jnp.maximum(below * size**0.5, below ** (1 / 3) * (size * extra) ** 0.25 / 2)) - anchor
    zeros = jnp.zeros_like(anchor)
    bounds = -anchor, 1 + top - anchor, zeros, zeros + 2 * top
    search = lax.while_loop(unfinished, advance, _Search(jnp.asarray(0), start, zeros + top, *bounds, zeros + jnp.inf))
    point = _evaluate(anchor, search.offset, search.v, target, noise)
    residual = jnp.maximum(jnp.abs(point.on_curve), jnp.abs(point.excess))
    crowd = jnp.sum(1 / (1 + ((anchor[:, None] - s + search.offset[:, None]) / search.v[:, None]) ** 2) ** 3, axis=-1)
    longer, spread = finite_size(crowd, (anchor + point.shift) * point.density)
    return point.shift + (anchor + point.shift) * longer, spread / point.density, residual


def _evaluate(anchor, offset, v, target, noise):
    s, sd, extra = noise
    u = anchor + offset
    b = 2 * u * v
    w, t = lax.complex(u, v), lax.complex((u - v) * (u + v), b)
    real = ((anchor[:, None] - s) + offset[:, None]) * ((anchor[:, None] + s) + offset[:, None]) - (v * v)[:, None]
    ratio = real / b[:, None]  # T - s^2 in the unit b is ratio + i
    # With h = b / (T - s^2), X = 1 + near h1 and dX/dT = -near h2 / b.
    h1, h2, h3 = _power_sums(ratio)
    near, delta = sd * (sd / b), sd**2 * extra
    moved = near * h1
    x = 1 + moved
    t_unit, delta_unit = t * (sd / b) ** 2, extra * near**2
    d = x * x - (2 * t_unit * x + delta_unit) * h2  # dq / dT
    f = x.real**2 - x.imag**2 + 2 * t_unit.real * x.real * h1.imag + delta_unit * h1.imag
    q = t * x * x + delta * x
    lift = offset * (2 * anchor + offset) - v * v + (t * moved * (x + 1) + delta * x).real  # q - anchor^2
    z = jnp.sqrt(jnp.maximum(q.real, 0))
    # F is the logarithm of the determinant, pi N its imaginary part with that of log(d) / 2; both derivatives times b.
    phase = (
        _argument(ratio)
        + extra * (_angle(q) / 2 - _angle(x))
        + (h1 * (t_unit * h1 + near * extra)).imag
        + _angle(d) / 2
    )
    slope = d / 2 * (h1 / x + x * (t * h1 + b * extra) / q)
    bend = -4 * x * near * h2 + 2 * t_unit * (near * h2 * h2 + 2 * x * h3) + 2 * delta_unit * h3
    resolvent = h1 / b * (z / x) + x * (t * h1 / b + extra) / z
    return _Point(
        on_curve=f,
        excess=phase / jnp.pi - target,
        to_curve=1 - 2 * f / (f + (d * w).real / u),
        step=u / w * _common_zero(d - f, f, slope + bend / (2 * d), phase - jnp.pi * target),
        shift=lift / (z + anchor),
        density=jnp.abs(resolvent.imag) / jnp.pi,
    )


def _power_sums(ratio):
    """Sums over the last axis of 1 / (ratio + i) and its square and cube, in real arithmetic: a complex one is slow."""
    square = 1 / (ratio * ratio + 1)
    re, im = ratio * square, -square
    re2, im2 = re * re - im * im, 2 * re * im
    re3, im3 = re * re2 - im * im2, re * im2 + im * re2
    return [lax.complex(jnp.sum(x, axis=-1), jnp.sum(y, axis=-1)) for x, y in ((re, im), (re2, im2), (re3, im3))]


def _argument(ratio):
    """The sum over the last axis of the arguments of ratio + i, each between 0 and pi, by a tree of products.

    The product of two numbers of the upper half plane has an argument between 0 and 2 pi: where it left the half plane
    it is turned back, and pi is counted.
    """
    re, im = ratio / (jnp.abs(ratio) + 1), 1 / (jnp.abs(ratio) + 1)
    turns = jnp.zeros_like(ratio[..., 0])
    while re.shape[-1] > 1:
        if re.shape[-1] % 2:
            re, im = (jnp.concatenate([x, jnp.full_like(x[..., :1], one)], axis=-1) for x, one in ((re, 1), (im, 0)))
        half = re.shape[-1] // 2
        (a, b), (c, d) = ((x[..., :half], x[..., half:]) for x in (re, im))
        re, im = a * b - c * d, a * d + b * c
        scale = jnp.where(im < 0, -1, 1) / (jnp.abs(re) + jnp.abs(im))
        turns += jnp.sum(im < 0, axis=-1)
        re, im = re * scale, im * scale
    return jnp.pi * turns + jnp.arctan2(im[..., 0], re[..., 0])


def _common_zero(first, value, second, other):
    """The complex step x at which Im(value i + first x) and Im(other i + second x) are 0."""
    determinant = first.imag * second.real - first.real * second.imag
    return lax.complex(
        (other * first.real - value * second.real) / determinant,
        (value * second.imag - other * first.imag) / determinant,
    )


def _angle(x):
    return jnp.arctan2(x.imag, x.real)
