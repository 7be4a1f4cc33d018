"""Where figures were measured: versions, device, cores, threads, BLAS libraries; no paths, no host name."""

import importlib.metadata
import os
import pathlib
import platform
import re
from typing import Any

from benchmarks.options import Options

_PACKAGES = (
    "polarax", "jax", "jaxlib", "numpy", "scipy", "torch", "weightwatcher", "ml_dtypes", "threadpoolctl"
)  # fmt: skip

# Thread pools that are sized by the environment, before their library is loaded.
_THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
    "NUMEXPR_NUM_THREADS",
)
# Set on some machines to work around old libraries; they change which BLAS kernels run.
_NOTED_VARIABLES = (
    "OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE", "MKL_DEBUG_CPU_TYPE", "XLA_FLAGS", "NPROC",
    "JAX_PLATFORMS",
)  # fmt: skip


def set_threads(threads: int) -> None:
    """Gives this process and those it starts the same cores and as many threads in every library.

    XLA sizes its pool by the cores it may run on, the others by the environment; call before any of
    them is loaded.
    """
    for name in _THREAD_VARIABLES:
        os.environ[name] = str(threads)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, set(sorted(os.sched_getaffinity(0))[:threads]))
    else:
        os.environ.setdefault("NPROC", str(threads))


def set_up_workers() -> None:
    """Settings of jax that hold in every process of a run."""
    # A cache from an earlier run would hide what compiling takes.
    os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"
    # torch's share of an accelerator's memory.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")


def describe(options: Options) -> dict[str, Any]:
    """The environment, JSON-ready. Starts jax's backend and loads the peers' libraries."""
    import jax

    from benchmarks import reference

    devices = jax.local_devices()
    described = {
        "versions": {"python": platform.python_version(), **_versions()},
        "platform": platform.platform(terse=True),
        "machine": platform.machine(),
        "processor": _processor(),
        "memory_gib": _memory_gib(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": options.threads,
        "backend": jax.default_backend(),
        "devices": [device.device_kind for device in devices],
        "variables": {name: os.environ[name] for name in _NOTED_VARIABLES if name in os.environ},
        "blas": _blas(options),
        "reference_eps": reference.EPS,
    }
    if "torch" in options.peers:
        import torch

        cuda = torch.cuda.is_available()
        described["torch_device"] = torch.cuda.get_device_name() if cuda else "cpu"
        described["torch_threads"] = torch.get_num_threads()
    return described


def load() -> float | None:
    """Processes that ran or waited over the last minute, on average; None where nobody counts."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None


def _versions():
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _processor():
    cpuinfo = pathlib.Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        match = re.search(r"^model name\s*:\s*(.*)$", cpuinfo.read_text(), re.MULTILINE)
        if match:
            return match.group(1)
    return platform.processor() or platform.machine()


def _memory_gib():
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    except (AttributeError, ValueError, OSError):
        return None


def _blas(options):
    """Linear algebra libraries and thread pools once the peers are loaded; file names, not paths."""
    import jaxlib.lapack  # noqa: F401 (jax computes with SciPy's BLAS)
    import scipy.linalg  # noqa: F401

    from benchmarks import peers

    list(peers.libraries(options.peers, options.threads))
    try:
        import threadpoolctl
    except ImportError:
        return []
    kept = ("user_api", "internal_api", "version", "architecture", "threading_layer", "num_threads")
    return [
        {
            "file": os.path.basename(pool["filepath"]),
            **{key: pool[key] for key in kept if pool.get(key) is not None},
        }
        for pool in threadpoolctl.threadpool_info()
    ]
