"""Settings that hold for every test."""

import atexit
import os
import shutil
import tempfile

import hypothesis
import pytest

# What tests expect is measured on the CPU; a platform that was asked for wins. Set here because no
# test module has imported jax yet.
os.environ.setdefault("JAX_PLATFORMS", "cpu")

# Many tests compile what another one has compiled, often in a process of its own: most of their time, unless it is kept.
_cache = tempfile.mkdtemp(prefix="polarax-tests-")
atexit.register(shutil.rmtree, _cache, ignore_errors=True)
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", _cache)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")

# A property's first example compiles, which no deadline allows for. Each run has the same ones.
hypothesis.settings.register_profile("polarax", deadline=None, derandomize=True)
hypothesis.settings.load_profile("polarax")


@pytest.fixture(autouse=True, scope="module")
def compiled_programs_are_released():
    """Compiled programs keep pages of the process mapped; those of a whole run would exceed what Linux allows.

    The compiler then crashes (vm.max_map_count, 65530 by default). Modules share hardly any program.
    """
    import jax  # not before the platform is set

    yield
    jax.clear_caches()
