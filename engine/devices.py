"""The devices of this process: how a stack is spread over them, and the precision they work in."""

import contextlib
import os
import pathlib
from collections.abc import Iterator

import jax
import numpy as np
import threadpoolctl

STACK_AXIS = "stack"


def stack_mesh() -> jax.sharding.Mesh | None:
    """A mesh of this process's devices along the stack; None where there is only one."""
    devices = jax.local_devices()
    return jax.sharding.Mesh(np.array(devices), (STACK_AXIS,)) if len(devices) > 1 else None


def stack_sharding(mesh: jax.sharding.Mesh | None) -> jax.sharding.Sharding | None:
    """A stack divided over the devices of a mesh along its first axis; None without a mesh."""
    return None if mesh is None else jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*mesh.axis_names))


def cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def most_lanes() -> int:
    """Parts of a stack that pay when they are computed side by side: one for each core of a lone CPU device.

    A decomposition keeps one core busy and hardly more; matrices side by side keep all of them. Other devices take a
    stack as one batch.
    """
    return cores() if jax.default_backend() == "cpu" and jax.local_device_count() == 1 else 1


@contextlib.contextmanager
def shared_cores(lanes: int) -> Iterator[None]:
    """Gives each of `lanes` computations on CPU its share of the cores: BLAS would start as many threads for each."""
    if lanes == 1 or jax.default_backend() != "cpu":
        yield
        return
    with threadpoolctl.threadpool_limits(max(1, cores() // lanes), user_api="blas"):
        yield


def working_dtype(dtype: str) -> str:
    """What dtype "auto" means here: float32 on TPUs, which have no float64, and float64 elsewhere."""
    if dtype != "auto":
        return dtype
    return "float32" if jax.default_backend() == "tpu" else "float64"


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
