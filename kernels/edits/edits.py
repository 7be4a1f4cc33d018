"""Edits of a weight along the axes that base and post differ in (docs: edit; He and Cao, arXiv:2509.17866).

With W = U S V^T of base (b) and post (p), D = W_p - W_b and E = U_b^T D V_b:

    replace values   U_p (alpha S_b) V_p^T                the post with the base's singular values
    scale values     U (c S) V^T                          one matrix, scaled
    break            U_b S_p V_p^T or U_p S_p V_b^T       the base's singular vectors on one side
    restore          (U_b Q_V) S_p V_p^T or its mirror    one side by the rotation of the other one
    reparameterise   alpha (U_b Q) S_b (V_b Q)^T          one rotation for both sides, Q = polar(Q_U + Q_V)
    keep             W_b + a part of D                    a part of the drift budget
    random control   W_b + sd G                           a random change

What a matrix does not determine decides nothing: singular values are replaced by their mean over an eigenspace, signs
and rotations within one are those that bring base and post nearest to each other, and directions of singular values
that are numerically zero (below 1e-8 of the largest) are dropped.

Every function computes in float64 where the platform has it, rounds once, and returns the dtype of its arguments. A
pair with NaN or Inf gives NaN throughout.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from polarax.kernels.edits.maps import (
    BUDGET_PARTS,
    SIDES,
    RowMaps,
    broken,
    kept_part,
    reparameterised,
    replace_values,
    restored,
)
from polarax.kernels.edits.tall_pair import tall_pair
from polarax.kernels.edits.turned import aligned
from polarax.kernels.methods import AUTO, check_method
from polarax.kernels.products import promote, promote_pair, transpose
from polarax.kernels.sequential import by_leading_axes


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


def edit_replace_values(base: jax.typing.ArrayLike, post: jax.typing.ArrayLike, /, *, method: str = AUTO) -> jax.Array:
    """U_p (alpha S_b) V_p^T with alpha = <s_b, s_p> / <s_b, s_b>.

    Args:
        base: W_b, (..., m, n), floating-point.
        post: W_p, the same shape.
        method: How to decompose, one of `polarax.kernels.SVD_METHODS`.

    Returns:
        (..., m, n).

    Raises:
        ValueError: The shapes differ, or the method is unknown.

    Example:
        >>> import numpy as np
        >>> from polarax import kernels
        >>> base, post = (np.diag(x).astype("float32") for x in ([3.0, 1.0], [6.0, 2.0]))
        >>> kernels.edit_replace_values(base, post).round(5).tolist()
        [[6.0, 0.0], [0.0, 2.0]]
    """
    return _edited(lambda pair, _: replace_values(pair), base, post, method)


def edit_break(
    base: jax.typing.ArrayLike,
    post: jax.typing.ArrayLike,
    /,
    *,
    side: str,
    signs: jax.Array | None = None,
    method: str = AUTO,
) -> jax.Array:
    """U_b S_p V_p^T (side "left") or U_p S_p V_b^T ("right"): the base's vectors on one side, with aligned signs.

    Args:
        base: W_b, (..., m, n), floating-point.
        post: W_p, the same shape.
        side: Whose vectors are the base's.
        signs: (..., r) of +1 and -1 that the base's aligned pairs are multiplied by, to see what signs that are not
            aligned do.
        method: As for `edit_replace_values`.

    Returns:
        (..., m, n).

    Raises:
        ValueError: The side or the method is unknown, or the shapes differ.
    """
    _check_side(side)
    more = () if signs is None else (signs,)

    def make(pair, wide, *signs):
        return broken(aligned(pair), _of_tall(side, wide), *signs)

    return _edited(make, base, post, method, *more)


def edit_restore(
    base: jax.typing.ArrayLike, post: jax.typing.ArrayLike, /, *, side: str, method: str = AUTO
) -> jax.Array:
    """(U_b Q_V) S_p V_p^T (side "left") or U_p S_p (V_b Q_U)^T ("right"): one side by the other side's rotation.

    U_b Q_V = U_b V_b^T V_p, so the left one of a tall or square matrix is the base's polar factor times the post's
    positive part: no choice of vectors enters.

    Args:
        base: W_b, (..., m, n), floating-point.
        post: W_p, the same shape.
        side: Which is restored.
        method: As for `edit_replace_values`.

    Returns:
        (..., m, n).

    Raises:
        ValueError: The side or the method is unknown, or the shapes differ.
    """
    _check_side(side)
    return _edited(lambda pair, wide: restored(pair, _of_tall(side, wide)), base, post, method)


def edit_reparameterise(base: jax.typing.ArrayLike, post: jax.typing.ArrayLike, /, *, method: str = AUTO) -> jax.Array:
    """alpha (U_b Q) S_b (V_b Q)^T with Q = polar(Q_U + Q_V) and the alpha of least squares: `fit_of_frames` as weights.

    Args:
        base: W_b, (..., m, n), floating-point.
        post: W_p, the same shape.
        method: As for `edit_replace_values`.

    Returns:
        (..., m, n).

    Raises:
        ValueError: The shapes differ, or the method is unknown.
    """
    return _edited(lambda pair, _: reparameterised(pair).maps, base, post, method)


def edit_keep(base: jax.typing.ArrayLike, post: jax.typing.ArrayLike, /, *, part: str, method: str = AUTO) -> jax.Array:
    """W_b + one part of the drift budget; the four parts add up to D.

    Within an eigenspace of the base, where the vectors that make E diagonal are free, all of the symmetric part is
    "scaling".

    Args:
        base: W_b, (..., m, n), floating-point.
        post: W_p, the same shape.
        part: One of `BUDGET_PARTS`.
        method: As for `edit_replace_values`.

    Returns:
        (..., m, n).

    Raises:
        ValueError: The part or the method is unknown, or the shapes differ.
    """
    if part not in BUDGET_PARTS:
        raise ValueError(f"Unknown part {part!r} of the drift budget. Expected one of {', '.join(BUDGET_PARTS)}.")
    shape = jnp.shape(base)[-2:]
    return _edited(lambda pair, _: kept_part(pair, part, shape[0] == shape[1]), base, post, method)


def edit_random_control(key: jax.Array, base: jax.typing.ArrayLike, deviation: jax.typing.ArrayLike, /) -> jax.Array:
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


def _edited(
    make: Callable[..., RowMaps],
    base: jax.typing.ArrayLike,
    post: jax.typing.ArrayLike,
    method: str,
    *more: jax.Array,
) -> jax.Array:
    """The edit whose maps make(pair, wide, *more) gives, in the precision that it needs."""
    check_method(method)
    base, post = promote_pair(base, post)
    dtype, wide = base.dtype, base.shape[-2] < base.shape[-1]

    def edit_in(working, base, post, *more):
        if wide:
            base, post = transpose(base), transpose(post)
        pair = tall_pair(base, post, dtype=working, method=method)
        edited = make(pair, wide, *more).apply(base.astype(working), post.astype(working))
        edited = jnp.where(pair.finite[..., None, None], edited, jnp.nan)
        return (transpose(edited) if wide else edited).astype(dtype)

    def in_own(*operands):
        return edit_in(dtype, *operands)

    def in_float64(*operands):
        with jax.enable_x64(True):
            return edit_in(jnp.dtype(jnp.float64), *operands)

    def in_either(*operands):  # TPUs have no float64
        return lax.platform_dependent(*operands, tpu=in_own, default=in_float64)

    own = dtype == jnp.float64 or method != AUTO
    return by_leading_axes(in_own if own else in_either)(base, post, *more)


def _of_tall(side, wide):
    """The side of the tall matrix that a wide one is the transpose of."""
    return SIDES[1 - SIDES.index(side)] if wide else side


def _check_side(side):
    if side not in SIDES:
        raise ValueError(f"Unknown side {side!r}. Expected one of {', '.join(SIDES)}.")
