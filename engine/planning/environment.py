"""Where a run was made: versions, devices, platform."""

import importlib.metadata
import platform

import jax

from polarax.planning.devices import cores

_PACKAGES = ("polarax", "jax", "jaxlib", "numpy", "tensorstore", "safetensors", "flax")


def describe_environment() -> dict:
    """Versions of what computes, and the devices it computes on; JSON-ready."""
    devices = jax.local_devices()
    return {
        "versions": {
            "python": platform.python_version(),
            **{name: _version(name) for name in _PACKAGES},
        },
        "platform": platform.platform(),
        "cores": cores(),
        "backend": jax.default_backend(),
        "devices": [device.device_kind for device in devices],
    }


def _version(package):
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
