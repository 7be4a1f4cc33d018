"""Symmetric eigenproblems of a stack, by the driver that is fastest on each platform.

What `jax.lax.linalg.eigh` becomes (jaxlib 0.10 and 0.11): on CPU LAPACK's syevd, one call a matrix
(`polarax.kernels.sequential` says why); on TPU the stack at once, by spectral divide and conquer; on GPUs one custom
call for the stack, inside of which matrices of more than 32 rows go through cusolverDnXsyevd one after another and
smaller ones through cusolverDn's batched Jacobi. The latter can be asked for at any size.
"""

import functools

import jax
from jax import lax

from polarax.kernels.sequential import one_at_a_time

# Rows up to which a stack takes the batched Jacobi method, by platform as JAX names it ("cuda", "rocm"); jaxlib's own
# choice where none is named. `python -m benchmarks.gpu_day` (part "kernels") times both: what it shows belongs here.
JACOBI_UP_TO: dict[str, int] = {}


def eigh_ascending(symmetric: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Eigenvectors (..., n, n) and eigenvalues (..., n), ascending, of a stack of which the lower triangle is read."""
    return one_at_a_time(functools.partial(_eigh, batched=symmetric.ndim > 2), symmetric)


def _eigh(symmetric, *, batched):
    jacobi = [platform for platform, rows in JACOBI_UP_TO.items() if batched and symmetric.shape[-1] <= rows]
    if not jacobi:
        return _eigh_by(symmetric)
    by_jacobi = functools.partial(_eigh_by, implementation=lax.linalg.EighImplementation.JACOBI)
    return lax.platform_dependent(symmetric, default=_eigh_by, **dict.fromkeys(jacobi, by_jacobi))


def _eigh_by(symmetric, **choice):
    return tuple(lax.linalg.eigh(symmetric, symmetrize_input=False, **choice))
