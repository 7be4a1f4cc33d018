"""Two matrices in each other's singular frames: the r x r arrays from which every law is read.

With W = U S V^T for base (b) and post (p) and D = W_p - W_b these are Q_U = U_b^T U_p, Q_V = V_b^T V_p and
E = U_b^T D V_b (He and Cao, arXiv:2509.17866, for the rotations). Nothing downstream needs an m x n array again.

Directions that a rank-deficient matrix does not determine (vectors of singular values that are numerically zero) are
arbitrary in any SVD; their rows and columns are zero here, so that no number depends on them.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jax import lax

from polarax.kernels.gram import change_in_frame, eigenvalue_roots, gram, pair_grams, right_frame
from polarax.kernels.products import frobenius, matmul, promote_pair, transpose
from polarax.kernels.sequential import by_leading_axes
from polarax.kernels.svd import check_method, numerical_rank, singular_values, svd

# ||W_p|| over ||W_b||: from here up, rounding errors of W_b's Gram matrix are at most 100 times those of W_p's own.
_SMALL_POST = 0.1


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=[
        "s_base",
        "s_post",
        "rank_base",
        "rank_post",
        "left",
        "right",
        "change",
        "change_norm",
        "s_change",
    ],
    meta_fields=["shape"],
)
@dataclasses.dataclass(frozen=True)
class Frames:
    """Base and post in each other's frames; r = min(m, n). A pytree."""

    shape: tuple[int, int]  # (m, n) of the matrices compared; static
    s_base: jax.Array  # (..., r)
    s_post: jax.Array  # (..., r)
    rank_base: jax.Array  # (...), int32, numerical
    rank_post: jax.Array  # (...), int32, numerical
    left: jax.Array  # Q_U = U_b^T U_p, (..., r, r), signs aligned
    right: jax.Array  # Q_V = V_b^T V_p, (..., r, r), signs aligned
    change: jax.Array  # E = U_b^T D V_b, (..., r, r)
    change_norm: jax.Array  # ||D||_F, (...)
    s_change: jax.Array | None  # singular values of D, (..., r), to 1e-8 of the largest; None unless asked for


def frames(
    base: jax.typing.ArrayLike,
    post: jax.typing.ArrayLike,
    /,
    *,
    change_values: bool = False,
    dtype: jax.typing.DTypeLike | None = None,
    method: str = "auto",
) -> Frames:
    """Decomposes base and post and relates their frames.

    Args:
        base: (..., m, n), floating-point.
        post: The same shape.
        change_values: Also decompose the change, for its singular values.
        dtype: Of the results, float32 or float64; the inputs' own if not given. Small numbers given as they are stored
            take the least memory, and "gram" loses nothing of them.
        method: One of `polarax.kernels.SVD_METHODS`. "lapack" and "polar" take two thin SVDs; "gram" float64 Gram
            matrices, of which nothing larger than r x r is decomposed, accurate to 1e-7 down to singular values of 1e-8
            s_1; "auto" takes "gram" where there is float64 (CPU, GPU), falling back to "lapack" where a singular value
            is smaller than that, and "polar" on TPUs.

    Returns:
        `Frames` in that dtype; NaN throughout for a pair with NaN or Inf.

    Raises:
        ValueError: Unknown method, the shapes differ, or `polarax.kernels.svd` refuses the input.
    """
    check_method(method)
    base, post = jnp.asarray(base), jnp.asarray(post)
    promoted = jax.eval_shape(promote_pair, base, post)[0]
    if 0 in base.shape[-2:]:
        raise ValueError(f"Matrices must have at least one row and one column. Got shape={base.shape}.")
    options = {"change_values": change_values, "dtype": jnp.dtype(promoted.dtype if dtype is None else dtype)}
    return by_leading_axes(functools.partial(_frames_of_stacks, method=method, **options))(base, post)


def _frames_of_stacks(base, post, *, change_values, dtype, method):
    by_svd = functools.partial(_frames_by_svd, change_values=change_values, dtype=dtype, method="lapack")
    by_polar = functools.partial(_frames_by_svd, change_values=change_values, dtype=dtype, method="polar")
    by_gram = functools.partial(_frames_by_gram, change_values=change_values, dtype=dtype)

    def gram_or_svd(base, post):
        found, resolved = by_gram(base, post)
        if dtype != jnp.float64:  # what float64 does not resolve, float32 does not hold
            return found
        return lax.cond(jnp.all(resolved), lambda *_: found, by_svd, base, post)

    if method == "lapack":
        return by_svd(base, post)
    if method == "polar":
        return by_polar(base, post)
    if method == "gram":
        return by_gram(base, post)[0]
    return lax.platform_dependent(base, post, tpu=by_polar, default=gram_or_svd)


def _frames_by_svd(base, post, *, change_values, dtype, method):
    base, post = base.astype(dtype), post.astype(dtype)
    both = svd(jnp.stack([base, post]), method=method)
    (u_base, u_post), (s_base, s_post), (v_base, v_post) = both
    change = post - base
    found = _masked(
        base.shape[-2:],
        s_base,
        s_post,
        left=matmul(transpose(u_base), u_post),
        right=matmul(transpose(v_base), v_post),
        in_frame=matmul(matmul(transpose(u_base), change), v_base),
        change_norm=frobenius(change),
        s_change=singular_values(change, method=method) if change_values else None,
    )
    finite = jnp.all(jnp.isfinite(base) & jnp.isfinite(post), axis=(-2, -1))
    return jax.tree.map(lambda x: _poison(x, finite), found)


