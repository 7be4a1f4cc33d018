"""Frames by Gram matrices: all that is decomposed is r x r.

The right singular vectors and the singular values of a tall W are the eigenvectors and the square roots of the
eigenvalues of W^T W. Squaring loses every singular value below about sqrt(eps) s_1, so this is a float64 route, and
the ones it blurs are resolved by a second pass: in the basis found, the columns of W V are W's action graded by size,
and the Gram matrix of the small ones alone, whose largest entry is small, is decomposed again (deflation; the coupling
to the large ones is of relative size eps). What is too small for that as well is reported.

With V_b, V_p and X = W_b^T D at hand, E = S_b^-1 V_b^T X V_b, Q_V = V_b^T V_p and Q_U = (S_b + E) Q_V S_p^-1: no left
singular vector is ever formed.

Of a Gram matrix that is only decomposed or added to others, the upper triangle is enough ("upper": what is below the
diagonal says nothing). Eigenvectors are kept as rows, V^T: that is how LAPACK's columns lie in memory, and products
with them take no transposed copy.
"""

import itertools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.scipy.linalg import eigh_tridiagonal

from polarax.kernels.products import inner, matmul, transpose, transposed_operand
from polarax.kernels.row_blocks import reduce_row_blocks
from polarax.kernels.sequential import one_at_a_time
from polarax.kernels.steps import IN_ONE_PROGRAM, Steps
from polarax.kernels.symmetric_eigen import eigh_ascending

# Relative to s_1: from here down, singular values of a float64 Gram matrix go through the second pass. Their relative
# error is about 10 eps (s_1 / s)^2 / 2, 1e-7 at this size.
RESOLVED = 1e-4
# Relative to s_1: below this, values would still be good to 1e-9 s_1, but the errors of their left vectors, which are
# about eps s_1 / s, come near 1e-7.
UNRESOLVED = 1e-8

# A Gram matrix is made from this many strips of rows, each from the diagonal on: 5/8 of the products of a full one.
_STRIPS = 4
# Of fewer columns it is made at once.
_STRIP_COLUMNS = 512
# The second pass takes this share of the vectors if all the small singular values are among them, otherwise all.
_FEW_SMALL = 1 / 12


class ChangeGrams(NamedTuple):
    """Gram matrices of a change D from a base W_b, each (..., n, n)."""

    change: jax.Array  # D^T D, upper
    across: jax.Array  # W_b^T D


class RightFrame(NamedTuple):
    """Singular values and right singular vectors of a tall matrix."""

    values: jax.Array  # (..., r), descending
    rows: jax.Array  # V^T, (..., r, r)
    resolved: jax.Array  # (...), bool: False where singular values too small for this route are left


def gram(x: jax.Array) -> jax.Array:
    """x^T x of (..., m, n): (..., n, n), both triangles.

    On GPUs float32 is multiplied at once: XLA tunes its products for each shape, a minute for those of strips.
    """
    strips = lambda x: _from_strips(_strips(x))  # noqa: E731
    if x.dtype == jnp.float64:
        upper = strips(x)
    else:
        at_once = lambda x: matmul(transpose(x), x)  # noqa: E731
        upper = lax.platform_dependent(x, cuda=at_once, rocm=at_once, default=strips)
    return both_triangles(lax.optimization_barrier(upper))


def both_triangles(upper: jax.Array) -> jax.Array:
    """A symmetric matrix, (..., n, n), from its upper triangle; what is below the diagonal says nothing.

    A sum of triangles: a choice between a matrix and its transpose takes XLA on CPU (jaxlib 0.10) 11 s to compile for
    n = 500, and for n = 1024 the program ends the process. (1536 takes no time.)
    """
    return jnp.triu(upper) + transpose(jnp.triu(upper, 1))


def stored_gram(x: jax.Array, convert: Callable[[jax.Array], jax.Array], rows: jax.Array | None = None) -> jax.Array:
    """The upper Gram matrix of `convert(x)`, x as it is stored, without a float64 copy of all of it on CPU.

    Args:
        x: (..., m, n), m >= n, as stored.
        convert: Maps a part of it to float64.
        rows: V^T, (..., k, n): that of x V instead, (..., k, k).
    """

    def of_block(x):
        return _strips(convert(x) if rows is None else matmul(convert(x), transpose(rows)))

    return _from_strips(reduce_row_blocks(of_block, x))


