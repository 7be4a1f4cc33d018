"""Where isotropic noise puts each singular value, and how far each spreads: quantiles of the noise law.

Of a long spectrum some values are solved for; displacement and spread of the others are interpolated between these.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from polarax.kernels.noise_law.curve import noise_of, of_each, points_of
from polarax.kernels.noise_law.finite_size import finite_size
from polarax.kernels.sides import Shape

# Values that are solved for: at each end of the spectrum, at its widest gaps, and between.
_END, _GAPS, _BETWEEN = 32, 12, 40


class ValuesLaw(NamedTuple):
    """The singular values of base + noise; all but the residual in the unit of s."""

    values: jax.Array  # mean of each, (..., r), descending
    std: jax.Array  # standard deviation of each, (..., r)
    shift: jax.Array  # values - s, (..., r), without its cancellation
    offset: jax.Array  # u - s of the points of the leading values, (..., l); of T = (u + i v)^2
    v: jax.Array  # of these, (..., l)
    residual: jax.Array  # (...), what is left of the equations at worst, in values: 1e-6 is a good solution


def values_law(s_base: jax.Array, change_norm: jax.Array, *, shape: Shape, leading: int = 16) -> ValuesLaw:
    """The singular values of a base with an isotropic random change of norm ||D||_F. O(points r) a step.

    Args:
        s_base: Singular values of the base, (..., r), descending; zeros are allowed.
        change_norm: ||D||_F, (...).
        shape: (m, n) of the matrix, m an operand or a number.
        leading: Of how many leading values the points are needed at least, as far as there are so many.

    Returns:
        A `ValuesLaw`; NaN for a base that is zero or not finite.
    """
    s, size = jnp.asarray(s_base), jnp.shape(s_base)[-1]
    leading = min(max(leading, _END), size)
    noise, unit = noise_of(s, jnp.asarray(change_norm), shape=shape)
    lengths, residual = of_each(lambda one: _solve(one, leading), noise, still=((0, 0, 0, 0), 0))
    shift, std, offset, v = (x * unit[..., None] for x in lengths)
    return ValuesLaw(s + shift, std, shift, offset, v, residual)


def _solve(noise, leading):
    """Shift and standard deviation of every value, (r,), offset and v of the leading points, and the residual."""
    size = noise.s.shape[0]
    knots = jnp.arange(size) if size <= leading + _END + 2 * _GAPS + _BETWEEN else _knots(noise.s, leading)
    points, anchor = points_of(knots, noise), noise.s[knots]
    z = anchor + points.shift
    away = (anchor[:, None] - noise.s + points.offset[:, None]) / points.v[:, None]
    longer, spread = finite_size(jnp.sum(1 / (1 + away**2) ** 3, axis=-1), z * points.density)
    shift, std = points.shift + z * longer, spread / points.density
    if len(knots) < size:
        index = jnp.arange(size)
        shift, std = (jnp.interp(index, knots, x) for x in (shift, std))
        values = noise.s + shift
        shift = shift + (lax.cummin(values) - values)  # 0 but where interpolation put two in the wrong order
    return (shift, std, points.offset[:leading], points.v[:leading]), jnp.max(points.residual)


def _knots(s, leading):
    """Indices of the values that are solved for, ascending.

    Noise that is large beside the spacing smooths the displacement over the index; smaller noise hardly displaces. It
    jumps at gaps of the base, so that both sides of the widest gaps, relative to the values, are among the indices.
    """
    last = s.shape[0] - _END
    ends = jnp.concatenate([jnp.arange(leading), last + jnp.arange(_END)])
    gaps = 1 - s[1:] / jnp.where(s[:-1] > 0, s[:-1], 1)
    before = lax.top_k(gaps[leading:last], _GAPS)[1] + leading
    between = jnp.round(jnp.linspace(leading, last - 1, _BETWEEN)).astype(before.dtype)
    return jnp.sort(jnp.concatenate([ends, before, before + 1, between]))
