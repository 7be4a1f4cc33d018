"""What the base with a part of the change is, W' = W_b + t (U_b X V^T + a part outside of U_b), measured in its frame.

With C = U_b^T W_p V and K = S + t X, where V is orthogonal and U_b has columns of zeros for what the base does not
determine,

    W'^T W'  is  K^T K + t^2 G,    W_p^T W'  is  C^T K + t G    by V on both sides,

G being the Gram matrix of what the change has outside of U_b. Nothing has to be taken out of the frame, and a part that
is symmetric in it has the eigenvectors of K on both sides.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from polarax.kernels.edits.maps import inside_part
from polarax.kernels.edits.measure import Measured, distance, measured, of_rotations
from polarax.kernels.edits.tall_pair import Side, TallPair, side_of_gram
from polarax.kernels.gram import gram
from polarax.kernels.products import inner, matmul
from polarax.kernels.symmetric_eigen import eigh_ascending


class _Vectors(NamedTuple):
    """Of an edited matrix, in the base's frame."""

    values: jax.Array  # (..., r), in any order
    left: jax.Array  # U_b^T U', (..., r, r)
    right: jax.Array  # V^T V', (..., r, r)
    inside: jax.Array  # (..., r), bool


def measure_kept(
    pair: TallPair, part: str, *, square: bool, gram_post: Callable[[], jax.Array]
) -> Callable[[jax.Array], Measured]:
    """A function of the strength t, (), that measures W_b + t times a part of the drift budget.

    Args:
        pair: Base and post.
        part: One of `BUDGET_PARTS`.
        square: Whether the matrices are.
        gram_post: Gives W_p^T W_p, (..., r, r), in the unit of the pair: of square matrices, in the branch that needs
            it.
    """
    base, across = pair.base, pair.post_in_frame
    if part == "outside":
        inside = jnp.where(base.inside[..., None, :], 0, across)
    else:
        inside = inside_part(pair, part)

    def grams():
        of_post, of_inside = inner(base.frame, matmul(gram_post(), base.frame)), gram(across)
        return of_post, of_post - of_inside

    def grams_of_inside():  # of a base of full rank, outside of which there is nothing
        of_inside = gram(across)
        return of_inside, jnp.zeros_like(of_inside)

    of_post, outside = lax.cond(jnp.all(base.inside), grams_of_inside, grams) if square else grams()
    post = side_of_gram(of_post)
    left_post = matmul(across, post.right) * post.inverses[..., None, :]

    def at(strength):
        kept = _diagonal(base.values) + strength * inside
        if part in ("scaling", "coordinated"):
            found = _of_symmetric(kept)
        else:
            found = _of_gram(kept, gram(kept) + (strength**2 * outside if part == "outside" else 0))
        right = of_rotations(post.right, found.right)
        if part == "outside":
            product = inner(across, kept) + strength * outside
            scaled = found.right * _inverses(found)[..., None, :]
            left = post.inverses[..., :, None] * matmul(inner(post.right, product), scaled)
        else:
            left = of_rotations(left_post, found.left)
        values = -jnp.sort(-found.values, axis=-1)
        nf_base = distance(found.left, found.right, base.inside, found.inside)
        nf_post = distance(left, right, post.inside, found.inside)
        return measured(base.values, post.values, values, nf_base, nf_post)

    return at


def _of_gram(kept, of_edited):
    edited: Side = side_of_gram(of_edited)
    left = matmul(kept, edited.right * edited.inverses[..., None, :])
    return _Vectors(edited.values, left, edited.right, edited.inside)


def _of_symmetric(kept):
    """K = V' |L| (V' sign(L))^T."""
    size = kept.shape[-1]

    def decomposed():
        vectors, values = eigh_ascending(kept)
        return values, vectors

    def as_it_is():
        values = jnp.diagonal(kept, axis1=-2, axis2=-1)
        return values, jnp.broadcast_to(jnp.eye(size, dtype=kept.dtype), kept.shape)

    diagonal = jnp.all(jnp.where(jnp.eye(size, dtype=bool), 0, kept) == 0)
    values, vectors = lax.cond(diagonal, as_it_is, decomposed)
    inside = jnp.abs(values) > 8 * size * jnp.finfo(kept.dtype).eps * jnp.max(jnp.abs(values), axis=-1, keepdims=True)
    right = jnp.where(inside[..., None, :], vectors, 0)
    return _Vectors(jnp.where(inside, jnp.abs(values), 0), right * jnp.sign(values)[..., None, :], right, inside)


def _inverses(found):
    return jnp.where(found.inside, 1 / jnp.where(found.inside, found.values, 1), 0)


def _diagonal(values):
    return values[..., :, None] * jnp.eye(values.shape[-1], dtype=values.dtype)
