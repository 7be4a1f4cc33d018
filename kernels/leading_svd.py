"""Leading singular values and vectors by block Lanczos with thick restarts, from an estimate.

A matrix in training moves little between two looks at it, so last time's right vectors nearly span this time's leading
subspace; of a matrix that was never seen, random columns do. A cycle extends the space by W^T W times its newest block,
twice, and keeps the best directions (Rayleigh and Ritz) together with the residual block, so that the space stays a
Krylov space and convergence is nearly that of one that is never restarted (Wu and Simon 2000, "Thick-restart Lanczos
method for large symmetric eigenvalue problems"; for singular values Baglama and Reichel 2005; blocks of more columns
than are wanted: Musco and Musco, arXiv:1504.05477). Residuals come with the recurrence and say when to stop. The last
columns of an estimate are replaced by random ones, so that a direction that was not there before is found as well.

Only W V and W^T U with b columns touch the m x n array, and all that is decomposed is at most 4 b x 4 b: one small
LAPACK call at a time, and with W divided over devices no device needs all of it.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from polarax.kernels.products import PRECISION, transpose
from polarax.kernels.sequential import by_leading_axes

# Columns beyond the k wanted: convergence goes by the gap between s_k and the first value outside the block.
OVERSAMPLING = 8

# Of these, so many start at random.
FRESH = 4

# Products with W^T W in a cycle.
DEGREE = 2

# Blocks of directions kept from cycle to cycle. On spectra with a dense bulk two take half the products of one, and
# three hardly fewer than two.
_KEPT = 2

# Estimated relative error of the k values below which they count as found.
TOLERANCE = 1e-6

# In units of eps s_1^2: residuals that may be rounding.
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
    error: jax.Array  # (), largest relative error of the k values, estimated
    angle: jax.Array  # (), largest error of the k right vectors, in radians, estimated to first order
    residuals: jax.Array  # (k,), ||W^T u_i - s_i v_i|| / s_1: W has a singular value within that, times s_1, of s_i


def leading_svd(
    x: jax.Array,
    start: jax.Array,
    /,
    *,
    k: int,
    cycles: int | jax.Array = 40,
    tolerance: float | jax.Array = TOLERANCE,
    vector_tolerance: float | jax.Array | None = None,
    in_range: bool = False,
    precision: lax.Precision | str = PRECISION,
) -> LeadingSvd:
    """The k leading singular values and vectors of one matrix; `lax.map` it over a stack.

    Args:
        x: (m, n), floating-point, finite; smaller floats are converted once and worked on in float32.
        start: (n, b) with k <= b <= min(m, n): estimates of the leading right vectors. They need not be orthonormal;
            any b random columns do for a first time.
        k: How many values have to converge.
        cycles: At most so many cycles, of 4 products with x and b columns each; found vectors need one or two.
        tolerance: Estimated relative error of the values at which they count as found; of all, or of each, (k,).
        vector_tolerance: Error of the k right vectors, in radians, at which they count as found, for callers that need
            the vectors themselves: values have converged when vectors are still off by the root of the tolerance.
        in_range: Whether squares of sums of entries are known to be in range, as where the norm of x is near 1: then x
            is not divided by its largest entry, and one of float32 is not copied.
        precision: Of the products with x.

    Returns:
        A `LeadingSvd`; `error` above the tolerance says that it ended early.

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
    dtype = jnp.promote_types(x.dtype, jnp.float32)
    product = functools.partial(jnp.matmul, precision=precision)
    if in_range:
        x, unit = x.astype(dtype), jnp.ones((), dtype)
    else:
        unit = jnp.max(jnp.abs(x)).astype(dtype)
        unit = jnp.where(unit > 0, unit, 1)
        x = x.astype(dtype) / unit  # so that squares stay in range; converted and divided in one pass
    kept = min(_KEPT * block, x.shape[1])
    outside = block < min(x.shape)

    def pushed(vectors):
        return _as_it_is(product(x, vectors))

    def pulled_back(image):
        return transpose(_as_it_is(product(_as_it_is(transpose(image)), x)))

    def cycle(state):
        space, newest, squares, count, _, before, _ = state
        bases, pulled = [space], []
        for _ in range(DEGREE):
            vectors, image, _ = _graded(newest, pushed(newest))
            bases.append(vectors)
            pulled.append(pulled_back(image))
            newest = _orthonormal(pulled[-1], bases)
        basis = jnp.concatenate(bases, axis=-1)
        # V^T W^T W V: diagonal among the directions that were kept, by the columns of the new ones elsewhere.
        across = _small(transpose(basis), jnp.concatenate(pulled, axis=-1))
        squares, turn = _ritz(squares, across)
        # W^T W V - V S^2 has its columns in the span of the block that follows: what the last one has of them.
        residuals = _lengths(_small(_small(transpose(newest), pulled[-1]), turn[-block:, :k]))
        errors, angle = _errors(residuals, jnp.sqrt(squares[:block]), outside)
        return _small(basis, turn), newest, squares, count + 1, errors, angle, before

    def unfinished(state):
        *_, count, errors, angle, before = state
        wanted = jnp.any(errors > tolerance)
        if vector_tolerance is not None:
            wanted |= (angle > vector_tolerance) & (angle <= (1 - _PROGRESS) * before)
        return wanted & (count < cycles)

    unknown = jnp.array(jnp.inf, dtype)
    first = jnp.zeros((x.shape[1], kept), dtype), _orthonormal(start.astype(dtype), []), jnp.zeros(kept, dtype)
    errors = jnp.full(k, jnp.inf, dtype)
    found = lax.while_loop(unfinished, cycle, (*first, jnp.int32(0), errors, unknown, unknown))
    space, _, _, count, errors, angle, _ = found
    right, image, values = _graded(space[:, :block], pushed(space[:, :block]))
    order = jnp.argsort(-values)  # in order already, but for rounding
    right, image, values = right[:, order], image[:, order], values[order]
    left = jnp.where(values > 0, image / jnp.where(values > 0, values, 1), 0)
    off = pulled_back(left[:, :k]) - right[:, :k] * values[:k]
    residuals = _lengths(off) / jnp.where(values[0] > 0, values[0], 1)
    return LeadingSvd(left, values * unit, right, count, jnp.max(errors), angle, residuals)