def change_grams(base: jax.Array, post: jax.Array, convert: Callable[[jax.Array], jax.Array]) -> ChangeGrams:
    """The Gram matrices of the change between two stored matrices. Arguments as for `stored_gram`."""

    def of_block(base, post):
        first = convert(base)
        change = convert(post) - first
        return _strips(change), inner(first, change)

    strips, across = reduce_row_blocks(of_block, base, post)
    return ChangeGrams(_from_strips(strips), across)


def pair_grams(
    base: jax.Array, post: jax.Array, convert: Callable[[jax.Array], jax.Array]
) -> tuple[jax.Array, ChangeGrams]:
    """`stored_gram` of the base and `change_grams`, for which every block of rows is converted once.

    D^T D is float64 too, small as it is: its errors are those of the post's Gram matrix, where they stand beside the
    squares of the smallest singular values. In float32 they would be 6e-8 ||D||^2, and so all of a singular value that
    is 1e-4 ||D||.
    """

    def of_block(base, post):
        first = convert(base)
        change = convert(post) - first
        transposed = transposed_operand(first)
        return _strips(first, transposed), _strips(change), matmul(transposed, change)

    of_base, of_change, across = reduce_row_blocks(of_block, base, post)
    return _from_strips(of_base), ChangeGrams(_from_strips(of_change), across)


def change_rows(
    base: jax.Array, post: jax.Array, convert: Callable[[jax.Array], jax.Array], rows: jax.Array
) -> jax.Array:
    """(W_b V)^T D for some vectors, V^T (..., k, n): (..., k, n). The other arguments as for `stored_gram`."""

    def of_block(base, post):
        first = convert(base)
        return inner(matmul(first, transpose(rows)), convert(post) - first)

    return reduce_row_blocks(of_block, base, post)


def right_frame(
    upper: jax.Array, gram_of: Callable[[jax.Array], jax.Array], steps: Steps = IN_ONE_PROGRAM
) -> RightFrame:
    """Singular values and right vectors of a tall matrix from its Gram matrix; finite, its squares in range.

    Args:
        upper: The Gram matrix, (..., r, r).
        gram_of: Maps V^T, (..., k, r), to the upper Gram matrix of x V, (..., k, k). Called in the branch that a second
            pass needs.
        steps: How the steps are carried out.
    """
    first = steps.small(_first_pass, upper)

    def again(count):
        small = steps.small(_small_rows, first, count=count)
        return steps.small(_second_pass, first, gram_of(small), count=count)

    return _where_any(first, again, lambda: first, steps)


def change_in_frame(
    frame: RightFrame,
    across: jax.Array,
    rows_of: Callable[[jax.Array], jax.Array],
    steps: Steps = IN_ONE_PROGRAM,
) -> jax.Array:
    """E = U_b^T D V_b of a tall base, (..., r, r).

    S_b^-1 V_b^T X V_b divides the rounding errors of X by s_i: the rows of small ones come from their left vectors.

    Args:
        frame: Of the base W_b.
        across: X = W_b^T D, (..., r, r).
        rows_of: Maps V^T, (..., k, r), to (W_b V)^T D, (..., k, r). Called in the branch that needs it.
        steps: How the steps are carried out.
    """
    in_frame = steps.small(_by_right_vectors, frame, across)

    def again(count):
        rows = rows_of(steps.small(_last_rows, frame, count=count))
        return steps.small(_by_left_vectors, frame, in_frame, rows, count=count)

    return _where_any(frame, again, lambda: in_frame, steps)


def eigenvalue_roots(upper: jax.Array) -> jax.Array:
    """Singular values from a Gram matrix, (..., r), descending: to 1e-7 down to `RESOLVED` s_1, to 1e-8 s_1 below.

    On CPU by tridiagonal form and bisection, less than half the time of an eigendecomposition; jax's eigenvalues alone
    cost as much as those with vectors.
    """
    largest = jnp.max(jnp.diagonal(upper, axis1=-2, axis2=-1), axis=-1, initial=0)
    unit = jnp.where((largest > 0) & jnp.isfinite(largest), largest, 1)  # bisection has absolute tolerances
    squares = lax.platform_dependent(
        upper / unit[..., None, None],
        cpu=lambda g: one_at_a_time(_tridiagonal_eigenvalues, g)[..., ::-1],
        default=lambda g: _eigh_descending(g)[0],
    )
    return jnp.sqrt(jnp.maximum(squares, 0)) * jnp.sqrt(unit)[..., None]


def _tridiagonal_eigenvalues(upper):
    if upper.shape[-1] == 1:
        return upper[0]
    _, diagonal, beside, _ = lax.linalg.tridiagonal(transpose(upper))  # of which the lower triangle is read
    return eigh_tridiagonal(diagonal, beside, eigvals_only=True)


