"""Edits of a weight along the axes that base and post differ in (docs: edit; He and Cao, arXiv:2509.17866).

With W = U S V^T of base (b) and post (p), D = W_p - W_b and E = U_b^T D V_b:

    replace values   U_p (alpha S_b) V_p^T                the post with the base's singular values
    scale values     U (c S) V^T                          one matrix, scaled
    break            U_b S_p V_p^T or U_p S_p V_b^T       the base's singular vectors on one side
    restore          (U_b Q_V) S_p V_p^T or its mirror    one side by the rotation of the other one
    reparameterise   alpha (U_b Q) S_b (V_b Q)^T          one rotation for both sides, Q = polar(Q_U + Q_V)
    keep             W_b + a part of D                    a part of the drift budget
    random control   W_b + sd G                           a random change

What is not determined by a matrix decides nothing: singular values are replaced by their mean over an eigenspace, signs
and rotations within one are those that bring base and post nearest to each other, and vectors of singular values that
are numerically zero are the other side's (break) or are dropped.

Every function computes in float64 where the platform has it, rounds once, and returns the dtype of its arguments.
"""

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from polarax.kernels.edits.decomposed import Decomposed, decompose
from polarax.kernels.edits.turned import aligned, one_rotation
from polarax.kernels.methods import AUTO, check_method
from polarax.kernels.products import inner, matmul, promote, promote_pair, transpose
from polarax.kernels.sequential import by_leading_axes

SIDES = ("left", "right")
BUDGET_PARTS = ("scaling", "coordinated", "discordant", "outside")


def edit_scale_values(x: jax.typing.ArrayLike, factor: jax.typing.ArrayLike, /) -> jax.Array:
    """U (c S) V^T = c W: nothing is decomposed.

    Args:
        x: W, (..., m, n), floating-point.
        factor: c, (...) or a number.

    Returns:
        (..., m, n).
    """
    x = promote(x)
    return x * jnp.asarray(factor, x.dtype)[..., None, None]


def edit_replace_values(
    base: jax.typing.ArrayLike,
    post: jax.typing.ArrayLike,
    /,
    *,
    base_svd: Decomposed | None = None,
    post_svd: Decomposed | None = None,
    method: str = AUTO,
) -> jax.Array:
    """U_p (alpha S_b) V_p^T with alpha = <s_b, s_p> / <s_b, s_b>.

    Args:
        base: W_b, (..., m, n), floating-point.
        post: W_p, the same shape.
        base_svd: `decompose(base)`, if it is at hand.
        post_svd: `decompose(post)`.
        method: How to decompose otherwise, one of `polarax.kernels.SVD_METHODS`.

    Returns:
        (..., m, n); NaN for a pair with NaN or Inf.

    Raises:
        ValueError: The shapes differ, or the method is unknown.
    """

    def edit(base, post, of_base, of_post):
        left, values, right = of_post
        alpha = _ratio(jnp.sum(of_base.values * values, axis=-1), jnp.sum(of_base.values**2, axis=-1))
        wanted = alpha[..., None] * _over_ties(of_post, of_base.values)
        return matmul(left * wanted[..., None, :], transpose(right))

    return _of_pair(edit, base, post, base_svd, post_svd, method)


def edit_break(
    base: jax.typing.ArrayLike,
    post: jax.typing.ArrayLike,
    /,
    *,
    side: str,
    signs: jax.Array | None = None,
    base_svd: Decomposed | None = None,
    post_svd: Decomposed | None = None,
    method: str = AUTO,
) -> jax.Array:
    """U_b S_p V_p^T (side "left") or U_p S_p V_b^T ("right"): the base's vectors on one side, with aligned signs.

    Directions that the base does not determine keep the post's vectors.

    Args:
        base: W_b, (..., m, n), floating-point.
        post: W_p, the same shape.
        side: Whose vectors are the base's.
        signs: (..., r) of +1 and -1 that the base's aligned pairs are multiplied by, to see what signs that are not
            aligned do.
        base_svd, post_svd, method: As for `edit_replace_values`.

    Returns:
        (..., m, n); NaN for a pair with NaN or Inf.

    Raises:
        ValueError: The side or the method is unknown, or the shapes differ.
    """
    _check_side(side)

    def edit(base, post, of_base, of_post, signs=None):
        of_base, of_post = aligned(of_base, of_post)
        taken, kept = (
            (of_base.left, of_post.left) if side == "left" else (of_base.right, of_post.right)
        )  # of the side that is broken
        if signs is not None:
            taken = taken * signs.astype(taken.dtype)[..., None, :]
        vectors = jnp.where(of_base.inside[..., None, :], taken, kept) * of_post.values[..., None, :]
        if side == "left":
            return matmul(vectors, transpose(of_post.right))
        return matmul(of_post.left, transpose(vectors))

    return _of_pair(edit, base, post, base_svd, post_svd, method, *(() if signs is None else (signs,)))


