"""Thin singular value decomposition, W = U S V^T, and singular values alone, by any method.

`method` names one of `polarax.kernels.methods`: each says in its own file how it decomposes and what it is good for.
"auto" takes the method that suits the platform which the program is compiled for:

- On CPU and GPU "gram" where that is accurate enough, "lapack" elsewhere: "gram" is for singular values down to 1e-8
  s_1, for float32 vectors down to 1e-5 s_1, below which U would lose its orthogonality, and on GPUs for float64 vectors
  whose refinement converges. On CPU "lapack" is the faster one for float64 vectors.
- On TPU "polar". On a GPU whose float64 is slow, ask for "polar", as the engine does: what kind of GPU it is cannot be
  seen where programs are compiled.

Only "lapack" can be differentiated: derivatives would leave the float64 scope of "gram", and the loops of "polar" have
none in reverse mode.
"""

import jax

from polarax.kernels.methods import by_method, check_method
from polarax.kernels.thin_svd import Svd, thin_svd


def svd(x: jax.typing.ArrayLike, /, *, method: str = "auto") -> Svd:
    """Thin SVD of every matrix of a stack.

    Args:
        x: (..., m, n), floating-point; bfloat16 and float16 are computed in float32.
        method: One of `polarax.kernels.SVD_METHODS`.

    Returns:
        An `Svd` in the working dtype. A matrix with NaN or Inf gives NaN throughout; a zero matrix gives zero values
        and some orthonormal vectors.

    Raises:
        ValueError: Unknown method, or x is not a floating-point array of shape (..., m, n) with m, n >= 1.

    Example:
        >>> import numpy as np
        >>> from polarax import kernels
        >>> u, s, v = kernels.svd(np.diag([3.0, 2.0]).astype("float32"))
        >>> s.tolist()
        [3.0, 2.0]
    """
    return _decompose(x, method, vectors=True)


def singular_values(x: jax.typing.ArrayLike, /, *, method: str = "auto") -> jax.Array:
    """Singular values alone, (..., min(m, n)), descending. Arguments and errors as for `svd`."""
    return _decompose(x, method, vectors=False).values


def _decompose(x, method, *, vectors):
    check_method(method)

    def decompose_tall(tall, *, vectors):
        return by_method(method, lambda chosen, tall: chosen.svd_of_tall(tall, vectors=vectors), tall)

    return thin_svd(x, decompose_tall, vectors=vectors)
