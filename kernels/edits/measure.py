"""What an edit did: alpha and nf of the edited matrix against base and post, from what is of the shorter side's size.

At its full strength many an edit leaves a matrix whose singular values and vectors are known. Others are decomposed by
their Gram matrix: `kept` in the base's frame, where edits that add to the base need few products, any other by
`measure_maps`.

nf is the distance of two rotations, whose products are taken in float32: their entries are at most 1, so that nf has an
absolute error of about 1e-6, and the squares of both add.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from polarax.kernels.edits.maps import RowMaps
from polarax.kernels.edits.tall_pair import TallPair, side_of_gram
from polarax.kernels.products import frobenius, inner, matmul, transpose
from polarax.kernels.scaling import scaling


class Measured(NamedTuple):
    """An edited matrix against base and post, each (...)."""

    alpha_base: jax.Array  # <s_b, s'> / <s_b, s_b>
    alpha_post: jax.Array
    nf_base: jax.Array  # ||Q_U^T Q_V - I||_F / sqrt(r)
    nf_post: jax.Array


def measure_maps(pair: TallPair, maps: RowMaps) -> Measured:
    """What W_b M + W_p N is, before it is rounded; no row is looked at."""
    base, post = pair.base, pair.post
    of_base = _sum((base.gram, maps.of_base), (pair.across, maps.of_post))
    of_post = _sum((transpose(pair.across), maps.of_base), (post.gram, maps.of_post))
    products = zip(maps, (of_base, of_post), strict=True)
    first, *rest = [inner(x, product) for x, product in products if x is not None]
    return measure_grams(pair, sum(rest, first), of_base, of_post)


def measure_grams(pair: TallPair, gram: jax.Array, of_base: jax.Array, of_post: jax.Array) -> Measured:
    """What a matrix W' is.

    Args:
        pair: Base and post.
        gram: W'^T W', (..., r, r), in the unit of the pair.
        of_base: W_b^T W', and so is the next one.
        of_post: W_p^T W'.
    """
    edited = side_of_gram((gram + transpose(gram)) / 2)
    scaled = edited.right * edited.inverses[..., None, :]
    distances = []
    for side, across in ((pair.base, of_base), (pair.post, of_post)):
        left = matmul(side.inverses[..., :, None] * inner(side.right, across), scaled)
        distances.append(distance(left, of_rotations(side.right, edited.right), side.inside, edited.inside))
    return measured(pair.base.values, pair.post.values, edited.values, *distances)


def measure_known(pair: TallPair, values: jax.Array, *, of_left: str, of_right: str) -> Measured:
    """What U' S' V'^T is that has the vectors of base or post on each side, up to a rotation of both together.

    Args:
        pair: Base and post, aligned if the sides differ.
        values: S', (..., r), by the index of the vectors, of any sign; those that a side has no vector for count as
            zero.
        of_left: "base" or "post": whose vectors the left ones are.
        of_right: The same of the right ones.
    """
    base, post = pair.base, pair.post
    identity = jnp.broadcast_to(jnp.eye(values.shape[-1], dtype=values.dtype), base.frame.shape)
    left, right = pair.left, of_rotations(base.right, post.right)
    # U_b^T U' and U_p^T U', V_b^T V' and V_p^T V'.
    against_left = (identity, transpose(left)) if of_left == "base" else (left, identity)
    against_right = (identity, transpose(right)) if of_right == "base" else (right, identity)
    inside = values != 0
    for side, of in ((base, "base"), (post, "post")):
        inside = inside & side.inside if of in (of_left, of_right) else inside
    signs = jnp.sign(values)[..., None, :]  # singular values are positive: a vector takes the sign
    distances = [
        distance(left * signs, right, side.inside, inside)
        for left, right, side in zip(against_left, against_right, (base, post), strict=True)
    ]
    values = -jnp.sort(-jnp.abs(jnp.where(inside, values, 0)), axis=-1)
    return measured(base.values, post.values, values, *distances)


def of_rotations(x: jax.Array, y: jax.Array) -> jax.Array:
    """x^T y of matrices with columns of length 1 or 0, (..., r, r), in float32."""
    return inner(x.astype(jnp.float32), y.astype(jnp.float32)).astype(x.dtype)


def measured(
    values_base: jax.Array, values_post: jax.Array, values: jax.Array, nf_base: jax.Array, nf_post: jax.Array
) -> Measured:
    """The numbers from singular values, (..., r) and descending each, and distances."""
    alpha_base, alpha_post = (scaling(x, values).alpha for x in (values_base, values_post))
    return Measured(alpha_base, alpha_post, nf_base, nf_post)


def distance(left: jax.Array, right: jax.Array, inside: jax.Array, inside_edited: jax.Array) -> jax.Array:
    """||Q_U - Q_V||_F / sqrt(r): nf, where one of the two is a rotation; over what both matrices determine."""
    both = (inside[..., :, None] & inside_edited[..., None, :]).astype(left.dtype)
    rank = jnp.sum(inside_edited, axis=-1)
    defined = (rank > 0) & jnp.any(inside, axis=-1)
    return jnp.where(defined, frobenius((left - right) * both) / jnp.sqrt(jnp.maximum(rank, 1)), jnp.nan)


def _sum(*pairs):
    parts = [matmul(left, right) for left, right in pairs if right is not None]
    return sum(parts[1:], parts[0])