def _blurred(values):
    return values < RESOLVED * values[..., :1]


def _resolved(values):
    return values[..., -1] >= UNRESOLVED * values[..., 0]


def _where_any(frame, some, none, steps):
    """some(count) where singular values are blurred, all of them among the last `count`; none() where none is."""
    size = frame.values.shape[-1]
    few = _few_small(size)
    return steps.choose(steps.small(_how_many_are_blurred, frame), (none, lambda: some(few), lambda: some(size)))


def _few_small(size):
    return max(1, round(_FEW_SMALL * size))


def _how_many_are_blurred(frame):
    """0 for none, 1 for few, 2 for more."""
    blurred = _blurred(frame.values)
    most = jnp.max(jnp.sum(blurred, axis=-1), initial=0)
    return jnp.where(most == 0, 0, jnp.where(most <= _few_small(blurred.shape[-1]), 1, 2))


def _first_pass(upper):
    values, rows = _eigh_descending(upper)
    values = jnp.sqrt(jnp.maximum(values, 0))
    return RightFrame(values, rows, _resolved(values))


def _last_rows(frame, *, count):
    return frame.rows[..., frame.rows.shape[-2] - count :, :]


def _small_rows(frame, *, count):
    """The right vectors of the blurred singular values, and zeros in place of others among the last `count`."""
    return jnp.where(_blurred(frame.values)[..., -count:, None], _last_rows(frame, count=count), 0)


def _second_pass(frame, block, *, count):
    """Decomposes the blurred singular values again, which are among the last `count`, by the Gram matrix of those."""
    values, rows = frame.values, frame.rows
    first = values.shape[-1] - count
    small, small_values, blurred = rows[..., first:, :], values[..., first:], _blurred(values)[..., first:]
    # The large directions must come out as they are and in front: put a descending diagonal above the block in.
    ahead = 2 + (count - jnp.arange(count)) / count
    top = jnp.max(jnp.diagonal(block, axis1=-2, axis2=-1), axis=-1)[..., None]
    top = jnp.where(top > 0, top, 1)
    diagonal = jnp.where(blurred, 0, count * top * ahead)
    squares, rotation = _eigh_descending(block + diagonal[..., None] * jnp.eye(count, dtype=block.dtype))
    small_values = jnp.where(blurred, jnp.sqrt(jnp.maximum(squares, 0)), small_values)
    values = values.at[..., first:].set(small_values)
    return RightFrame(values, rows.at[..., first:, :].set(matmul(rotation, small)), _resolved(values))


def _by_right_vectors(frame, across):
    """E = S^-1 V^T X V."""
    return matmul(frame.rows, matmul(across, transpose(frame.rows))) / _divisor(frame)[..., :, None]


def _by_left_vectors(frame, in_frame, rows, *, count):
    """E with the rows of blurred singular values from (W V)^T D of the last `count` vectors."""
    first = frame.values.shape[-1] - count
    rows = matmul(rows, transpose(frame.rows)) / _divisor(frame)[..., first:, None]
    rows = jnp.where(_blurred(frame.values)[..., first:, None], rows, in_frame[..., first:, :])
    return in_frame.at[..., first:, :].set(rows)


def _divisor(frame):
    return jnp.where(frame.values > 0, frame.values, 1)


def _eigh_descending(upper):
    """Eigenvalues and eigenvectors, these as rows; of the upper triangle, which is the transpose's lower one."""
    vectors, values = eigh_ascending(transpose(upper))
    return values[..., ::-1], transpose(vectors)[..., ::-1, :]


def _strips(x, transposed=None):
    """The upper triangle of x^T x in strips of rows, each from its block on the diagonal to the last column."""
    size = x.shape[-1]
    count = _STRIPS if size >= _STRIP_COLUMNS else 1
    transposed = transposed_operand(x) if transposed is None else transposed
    bounds = [size * index // count for index in range(count + 1)]
    return [matmul(transposed[..., first:last, :], x[..., first:]) for first, last in itertools.pairwise(bounds)]


def _from_strips(strips):
    """The upper triangle of a matrix from its strips, zeros before them."""
    size = strips[0].shape[-1]
    return jnp.concatenate([_after_zeros(strip, size - strip.shape[-1]) for strip in strips], axis=-2)


def _after_zeros(x, count):
    return jnp.concatenate([jnp.zeros((*x.shape[:-1], count), x.dtype), x], axis=-1)
