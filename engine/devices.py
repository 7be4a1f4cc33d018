"""The devices of this process: how a stack is spread over them, and the precision they work in."""

import os
import pathlib

import jax
import numpy as np

STACK_AXIS = "stack"


def stack_mesh() -> jax.sharding.Mesh | None:
    """A mesh of this process's devices along the stack; None where there is only one."""
    devices = jax.local_devices()
    return jax.sharding.Mesh(np.array(devices), (STACK_AXIS,)) if len(devices) > 1 else None


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