def _graded(vectors, image):
    """Orthonormal columns turned so that their images are orthogonal, longest first: V, W V and the lengths.

    One large value among small ones then is in one column alone, and rounding errors are small beside each column.
    """
    turn = _as_it_is(_gram_vectors(image)[:, ::-1])
    image = _small(image, turn)
    # The length of an image loses nothing of small values, as the square root of an eigenvalue would.
    return _small(vectors, turn), image, _lengths(image)


def _ritz(squares, across):
    """The largest eigenvalues and their vectors of V^T W^T W V; of as many as were kept before.

    Args:
        squares: Of the directions that were kept, (p,).
        across: The columns of the others, (p + q, q); in each block those of the largest images first.

    Returns:
        (p,), descending, not negative; (p + q, p).
    """

    def solve(squares, across):
        count = squares.shape[0]
        first, last = across[:count], across[count:]
        # Of each two the later column is of the smaller image, and has the smaller rounding error.
        last = jnp.triu(last) + transpose(jnp.triu(last, 1))
        whole = jnp.concatenate(
            [
                jnp.concatenate([jnp.diag(squares), first], axis=1),
                jnp.concatenate([transpose(first), last], axis=1),
            ]
        )
        vectors, values = lax.linalg.eigh(whole, symmetrize_input=False)
        return jnp.maximum(values[::-1][:count], 0), vectors[:, ::-1][:, :count]

    return _in_float64(solve, squares, across)


def _errors(residuals, values, outside):
    """Relative errors of the k values, and the largest error of their vectors, from the residuals of W^T W.

    To first order a vector is off by its residual over the gap to what is outside, and the square of its value by the
    square of the residual over that gap, or by the residual where there is none.

    Args:
        residuals: ||W^T W v - s^2 v||, (k,).
        values: (b,), of which the last bounds those outside of the block.
        outside: Whether there are any.
    """
    found, others = values[: residuals.shape[0]], values[-1] if outside else 0
    gap = (found - others) * (found + others)
    smallest = jnp.finfo(values.dtype).eps * values[0] ** 2
    gap = jnp.maximum(gap, jnp.where(smallest > 0, smallest, 1))
    angles = jnp.where(residuals > 0, residuals / gap, 0)
    beyond = jnp.maximum(residuals - _ROUNDING * smallest, 0)
    squares = jnp.where(found > 0, found, 1) ** 2
    errors = jnp.minimum(beyond, beyond * (beyond / gap)) / (2 * squares)
    return errors, jnp.max(angles)


def iteration_operations(m: int, n: int, k: int, block: int, cycles: int) -> float:
    """Floating-point operations of `leading_svd` of one m x n matrix in so many cycles."""
    kept, added = _KEPT * block, DEGREE * block
    products = (2 * DEGREE * cycles + 1) * 2 * m * n * block + 2 * m * n * k
    orthogonal = DEGREE * (2 * 4 * n * (kept + added) * block + 4 * (m + n) * block**2)
    ritz = 2 * n * (kept + added) * (kept + added) + 25 * (kept + added) ** 3
    return float(products + cycles * (orthogonal + ritz))


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


def _as_it_is(x):
    """x, laid out as it is: XLA on CPU would move transposes into the large products, which then take up to 4 times."""
    return lax.platform_dependent(x, cpu=lax.optimization_barrier, default=lambda x: x)


def _lengths(x):
    return jnp.sqrt(jnp.sum(x**2, axis=0))


def _gram_vectors(image):
    """Eigenvectors of image^T image, values ascending."""

    def solve(image):
        return lax.linalg.eigh(_small(transpose(image), image), symmetrize_input=False)[0]

    return _in_float64(solve, image)


def _in_float64(solve, *arrays):
    """solve(*arrays), the last of them a matrix, in float64 where there is; in the arrays' own dtype.

    It keeps small values apart.
    """

    def in_float64(*arrays):
        with jax.enable_x64(True):
            mapped = solve
            for _ in range(arrays[-1].ndim - 2):  # within the scope, which a `vmap` from outside would have left
                mapped = jax.vmap(mapped)
            results = mapped(*(x.astype(jnp.float64) for x in arrays))
            return jax.tree.map(lambda x: x.astype(arrays[0].dtype), results)

    return lax.platform_dependent(*arrays, tpu=solve, default=by_leading_axes(in_float64))


def _small(left, right):
    return jnp.matmul(left, right, precision=PRECISION)