def edit_restore(
    base: jax.typing.ArrayLike,
    post: jax.typing.ArrayLike,
    /,
    *,
    side: str,
    base_svd: Decomposed | None = None,
    post_svd: Decomposed | None = None,
    method: str = AUTO,
) -> jax.Array:
    """(U_b Q_V) S_p V_p^T (side "left") or U_p S_p (V_b Q_U)^T ("right"): one side by the other side's rotation.

    U_b Q_V = U_b V_b^T V_p, so the left one is the base's polar factor times the post's positive part: no choice of
    vectors enters. Directions that the base does not determine are dropped.

    Args:
        base: W_b, (..., m, n), floating-point.
        post: W_p, the same shape.
        side: Which is restored.
        base_svd, post_svd, method: As for `edit_replace_values`.

    Returns:
        (..., m, n); NaN for a pair with NaN or Inf.

    Raises:
        ValueError: The side or the method is unknown, or the shapes differ.
    """
    _check_side(side)

    def edit(base, post, of_base, of_post):
        left, values, right = of_post
        if side == "left":
            rotation = inner(of_base.right, right)
            return matmul(of_base.left, matmul(rotation * values[..., None, :], transpose(right)))
        rotation = inner(of_base.left, left)
        return matmul(matmul(left * values[..., None, :], transpose(rotation)), transpose(of_base.right))

    return _of_pair(edit, base, post, base_svd, post_svd, method)


def edit_reparameterise(
    base: jax.typing.ArrayLike,
    post: jax.typing.ArrayLike,
    /,
    *,
    base_svd: Decomposed | None = None,
    post_svd: Decomposed | None = None,
    method: str = AUTO,
) -> jax.Array:
    """alpha (U_b Q) S_b (V_b Q)^T with Q = polar(Q_U + Q_V) and the alpha of least squares: `fit_of_frames` as weights.

    Args:
        base: W_b, (..., m, n), floating-point.
        post: W_p, the same shape.
        base_svd, post_svd, method: As for `edit_replace_values`.

    Returns:
        (..., m, n); NaN for a pair with NaN or Inf.

    Raises:
        ValueError: The shapes differ, or the method is unknown.
    """

    def edit(base, post, of_base, of_post):
        rotation, left, right = one_rotation(of_base, of_post)
        values = _over_ties(of_post, of_base.values)
        turned = matmul(rotation * values[..., None, :], transpose(rotation))
        in_frame = matmul(left * of_post.values[..., None, :], transpose(right))  # U_b^T W_p V_b
        alpha = _ratio(jnp.sum(turned * in_frame, axis=(-2, -1)), jnp.sum(turned**2, axis=(-2, -1)))
        return matmul(matmul(of_base.left, alpha[..., None, None] * turned), transpose(of_base.right))

    return _of_pair(edit, base, post, base_svd, post_svd, method)


