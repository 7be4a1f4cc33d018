"""One LAPACK call per matrix on CPU.

jaxlib 0.10.0 to 0.11.0 cuts a batched LAPACK call into chunks, puts them into XLA's intra-op pool and blocks until they
are done (`ParallelBatchMap` in jaxlib/cpu/lapack_kernels.cc; gone from later open-source builds, jax issue 36927). XLA
runs independent operations of one program in that same pool, which has one thread per core: as many batched calls in
flight as there are cores wait for each other for ever. (Two cores, twelve independent `jnp.linalg.svd` of (4, 64, 64)
in one jit: the first run hangs.) On hosts with very many cores the same fan-out corrupts the heap (jax issue 39292).

A call with a single matrix runs on the thread that makes it and waits for nobody, however many are in flight. So stacks
are looped over, including those that the caller's own `vmap` makes. Accelerators get the batch.
"""

from collections.abc import Callable, Sequence
from typing import TypeVar

import jax
import jax.numpy as jnp
from jax import lax

Result = TypeVar("Result")


def one_at_a_time(function: Callable[[jax.Array], Result], x: jax.Array, *, one_by_one: Sequence[str] = ()) -> Result:
    """Applies `function` to every matrix of a stack: in a loop on CPU, as one batch elsewhere.

    `jax.vmap` of the result is such a loop too. Derivatives of a stack are; a `vmap` of a derivative is one batch.

    Args:
        function: Maps (m, n) to a pytree of arrays.
        x: (..., m, n).
        one_by_one: Platforms that take a loop too, as JAX names them.

    Returns:
        The pytree of results, each with the leading axes of x.
    """
    batch = x.shape[:-2]
    single = _vmapped_as(function, lambda stack: one_at_a_time(function, stack, one_by_one=one_by_one))
    if not batch:
        return single(x)
    flat = x.reshape((-1, *x.shape[-2:])) if 0 not in batch else x.reshape((0, *x.shape[-2:]))
    looped = dict.fromkeys(("cpu", *one_by_one), lambda stack: lax.map(single, stack))
    results = lax.platform_dependent(flat, default=jax.vmap(function), **looped)
    return jax.tree.map(lambda leaf: leaf.reshape((*batch, *leaf.shape[1:])), results)


def by_leading_axes(function: Callable[..., Result]) -> Callable[..., Result]:
    """`function`, which takes stacks, but under `vmap` it is called with one more leading axis instead of being mapped.

    A function that computes in a scope of its own (`jax.enable_x64`) has left it when `vmap` maps its operations, which
    then are truncated to float32; and a branch that is not needed (`lax.cond`) would be computed.

    Args:
        function: Maps arrays (..., m, n) to a pytree of arrays with the same leading axes.
    """
    return _vmapped_as(function, lambda *stacks: by_leading_axes(function)(*stacks))


def _vmapped_as(function, stacked):
    """`function`, but `vmap` calls `stacked` with every argument given a leading axis."""
    single = jax.custom_batching.custom_vmap(function)

    @single.def_vmap
    def call_stacked(axis_size, in_batched, *arguments):
        stacks = [
            x if batched else jnp.broadcast_to(x, (axis_size, *x.shape))
            for x, batched in zip(arguments, in_batched, strict=True)
        ]
        results = stacked(*stacks)
        return results, jax.tree.map(lambda _: True, results)

    # custom_vmap alone cannot be differentiated in reverse mode.
    differentiable = jax.custom_jvp(single)
    differentiable.defjvp(lambda primals, tangents: jax.jvp(function, primals, tangents))
    return differentiable


def after(x: jax.Array, earlier: jax.Array) -> jax.Array:
    """x, but not before `earlier`, an array of numbers that are never below -1, has been computed.

    For order where that saves time: LAPACK calls in flight together are safe, but contend for BLAS threads.
    `lax.optimization_barrier` is not enough: XLA's CPU compiler drops it before it schedules.
    """
    return jnp.where(jnp.ravel(earlier)[0] < -1, jnp.nan, x) if earlier.size else x
