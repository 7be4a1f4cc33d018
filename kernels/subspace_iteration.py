"""Leading singular values and vectors by block subspace iteration that starts from an estimate.

A matrix in training moves little between two looks at it, so last time's right vectors nearly span this time's leading
subspace. A cycle takes the block Krylov space [V, A V, A^2 V], A = W^T W, and keeps its best b directions (Rayleigh and
Ritz; block Krylov with restarts converges faster than powers of A alone: Musco and Musco, arXiv:1504.05477). Ritz
values only grow towards the singular values; cycles end when they no longer do. The last columns of the start are
replaced by random ones, so that a direction that was not there before is found as well.

Only W V and W^T U with b columns touch the m x n array, and all that is decomposed is at most 3 b x 3 b: one small
LAPACK call at a time, and with W divided over devices no device needs all of it.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from polarax.kernels.products import PRECISION, transpose

# Columns beyond the k wanted: convergence goes by the gap between s_k and the first value outside the block.
OVERSAMPLING = 8

# Of these, so many start at random.
FRESH = 4

# Products with A in a cycle: the basis has one block more.
DEGREE = 2

# Relative growth of the k values in a cycle below which they count as found. Growth shrinks from cycle to cycle by a
# constant factor, so what is missing is a small multiple of it.
TOLERANCE = 1e-6

# In units of eps s_1: growth that may be rounding.
_ROUNDING = 4

# Cycles for the sake of the vectors go on while each takes away at least this share of their error: what rounding
# leaves does not get smaller.
_PROGRESS = 0.1


class LeadingSvd(NamedTuple):
    """The leading part of a thin SVD, of b columns, of which the first k have converged."""

    left: jax.Array  # (m, b), orthonormal columns; zero where the value is
    values: jax.Array  # (b,), descending
    right: jax.Array  # (n, b), orthonormal columns
    cycles: jax.Array  # (), int32
    growth: jax.Array  # (), largest relative growth of the k values in the last cycle
    residuals: jax.Array  # (k,): ||W^T u_i - s_i v_i|| / s_1: a singular value of W lies within that, times s_1, of s_i
    angle: jax.Array  # (), largest error of the k vectors before the last cycle, in radians; inf unless asked for


def leading_svd(
    x: jax.Array,
    start: jax.Array,
    /,
    *,
    k: int,
    cycles: int = 40,
    tolerance: float = TOLERANCE,
    vector_tolerance: float | None = None,
    precision: lax.Precision | str = PRECISION,
) -> LeadingSvd:
    """The k leading singular values and vectors of one matrix; `lax.map` it over a stack.

    Args:
        x: (m, n), float32 or float64, finite.
        start: (n, b) with k <= b <= min(m, n): estimates of the leading right vectors. They need not be orthonormal;
            any b random columns do for a first time.
        k: How many values have to converge.
        cycles: At most so many cycles, of 4 products with x and b columns each; found vectors need one or two.
        tolerance: Relative growth of the values in a cycle at which they count as found.
        vector_tolerance: Error of the k right vectors, in radians, at which they count as found, for callers that need
            the vectors themselves: values have converged when vectors are still off by the root of the tolerance.
        precision: Of the products with x.

    Returns:
        A `LeadingSvd`; `growth` above the tolerance says that it ended early.

    Raises:
        ValueError: The shapes do not fit.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> x = jnp.diag(jnp.array([5.0, 4.0, 1.0, 0.5]))
        >>> leading_svd(x, jax.random.normal(jax.random.key(0), (4, 2)), k=2).values.round(4).tolist()
        [5.0, 4.0]
    """
    if x.ndim != 2 or start.ndim != 2 or x.shape[1] != start.shape[0]:
        raise ValueError(f"Expected (m, n) and (n, b). Got {x.shape} and {start.shape}.")
    block = start.shape[1]
    if not 1 <= k <= block <= min(x.shape):
        raise ValueError(f"Expected 1 <= k <= b <= min(m, n). Got k={k}, b={block}, shape={x.shape}.")
    product = functools.partial(jnp.matmul, precision=precision)
    unit = jnp.max(jnp.abs(x))
    unit = jnp.where(unit > 0, unit, 1)
    x = x / unit  # so that squares stay in range

    def ritz(bases, images):
        """The best directions of a basis, their images under x, and their values."""
        basis, image = jnp.concatenate(bases, axis=-1), jnp.concatenate(images, axis=-1)
        best = _gram_vectors(image)[:, ::-1][:, :block]
        image = _small(image, best)
        # The length of an image loses nothing of small values, as the square root of an eigenvalue would.
        return _small(basis, best), image, _lengths(image)

    def pulled_back(image):
        return transpose(product(transpose(image), x))

    def largest_angle(right, pulled, values):
        """How far the k vectors are from singular vectors, to first order: ||(I - V V^T) A v|| over the gap."""
        # The gap is that between the squares of its value and of the block's last one, which bounds those outside.
        outside = _lengths(pulled - _small(right, _small(transpose(right), pulled)))[:k]
        gap = (values[:k] - values[-1]) * (values[:k] + values[-1])
        smallest = jnp.finfo(x.dtype).eps * values[0] ** 2
        return jnp.max(jnp.where(outside > 0, outside / jnp.maximum(gap, jnp.where(smallest > 0, smallest, 1)), 0))

    def cycle(state):
        right, image, values, count, _, angle, _ = state
        before = angle
        if vector_tolerance is not None and block < min(x.shape):  # else nothing is outside
            angle = largest_angle(right, pulled_back(image), values)
        bases, images = [right], [image]
        for _ in range(DEGREE):
            bases.append(_orthonormal(pulled_back(images[-1]), bases))
            images.append(product(x, bases[-1]))
        right, image, grown = ritz(bases, images)
        allowed = _ROUNDING * jnp.finfo(x.dtype).eps * grown[0]
        growth = jnp.maximum(grown - values - allowed, 0) / jnp.where(grown > 0, grown, 1)
        return right, image, grown, count + 1, jnp.max(growth[:k]), angle, before

    def unfinished(state):
        *_, count, growth, angle, before = state
        wanted = growth > tolerance
        if vector_tolerance is not None and block < min(x.shape):
            wanted |= (angle > vector_tolerance) & (angle <= (1 - _PROGRESS) * before)
        return wanted & (count < cycles)

    right = _orthonormal(start.astype(x.dtype), [])
    image = product(x, right)
    # Of vectors found before, these are the Ritz values; of others, smaller ones: then there is more to grow.
    values = _lengths(image)
    unknown = jnp.array(jnp.inf, x.dtype)
    first = right, image, values, jnp.int32(0), unknown, unknown, unknown
    right, image, values, count, growth, angle, _ = lax.while_loop(unfinished, cycle, first)
    order = jnp.argsort(-values)  # Ritz values are in order; the lengths may differ from them by rounding
    right, image, values = right[:, order], image[:, order], values[order]
    left = jnp.where(values > 0, image / jnp.where(values > 0, values, 1), 0)
    largest = jnp.where(values[0] > 0, values[0], 1)
    residuals = _lengths(pulled_back(left[:, :k]) - values[:k] * right[:, :k]) / largest
    return LeadingSvd(left, values * unit, right, count, growth, residuals, angle)


def restarted(right: jax.Array, key: jax.Array) -> jax.Array:
    """The start for the next time: right vectors of last time, the last `FRESH` columns random.

    Args:
        right: (n, b).
        key: Random key.
    """
    rows, block = right.shape
    fresh = min(FRESH, block - 1)
    random = jax.random.normal(key, (rows, fresh), right.dtype) / jnp.sqrt(jnp.array(rows, right.dtype))
    return jnp.concatenate([right[:, : block - fresh], random], axis=-1)


def _orthonormal(x, earlier):
    """Orthonormal columns for the span of x less that of the earlier blocks; zero columns for what is missing.

    By the eigenvectors of the Gram matrix, which unlike Cholesky's factor are there for dependent columns as well
    (Stathopoulos and Wu 2002); twice, for what rounding leaves after once.
    """
    known = jnp.concatenate(earlier, axis=-1) if earlier else None

    def once(turn, x):
        before = _lengths(x)
        if known is not None:
            x = x - _small(known, _small(transpose(known), x))
        # What shrinks the second time is rounding: the earlier blocks leave no room for it.
        length = _lengths(x)
        room = length > jnp.where(turn == 0, 0, 0.5) * before
        x = jnp.where(room, x / jnp.where(room, length, 1), 0)
        vectors, values = lax.linalg.eigh(_small(transpose(x), x), symmetrize_input=False)
        kept = values > x.shape[1] * jnp.finfo(x.dtype).eps * values[-1]
        return _small(x, jnp.where(kept, vectors / jnp.sqrt(jnp.where(kept, values, 1)), 0))

    return lax.fori_loop(0, 2, once, x)


def _lengths(x):
    return jnp.sqrt(jnp.sum(x**2, axis=0))


def _gram_vectors(image):
    """Eigenvectors of image^T image, values ascending; in float64 where there is, which keeps small values apart."""

    def in_float64(image):
        with jax.enable_x64(True):
            wide = image.astype(jnp.float64)
            vectors, _ = lax.linalg.eigh(_small(transpose(wide), wide), symmetrize_input=False)
            return vectors.astype(image.dtype)

    def as_it_is(image):
        return lax.linalg.eigh(_small(transpose(image), image), symmetrize_input=False)[0]

    return lax.platform_dependent(image, tpu=as_it_is, default=in_float64)


def _small(left, right):
    return jnp.matmul(left, right, precision=PRECISION)
