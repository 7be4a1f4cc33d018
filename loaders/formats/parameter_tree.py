"""Checkpoints in memory: nested dicts and lists of arrays, Flax states and modules, and every other pytree.

A pytree is whatever is registered with JAX: dataclasses, `flax.struct`, Equinox modules, penzai layers. Its leaves go
by the keys that JAX gives them. JAX, Flax and penzai are never imported here: their types are recognised only if
whoever made the object has imported them.
"""

import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tensorstore as ts

from polarax.loaders.checkpoint import Checkpoint, CheckpointError, Read, TensorInfo
from polarax.loaders.dtypes import is_floating, is_integer
from polarax.loaders.formats.format import Format
from polarax.loaders.slices import Index, axis_slices

_CONTAINERS = (Mapping, list, tuple)
_KERNEL = "kernel"  # Flax's name of a linear layer's weight, which it keeps as (in, out)


class ParameterTree(Checkpoint):
    """The arrays of a parameter tree, under names that join its keys with dots.

    Nothing is copied, and no device array is fetched, before it is read. A `kernel` of rank 2 is
    shown transposed, as (out, in). A top level key "params", as Flax Linen has, is left out of the
    names.
    """

    def __init__(self, tree: Any, *, abstract: bool = False):
        """Lists the leaves of a tree.

        Args:
            tree: Nested mappings, lists, tuples and registered pytrees of arrays, an `nnx.State` or an `nnx.Module`.
            abstract: Leaves need no values: only what their names and shapes say will be asked for.

        Raises:
            CheckpointError: If it is no tree, two of its leaves get one name, or a leaf holds no
                values.
        """
        location = f"parameter tree ({type(tree).__name__})"
        self._abstract = abstract
        self._leaves = named_leaves(tree)
        for name, leaf in self._leaves.items():
            if type(leaf).__name__ == "ShapeDtypeStruct" and not abstract:
                raise CheckpointError(f"{location}: tensor {name!r} is abstract: it has no values")
        infos = {name: _info(name, leaf) for name, leaf in self._leaves.items()}
        super().__init__(location, "parameter tree", infos)

    def why_no_array(self, name: str) -> str | None:
        """Of a leaf that is no array, its class; None for an array."""
        leaf = self._leaves[name]
        if _is_array(leaf):
            return None
        return f"a Python object of class {type(leaf).__qualname__}: not looked into"

    def shares_values(self, name: str, other: str) -> bool:
        """Whether two names lead to one array; never of abstract leaves, which tell nothing of it."""
        return not self._abstract and self._leaves[name] is self._leaves[other]

    def is_transposed(self, name: str) -> bool:
        """Whether a tensor is a kernel of rank 2."""
        return is_kernel(name, self.shape(name))

    def read(self, name: str, index: Index = None) -> Read:
        """Reads a tensor, or part of it; see `Checkpoint.read`.

        Of a NumPy array it gives a read-only view. A slice of a device array is cut on the device,
        and its transfer begins at once.
        """
        self._readable_dtype(name)
        leaf = self._leaves[name]
        slices = axis_slices(self.shape(name), index)
        transposed = is_kernel(name, leaf.shape)
        subject = f"{self.location}: tensor {name!r}"
        promise: ts.Promise
        future: ts.Future
        promise, future = ts.Promise.new()
        try:
            part = leaf[slices[::-1] if transposed else slices] if index is not None else leaf
            if hasattr(part, "copy_to_host_async"):
                part.copy_to_host_async()
        except RuntimeError as error:  # a donated array, or one with shards on other hosts
            raise CheckpointError(f"{subject}: cannot be read: {error}") from error
        promise.set_result(part)

        def decode(part: Any) -> np.ndarray:
            try:
                array = np.asarray(part).view()
            except RuntimeError as error:
                raise CheckpointError(f"{subject}: cannot be read: {error}") from error
            array.flags.writeable = False
            return array.T if transposed else array

        return Read(future, decode, subject)


class ParameterTreeFormat(Format):
    """Parameters in memory."""

    name = "parameter tree"

    def open(self, source: Any) -> ParameterTree:
        """Lists a tree's leaves."""
        return ParameterTree(source)

    def recognises_object(self, source: Any) -> bool:
        """Whether it is a mapping, a list, a tuple, an NNX module or another pytree."""
        return _is_tree(_state_of_module(source))


def named_leaves(tree: Any) -> dict[str, Any]:
    """The leaves of a parameter tree by their names, in tree order; no value is looked at.

    Args:
        tree: Nested mappings, lists, tuples and registered pytrees of arrays, tracers or abstract arrays, an
            `nnx.State` or an `nnx.Module`.

    Raises:
        CheckpointError: If it is no tree, or two of its leaves get one name.
    """
    return {name: _as_array(unboxed(leaf)) for name, leaf in boxed_leaves(tree).items()}


