"""What an edit did: alpha and nf of the edited matrix against base and post, from what is of the shorter side's size.

At its full strength most edits leave a matrix whose singular values and vectors are known. Others are decomposed, once
more by their Gram matrix.
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
        right = inner(side.right, edited.right)
        distances.append(_distance(left, right, side.inside, edited.inside))
    return _measured(pair, edited.values, *distances)


def measure_known(pair: TallPair, values: jax.Array, *, of_left: str, of_right: str) -> Measured:
    """What U' S' V'^T is that has the vectors of base or post on each side, up to a rotation of both together.

    Args:
        pair: Base and post, aligned if the sides differ.
        values: S', (..., r), by the index of the vectors.
        of_left: "base" or "post": whose vectors the left ones are.
        of_right: The same of the right ones.
    """
    inside_base, inside_post = pair.base.inside, pair.post.inside
    identity = jnp.eye(values.shape[-1], dtype=values.dtype)
    left, right = pair.left, pair.right
    none = jnp.zeros(values.shape[:-1], values.dtype)
    if of_left == of_right:
        apart = _distance(left, right, inside_base, inside_post)
        distances = (none, apart) if of_left == "base" else (apart, none)
    else:
        # The sides that are the base's are turned as the others are against them: Q of the one, I of the other.
        by_right, by_left = (_distance(x, identity, inside_base, inside_post) for x in (right, left))
        distances = (by_right, by_left) if of_left == "base" else (by_left, by_right)
    return _measured(pair, -jnp.sort(-values, axis=-1), *distances)


def _measured(pair, values, nf_base, nf_post):
    alpha_base, alpha_post = (scaling(side.values, values).alpha for side in (pair.base, pair.post))
    return Measured(alpha_base, alpha_post, nf_base, nf_post)


def _distance(left, right, inside, inside_edited):
    """||Q_U - Q_V||_F / sqrt(r): nf, where one of the two is a rotation; over what both matrices determine."""
    both = (inside[..., :, None] & inside_edited[..., None, :]).astype(left.dtype)
    rank = jnp.sum(inside_edited, axis=-1)
    defined = (rank > 0) & jnp.any(inside, axis=-1)
    return jnp.where(defined, frobenius((left - right) * both) / jnp.sqrt(jnp.maximum(rank, 1)), jnp.nan)


def _sum(*pairs):
    parts = [matmul(left, right) for left, right in pairs if right is not None]
    return sum(parts[1:], parts[0])
