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

from polarax.kernels.align import difference_of_products, rotation_difference
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


class Quality(NamedTuple):
    """What is known of a polar factor beside it, each (...), as in `Polar`."""

    rank: jax.Array
    steps: jax.Array
    residual: jax.Array


class Norms(NamedTuple):
    """Frobenius norms, each (...)."""

    base: jax.Array
    post: jax.Array
    change: jax.Array


class Products(NamedTuple):
    """What is as large as the matrices in a `PolarPair`: sums over their rows."""

    hermitian: jax.Array  # P_b^T W_b / ||W_b||, (..., n, n), and so are the next three
    in_frame: jax.Array  # P_b^T D / ||D||
    projector: jax.Array  # P_p^T P_p
    across: jax.Array  # P_p^T P_b
    nuclear_base: jax.Array  # <P_b, W_b> / ||W_b||, (...)
    nuclear_post: jax.Array  # <P_p, W_p> / ||W_p||, (...)


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
    norms = Norms(frobenius(base), frobenius(post), frobenius(change))
    products = pair_products(base, post, polar_base.factor, polar_post.factor, norms)
    products = products._replace(in_frame=_inside(polar_base, products.in_frame))
    base_quality, post_quality = (Quality(x.rank, x.steps, x.residual) for x in (polar_base, polar_post))
    return pair_of_products(products, norms, base_quality, post_quality, finite, shape=shape)


def pair_products(
    base: jax.Array, post: jax.Array, factor_base: jax.Array, factor_post: jax.Array, norms: Norms
) -> Products:
    """The products of two matrices and their polar factors, (..., m, n) each, finite, m >= n; or those of some rows."""
    # Over norms, so that squares are in range.
    of_base, of_post, of_change = (
        x / _nonzero(norm)[..., None, None] for x, norm in zip((base, post, post - base), norms, strict=True)
    )
    return Products(
        hermitian=inner(factor_base, of_base),
        in_frame=inner(factor_base, of_change),
        projector=inner(factor_post, factor_post),
        across=inner(factor_post, factor_base),
        nuclear_base=jnp.sum(factor_base * of_base, axis=(-2, -1)),
        nuclear_post=jnp.sum(factor_post * of_post, axis=(-2, -1)),
    )


def pair_of_products(
    products: Products, norms: Norms, base: Quality, post: Quality, finite: jax.Array, *, shape: tuple[int, int]
) -> PolarPair:
    """A `PolarPair` of tall matrices.

    Args:
        products: Of the pair.
        norms: Of the pair.
        base: Of the base's factor.
        post: Of the post's factor.
        finite: Whether both matrices are, (...).
        shape: (m, n), in any order.
    """
    hermitian, in_frame, change_norm = products.hermitian, products.in_frame, norms.change
    inside = jnp.sum(in_frame**2, axis=(-2, -1))
    square = base.rank == max(shape)  # nothing is outside, not even rounding errors
    nuclear_base, nuclear_post = products.nuclear_base * norms.base, products.nuclear_post * norms.post
    headlines = Headlines(
        difference_of_products(products.projector, products.across, base.rank, post.rank),
        _symmetry(in_frame),
        jnp.where(change_norm > 0, jnp.where(square, 0, jnp.clip(1 - inside, 0, 1)), jnp.nan),
        nuclear_post / _nonzero(nuclear_base),
    )
    traces = exponential_traces((hermitian + transpose(hermitian)) / 2)
    control = controls_by_products(traces, norms.base, change_norm, base.rank, shape=shape)
    meaningful = finite & (base.rank > 0) & (post.rank > 0)
    headlines, control = jax.tree.map(lambda x: jnp.where(meaningful, x, jnp.nan), (headlines, control))
    return PolarPair(
        headlines,
        control,
        jnp.where(finite, change_norm, jnp.nan),
        base.rank,
        post.rank,
        jnp.maximum(base.residual, post.residual),
        jnp.minimum(base.steps, post.steps),
    )


def _inside(polar_base, in_frame):
    """A = P_b^T D, (..., r, r); what a base of lower rank leaves undetermined counts as outside."""
    full_rank = jnp.all(polar_base.rank == in_frame.shape[-1])
    projected = lambda: matmul(in_frame, inner(polar_base.factor, polar_base.factor))  # noqa: E731
    return lax.cond(full_rank, lambda: in_frame, projected)


def _symmetry(in_frame):
    """<E, E^T> / ||E||^2 of E over the norm of the change, or of V E V^T for any orthogonal V."""
    squares = jnp.sum(in_frame**2, axis=(-2, -1))
    across = jnp.sum(in_frame * transpose(in_frame), axis=(-2, -1))
    # As for coordination: shares below eps are rounding errors.
    return jnp.where(squares > jnp.finfo(in_frame.dtype).eps, across / squares, jnp.nan)


def _nonzero(x):
    return jnp.where(x > 0, x, 1)
