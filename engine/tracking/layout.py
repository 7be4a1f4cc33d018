"""Where the tracked matrices are in a tree of parameters: from names and shapes alone, so that it may be found anew.

Nothing of this is kept in a tracker's state: it is the same whenever the tree is, inside `jit` and out.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from polarax.errors import UsageError
from polarax.loaders import Skipped, View
from polarax.loaders.dtypes import is_floating
from polarax.loaders.formats.parameter_tree import ParameterTree, is_kernel, named_leaves
from polarax.loaders.matrices import RoleMap, take_inventory
from polarax.loaders.pairing import natural
from polarax.loaders.roles import ROLE
from polarax.planning.selection import Selection
from polarax.tracking.adapters import Adapter, Scale, find_adapters


class Label(NamedTuple):
    """What one tracked matrix is."""

    name: str  # of its tensor and its part
    layer: int | None
    role: str
    expert: int | None
    rows: int  # (out, in)
    cols: int


class Source(NamedTuple):
    """Matrices that are cut out of one leaf in one way, at different places."""

    leaf: str
    kernel: bool  # the leaf is (in, out), and its view of (out, in)
    sizes: tuple[int, ...]  # of the part that is cut out of the leaf, as the view has it
    view: View
    adapter: Adapter | None


class Group(NamedTuple):
    """Matrices of one shape, which share one program; m >= n, wide ones are turned round."""

    key: str  # "1536x576", and what tells it from others of this shape
    shape: tuple[int, int]  # (m, n)
    stored: str  # dtype of the parameters
    dtype: str  # the working one: float32, or float64 for parameters in float64
    labels: tuple[Label, ...]
    sources: tuple[Source, ...]
    source_of: tuple[int, ...]  # for each matrix, the index of its source
    starts: tuple[tuple[int, ...], ...]  # and where in the leaf it begins; padded with 0 to one length

    @property
    def turned(self) -> np.ndarray:
        """For each matrix, whether it is wide."""
        return np.array([label.rows < label.cols for label in self.labels])


class Layout(NamedTuple):
    """All that is tracked in a tree."""

    groups: tuple[Group, ...]
    leaves: tuple[str, ...]  # that are read for it
    skipped: tuple[Skipped, ...]

    @property
    def labels(self) -> tuple[Label, ...]:
        """Of every matrix, group by group: the order of all arrays of readings."""
        return tuple(label for group in self.groups for label in group.labels)


def find_layout(
    params: Any, selection: Selection, *, k: int | None, role_map: RoleMap | None = None, scale: Scale = 1.0
) -> Layout:
    """Lists the tracked matrices of a tree of parameters.

    Args:
        params: Anything `polarax.loaders.formats.parameter_tree.named_leaves` takes, values or not.
        selection: Which matrices.
        k: Leading values asked for; None for as many as a small matrix has, 16 at most.
        role_map: The user's own table of names.
        scale: Of low-rank adapters.

    Raises:
        CheckpointError: It is no tree of parameters.
        UsageError: Nothing is left, an adapter does not fit, or k is larger than a matrix.
    """
    tree = ParameterTree(params, abstract=True)
    adapters = find_adapters({name: tree.shape(name) for name in tree.names()}, scale)
    halves = {half for adapter in adapters.values() for half in (adapter.a, adapter.b)}
    inventory = take_inventory(tree, role_map)
    skipped = [Skipped(name, reason) for name, reason in inventory.reasons.items() if name not in halves]
    skipped += [Skipped(name, f"same values as {other}") for name, other in inventory.tied.items()]
    views: list[View] = []
    for name, found in inventory.views.items():
        if name in halves or name in inventory.tied:
            continue
        dtype = tree.dtype(name)
        if dtype is not None and is_floating(dtype) and dtype.itemsize > 1:
            views += found
        else:
            skipped.append(Skipped(name, f"{tree.dtype_name(name)}: not measured"))
    chosen, left_out = _chosen(views, selection)
    skipped += left_out
    for view in chosen:
        if k is not None and k > min(view.shape):
            raise UsageError(
                f"k={k} is larger than {view.name!r} ({view.shape[0]} x {view.shape[1]}). "
                "Leave such matrices out with exclude or roles, or take a smaller k."
            )
    groups = _grouped(sorted(chosen, key=lambda view: natural(view.name)), tree, named_leaves(params), adapters)
    leaves = {source.leaf: None for group in groups for source in group.sources}
    for source in (source for group in groups for source in group.sources if source.adapter is not None):
        assert source.adapter is not None
        leaves |= {source.adapter.a: None, source.adapter.b: None}
    return Layout(groups, tuple(leaves), tuple(skipped))


def matrix_reader(group: Group, leaves: Mapping[str, jax.Array]) -> Any:
    """A function of (source, start), traced integers, that gives one matrix: (m, n) in the working dtype.

    One matrix at a time is cut out of the leaves, so that no second copy of all of them is ever made.
    """
    branches = [functools.partial(_cut, source, group, leaves) for source in group.sources]
    if len(branches) == 1:
        return lambda index, start: branches[0](start)
    return lambda index, start: lax.switch(index, branches, start)


def _cut(source: Source, group: Group, leaves: Mapping[str, jax.Array], start: jax.Array) -> jax.Array:
    leaf = jnp.asarray(leaves[source.leaf])
    part = jnp.swapaxes(leaf, 0, 1) if source.kernel else leaf
    if source.sizes != part.shape:
        part = lax.dynamic_slice(part, [start[axis] for axis in range(part.ndim)], source.sizes)
    matrix = jnp.asarray(source.view.arrange(part)).astype(group.dtype)  # type: ignore[arg-type]  # has NumPy's methods
    if source.adapter is not None:
        a, b = (jnp.asarray(leaves[name]) for name in (source.adapter.a, source.adapter.b))
        if a.ndim == 3:
            a, b = (lax.dynamic_index_in_dim(x, start[0], 0, keepdims=False) for x in (a, b))
        a, b = a.astype(group.dtype), b.astype(group.dtype)
        left, right = (b.T, a.T) if source.adapter.flax else (b, a)
        matrix = matrix + source.adapter.scale * jnp.matmul(left, right, precision=lax.Precision.HIGHEST)
    return matrix.T if matrix.shape[0] < matrix.shape[1] else matrix


def _chosen(views: Sequence[View], selection: Selection) -> tuple[list[View], list[Skipped]]:
    """The views selected, and a row for each that is not."""
    by_default = not selection.roles and not selection.include
    if by_default and any(ROLE[view.role].tracked for view in views):
        apart = [view for view in views if not ROLE[view.role].tracked]
        views = [view for view in views if ROLE[view.role].tracked]
    else:
        apart = []
    if not views:
        raise UsageError("There is no matrix among the parameters.")
    chosen, left_out = selection.split(views)
    return chosen, [*left_out, *(Skipped(view.name, f"role {view.role}: only if asked for") for view in apart)]


def _grouped(
    views: Sequence[View], tree: ParameterTree, raw: Mapping[str, Any], adapters: Mapping[str, Adapter]
) -> tuple[Group, ...]:
    members: dict[tuple, list[View]] = {}
    for view in views:
        m, n, stored = max(view.shape), min(view.shape), tree.dtype_name(view.tensor)
        # Turned to be tall all are divided over devices alike, but for square ones: in one group with the rest, those
        # that are divided the other way would each be gathered to bring it into the arrangement of the others.
        division = "-by_rows" if m == n and ROLE[view.role].divided_by_rows else ""
        members.setdefault((m, n, stored, division), []).append(view)
    several = {(m, n) for m, n, stored, _ in members for other in members if other[:2] == (m, n) and other[2] != stored}
    groups = []
    for (m, n, stored, division), found in members.items():
        sources: dict[str, tuple[int, Source]] = {}  # by their text: slices have no hash before Python 3.12
        places, starts = [], []
        for view in found:
            shape = tree.shape(view.tensor)
            slices = view.slices or tuple(slice(0, size) for size in shape)
            spans = [item.indices(size) for item, size in zip(slices, shape, strict=True)]
            form = view._replace(slices=None, label="", layer=None, role="", expert=None)
            source = Source(
                view.tensor,
                is_kernel(view.tensor, raw[view.tensor].shape),
                tuple(stop - start for start, stop, _ in spans),
                form,
                adapters.get(view.tensor),
            )
            places.append(sources.setdefault(repr(source), (len(sources), source))[0])
            starts.append(tuple(start for start, _, _ in spans))
        rank = max(map(len, starts))
        groups.append(
            Group(
                f"{m}x{n}" + (f"-{stored}" if (m, n) in several else "") + division,
                (m, n),
                stored,
                "float64" if stored == "float64" else "float32",
                tuple(Label(view.name, view.layer, view.role, view.expert, *view.shape) for view in found),
                tuple(source for _, source in sources.values()),
                tuple(places),
                tuple(start + (0,) * (rank - len(start)) for start in starts),
            )
        )
    return tuple(groups)
