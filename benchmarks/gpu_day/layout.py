"""polarax from the repository as it lies: its three folders under the names that they are imported by.

What stores and reports need is stood in for where it is not installed, since nothing here reads a checkpoint or draws.
"""

import atexit
import importlib.util
import pathlib
import shutil
import sys
import tempfile
import types

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent

# Packages that the engine imports at its start, and that measuring a stack in memory never calls.
_NOT_CALLED = ("orbax", "pandas", "safetensors", "tensorstore", "threadpoolctl", "tqdm", "urllib3")


class _StandIn(types.ModuleType):
    """A module of which every attribute, and whatever a call gives, is another stand-in."""

    __path__: list[str] = []

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return sys.modules.setdefault(f"{self.__name__}.{name}", _StandIn(f"{self.__name__}.{name}"))

    def __call__(self, *_, **__):
        return self

    def __mro_entries__(self, bases):
        return (Exception,) if self.__name__.endswith("Error") else ()

    def __or__(self, other):  # in annotations
        return other


class _Finder:
    """Finds submodules of packages that are stood in for."""

    @staticmethod
    def find_spec(name, path=None, target=None):
        if isinstance(sys.modules.get(name.partition(".")[0]), _StandIn):
            return importlib.util.spec_from_loader(name, _Finder)
        return None

    @staticmethod
    def create_module(spec):
        return _StandIn(spec.name)

    @staticmethod
    def exec_module(module):
        return None


def make_importable() -> None:
    """Makes `polarax` importable as it lies here, unless it is imported already."""
    if "polarax" in sys.modules:
        return
    for name in _NOT_CALLED:
        if importlib.util.find_spec(name) is None:
            sys.modules[name] = _StandIn(name)
    sys.meta_path.append(_Finder)
    folder = pathlib.Path(tempfile.mkdtemp(prefix="polarax-day-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    (folder / "polarax").mkdir()
    for part in (*(ROOT / "engine").iterdir(), ROOT / "kernels", ROOT / "loaders"):
        (folder / "polarax" / part.name).symlink_to(part)
    sys.path.insert(0, str(folder))
