"""The device jax computes on: what it can do, and jax functions as contestants of a race."""

import contextlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from benchmarks.timing import Contestant
from polarax.planning.devices import working_dtype


def has_float64() -> bool:
    """Whether the device computes in float64 itself; TPUs emulate it."""
    return jax.default_backend() != "tpu"


def dtypes() -> tuple[str, ...]:
    """Working dtypes to measure on this device, the engine's default first."""
    available = ("float64", "float32") if has_float64() else ("float32",)
    return tuple(sorted(available, key=lambda dtype: dtype != working_dtype("auto")))


@contextlib.contextmanager
def scope(dtype: str):
    """x64 enabled for float64 and left as it is for everything else."""
    with jax.enable_x64(True) if dtype == "float64" else contextlib.nullcontext():
        yield


def put(array: np.ndarray) -> jax.Array:
    """The array on the device, in its own dtype."""
    with scope(array.dtype.name):
        return jax.block_until_ready(jax.device_put(array))


def contestant(
    name: str,
    function: Callable,
    arguments: Sequence[jax.Array],
    keywords: Mapping[str, Any] | None = None,
    *,
    dtype: str,
    **about: Any,
) -> Contestant:
    """A jax function on fixed arguments, compiled ahead and waited for.

    Args:
        name: As it is shown.
        function: Jitted, or to be jitted.
        arguments: On the device.
        keywords: Static ones; the function must be jitted already to take any.
        dtype: Working dtype; float64 is computed under an x64 scope.
        **about: Goes into the record.
    """
    keywords = dict(keywords or {})
    program = Compiled(function, arguments, keywords, dtype)
    details = {"dtype": dtype, **about}
    return Contestant(name, program, program.prepare, details)


class Compiled:
    """A program on fixed arguments; calling it computes and waits for every result."""

    def __init__(self, function, arguments, keywords, dtype):
        self._function = function if hasattr(function, "lower") else jax.jit(function)
        self._arguments, self._keywords, self._dtype = arguments, keywords, dtype
        self._program: Any = None

    def prepare(self) -> None:
        """Compiles, if that has not been done."""
        if self._program is None:
            with scope(self._dtype):
                lowered = self._function.lower(*self._arguments, **self._keywords)
                self._program = lowered.compile()

    def __call__(self) -> Any:
        return self.on(self._arguments)

    def on(self, arguments: Sequence[jax.Array]) -> Any:
        """The same program on other arguments of the same shapes and dtypes."""
        self.prepare()
        with scope(self._dtype):
            return jax.block_until_ready(self._program(*arguments))

    def memory(self) -> dict[str, int]:
        """Bytes of arguments, results and temporary arrays, as the compiler planned them; {} if unknown."""
        analysis = self._program.memory_analysis() if self._program is not None else None
        if analysis is None:
            return {}
        return {
            "argument_bytes": int(analysis.argument_size_in_bytes),
            "output_bytes": int(analysis.output_size_in_bytes),
            "temporary_bytes": int(analysis.temp_size_in_bytes),
        }
