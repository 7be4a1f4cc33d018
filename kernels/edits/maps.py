"""Edits of tall matrices as maps of their rows: W' = W_b M + W_p N with M and N of the shorter side's size.

Since U = W V S^-1, every edit of a tall W = U S V^T is such a map, and no left vector need ever be formed: what a pass
over the rows cannot do without is M and N. Docs: edit, for the formulas; left and right are those of the tall matrix.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from polarax.kernels.edits.tall_pair import TallPair
from polarax.kernels.edits.turned import one_rotation
from polarax.kernels.products import matmul, transpose

SIDES = ("left", "right")
BUDGET_PARTS = ("scaling", "coordinated", "discordant", "outside")


class RowMaps(NamedTuple):
    """W' = W_b M + W_p N, (..., r, r) each; None is zero."""

    of_base: jax.Array | None
    of_post: jax.Array | None

    def apply(self, base: jax.Array, post: jax.Array) -> jax.Array:
        """Rows of W' from the same rows of base and post, (..., rows, r), all of one dtype."""
        parts = [matmul(x, of) for x, of in ((base, self.of_base), (post, self.of_post)) if of is not None]
        return sum(parts[1:], parts[0])

    def between(self, start: "RowMaps", strength: jax.Array) -> "RowMaps":
        """start + strength (self - start)."""

        def mixed(first, last):
            if first is None:
                return None if last is None else strength * last
            return (1 - strength) * first + (0 if last is None else strength * last)

        return RowMaps(mixed(start.of_base, self.of_base), mixed(start.of_post, self.of_post))


def scaled(pair: TallPair, factor: jax.Array) -> RowMaps:
    """U_p (c S_p) V_p^T = c W_p."""
    return RowMaps(None, factor * _identity(pair))


def replaced_values(pair: TallPair) -> jax.Array:
    """alpha s_b by the post's vectors, (..., r): means over its eigenspaces, 0 where it has no vector."""
    base, post = pair.base, pair.post
    alpha = _ratio(jnp.sum(base.values * post.values, axis=-1), jnp.sum(base.values**2, axis=-1))
    return jnp.where(post.inside, alpha[..., None] * post.over_ties(base.values), 0)


def replace_values(pair: TallPair) -> RowMaps:
    """U_p (alpha S_b) V_p^T."""
    post = pair.post
    wanted = replaced_values(pair) * post.inverses
    return RowMaps(None, matmul(post.right * wanted[..., None, :], transpose(post.right)))


def broken(pair: TallPair, side: str, signs: jax.Array | None = None) -> RowMaps:
    """U_b S_p V_p^T or U_p S_p V_b^T, of a pair that is `aligned`; the base's vectors times `signs`, (..., r)."""
    base, post = pair.base, pair.post
    turned = base.right if signs is None else base.right * signs.astype(base.right.dtype)[..., None, :]
    if side == "left":
        scaled = turned * (base.inverses * post.values)[..., None, :]
        return RowMaps(matmul(scaled, transpose(post.right)), None)
    return RowMaps(None, matmul(post.right, transpose(turned)))


def restored(pair: TallPair, side: str) -> RowMaps:
    """(U_b Q_V) S_p V_p^T or U_p S_p (V_b Q_U)^T."""
    base, post = pair.base, pair.post
    if side == "left":
        turned = matmul(base.inverses[..., :, None] * pair.right * post.values[..., None, :], transpose(post.right))
        return RowMaps(matmul(base.right, turned), None)
    return RowMaps(None, matmul(matmul(post.right, transpose(pair.left)), transpose(base.right)))


class Reparameterised(NamedTuple):
    """alpha (U_b Q) S_b (V_b Q)^T."""

    maps: RowMaps
    values: jax.Array  # alpha S_b by the post's vectors, (..., r)
    determined: jax.Array  # (...), bool: whether Q is a rotation of all


def reparameterised(pair: TallPair) -> Reparameterised:
    """alpha (U_b Q) S_b (V_b Q)^T."""
    base, post = pair.base, pair.post
    rotation, values = one_rotation(pair), post.over_ties(base.values)
    turned = matmul(rotation * values[..., None, :], transpose(rotation))
    in_frame = matmul(pair.left * post.values[..., None, :], transpose(pair.right))  # U_b^T W_p V_b
    alpha = _ratio(jnp.sum(turned * in_frame, axis=(-2, -1)), jnp.sum(turned**2, axis=(-2, -1)))
    maps = RowMaps(_in_frame_of_base(pair, alpha[..., None, None] * turned), None)
    # The singular values of Q are 0 and 1.
    determined = jnp.sum(rotation**2, axis=(-2, -1)) > values.shape[-1] - 1 / 2
    return Reparameterised(maps, alpha[..., None] * values, determined)


def inside_part(pair: TallPair, part: str) -> jax.Array:
    """X, (..., r, r), of the part U_b X V_b^T of the drift budget, one of `BUDGET_PARTS` but "outside"."""
    change = pair.change
    if part == "discordant":
        return (change - transpose(change)) / 2
    symmetric = (change + transpose(change)) / 2
    return jnp.where(pair.base.tied == (part == "scaling"), symmetric, 0)


def kept_part(pair: TallPair, part: str, square: bool) -> RowMaps:
    """W_b + one part of the drift budget.

    Args:
        pair: Base and post.
        part: One of `BUDGET_PARTS`.
        square: Whether the matrices are: nothing is then outside of one of full rank, not even rounding errors.
    """
    identity = _identity(pair)
    if part == "outside":
        has_outside = jnp.any(~pair.base.inside, axis=-1)[..., None, None] if square else jnp.bool_(True)
        back = jnp.where(has_outside, -_in_frame_of_base(pair, pair.change), identity)
        return RowMaps(back, jnp.where(has_outside, identity, 0))
    return RowMaps(identity + _in_frame_of_base(pair, inside_part(pair, part)), None)


def _in_frame_of_base(pair, inside):
    """The map of U_b X V_b^T, (..., r, r), as W_b M."""
    base = pair.base
    return matmul(matmul(base.right * base.inverses[..., None, :], inside), transpose(base.right))


def _identity(pair):
    size = pair.base.values.shape[-1]
    return jnp.broadcast_to(jnp.eye(size, dtype=pair.base.values.dtype), pair.base.right.shape)


def _ratio(above, below):
    return jnp.where(below > 0, above / jnp.where(below > 0, below, 1), 0)


def starting_maps(pair: TallPair, start: str) -> RowMaps:
    """The maps of the post ("post") or the base as they are."""
    return RowMaps(None, _identity(pair)) if start == "post" else RowMaps(_identity(pair), None)
