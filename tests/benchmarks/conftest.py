"""`benchmarks` is run from the root of the repository and never installed: here it is imported by its path.

The root itself stays off sys.path, for `engine`, `kernels` and `loaders` would resolve from it.
"""

import importlib.util
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent

if "benchmarks" not in sys.modules:
    home = ROOT / "benchmarks"
    spec = importlib.util.spec_from_file_location(
        "benchmarks", home / "__init__.py", submodule_search_locations=[str(home)]
    )
    module = importlib.util.module_from_spec(spec)
    sys.modules["benchmarks"] = module
    spec.loader.exec_module(module)


@pytest.fixture
def run_benchmarks():
    """Runs `python -m benchmarks` with arguments; returns the finished process."""

    def run(*arguments, timeout=150):
        return subprocess.run(
            [sys.executable, "-m", "benchmarks", *map(str, arguments)],
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    return run
