"""The devices of this process: how a stack is spread over them, and the precision they work in."""

import contextlib
import ctypes
import os
import pathlib
import re
from collections.abc import Iterator

import jax
import numpy as np
import threadpoolctl

from polarax.kernels.methods import AUTO, method_for

STACK_AXIS = "stack"

# GPUs with float64 units at half their float32 rate or near it, by their makers' data sheets; others (GeForce, RTX, T4,
# A10, A40, L4, L40) have 1/32 or 1/64 of it.
_FAST_FLOAT64 = re.compile(r"\b(P100|V100|A30|A100|A800|H100|H200|H800|GH200|B200|GB200|MI\d{2,3}[A-Z]?)\b")


def stack_mesh() -> jax.sharding.Mesh | None:
    """A mesh of this process's devices along the stack; None where there is only one."""
    devices = jax.local_devices()
    return jax.sharding.Mesh(np.array(devices), (STACK_AXIS,)) if len(devices) > 1 else None


def device_bytes() -> int | None:
    """Memory that JAX may take of one device of this process; None where it does not say, as on CPU."""
    return (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit")


def stack_sharding(mesh: jax.sharding.Mesh | None) -> jax.sharding.Sharding | None:
    """A stack divided over the devices of a mesh along its first axis; None without a mesh."""
    return None if mesh is None else jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*mesh.axis_names))


def cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def takes_batches() -> bool:
    """Whether a stack is best computed as one batch; on CPU it is taken matrix by matrix."""
    return jax.default_backend() != "cpu"


def lone_cpu() -> bool:
    """Whether a CPU is the only device: calls of one matrix each then run side by side on its cores."""
    return not takes_batches() and jax.local_device_count() == 1


def most_lanes() -> int:
    """Parts of a stack that pay when they are computed side by side: one for each core of a lone CPU device.

    A decomposition keeps one core busy and hardly more; matrices side by side keep all of them. Other devices take a
    stack as one batch.
    """
    return cores() if lone_cpu() else 1


@contextlib.contextmanager
def shared_cores(lanes: int) -> Iterator[None]:
    """Gives each of `lanes` computations on CPU its share of the cores: BLAS would start as many threads for each."""
    if lanes == 1 or jax.default_backend() != "cpu":
        yield
        return
    with threadpoolctl.threadpool_limits(max(1, cores() // lanes), user_api="blas"):
        yield


def release_free_memory() -> None:
    """Gives memory that was freed back to the operating system, where the C library can (glibc).

    Compiling a program leaves a few hundred MB behind in small pieces, which would count as this process's to its end.
    """
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def fast_float64() -> bool:
    """Whether the devices compute in float64 at a good part of their float32 rate: CPUs and data-centre GPUs do."""
    backend = jax.default_backend()
    return backend == "cpu" or (
        backend != "tpu" and _FAST_FLOAT64.search(jax.local_devices()[0].device_kind) is not None
    )


def working_dtype(dtype: str) -> str:
    """What dtype "auto" means here: float64 where it is fast, float32 elsewhere (TPUs have no float64)."""
    if dtype != "auto":
        return dtype
    return "float64" if fast_float64() else "float32"


def working_method(method: str) -> str:
    """What method "auto" means here: of a GPU the compiler does not see how fast its float64 is."""
    return method_for(jax.default_backend(), fast_float64=fast_float64()) if method == AUTO else method


def enable_compilation_cache(folder: str | os.PathLike) -> None:
    """Keeps compiled programs in `folder` for the next process, unless the user's JAX settings name another place.

    A folder that cannot be written (a home that is read-only, or unknown) costs nothing but time: there is no cache.
    """
    if jax.config.values["jax_compilation_cache_dir"] is not None:
        return
    try:
        folder = pathlib.Path(folder).expanduser()
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):
        return
    if os.access(folder, os.W_OK):
        jax.config.update("jax_compilation_cache_dir", str(folder))
        # A run has few programs, and each takes seconds: keep all.
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
