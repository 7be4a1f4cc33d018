"""Method "lapack": `jax.lax.linalg.svd`.

LAPACK's divide and conquer (gesdd) on CPU, the platform's own solver elsewhere. Accurate for every matrix, and the only
method that can be differentiated.
"""

import jax
from jax import lax

from polarax.kernels.methods.method import Method
from polarax.kernels.products import transpose
from polarax.kernels.sequential import one_at_a_time
from polarax.kernels.thin_svd import Parts, without_vectors


class Lapack(Method):
    """Decomposes by LAPACK. `auto` takes it for what other methods are not accurate enough for."""

    name = "lapack"

    def svd_of_tall(self, tall: jax.Array, *, vectors: bool) -> Parts:
        """As `Method.svd_of_tall`."""
        if not vectors:
            # jaxlib allocates the left vectors all the same, and without full_matrices=False all m x m of them.
            values = one_at_a_time(lambda a: lax.linalg.svd(a, full_matrices=False, compute_uv=False), tall)
            return without_vectors(values)
        left, values, right_t = one_at_a_time(lambda a: tuple(lax.linalg.svd(a, full_matrices=False)), tall)
        return left, values, transpose(right_t)