def _frames_by_gram(base, post, *, change_values, dtype):
    """Frames, and for each pair whether every singular value was large enough for this route."""
    shape = base.shape[-2:]
    wide = shape[0] < shape[1]
    with jax.enable_x64(True):
        unit = _unit(base, post)

        def convert(x):
            return x.astype(jnp.float64) if unit is None else x.astype(jnp.float64) / unit[..., None, None]

        def tall(x):
            return convert(transpose(x) if wide else x)

        gram_base, gram_change, across = pair_grams(base, post, convert)
        norm_base, norm_change = _root_of_trace(gram_base), _root_of_trace(gram_change)
        finite = jnp.isfinite(norm_base) & jnp.isfinite(norm_change)
        identity = jnp.eye(min(shape))
        gram_base, gram_change, across = (
            jnp.where(finite[..., None, None], x, identity) for x in (gram_base, gram_change, across)
        )
        frame_base = right_frame(gram_base, lambda: tall(base))
        # By difference, unless that is small enough for the base's rounding errors to show in it.
        gram_post = gram_base + across + transpose(across) + gram_change
        much_smaller = _root_of_trace(gram_post) < _SMALL_POST * norm_base
        gram_post = lax.cond(
            jnp.any(much_smaller & finite),
            lambda: jnp.where(finite[..., None, None], gram(convert(post)), identity),
            lambda: gram_post,
        )
        frame_post = right_frame(gram_post, lambda: tall(post))
        s_base, s_post = frame_base.values, frame_post.values
        scale = jnp.ones(norm_base.shape) if unit is None else unit

        in_frame = change_in_frame(frame_base, across, lambda: tall(base), lambda: tall(post) - tall(base))
        right = matmul(transpose(frame_base.vectors), frame_post.vectors)
        grown = in_frame + s_base[..., :, None] * identity
        left = matmul(grown, right) / jnp.where(s_post > 0, s_post, 1)[..., None, :]
        found = _masked(
            shape,
            s_base * scale[..., None],
            s_post * scale[..., None],
            left=right if wide else left,
            right=left if wide else right,
            in_frame=(transpose(in_frame) if wide else in_frame) * scale[..., None, None],
            change_norm=norm_change * scale,
            s_change=eigenvalue_roots(gram_change) * scale[..., None] if change_values else None,
            dtype=dtype,
        )
        poisoned = jax.tree.map(lambda x: _poison(x, finite), found)
        resolved = frame_base.resolved & frame_post.resolved
    return jax.tree.map(lambda x: x.astype(dtype) if x.dtype == jnp.float64 else x, poisoned), resolved


def _unit(base, post):
    """What to divide float64 matrices by so that their squares neither over- nor underflow, (...); None for others."""
    if jnp.float64 not in (base.dtype, post.dtype):  # the squares of anything smaller are in float64's range
        return None
    unit = jnp.maximum(*(jnp.max(jnp.abs(x.astype(jnp.float64)), axis=(-2, -1)) for x in (base, post)))
    # A power of two: dividing by it is exact, so that the change is 0 where base and post are equal. (jnp.frexp would
    # leave the float64 scope under JAX 0.12.)
    return jnp.where(jnp.isfinite(unit) & (unit > 0), lax.reduce_precision(unit, 11, 0), 1)


def _root_of_trace(gram_matrix):
    """Frobenius norm of the matrix that this is the Gram matrix of."""
    return jnp.sqrt(jnp.trace(gram_matrix, axis1=-2, axis2=-1))


def _masked(shape, s_base, s_post, *, left, right, in_frame, change_norm, s_change, dtype=None):
    """Frames with the undetermined directions zero and the signs aligned.

    What is zero is judged in `dtype`, that of the matrices: it says how far their entries were rounded.
    """
    rank_base, rank_post = (numerical_rank(s.astype(dtype or s.dtype), *shape) for s in (s_base, s_post))
    index = jnp.arange(s_base.shape[-1])
    inside_base, inside_post = index < rank_base[..., None], index < rank_post[..., None]
    both_inside = inside_base[..., :, None] & inside_post[..., None, :]
    left, right = jnp.where(both_inside, left, 0), jnp.where(both_inside, right, 0)
    signs = joint_signs(left, right)[..., None, :]
    in_frame = jnp.where(inside_base[..., :, None] & inside_base[..., None, :], in_frame, 0)
    left, right = left * signs, right * signs
    return Frames(shape, s_base, s_post, rank_base, rank_post, left, right, in_frame, change_norm, s_change)


def _poison(x, finite):
    """NaN, or rank 0, for pairs that are not finite."""
    undefined = jnp.nan if jnp.issubdtype(x.dtype, jnp.floating) else 0
    return jnp.where(finite.reshape(finite.shape + (1,) * (x.ndim - finite.ndim)), x, undefined).astype(x.dtype)


def joint_signs(left: jax.Array, right: jax.Array) -> jax.Array:
    """Signs that align the post's singular vector pairs with the base's: sign(Q_U[i,i] + Q_V[i,i]), never 0.

    (u_i, v_i) and (-u_i, -v_i) are the same pair, so one sign serves both sides.

    Args:
        left: Q_U, (..., r, r).
        right: Q_V, (..., r, r).

    Returns:
        (..., r) of +1 and -1.
    """
    diagonal = jnp.diagonal(left, axis1=-2, axis2=-1) + jnp.diagonal(right, axis1=-2, axis2=-1)
    return jnp.where(diagonal < 0, -1, 1).astype(left.dtype)