def edit_keep(
    base: jax.typing.ArrayLike,
    post: jax.typing.ArrayLike,
    /,
    *,
    part: str,
    base_svd: Decomposed | None = None,
    method: str = AUTO,
) -> jax.Array:
    """W_b + one part of the drift budget; the four parts add up to D.

    Within an eigenspace of the base, where the vectors that make E diagonal are free, all of the symmetric part is
    "scaling".

    Args:
        base: W_b, (..., m, n), floating-point.
        post: W_p, the same shape.
        part: One of `BUDGET_PARTS`.
        base_svd, method: As for `edit_replace_values`.

    Returns:
        (..., m, n); NaN for a pair with NaN or Inf.

    Raises:
        ValueError: The part or the method is unknown, or the shapes differ.
    """
    if part not in BUDGET_PARTS:
        raise ValueError(f"Unknown part {part!r} of the drift budget. Expected one of {', '.join(BUDGET_PARTS)}.")

    def edit(base, post, of_base, _):
        change = post - base
        left, values, right = of_base
        in_frame = matmul(inner(left, change), right)
        if part == "outside":
            rest = base + (change - matmul(matmul(left, in_frame), transpose(right)))
            if base.shape[-2] != base.shape[-1]:
                return rest
            # Nothing is outside of a square matrix of full rank, not even rounding errors.
            return jnp.where(jnp.all(of_base.inside, axis=-1)[..., None, None], base, rest)
        symmetric, skew = (in_frame + transpose(in_frame)) / 2, (in_frame - transpose(in_frame)) / 2
        tied = of_base.tied
        kept = {
            "scaling": jnp.where(tied, symmetric, 0),
            "coordinated": jnp.where(tied, 0, symmetric),
            "discordant": skew,
        }[part]
        return base + matmul(matmul(left, kept), transpose(right))

    return _of_pair(edit, base, post, base_svd, None, method, needs_post=False)


def edit_random_control(
    key: jax.Array, base: jax.typing.ArrayLike, deviation: jax.typing.ArrayLike, /
) -> jax.Array:
    """W_b + sd G with G standard normal: what a change of that size does whatever its direction.

    Args:
        key: PRNG keys of `jax.random`, (...); each gives its own change, the same alone and in a stack.
        base: W_b, (..., m, n), floating-point.
        deviation: sd, (...) or a number: ||D||_F / sqrt(m n) for a change of the size of D.

    Returns:
        (..., m, n).
    """
    base = promote(base)
    deviation = jnp.broadcast_to(jnp.asarray(deviation, base.dtype), base.shape[:-2])
    if base.ndim > 2:
        return jax.vmap(edit_random_control)(key, base, deviation)
    return base + deviation * jax.random.normal(key, base.shape, base.dtype)


def _of_pair(
    edit: Callable[..., jax.Array],
    base: jax.typing.ArrayLike,
    post: jax.typing.ArrayLike,
    base_svd: Decomposed | None,
    post_svd: Decomposed | None,
    method: str,
    *more: jax.Array,
    needs_post: bool = True,
) -> jax.Array:
    """edit(base, post, decomposed base, decomposed post or None, *more) in the precision that it needs."""
    check_method(method)
    base, post = promote_pair(base, post)
    dtype = base.dtype

    def in_own(base, post, *more):
        finite = jnp.all(jnp.isfinite(base) & jnp.isfinite(post), axis=(-2, -1), keepdims=True)
        base, post = jnp.where(finite, base, 0), jnp.where(finite, post, 0)
        of_base = decompose(base, method=method) if base_svd is None else base_svd
        of_post = decompose(post, method=method) if needs_post and post_svd is None else post_svd
        return jnp.where(finite, edit(base, post, of_base, of_post, *more), jnp.nan)

    def in_float64(base, post, *more):
        with jax.enable_x64(True):
            return in_own(base.astype(jnp.float64), post.astype(jnp.float64), *more).astype(dtype)

    if base_svd is not None or post_svd is not None:  # whose leading axes are those of the arguments
        return in_own(base, post, *more)
    if dtype == jnp.float64 or method != AUTO:
        chosen = in_own
    else:
        chosen = functools.partial(_unless_tpu, in_own, in_float64)
    return by_leading_axes(chosen)(base, post, *more)


def _unless_tpu(own, float64, *operands):
    """In float64 but on TPUs, which have none."""
    return lax.platform_dependent(*operands, tpu=own, default=float64)


def _over_ties(parts, values):
    """Values, (..., r), as their means over the eigenspaces of a matrix."""
    tied = parts.tied.astype(values.dtype)
    return jnp.sum(tied * values[..., None, :], axis=-1) / jnp.sum(tied, axis=-1)


def _ratio(above, below):
    return jnp.where(below > 0, above / jnp.where(below > 0, below, 1), 0)


def _check_side(side):
    if side not in SIDES:
        raise ValueError(f"Unknown side {side!r}. Expected one of {', '.join(SIDES)}.")
