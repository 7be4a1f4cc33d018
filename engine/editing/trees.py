"""Edits of parameter trees: arrays in, arrays out, whether they have values or are traced by `jax.jit`."""

import functools
import os
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from polarax import kernels
from polarax.editing.kinds import BASE
from polarax.editing.settings import RANDOM, EditSettings
from polarax.editing.targets import find_targets
from polarax.errors import UsageError
from polarax.kernels.methods import check_method
from polarax.loaders import Checkpoint, Pair, RoleMap, View
from polarax.loaders.formats.parameter_tree import ParameterTree, is_kernel, named_leaves
from polarax.loaders.slices import axis_slices
from polarax.measuring.sampled_controls import matrix_key
from polarax.planning.devices import working_dtype
from polarax.planning.selection import Selection

_GENERATOR = "threefry2x32"  # named, so that a draw does not depend on JAX's settings


def is_tree(source: Any) -> bool:
    """Whether it is no path, URL or open checkpoint."""
    return not (source is None or isinstance(source, (str, bytes, os.PathLike, Checkpoint)))


def edit_tree(
    base: Any, post: Any, settings: EditSettings, selection: Selection, role_map: RoleMap | None = None
) -> list[Any]:
    """Trees like the post, one for each strength.

    Args:
        base: Nested dicts, lists and other pytrees of arrays, an `nnx.State` or an `nnx.Module`; None for an edit of
            one model.
        post: The same.
        settings: Which edit.
        selection: Which matrices.
        role_map: The user's own table of names.

    Raises:
        CheckpointError: They are no trees, or have nothing in common.
        UsageError: What was asked for cannot be met.
    """
    of_post = ParameterTree(post)
    of_base = of_post if base is None else ParameterTree(base)
    targets = find_targets(of_base, of_post, selection, settings, role_map)
    leaves_base = named_leaves(post if base is None else base)
    results = [dict(named_leaves(post)) for _ in settings.strengths]
    groups: dict[Any, list[Pair]] = {}
    for pair in targets.pairs:
        groups.setdefault((pair.shape, pair.dtype_base, pair.dtype_post, settings.factor_of(pair.role)), []).append(
            pair
        )
    for (_, _, _, factor), pairs in groups.items():
        first = jnp.stack([_matrix(leaves_base[pair.base.tensor], pair.base) for pair in pairs])
        second = jnp.stack([_matrix(results[0][pair.post.tensor], pair.post) for pair in pairs])
        keys = np.stack([matrix_key(settings.seed, pair.name) for pair in pairs])
        with jax.enable_x64(working_dtype("auto") == "float64"):
            edited = edit_stack(first, second, keys, settings=settings, factor=factor)
        for result, stack in zip(results, edited, strict=True):
            for pair, matrix in zip(pairs, stack, strict=True):
                result[pair.post.tensor] = _with_matrix(result[pair.post.tensor], pair.post, matrix)
    for result in results:
        for original, names in targets.copies.items():
            result |= dict.fromkeys(names, result[original])
    return [_rebuilt(post, named_leaves(post), result) for result in results]


@functools.partial(jax.jit, static_argnames=("settings", "factor"))
def edit_stack(
    base: jax.Array, post: jax.Array, keys: jax.Array, *, settings: EditSettings, factor: float | None
) -> list[jax.Array]:
    """Matrices (count, m, n) for each strength, in the post's dtype."""
    kind, working, stored = settings.kind, jnp.dtype(working_dtype("auto")), post.dtype
    check_method(settings.method)
    start = base if kind.start == BASE else post
    first, second, begin = (x.astype(working) for x in (base, post, start))
    goal = _edit(first, second, keys, settings, factor)
    finite = jnp.all(jnp.isfinite(goal), axis=(-2, -1), keepdims=True)
    results = []
    for strength in settings.strengths:
        mixed = goal if strength == 1 else begin + strength * (goal - begin)
        exact = start.astype(stored)
        results.append(exact if strength == 0 else jnp.where(finite, _rounded(mixed, stored), exact))
    return results


def _edit(base, post, keys, settings, factor):
    name, method = settings.kind.name, settings.method
    first, _, second = name.partition("-")
    random = jax.random.wrap_key_data(keys, impl=_GENERATOR)
    if name == "scale-values":
        return kernels.edit_scale_values(post, factor)
    if name == "replace-values":
        return kernels.edit_replace_values(base, post, method=method)
    if name == "reparameterise":
        return kernels.edit_reparameterise(base, post, method=method)
    if first == "keep":
        return kernels.edit_keep(base, post, part=second, method=method)
    if first == "restore":
        return kernels.edit_restore(base, post, side=second, method=method)
    if first == "break":
        signs = None
        if settings.signs == RANDOM:
            draw = functools.partial(jax.random.rademacher, shape=(min(base.shape[-2:]),), dtype=base.dtype)
            signs = jax.vmap(draw)(random)
        return kernels.edit_break(base, post, side=second, signs=signs, method=method)
    deviation = settings.sd
    if deviation is None:
        deviation = kernels.frobenius(post - base) / np.sqrt(base.shape[-2] * base.shape[-1])
    return kernels.edit_random_control(random, base, deviation)


def _rounded(x, dtype):
    """Rounded once: XLA takes float64 to bfloat16 by way of float32."""
    return (jax.lax.reduce_precision(x, 8, 7) if dtype == jnp.bfloat16 else x).astype(dtype)


def _shown(leaf: jax.Array, view: View) -> jax.Array:
    """A leaf as it is shown: kernels of rank 2 as (out, in)."""
    leaf = jnp.asarray(leaf)
    return leaf.T if is_kernel(view.tensor, leaf.shape) else leaf


def _matrix(leaf: jax.Array, view: View) -> jax.Array:
    shown = _shown(leaf, view)
    part: Any = shown[axis_slices(shown.shape, view.slices)]
    return jnp.asarray(view.arrange(part))  # whose methods NumPy's arrays and JAX's have alike


def _with_matrix(leaf: jax.Array, view: View, matrix: jax.Array) -> jax.Array:
    """The leaf with a matrix in its place: the inverse of `_matrix`."""
    shown = _shown(leaf, view)
    index = axis_slices(shown.shape, view.slices)
    part = shown[index]
    factored = part if view.factors is None else part.reshape(view.factors)
    cut = axis_slices(factored.shape, view.cut)
    target = factored[cut]
    order = view.order or tuple(range(target.ndim))
    turned = matrix.reshape([target.shape[axis] for axis in order]).transpose(np.argsort(order))
    part = factored.at[cut].set(turned).reshape(part.shape)
    shown = shown.at[index].set(part)
    return shown.T if is_kernel(view.tensor, np.shape(leaf)) else shown


def _rebuilt(tree: Any, before: dict[str, Any], after: dict[str, Any]) -> Any:
    """The tree with other arrays in the places of some; an NNX module as a new one."""
    replaced = {id(before[name]): array for name, array in after.items() if array is not before[name]}
    nnx = sys.modules.get("flax.nnx")
    if nnx is not None and isinstance(tree, nnx.Module):
        definition, state = nnx.split(tree)
        return nnx.merge(definition, _rebuilt(state, before, after))
    leaves, structure = jax.tree.flatten(tree)
    missing = replaced.keys() - set(map(id, leaves))
    if missing:
        raise UsageError(f"{len(missing)} arrays of the tree cannot be put back: it is no pytree of JAX.")
    return jax.tree.unflatten(structure, [replaced.get(id(leaf), leaf) for leaf in leaves])
