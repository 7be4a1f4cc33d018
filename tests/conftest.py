"""Settings that hold for every test, and a web server for those that need one."""

import atexit
import contextlib
import gc
import importlib.metadata
import os
import pathlib
import shutil
import subprocess
import tempfile
from typing import NamedTuple

import hypothesis
import pytest

from tests.pairwise import pytest_collection_modifyitems  # noqa: F401 (a hook: pytest finds it here)
from tests.s3_server import s3, s3_server  # noqa: F401 (fixtures)
from tests.web_server import serve

# What tests expect is measured on the CPU; a platform that was asked for wins. Set here because no
# test module has imported jax yet.
os.environ.setdefault("JAX_PLATFORMS", "cpu")

# Many tests compile what another one has compiled, often in a process of its own: most of their time.
_cache = tempfile.mkdtemp(prefix="polarax-tests-")
atexit.register(shutil.rmtree, _cache, ignore_errors=True)
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", _cache)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")

# And what is compiled runs once: JAX's way to compile in less time, to slower programs.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")

# As the package has its own programs compiled: in a third of the time (`polarax.measuring.program_cache`). XLA ends the
# process for a flag that it doesn't know, and later ones don't know this one.
if importlib.metadata.version("jaxlib").startswith("0.10."):
    os.environ.setdefault("XLA_FLAGS", "--xla_cpu_use_fusion_emitters=false")

# Tracing makes millions of objects that stay, and Python would look at all of them again and again.
gc.set_threshold(50_000, 20, 50)

# A property's first example compiles, which no deadline allows for. Each run has the same ones.
hypothesis.settings.register_profile("polarax", deadline=None, derandomize=True)
hypothesis.settings.load_profile("polarax")


# Compiled programs keep pages of the process mapped, and those of a whole run would exceed what Linux allows: the
# compiler then crashes (vm.max_map_count, 65530 by default). A module adds up to 20,000.
_MOST_MAPS = 16_000


@pytest.fixture(autouse=True, scope="module")
def compiled_programs_are_released():
    """Not after every module: what JAX does outside of programs, it compiles operation by operation, and all share."""
    import jax  # not before the platform is set

    yield
    maps = pathlib.Path("/proc/self/maps")
    if not maps.exists() or maps.read_bytes().count(b"\n") > _MOST_MAPS:
        jax.clear_caches()


@pytest.fixture
def web(tmp_path):
    """A web server on loopback that serves an empty folder."""
    root = tmp_path / "web"
    root.mkdir()
    with serve(root) as server:
        yield server


class SmallDisk(NamedTuple):
    """Where a file system of memory can be mounted, by a process that is run by way of `prefix`."""

    path: pathlib.Path  # an empty folder
    prefix: list[str]  # gives the process mounts of its own, which go with it


@pytest.fixture
def small_disk(tmp_path):
    """A disk that a test may fill; skips where the system lets nobody mount one."""
    path = tmp_path / "disk"
    path.mkdir()
    for prefix in (["unshare", "--mount"], ["unshare", "--user", "--map-root-user", "--mount"]):
        with contextlib.suppress(FileNotFoundError):
            mounting = [*prefix, "mount", "-t", "tmpfs", "-o", "size=64k", "none", str(path)]
            if subprocess.run(mounting, capture_output=True, timeout=30).returncode == 0:
                return SmallDisk(path, prefix)
    pytest.skip("no file system can be mounted")
