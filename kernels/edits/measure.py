"""What an edit did: alpha and nf of the edited matrix against base and post, from Gram matrices alone."""

from typing import NamedTuple

import jax

from polarax.kernels.align import rotation_difference
from polarax.kernels.edits.maps import RowMaps
from polarax.kernels.edits.tall_pair import Side, TallPair, left_product, side_of_gram
from polarax.kernels.frames_type import make_frames
from polarax.kernels.products import inner, matmul, transpose
from polarax.kernels.scaling import scaling


class Measured(NamedTuple):
    """An edited matrix against another one, each (...)."""

    alpha: jax.Array  # <s, s'> / <s, s>
    nf: jax.Array  # ||Q_U^T Q_V - I||_F / sqrt(r)


def measure_maps(pair: TallPair, maps: RowMaps, *, shape: tuple[int, int]) -> tuple[Measured, Measured]:
    """What W_b M + W_p N is against base and post, before it is rounded; no row is looked at."""
    of_base = _sum((pair.base.gram, maps.of_base), (pair.across, maps.of_post))
    of_post = _sum((transpose(pair.across), maps.of_base), (pair.post.gram, maps.of_post))
    gram = sum(inner(x, product) for x, product in zip(maps, (of_base, of_post), strict=True) if x is not None)
    return measure_grams(pair, gram, of_base, of_post, shape=shape)


def measure_grams(
    pair: TallPair, gram: jax.Array, of_base: jax.Array, of_post: jax.Array, *, shape: tuple[int, int]
) -> tuple[Measured, Measured]:
    """What a matrix W' is against base and post.

    Args:
        pair: Base and post.
        gram: W'^T W', (..., r, r), in the unit of the pair.
        of_base: W_b^T W', and so is the next one.
        of_post: W_p^T W'.
        shape: (m, n) of the matrices, m >= n.
    """
    edited = side_of_gram((gram + transpose(gram)) / 2)
    return _against(pair.base, edited, of_base, shape), _against(pair.post, edited, of_post, shape)


def _against(original: Side, edited: Side, across, shape):
    left = left_product(original, edited, across)
    frames = make_frames(
        shape,
        original.values,
        edited.values,
        left=left,
        right=inner(original.right, edited.right),
        in_frame=left,  # of which nothing is read
        change_norm=original.values[..., 0],  # and this
        s_change=None,
    )
    return Measured(scaling(original.values, edited.values).alpha, rotation_difference(frames))


def _sum(*pairs):
    parts = [matmul(left, right) for left, right in pairs if right is not None]
    return sum(parts[1:], parts[0])
