"""Checkpoints and parameter trees changed along the axes that a comparison measures: `polarax.edit`."""

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from polarax.editing.checkpoints import Edited, check_edit, run_edit
from polarax.editing.kinds import KINDS, SIDED
from polarax.editing.settings import EditSettings
from polarax.editing.trees import edit_tree, is_tree
from polarax.errors import UsageError
from polarax.loaders import parse_role_map
from polarax.planning.options import DEFAULT_MEMORY_GIB, DEFAULT_SEED
from polarax.planning.selection import Selection

__all__ = ["KINDS", "SIDED", "EditSettings", "Edited", "edit"]


def edit(
    base: Any,
    post: Any,
    kind: str,
    out: str | os.PathLike | None = None,
    *,
    side: str | None = None,
    strength: float | str | Iterable[float] = 1.0,
    factor: float | str | Mapping[str, float] | None = None,
    signs: str = "aligned",
    sd: float | None = None,
    seed: int = DEFAULT_SEED,
    include: str | Sequence[str] | None = None,
    exclude: str | Sequence[str] | None = None,
    roles: str | Iterable[str] | None = None,
    layers: str | int | Iterable[int] | None = None,
    role_map: str | os.PathLike | Mapping[str, Any] | None = None,
    store_dtype: Any = None,
    measure: bool = True,
    method: str = "auto",
    keep_base: str | os.PathLike | None = None,
    memory_gib: float = DEFAULT_MEMORY_GIB,
    progress: bool = True,
) -> Any:
    """Changes the weights of a model along the axes in which a base and a post differ.

    Args:
        base: Path or URL of a checkpoint, or a parameter tree: the weights before training. None for "scale-values",
            which needs one model alone.
        post: The same for the weights after it. What is not edited is the post's.
        kind: One of `polarax.editing.KINDS`, or "break" and "restore" with a side.
        out: Folder for the edited checkpoint: new, or empty. An interrupted edit of the same is resumed. None for
            parameter trees.
        side: "left" or "right".
        strength: 0 is the weight that the edit begins with (the post's; of "keep-..." and "random-control" the
            base's), 1 the edit, and what lies between is on the straight line. Several write a checkpoint each, and
            decompose once.
        factor: Of "scale-values": a number, or by role ("q=1.1,k=0.9", or a mapping).
        signs: Of "break-...": "aligned", or "random" to see what signs that are not aligned do.
        sd: Of "random-control": standard deviation of every entry; by default that of the pair's own change.
        seed: What random numbers are drawn from; every matrix has its own.
        include: Regular expressions; a matrix is edited if one is found in its name.
        exclude: Regular expressions; a matrix is left if one is found in its name.
        roles: Roles to edit, such as "q,o"; all by default.
        layers: Layers to edit, such as "0,3-5"; all by default.
        role_map: A table of names of your own: see `polarax.loaders.parse_role_map`.
        store_dtype: Type that edited tensors are stored in; by default each keeps its own. Not of trees.
        measure: Measure alpha and nf of what is written against base and post. Not of trees.
        method: How to decompose, one of `polarax.kernels.SVD_METHODS`.
        keep_base: Folder that keeps the base decomposed, the same as of `polarax.compare`: what a comparison or an edit
            left there is not decomposed again. Not of trees.
        memory_gib: Memory that the edit may take on the host, over that of an idle process.
        progress: Show progress on standard error.

    Returns:
        For checkpoints an `Edited`: the folders, and what was measured. For parameter trees a tree like the post, or a
        list of them for several strengths; base and post may be traced by `jax.jit`.

    Raises:
        CheckpointError: A checkpoint cannot be read, or what was asked for cannot be written.
        UsageError: An argument cannot be met.
        RunError: The edit failed part-way; what is finished is kept for the next try.
    """
    settings = EditSettings.parse(
        kind,
        side=side,
        strength=strength,
        factor=factor,
        signs=signs,
        sd=sd,
        seed=seed,
        store_dtype=store_dtype,
        measure=measure,
        method=method,
    )
    selection = Selection.parse(include, exclude, roles, layers)
    table = parse_role_map(role_map)
    if is_tree(post) and (base is None or is_tree(base)):
        if out is not None or settings.dtype is not None or keep_base:
            raise UsageError(
                "out, store_dtype and keep_base are for checkpoints; an edited parameter tree is returned."
            )
        trees = edit_tree(base, post, settings, selection, table)
        several = not isinstance(strength, (int, float))
        return trees if several else trees[0]
    if out is None:
        raise UsageError("out is missing: the folder for the edited checkpoint.")
    request = check_edit(base, post, settings, selection, role_map=table, memory_gib=memory_gib, keep_base=keep_base)
    edited = run_edit(request, out, progress=progress)
    assert edited is not None  # one process alone
    return edited
