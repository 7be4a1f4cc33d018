"""Headlines of a pair that need two polar factors and no singular vector.

With P = U V^T and the change D, A = P_b^T D = V_b E V_b^T has the norm of E = U_b^T D V_b and the same <E, E^T>, so
that the symmetric and the skew part of E, and what lies outside of the base's space, have their sizes from A. nf
compares the factors themselves (`polarax.kernels.align`), and <P, W> is the nuclear norm of W. Where frames are at
hand they give the same.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from polarax.kernels.align import difference_of_factors, rotation_difference
from polarax.kernels.controls import Controls
from polarax.kernels.controls_by_products import controls_by_products, exponential_traces
from polarax.kernels.drift_budget import budget_of_frames
from polarax.kernels.frames_type import Frames
from polarax.kernels.polar import Polar, polar_by_products
from polarax.kernels.products import frobenius, inner, matmul, promote_pair, transpose


class Headlines(NamedTuple):
    """What two polar factors tell of a pair, each (...)."""

    nf: jax.Array  # as `align`
    symmetry: jax.Array  # <E, E^T> / ||E||^2: 1 symmetric, -1 skew; NaN where E is a rounding error
    outside: jax.Array  # share of ||D||_F^2 outside the base's row and column space; NaN where D = 0
    nuclear_norm_ratio: jax.Array  # sum of s_p over sum of s_b


class PolarPair(NamedTuple):
    """Base and post by their polar factors: headlines, what they are judged by, and how good the factors are."""

    headlines: Headlines
    control: Controls
    change_norm: jax.Array  # ||D||_F, (...)
    rank_base: jax.Array  # (...), int32, and so is `rank_post`
    rank_post: jax.Array
    residual: jax.Array  # (...): the larger of the two factors' `Polar.residual`
    steps: jax.Array  # (...), int32: of `Polar.steps` the smaller; 0 where either was decomposed


def headlines_of_frames(pair: Frames) -> Headlines:
    """The headlines of a pair whose frames are at hand."""
    unit = pair.change / jnp.where(pair.change_norm > 0, pair.change_norm, 1)[..., None, None]
    return Headlines(
        rotation_difference(pair),
        _symmetry(unit),
        budget_of_frames(pair).outside,
        jnp.sum(pair.s_post, axis=-1) / _nonzero(jnp.sum(pair.s_base, axis=-1)),
    )


def polar_pair(
    base: jax.typing.ArrayLike, post: jax.typing.ArrayLike, /, *, factors: tuple[Polar, Polar] | None = None
) -> PolarPair:
    """The headlines of base and post, and their controls, by products alone wherever a matrix has full rank.

    Args:
        base: (..., m, n), floating-point, tall or wide.
        post: The same shape.
        factors: Polar factors of both, in the working dtype, if they are at hand; those of
            `polar_by_products` by default.

    Returns:
        A `PolarPair`; NaN for a pair with NaN or Inf, or with a zero matrix.

    Raises:
        ValueError: The shapes differ, or `polar` refuses the input.

    Example:
        >>> import numpy as np
        >>> from polarax import kernels
        >>> w = np.random.default_rng(0).normal(size=(6, 4)).astype("float32")
        >>> round(float(kernels.polar_pair(w, 1.5 * w).headlines.nuclear_norm_ratio), 5)
        1.5
    """
    base, post = promote_pair(base, post)
    polar_base, polar_post = map(polar_by_products, (base, post)) if factors is None else factors
    shape = (base.shape[-2], base.shape[-1])
    if shape[0] < shape[1]:
        base, post = transpose(base), transpose(post)
        polar_base, polar_post = (x._replace(factor=transpose(x.factor)) for x in (polar_base, polar_post))
    finite = jnp.isfinite(polar_base.residual) & jnp.isfinite(polar_post.residual)
    base, post = (jnp.where(finite[..., None, None], x, 0) for x in (base, post))
    change = post - base
    base_norm, change_norm = frobenius(base), frobenius(change)
    # Over ||W_b||, so that its squares are in range.
    hermitian = inner(polar_base.factor, base / _nonzero(base_norm)[..., None, None])
    in_frame = _in_frame(polar_base, change / jnp.where(change_norm > 0, change_norm, 1)[..., None, None])
    inside = jnp.sum(in_frame**2, axis=(-2, -1))
    square = polar_base.rank == max(shape)  # nothing is outside, not even rounding errors
    headlines = Headlines(
        difference_of_factors(polar_base.factor, polar_post.factor, polar_base.rank, polar_post.rank),
        _symmetry(in_frame),
        jnp.where(change_norm > 0, jnp.where(square, 0, jnp.clip(1 - inside, 0, 1)), jnp.nan),
        _nuclear_norm(polar_post.factor, post) / _nonzero(_nuclear_norm(polar_base.factor, base)),
    )
    traces = exponential_traces((hermitian + transpose(hermitian)) / 2)
    control = controls_by_products(traces, base_norm, change_norm, polar_base.rank, shape=shape)
    meaningful = finite & (polar_base.rank > 0) & (polar_post.rank > 0)
    headlines, control = jax.tree.map(lambda x: jnp.where(meaningful, x, jnp.nan), (headlines, control))
    return PolarPair(
        headlines,
        control,
        jnp.where(finite, change_norm, jnp.nan),
        polar_base.rank,
        polar_post.rank,
        jnp.maximum(polar_base.residual, polar_post.residual),
        jnp.minimum(polar_base.steps, polar_post.steps),
    )


def _in_frame(polar_base, change):
    """A = P_b^T D, (..., r, r); what a base of lower rank leaves undetermined counts as outside."""
    in_frame = inner(polar_base.factor, change)
    full_rank = jnp.all(polar_base.rank == in_frame.shape[-1])
    projected = lambda: matmul(in_frame, inner(polar_base.factor, polar_base.factor))  # noqa: E731
    return lax.cond(full_rank, lambda: in_frame, projected)


def _symmetry(in_frame):
    """<E, E^T> / ||E||^2 of E over the norm of the change, or of V E V^T for any orthogonal V."""
    squares = jnp.sum(in_frame**2, axis=(-2, -1))
    across = jnp.sum(in_frame * transpose(in_frame), axis=(-2, -1))
    # As for coordination: shares below eps are rounding errors.
    return jnp.where(squares > jnp.finfo(in_frame.dtype).eps, across / squares, jnp.nan)


def _nuclear_norm(factor, x):
    """<P, W>, (...)."""
    unit = _nonzero(frobenius(x))
    return jnp.sum(factor * (x / unit[..., None, None]), axis=(-2, -1)) * unit


def _nonzero(x):
    return jnp.where(x > 0, x, 1)
