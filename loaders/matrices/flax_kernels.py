"""What the axes of a Flax kernel are: layers in a stack, inputs and outputs of several axes.

Flax keeps a linear layer's weight as a kernel (in, out), and lets both be several axes: attention has queries of (in,
heads, size of a head) and an output projection of (heads, size of a head, out), and `LinearGeneral` any number. Layers
under `nn.scan` or `nnx.vmap` have all their arrays stacked along a leading axis. None of this is written down beside
the arrays; the bias tells it, which has the kernel's output axes, and so do the names of Flax's attention.
"""

import itertools
import re
from collections.abc import Mapping

from polarax.loaders.checkpoint import Checkpoint
from polarax.loaders.dtypes import is_floating
from polarax.loaders.matrices.axes import Meaning
from polarax.loaders.roles import ROLE, Side

_KERNEL = re.compile(r"(?:^|[./])kernel(?:[./]value)?$")  # the array itself, or Flax NNX's variable that has it
_KEY = re.compile(r"[^./]+")
_STACK = re.compile(r"(?:layers?|blocks?|stack|scan|encoderblock|^h$)", re.IGNORECASE)
_SPREADS_OUT = {"query", "key", "value", "q", "k", "v", "wq", "wk", "wv", "q_proj", "k_proj", "v_proj"}
_GATHERS = {"out", "o", "wo", "o_proj", "out_proj", "c_proj", "proj", "output", "attention_output", "attn_out"}


def is_kernel_name(name: str) -> bool:
    """Whether an array is called as Flax calls weights; their keys may be joined by dots or slashes."""
    return _KERNEL.search(name) is not None


def layer_stacks(checkpoint: Checkpoint) -> Mapping[str, int]:
    """Containers whose arrays hold all layers, with how many those are.

    One is called so that it may be layers, none of its floating-point arrays is a vector, all have the same leading
    axis, and one is a kernel with an axis to spare.
    """
    if not any(len(checkpoint.shape(name)) > 2 and is_kernel_name(name) for name in checkpoint.names()):
        return {}
    sizes: dict[str, set[int]] = {}
    spare: set[str] = set()
    for name in checkpoint.names():
        if not is_floating(checkpoint.dtype(name)):
            continue
        shape = checkpoint.shape(name)
        for container in _containers(name):
            sizes.setdefault(container, set()).add(shape[0] if len(shape) > 1 else 0)
            if len(shape) > 2 and is_kernel_name(name):
                spare.add(container)
    return {
        container: next(iter(leading))
        for container, leading in sizes.items()
        if container in spare and len(leading) == 1 and leading != {0}
    }


def _containers(name: str) -> list[str]:
    """The containers around an array that may be a stack of layers, outermost first; none if its layer has a number."""
    keys = list(_KEY.finditer(name))
    containers = []
    for key, following in itertools.pairwise(keys):
        word = key[0]
        if _STACK.search(word) and "expert" not in word and not re.search(r"(?:^|_)\d+$", word):
            if not following[0].isdigit():
                containers.append(name[: following.start()])
    return containers


def layers_in(stacks: Mapping[str, int], name: str) -> int | None:
    """How many layers an array holds; None if it is in no stack."""
    if not stacks:
        return None
    return next((stacks[container] for container in _containers(name) if container in stacks), None)


def kernel_axes(checkpoint: Checkpoint, name: str, role: str, stacked: bool, place: int = 0) -> Meaning | None:
    """The axes of a kernel of more than two axes; None if they cannot be told.

    Args:
        checkpoint: Which has it, and perhaps its bias.
        name: As `is_kernel_name` has it.
        role: Where a table gives one: attention's queries, keys, values and outputs tell the axes.
        stacked: Whether one axis is the layers'.
        place: Which one.
    """
    shape = checkpoint.shape(name)
    rank = len(shape) - stacked
    outputs = _output_axes(checkpoint, name, shape, stacked)
    module, parent = _module(name)
    if rank == 2:
        outputs = 1
    elif rank == 3 and (ROLE[role].rows is Side.HEADS or module in _SPREADS_OUT):
        outputs = 2
    elif rank == 3 and ROLE[role].columns is Side.HEADS:
        outputs = 1
    elif rank == 3 and module in _GATHERS and (outputs == 1 or _has_queries(checkpoint, parent)):
        outputs = 1
    elif outputs is None or outputs < 2:  # one output axis and several inputs: a convolution has that as well
        return None
    if outputs is None or not 0 < outputs < rank:
        return None
    meaning = Meaning(("i",) * (rank - outputs) + ("o",) * outputs)
    return meaning.stacked(place) if stacked else meaning


def _output_axes(checkpoint: Checkpoint, name: str, shape: tuple[int, ...], stacked: bool) -> int | None:
    """How many of the kernel's last axes its bias has; None without one that agrees."""
    module, leaf = _leaf(name)
    bias = module + leaf.replace("kernel", "bias")
    if bias not in checkpoint:
        return None
    outputs = checkpoint.shape(bias)[1 if stacked else 0 :]
    return len(outputs) if outputs and shape[-len(outputs) :] == outputs else None


def _leaf(name: str) -> tuple[str, str]:
    """A kernel's name before "kernel", and that with what follows."""
    start = name.rindex("kernel")
    return name[:start], name[start:]


def _module(name: str) -> tuple[str, str]:
    """The module that a kernel is of, and what stands before that in its name."""
    module = _leaf(name)[0][:-1]
    name = (_KEY.findall(module) or [""])[-1]
    return name, module.removesuffix(name)


def _has_queries(checkpoint: Checkpoint, parent: str) -> bool:
    kernels = (".kernel", "/kernel", ".kernel.value", "/kernel/value")
    return any(f"{parent}{query}{kernel}" in checkpoint for query in _SPREADS_OUT for kernel in kernels)
