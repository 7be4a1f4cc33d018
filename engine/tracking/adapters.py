"""Low-rank adapters in a parameter tree: what is measured is the weight that the model computes with, W + scale A B.

`nnx.LoRA` and most JAX code keep A as (in, rank) and B as (rank, out); PEFT keeps A as (rank, in), B as (out, rank).
The shapes tell which, and the names where both would fit. Layers in a stack have adapters in a stack.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, TypeAlias

from polarax.errors import UsageError

Scale: TypeAlias = float | Callable[[str], float]

_ADAPTER = re.compile(r"^(?P<stem>.*?)(?P<joint>[._]?)lora_(?P<side>[aAbB])(?P<rest>(?:[._].*)?)$")

# Where the weight of an adapter is: beside it, in what it wraps, or in the module it is an attribute of.
_WEIGHTS = ("kernel", "weight", "base_module.kernel", "base_layer.kernel", "base_layer.weight", "base_module.weight")


class Adapter(NamedTuple):
    """One adapter of one weight."""

    a: str  # names of the two leaves
    b: str
    flax: bool  # A is (in, rank) and B (rank, out); else A is (rank, in) and B (out, rank)
    scale: float


def find_adapters(shapes: Mapping[str, Sequence[int]], scale: Scale) -> dict[str, Adapter]:
    """The adapters in a tree, by the name of the weight that each adapts.

    Args:
        shapes: Of every leaf, by name; kernels as (out, in).
        scale: What A B is multiplied by (alpha over rank, for most); or a function of the weight's name.

    Raises:
        UsageError: An adapter has no partner, no weight, or shapes that fit none.
    """
    halves: dict[tuple[str, str], dict[str, str]] = {}
    upper: set[tuple[str, str]] = set()
    for name in shapes:
        found = _ADAPTER.match(name)
        if found is not None and not found["rest"].endswith("bias"):
            key = (found["stem"] + found["joint"], found["rest"])
            halves.setdefault(key, {})[found["side"].lower()] = name
            if found["side"].isupper():
                upper.add(key)
    adapters: dict[str, Adapter] = {}
    for key, sides in halves.items():
        if set(sides) != {"a", "b"}:
            (present,) = sides.values()
            raise UsageError(f"Adapter {present!r} has no other half: expected lora_a and lora_b side by side.")
        weight = _weight_of(key[0], shapes)
        if weight is None:
            raise UsageError(
                f"Adapter {sides['a']!r} has no weight beside it. Give the tracker all parameters, "
                "the frozen ones too: it measures W + scale A B."
            )
        if weight in adapters:
            raise UsageError(f"Weight {weight!r} has two adapters, {adapters[weight].a!r} and {sides['a']!r}.")
        flax = _is_flax(shapes[weight], shapes[sides["a"]], shapes[sides["b"]], prefer=key not in upper)
        if flax is None:
            raise UsageError(
                f"Adapter {sides['a']!r} {tuple(shapes[sides['a']])}, {tuple(shapes[sides['b']])} does not fit "
                f"its weight {weight!r} {tuple(shapes[weight])}."
            )
        factor = float(scale(weight) if callable(scale) else scale)
        adapters[weight] = Adapter(sides["a"], sides["b"], flax, factor)
    return adapters


def _weight_of(stem: str, shapes: Mapping[str, Sequence[int]]) -> str | None:
    if stem.endswith("_"):  # "kernel_lora_a"
        return stem[:-1] if stem[:-1] in shapes else None
    module = stem.removesuffix(".")
    if module in shapes:
        return module
    # "q_proj.lora_a", and nnx.LoRALinear's "q_proj.lora.lora_a"
    parent = module.rpartition(".")[0]
    for prefix in (stem, f"{parent}." if parent else ""):
        for weight in _WEIGHTS:
            if prefix + weight in shapes:
                return prefix + weight
    return None


def _is_flax(weight: Sequence[int], a: Sequence[int], b: Sequence[int], prefer: bool) -> bool | None:
    """Whether A comes as (in, rank); None if the shapes fit in neither way. Kernels in a stack are (L, in, out)."""
    stack: tuple[int, ...] = ()
    if len(weight) == 2:
        rows, cols = weight
    elif len(weight) == 3:
        stack, rows, cols = (weight[0],), weight[2], weight[1]
    else:
        return None
    fits = {
        True: tuple(a[:-1]) == (*stack, cols) and tuple(b) == (*stack, a[-1], rows),
        False: tuple(a) == (*stack, a[-2], cols) and tuple(b) == (*stack, rows, a[-2]),
    }
    ways = [way for way in (prefer, not prefer) if fits[way]]
    return ways[0] if ways else None
