"""What a decomposition method is: one class that says how it decomposes, where `auto` takes it, and what it costs."""

import abc
import contextlib
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from polarax.kernels.frames_type import Frames
from polarax.kernels.methods.factor_route import FactorRoute
from polarax.kernels.methods.route import Related, Route
from polarax.kernels.thin_svd import Parts

# What a pair holds at once while it is decomposed by thin SVDs, of m x n arrays: base, post, change, their factors,
# copies in LAPACK's layout and its workspace. Counted in XLA's buffer assignment, and measured as peak resident memory.
_WHOLE_ARRAYS = 12

# A symmetric eigenproblem of size n with vectors takes 9 n^3 operations (Golub and Van Loan, Matrix Computations, 4th
# edition, section 8.3).
_EIGEN_OPERATIONS = 9.0


class Operations(NamedTuple):
    """Floating-point operations, by the two kinds of work that run at very different rates."""

    products: float  # of matrix products
    decompositions: float  # of what moves more memory than it computes


class Method(abc.ABC):
    """A way to decompose matrices. `polarax.kernels.methods.register` makes it known by its name.

    A method has to have `name` and `svd_of_tall`; the rest has answers that hold for most.
    """

    name: ClassVar[str]

    # What an accelerator, which takes matrices whole, holds at once while frames are made, in the working dtype: arrays
    # of the matrix's size, and r x r ones.
    device_arrays: ClassVar[tuple[int, int]] = (_WHOLE_ARRAYS, 0)

    # How it decomposes.

    @abc.abstractmethod
    def svd_of_tall(self, tall: jax.Array, *, vectors: bool) -> Parts:
        """Thin SVDs of a stack.

        Args:
            tall: (..., m, n), m >= n, float32 or float64, finite, without subnormal numbers.
            vectors: Whether U and V are wanted; otherwise both may be empty (`thin_svd.without_vectors`).
        """

    def scope(self) -> contextlib.AbstractContextManager[Any]:
        """What a route is made and used in: the precision that it needs."""
        return contextlib.nullcontext()

    def route(self, *, change_values: bool, dtype: jax.typing.DTypeLike) -> Route[Any, Any, Any]:
        """The route by which frames are made; by thin SVDs unless the method has another one. Arguments as there."""
        return FactorRoute(self.svd_of_tall, change_values=change_values, dtype=dtype)

    @property
    def fallback(self) -> "Method | None":
        """Gives the frames that its route does not resolve; None where there are none, or they stay approximate."""
        return None

    def pair(self, base: jax.Array, post: jax.Array, *, change_values: bool, dtype: jax.typing.DTypeLike) -> Frames:
        """The frames of a base and one post, each (..., m, n), m >= n, as stored. Arguments as for `route`."""
        with self.scope():
            _, related = self.route(change_values=change_values, dtype=dtype).only_post(base, post)
            return self.resolved(related, base, post, change_values=change_values, dtype=dtype)

    def resolved(
        self,
        related: Related[Any],
        base: jax.Array,
        post: jax.Array,
        *,
        change_values: bool,
        dtype: jax.typing.DTypeLike,
    ) -> Frames:
        """The frames that a route has given of a pair, or those of the fallback where it could not resolve all."""
        fallback = self.fallback
        if fallback is None or related.resolved is None:
            return related.frames
        return lax.cond(
            jnp.all(related.resolved),
            lambda *_: related.frames,
            lambda *stored: fallback.pair(*stored, change_values=change_values, dtype=dtype),
            base,
            post,
        )

    # Where `auto` takes it.

    def suits(self, platform: str, *, fast_float64: bool) -> bool:
        """Whether `auto` takes it on a platform; of the methods that say so the one that was registered first.

        Args:
            platform: As JAX names it: cpu, gpu (or cuda, rocm), tpu.
            fast_float64: Whether float64 is there, at a good part of float32's rate.
        """
        return False

    def for_auto(self) -> "Method":
        """The method as `auto` takes it, which may leave what it is not accurate enough for to another one."""
        return self

    # What it costs.

    def work_bytes(self, m: int, n: int, *, itemsize: int, stored_bytes: int, posts: int, between: bool) -> int:
        """Memory that a matrix takes while its frames are made, beside the matrices as they were given.

        Args:
            m: Rows, m >= n.
            n: Columns.
            itemsize: Bytes of a number in the working dtype.
            stored_bytes: Bytes of base and posts as they are stored.
            posts: How many there are.
            between: Whether these are also related to each other.
        """
        further = (posts - 1) * (between * (m + n) * n + m * n)  # each further post, and its factors if they are kept
        return itemsize * (_WHOLE_ARRAYS * m * n + further)

    def operations(self, m: int, n: int, *, posts: int = 1, random_changes: int = 0) -> Operations:
        """Operations of a matrix with every metric, m >= n.

        Counted as they are taken by Gram matrices, with three eigenproblems a pair (base, post, change), for every
        method that does not say otherwise: the rates of a machine are measured by the same count.

        Args:
            m: Rows.
            n: Columns.
            posts: Posts of one base.
            random_changes: How many are read for each post: each takes what a post does, but for the spectrum of its
                change.
        """
        products = (1 + posts * (5 + 4 * random_changes)) * m * n**2 + posts * (10 + 10 * random_changes) * n**3
        return Operations(products, (1 + posts * (2 + random_changes)) * eigen_operations(n))


def eigen_operations(n: int) -> float:
    """Floating-point operations of a symmetric eigenproblem of size n, with vectors."""
    return _EIGEN_OPERATIONS * n**3