def boxed_leaves(tree: Any) -> dict[str, Any]:
    """As `named_leaves`, but an array in a box stays in it: an NNX variable, or Linen's with the names of axes."""
    location = f"parameter tree ({type(tree).__name__})"
    tree = _state_of_module(tree)
    if not _is_tree(tree):
        raise CheckpointError(
            f"{location}: expected a path, a URL, a nested dict of arrays, another pytree, or an nnx State or Module"
        )
    leaves: dict[str, Any] = {}
    for keys, leaf in _leaves(tree, (), set()):
        name = name_of(keys)
        if name in leaves:
            raise CheckpointError(f"{location}: two arrays are named {name!r}")
        leaves[name] = leaf
    return leaves


def _leaves(node: Any, keys: tuple[str, ...], plain: set[type]) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every leaf of a tree with the keys that lead to it, in tree order; None is an empty tree.

    Args:
        node: The tree.
        keys: What leads to it.
        plain: Classes that are known to be no trees; added to, since a large tree has few classes of leaves.
    """
    if type(node) in plain:
        yield keys, node
        return
    node = _state_of_module(node)
    held = unboxed(node)
    children = _children(held)
    if children is not None:
        for key, child in children:
            yield from _leaves(child, (*keys, key), plain)
    elif held is not None:
        if held is node:
            plain.add(type(node))
        yield keys, node


def _children(node: Any) -> list[tuple[str, Any]] | None:
    """What a node holds, each with its key; None of a leaf."""
    if isinstance(node, Mapping):
        return [(str(key), child) for key, child in node.items()]
    if type(node) in (list, tuple):
        return [(str(place), child) for place, child in enumerate(node)]
    registered = _flattened_once(node)
    if registered is not None:
        return registered
    if isinstance(node, tuple) and hasattr(node, "_fields"):
        return list(zip(node._fields, node, strict=True))
    if isinstance(node, (list, tuple)):
        return [(str(place), child) for place, child in enumerate(node)]
    return None


def _flattened_once(node: Any) -> list[tuple[str, Any]] | None:
    """The children of a node that is registered with JAX, by JAX's keys for them; None if it is not."""
    jax = sys.modules.get("jax")
    if jax is None or node is None:
        return None
    found, _ = jax.tree_util.tree_flatten_with_path(node, is_leaf=lambda child: child is not node)
    if len(found) == 1 and not found[0][0]:  # it is its own leaf
        return None
    return [(jax.tree_util.keystr(path, simple=True), child) for path, child in found]


def _is_tree(node: Any) -> bool:
    return isinstance(node, _CONTAINERS) or _flattened_once(node) is not None


def _is_array(leaf: Any) -> bool:
    """Whether a leaf has a shape and a dtype, as arrays of all libraries and abstract ones have."""
    return hasattr(leaf, "dtype") and isinstance(getattr(leaf, "shape", None), tuple)


def _as_array(leaf: Any) -> Any:
    """A Python number as an array; anything else as it is."""
    return np.asarray(leaf) if isinstance(leaf, (bool, int, float, complex, np.generic)) else leaf


def _state_of_module(tree: Any) -> Any:
    """The state of an NNX module; anything else as it is."""
    nnx = sys.modules.get("flax.nnx")
    return nnx.state(tree) if nnx is not None and isinstance(tree, nnx.Module) else tree


def unboxed(node: Any) -> Any:
    """What an NNX variable, a Linen box (an array with axis names) or a penzai variable holds; others as they are."""
    nnx = sys.modules.get("flax.nnx")
    if nnx is not None and isinstance(node, nnx.Variable):
        return node.get_value()
    meta = sys.modules.get("flax.core.meta")
    if meta is not None and isinstance(node, meta.AxisMetadata):
        return node.unbox()
    variables = sys.modules.get("penzai.core.variables")
    if variables is not None and isinstance(node, variables.AbstractVariable):
        return node.freeze()
    return node


def name_of(keys: Sequence[str]) -> str:
    """A leaf's name: its keys joined by dots, without Linen's "params" in front."""
    return ".".join(keys[1:] if len(keys) > 1 and keys[0] == "params" else keys)


def is_kernel(name: str, shape: Sequence[int]) -> bool:
    """Whether an array is a linear layer's weight as Flax keeps it, (in, out), which is shown transposed."""
    return len(shape) == 2 and name.replace("/", ".").rpartition(".")[2] == _KERNEL


def _info(name: str, leaf: Any) -> TensorInfo:
    if not _is_array(leaf):
        return TensorInfo((), None, type(leaf).__name__, 0)
    shape = tuple(int(size) for size in leaf.shape)
    shape = shape[::-1] if is_kernel(name, shape) else shape
    try:
        dtype = np.dtype(leaf.dtype)
    except TypeError:  # a type of JAX's own, such as random keys
        return TensorInfo(shape, None, str(leaf.dtype), 0)
    if not (is_floating(dtype) or is_integer(dtype) or dtype.kind in "fc"):
        return TensorInfo(shape, None, str(leaf.dtype), 0)
    return TensorInfo(shape, dtype, dtype.name, math.prod(shape) * dtype.itemsize)
