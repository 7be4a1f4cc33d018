"""polarax.history: the saved steps of a training run, each compared with the same base."""

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from polarax.comparison import run_request
from polarax.errors import UsageError
from polarax.loaders import find_steps
from polarax.planning.as_typed import history_as_typed
from polarax.planning.options import (
    DEFAULT_CONTROL_DRAWS,
    DEFAULT_MEMORY_GIB,
    DEFAULT_SEED,
    DEFAULT_TOP_K,
    Options,
)
from polarax.planning.request import Request, check_request
from polarax.results.runs import History


def history(
    checkpoints: Any,
    base: Any = None,
    out: str | os.PathLike | None = None,
    *,
    include: str | Sequence[str] | None = None,
    exclude: str | Sequence[str] | None = None,
    roles: str | Iterable[str] | None = None,
    layers: str | int | Iterable[int] | None = None,
    metrics: str | Iterable[str] | None = None,
    dtype: str = "auto",
    top_k: int = DEFAULT_TOP_K,
    method: str = "auto",
    memory_gib: float = DEFAULT_MEMORY_GIB,
    keep_base: str | os.PathLike | None = None,
    role_map: str | os.PathLike | Mapping[str, Any] | None = None,
    common_rows: bool = False,
    allow_partial: bool = False,
    quick: bool = False,
    control_draws: int = DEFAULT_CONTROL_DRAWS,
    seed: int = DEFAULT_SEED,
    overwrite: bool = False,
    progress: bool = True,
) -> History:
    """Compares every saved step of a training run with its first one, or with a base.

    As many steps as memory has room for are read together, so that the base is decomposed once for them; memory does
    not grow with their number. A step that cannot be read is left out, with the reason, and so is what looks like one
    and holds no whole checkpoint (`History.unusable`). Of training states the parameters alone are compared.

    Example:
        >>> import numpy as np, polarax
        >>> w = np.random.default_rng(0).normal(size=(8, 4)).astype("float32")
        >>> steps = {step: polarax.open_checkpoint({"q": (1 + step / 1000) * w}) for step in (0, 10, 20)}
        >>> frame = polarax.history(steps, progress=False).frame()
        >>> frame.step.tolist(), frame.drift.round(4).tolist()
        ([10, 20], [0.01, 0.02])

    Args:
        checkpoints: Folder of a CheckpointManager, or any folder of checkpoints that are named after their steps; a
            pattern ("runs/checkpoint-*"); a list of paths; or a mapping of steps to paths or open checkpoints.
        base: What the steps are compared with; the first of them by default.
        out: As for `polarax.compare`, and so are all others; small pictures of the rotations are not kept.
        include: Regular expressions; a matrix is compared if one is found in its name.
        exclude: Regular expressions; a matrix is left out if one is found in its name.
        roles: Roles to compare.
        layers: Layers to compare.
        metrics: Groups of metrics.
        dtype: Working precision.
        top_k: Leading singular vectors whose subspaces are compared.
        method: How to decompose.
        memory_gib: Memory that a run may take.
        keep_base: Folder that keeps the base decomposed, for the next step.
        role_map: A table of names of your own.
        common_rows: Compare embeddings of different vocabularies on their common rows.
        allow_partial: Compare what is paired of a step even where that is less than half of it.
        quick: A first look at every step, without decomposing.
        control_draws: Random changes of each kind to draw for every matrix and step.
        seed: What they are drawn from.
        overwrite: Replace a run that is already at `out`.
        progress: Show progress on standard error.

    Raises:
        CheckpointError: There are no steps, or the base cannot be read.
        UsageError: An argument cannot be met, there is nothing to compare a single step with, or no step is usable.
        RunError: The run failed part-way; finished stacks are kept in `out`.
    """
    options = Options(
        include=include,
        exclude=exclude,
        roles=roles,
        layers=layers,
        metrics=metrics,
        dtype=dtype,
        top_k=top_k,
        method=method,
        role_map=role_map,
        common_rows=common_rows,
        allow_partial=allow_partial,
        quick=quick,
        control_draws=control_draws,
        seed=seed,
        memory_gib=memory_gib,
        keep_base=keep_base,
    )
    steps = run_request(check_history(checkpoints, base, options), out, overwrite=overwrite, progress=progress)
    assert isinstance(steps, History)
    return steps


def check_history(checkpoints: Any, base: Any, options: Options, *, devices: Sequence[int] | None = None) -> Request:
    """Finds the steps and plans; reads headers alone. Arguments and errors as for `history` and `check_request`."""
    as_typed = history_as_typed(checkpoints, base, options)
    passed_over: dict[str, str] = {}
    steps = find_steps(checkpoints, passed_over)
    if base is None:
        first = next(iter(steps))
        base = steps.pop(first)
        if not steps:
            raise UsageError(f"Step {first} is alone: give another one, or a base to compare it with.")
    unusable: dict[str, str] = {}
    posts = {str(step): source for step, source in steps.items()}
    request = check_request(base, posts, options, between=False, unusable=unusable, devices=devices)
    if not request.posts:
        step, reason = next(iter(unusable.items()))
        raise UsageError(f"None of {len(unusable)} steps can be compared. Step {step}: {reason}")
    return request._replace(unusable={**passed_over, **unusable}, as_typed=as_typed)
