"""Decomposition methods: a file and a class each, and the one place where a name becomes a method.

To add one: a class derived from `Method`, in a file of its own here, and a line below that registers it.
"""

import functools
from collections.abc import Callable
from typing import Any, TypeVar

from jax import lax

from polarax.kernels.methods.gram import Gram
from polarax.kernels.methods.lapack import Lapack
from polarax.kernels.methods.method import Method, Operations, eigen_operations
from polarax.kernels.methods.polar import PolarFactor
from polarax.kernels.methods.route import Begun, Post, Related, Route

__all__ = [
    "AUTO",
    "METHODS",
    "Begun",
    "Method",
    "Operations",
    "Post",
    "Related",
    "Route",
    "by_method",
    "check_method",
    "eigen_operations",
    "method_for",
    "method_named",
    "method_names",
    "register",
]

AUTO = "auto"

# By name, in the order in which `auto` looks for one that suits.
METHODS: dict[str, Method] = {}

# As JAX names them when it lowers a program.
_PLATFORMS = ("cpu", "cuda", "rocm", "tpu")

Result = TypeVar("Result")


def register(method: Method) -> None:
    """Makes a method known by its name, to every function and flag that takes one.

    Compiled programs are kept by the name of their method, so a name should stand for one method in a process.

    Raises:
        ValueError: There is a method of that name.
    """
    if method.name in (AUTO, *METHODS):
        raise ValueError(f"There already is an SVD method {method.name!r}.")
    METHODS[method.name] = method


register(Gram())
register(Lapack())
register(PolarFactor())


def method_names() -> tuple[str, ...]:
    """Names that functions and flags take: `auto` first."""
    return (AUTO, *METHODS)


def check_method(name: str) -> None:
    """Raises ValueError unless a method has that name."""
    if name not in method_names():
        raise ValueError(f"Unknown SVD method {name!r}. Expected one of {', '.join(method_names())}.")


def method_named(name: str) -> Method:
    """The method of that name; of `auto`, that which it takes where float64 is fast.

    Raises:
        ValueError: There is none.
    """
    check_method(name)
    return _suitable("cpu", fast_float64=True).for_auto() if name == AUTO else METHODS[name]


def method_for(platform: str, *, fast_float64: bool) -> str:
    """The name to give instead of `auto` on a device, of which the compiler sees the platform alone.

    Args:
        platform: As JAX names it: cpu, gpu (or cuda, rocm), tpu.
        fast_float64: Whether the device computes in float64 at a good part of its float32 rate.

    Returns:
        The method's name, or `auto` for one that has another one take over where it is not accurate enough.
    """
    method = _suitable(platform, fast_float64=fast_float64)
    return method.name if method.for_auto() is method else AUTO


def by_method(name: str, call: Callable[..., Result], *operands: Any) -> Result:
    """call(method, *operands) with the method of that name; `auto` chooses when the program is lowered for a platform.

    Args:
        name: Of the method.
        call: Called in every branch that a platform may take.
        *operands: Pytrees of arrays.

    Raises:
        ValueError: There is no method of that name.
    """
    check_method(name)
    if name != AUTO:
        return call(METHODS[name], *operands)
    # Of a GPU the platform does not tell how fast its float64 is.
    suitable = {platform: _suitable(platform, fast_float64=platform != "tpu") for platform in _PLATFORMS}
    default = suitable["cuda"]
    others = {platform: method for platform, method in suitable.items() if method is not default}
    return lax.platform_dependent(
        *operands,
        default=functools.partial(call, default.for_auto()),
        **{platform: functools.partial(call, method.for_auto()) for platform, method in others.items()},
    )


def _suitable(platform: str, *, fast_float64: bool) -> Method:
    return next(method for method in METHODS.values() if method.suits(platform, fast_float64=fast_float64))
