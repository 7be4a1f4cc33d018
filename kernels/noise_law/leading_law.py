"""What isotropic noise does to the leading subspaces, at any size of the noise.

The law says how each leading post vector spreads over the base vectors (`leading_profile`). Overlaps are sums of these
shares. Principal angles and intruders also depend on how a share is divided in a single draw, and are read from few
draws of small matrices: where a vector has neighbours as near as the noise reaches, its entries are normal with these
variances; where it stands alone, or loses to many others a little each, they are fixed.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from polarax.kernels.noise_law.curve import noise_of, of_each, points_of
from polarax.kernels.noise_law.leading_profile import LeadingProfile, leading_profile
from polarax.kernels.noise_law.values_law import ValuesLaw
from polarax.kernels.overlap import INTRUDER_COSINE, INTRUDER_COUNT
from polarax.kernels.products import at_full_precision
from polarax.kernels.sequential import one_at_a_time
from polarax.kernels.sides import Shape, is_tall, longer_side, shorter_side
from polarax.kernels.thin_svd import numerical_rank

# Base vectors behind the leading ones whose shares are drawn one by one; what is farther is lost evenly.
_BEYOND = 64
# Draws: at least, and of k x k matrices so many that their mean errs alike for all k.
_DRAWS = 48
_DRAWN_ROWS = 768
# Matrices at once: what is drawn for one takes half a megabyte.
_AT_ONCE = 32
# Halvings of the range of the factor that brings the mean of the squared cosines to the overlap: its logarithm.
_HALVINGS, _WIDEST = 40, 40.0


class LeadingLaw(NamedTuple):
    """Means under an isotropic change; left and right as the matrix lies."""

    overlap_left: jax.Array  # of the leading k left subspaces, (...)
    overlap_right: jax.Array  # (...)
    cosines_left: jax.Array  # of the principal angles between these, descending, (..., k)
    cosines_right: jax.Array  # (..., k)
    cos2_left: jax.Array  # squared cosine of the i-th post vector with the i-th base vector, (..., max(k, 10) or r)
    cos2_right: jax.Array  # the same of right ones
    intruders_left: jax.Array  # of the 10 leading post vectors, those that are unlike every base vector, (...)
    intruders_right: jax.Array  # (...)
    spectral_norm: jax.Array  # s_1 of the post, in the unit of the base, (...)


_STILL = LeadingLaw._make([1, 1, 1, 1, 1, 1, 0, 0, 1])  # nothing changed, in the unit s_1


@at_full_precision
def leading_law(
    s_base: jax.typing.ArrayLike,
    change_norm: jax.typing.ArrayLike,
    *,
    shape: Shape,
    k: int,
    tail: jax.typing.ArrayLike | None = None,
    values: ValuesLaw | None = None,
) -> LeadingLaw:
    """What isotropic noise of norm ||D||_F does to the leading k singular vectors of both sides.

    Vectors of base values that are numerically zero are not determined, and overlap with nothing.

    Args:
        s_base: Singular values of the base, descending, (..., r), or the leading ones of them.
        change_norm: ||D||_F, (...).
        shape: (m, n) of the matrix, m an operand or a number.
        k: Dimension of the subspaces; the number of values that are given at most is used.
        tail: Root mean square of the values that are not given, (...); not needed where all are.
        values: What `values_law` gives for these, if it is known.

    Returns:
        `LeadingLaw`; NaN for a base that is zero, and where anything is not finite.

    Raises:
        ValueError: k < 1.

    Example:
        >>> import numpy as np
        >>> from polarax.kernels.noise_law import leading_law
        >>> law = leading_law(np.array([3.0, 2.0, 1.0]), np.array(0.3), shape=(3, 3), k=1)
        >>> round(float(law.overlap_left), 1)
        1.0
    """
    if k < 1:
        raise ValueError(f"k must be at least 1. Got k={k}.")
    s, norm = jnp.asarray(s_base), jnp.asarray(change_norm)
    count = min(max(k, INTRUDER_COUNT), s.shape[-1])
    near = min(count + _BEYOND, s.shape[-1])
    noise, unit = noise_of(s, norm, shape=shape, tail=None if tail is None else jnp.asarray(tail, s.dtype))
    if values is None or values.v.shape[-1] < count:
        offset, v = of_each(lambda one: points_of(jnp.arange(count), one)[:2], noise, still=(0, 0))
    else:
        offset, v = (x[..., :count] / unit[..., None] for x in (values.offset, values.v))

    def of_matrix(one, offset, v):
        profile = leading_profile(one, offset, v, near=near)
        determined = jnp.arange(near) < numerical_rank(one.s, longer_side(shape), shorter_side(shape))
        return _read(profile._replace(shares=profile.shares * determined), min(k, s.shape[-1]))

    law = of_each(of_matrix, noise, offset, v, still=_STILL, at_once=_AT_ONCE)
    law = law._replace(spectral_norm=law.spectral_norm * unit)
    if is_tall(shape):
        return law
    swapped = [x for pair in zip(law[1:8:2], law[0:8:2], strict=True) for x in pair]
    return LeadingLaw._make([*swapped, law.spectral_norm])


def _read(profile: LeadingProfile, k: int) -> LeadingLaw:
    """The readings of a profile, left being the longer side."""
    draws = max(_DRAWS, _DRAWN_ROWS // k)
    _, count, near = profile.shares.shape
    tried = min(count, INTRUDER_COUNT)
    key = jax.random.key(0, impl="threefry2x32")  # the same for every matrix, whatever JAX's settings
    normal = jax.random.normal(key, (draws, max(k, tried), near), profile.shares.dtype)

    def of_side(shares, inside):
        overlap = jnp.minimum(jnp.mean(jnp.sum(shares[:k, :k], axis=-1)), 1)
        cosines = _cosines(shares[:k], inside[:k], overlap, normal[:, :k])
        return overlap, cosines, jnp.diagonal(shares), _intruders(shares[:tried], normal[:_DRAWS, :tried])

    readings = jax.vmap(of_side)(profile.shares, profile.inside)
    return LeadingLaw._make([*(side for both in readings for side in both), profile.largest])


def _cosines(shares, inside, overlap, normal):
    """Means of the cosines of the principal angles, descending, (k,).

    C C^T of C = U_p,k^T U_b,k has the squared cosines for eigenvalues, and with the same of what is lost, B B^T, the
    sum 1. Both are drawn with the variances of their shares, and made to sum to 1. As far as row i is mixed with its
    neighbours, its entries in C are normal; the rest of it is fixed, on the diagonal: turns among the k leading vectors
    change no principal angle. How far that is follows from the rows' degrees of freedom: C of a row that is mixed alike
    with all of them has as many to those of B as its share has to the rest.
    """
    k, near = shares.shape
    kept = jnp.sum(shares[:, :k], axis=-1)
    lost, lost_inside = (jnp.maximum(x - kept, 0) for x in (1, inside))
    beyond = shares[:, k : min(near, k + _BEYOND)]
    even = jnp.maximum(lost - jnp.sum(beyond, axis=-1), 0)
    together = jnp.sqrt(lost * lost_inside) * jnp.sum(shares[:, :k] ** 2, axis=-1)
    apart = kept * jnp.sum(shares[:, k:] ** 2, axis=-1)
    mixed = jnp.sqrt(jnp.minimum(apart / jnp.where(together > 0, together, jnp.inf), 1))
    c = jnp.sqrt(shares[:, :k] * mixed[:, None]) * normal[..., :k] + jnp.diag(jnp.sqrt(kept * (1 - mixed)))
    b = jnp.sqrt(beyond) * normal[..., k : k + beyond.shape[-1]]
    eps = jnp.finfo(shares.dtype).eps
    lost_squares = jnp.matmul(b, b.mT, precision=lax.Precision.HIGHEST) + jnp.diag(even)
    kept_squares = jnp.matmul(c, c.mT, precision=lax.Precision.HIGHEST) + eps**2 * jnp.eye(k, dtype=c.dtype)
    # The unit of what is lost is kept apart: eigenvalues are good to rounding of the largest.
    unit = jnp.maximum(jnp.max(jnp.trace(lost_squares, axis1=-2, axis2=-1)), jnp.finfo(shares.dtype).tiny)
    pencil = jnp.concatenate([lost_squares / unit, kept_squares + lost_squares], axis=-1)
    sines = jnp.clip(unit * one_at_a_time(_relative_eigenvalues, pencil), 0, 1)  # squared, ascending
    return jnp.mean(jnp.sqrt(1 - _brought_to(sines, 1 - overlap)), axis=0)


def _relative_eigenvalues(pencil):
    """Eigenvalues of B^-1 A, ascending, (k,), of [A, B] with A semidefinite and B definite, (k, 2 k)."""
    k = pencil.shape[0]
    factor = lax.linalg.cholesky(pencil[:, k:], symmetrize_input=False)
    half = lax.linalg.triangular_solve(factor, pencil[:, :k], left_side=True, lower=True)
    whole = lax.linalg.triangular_solve(factor, half.T, left_side=True, lower=True)
    return lax.linalg.eigh(whole, symmetrize_input=False)[1]


def _brought_to(sines, lost):
    """Squared sines whose odds all have one factor, by which their mean is what is lost."""

    def scaled(logarithm):
        grown = sines * jnp.exp(logarithm / 2)
        shrunk = (1 - sines) * jnp.exp(-logarithm / 2)
        return grown / jnp.maximum(grown + shrunk, jnp.finfo(sines.dtype).tiny)

    def halve(_, bounds):
        low, high = bounds
        middle = (low + high) / 2
        more = jnp.mean(scaled(middle)) < lost
        return jnp.where(more, middle, low), jnp.where(more, high, middle)

    widest = jnp.asarray(_WIDEST, sines.dtype)
    low, high = lax.fori_loop(0, _HALVINGS, halve, (-widest, widest))
    return scaled((low + high) / 2)


def _intruders(shares, normal):
    """Expected number of vectors that have no entry of INTRUDER_COSINE, ().

    The largest entry has a fixed part such that its square varies as much as the shares of the others make it.
    """
    index = jnp.argmax(shares, axis=-1)[:, None]
    largest = jnp.take_along_axis(shares, index, axis=-1)
    others = jnp.sum(shares**2, axis=-1, keepdims=True) - largest**2
    fixed = jnp.sqrt(jnp.maximum(largest**2 - others, 0))
    is_largest = jnp.arange(shares.shape[-1]) == index
    entries = jnp.sqrt(jnp.where(is_largest, largest - fixed, shares)) * normal + jnp.where(
        is_largest, jnp.sqrt(fixed), 0
    )
    far = jnp.maximum(1 - jnp.sum(shares, axis=-1), 0)
    norm = jnp.sqrt(jnp.sum(entries**2, axis=-1) + far)
    unlike = jnp.max(jnp.abs(entries), axis=-1) < INTRUDER_COSINE * norm
    return jnp.sum(jnp.mean(unlike.astype(shares.dtype), axis=0))
