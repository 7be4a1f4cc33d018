"""Symmetric eigenproblems of a stack.

What `jax.lax.linalg.eigh` becomes (jaxlib 0.10 and 0.11): on CPU LAPACK's syevd, one call a matrix
(`polarax.kernels.sequential` says why); on TPU the stack at once, by spectral divide and conquer; on CUDA
cusolverDnXsyevd for one matrix and cusolverDnXsyevBatched for a stack, which is made for many small ones.
"""

import jax
from jax import lax

from polarax.kernels.sequential import one_at_a_time

# Rows from which a stack is taken one matrix after another on CUDA. On an H200, 64 of 256 x 256 take 4 ms as a batch;
# all that is measured of a pair of 2048 x 2048 takes 0.09 s, of two of 1024 x 4096 as a batch 0.27 s.
_ONE_BY_ONE = 512


def eigh_ascending(symmetric: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Eigenvectors (..., n, n) and eigenvalues (..., n), ascending, of a stack of which the lower triangle is read."""
    return one_at_a_time(_eigh, symmetric, one_by_one=("cuda",) if symmetric.shape[-1] >= _ONE_BY_ONE else ())


def _eigh(symmetric):
    return tuple(lax.linalg.eigh(symmetric, symmetrize_input=False))
