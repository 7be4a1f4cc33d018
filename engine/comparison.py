"""polarax.compare: reads checkpoints stack by stack, measures, and writes a run directory, or one for each post."""

import contextlib
import itertools
import os
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from polarax.loaders import Skipped
from polarax.measuring.execution import Output, Work, run_stacks
from polarax.measuring.progress import Progress
from polarax.metrics import BETWEEN_GROUPS, columns
from polarax.planning.comparison_plan import Part
from polarax.planning.request import (
    DEFAULT_CONTROL_DRAWS,
    DEFAULT_MEMORY_GIB,
    DEFAULT_SEED,
    DEFAULT_TOP_K,
    Request,
    check_request,
    describe_posts,
    describe_request,
)
from polarax.planning.selection import Selection
from polarax.results.run import Run
from polarax.results.run_directory import BETWEEN_FOLDER, RunWriter, claim_directory
from polarax.results.runs import History, Runs
from polarax.results.runs_directory import RunsWriter


def compare(
    base: Any,
    post: Any,
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
    role_map: str | os.PathLike | Mapping[str, Any] | None = None,
    common_rows: bool = False,
    control_draws: int = DEFAULT_CONTROL_DRAWS,
    seed: int = DEFAULT_SEED,
    between: bool = True,
    overwrite: bool = False,
    progress: bool = True,
) -> Run | Runs:
    """Compares every 2-D weight of two checkpoints, or of one base and several posts.

    Args:
        base: Path or URL of a checkpoint, or a parameter tree: the weights before training.
        post: The same for the weights after it. Several are a list of paths, URLs or open checkpoints (of parameters
            in memory: `polarax.open_checkpoint`), or a mapping of labels to them; in a list a label may stand before a
            path: "rl=path". By default a post is called after its folder.
        out: Folder for the run; None keeps it in a temporary folder for as long as the result lives. A run of the
            same inputs and arguments that is there already, interrupted or finished, is gone on with.
        include: Regular expressions; a matrix is compared if one is found in its name.
        exclude: Regular expressions; a matrix is left out if one is found in its name.
        roles: Roles to compare, such as "q,o"; all by default.
        layers: Layers to compare, such as "0,3-5"; all by default.
        metrics: Groups of metrics: change, scaling, rotation, budget, fit, overlap, shape; all by default.
        dtype: Working precision, "float64" or "float32"; "auto" is float64 where that is fast.
        top_k: Leading singular vectors whose subspaces are compared.
        method: How to decompose, one of `polarax.kernels.SVD_METHODS`.
        memory_gib: Memory that a run may take on the host, over that of an idle process; a matrix that needs more is
            named on standard error before any work, and computed alone.
        role_map: A table of names of your own, or the JSON file it is in: see `polarax.loaders.parse_role_map`.
        common_rows: Compare embeddings and heads of different vocabularies on the rows that both have.
        control_draws: Random changes of each kind to draw for every matrix, as sampled controls beside the closed
            forms; each takes about half the time of the comparison itself.
        seed: What they are drawn from, at least 0.
        between: Compare several posts with each other too.
        overwrite: Replace a run that is already at `out`.
        progress: Show progress on standard error.

    Returns:
        The finished `Run`; of several posts the `Runs`, in which the base was read and decomposed once for all that fit
        into memory together.

    Raises:
        CheckpointError: A checkpoint cannot be read, or the two have nothing in common.
        UsageError: An argument cannot be met, or `out` holds a run of other inputs or arguments.
        RunError: The run failed part-way; finished stacks are kept in `out`.
    """
    request = check_request(
        base,
        post,
        Selection.parse(include, exclude, roles, layers),
        metrics=metrics,
        dtype=dtype,
        top_k=top_k,
        method=method,
        memory_gib=memory_gib,
        role_map=role_map,
        common_rows=common_rows,
        control_draws=control_draws,
        seed=seed,
        between=between,
    )
    return run_request(request, out, overwrite=overwrite, progress=progress)


def run_request(
    request: Request,
    out: str | os.PathLike | None,
    *,
    overwrite: bool = False,
    progress: bool = True,
) -> Run | Runs:
    """Runs a checked request. Arguments, result and errors as for `compare`."""
    temporary = None
    if out is None:
        temporary = tempfile.TemporaryDirectory(prefix="polarax-")
        out = temporary.name
    if request.labels:
        return _run_posts(request, out, temporary, overwrite, progress)
    post = describe_posts(request)[""]
    description = _with_post(describe_request(request), post)
    path = claim_directory(out, description, overwrite=overwrite)
    header = columns(request.groups, sampled=request.sampled)
    (part,) = request.plan.parts
    with contextlib.closing(RunWriter(path, description, header, part.skipped)) as writer:
        output = Output(writer, (0,), part.names, request.plan, request.sampled)
        seconds = _execute(request, [output], progress)
        writer.finish(seconds, Run(path, temporary).summary())
    return Run(path, temporary)


def _run_posts(request, out, temporary, overwrite, progress):
    """Writes a run for each post and, if they are asked for, each two posts, and what puts them side by side."""
    described, posts, labels = describe_request(request), describe_posts(request), request.labels
    pairs = list(itertools.combinations(range(len(labels)), 2)) if request.between else []
    description = {
        **described,
        "posts": posts,
        "flags": described["flags"] | {"between": request.between},
        "between": [[labels[i], labels[j]] for i, j in pairs],
        **({"history": True, "unusable": request.unusable} if request.history else {}),
    }
    opened = History if request.history else Runs
    with contextlib.ExitStack() as stack:
        group = stack.enter_context(contextlib.closing(RunsWriter(out, description, overwrite=overwrite)))
        outputs = []
        for place, label in enumerate(labels):
            own = _with_post(described, posts[label]) | {"matrices": len(request.plan.parts[place].names)}
            header = columns(request.groups, sampled=request.sampled)
            outputs.append(_open(stack, request, group.path / label, own, (place,), header))
        groups = tuple(one for one in request.groups if one in BETWEEN_GROUPS)
        for i, j in pairs:
            own = _with_post(described | {"base": posts[labels[i]]}, posts[labels[j]])
            own["flags"] = own["flags"] | {"metrics": groups, "control_draws": 0}
            own["changes_from"] = described["base"]
            folder = group.path / BETWEEN_FOLDER / labels[i] / labels[j]
            outputs.append(_open(stack, request, folder, own, (i, j), columns(groups, between=True)))
        seconds = _execute(request, outputs, progress)
        for output in outputs:
            output.writer.finish(seconds, Run(output.writer.path).summary())
        group.finish(seconds, opened(group.path))
    return opened(group.path, temporary)


def _open(stack, request, path, description, posts, header):
    part = request.plan.parts[posts[0]] if len(posts) == 1 else _part_between(request, *posts)
    description = description | {"matrices": len(part.names)}
    path = claim_directory(path, description)
    writer = stack.enter_context(contextlib.closing(RunWriter(path, description, header, part.skipped)))
    return Output(writer, posts, part.names, request.plan, request.sampled and len(posts) == 1)


def _part_between(request, first, second):
    """What can be compared of two posts: what both have of the base, in one stack."""
    names = {pair.name for stack in request.plan.stacks if {first, second} <= {*stack.posts} for pair in stack.pairs}
    reasons: dict[str, str] = {}
    for place in (first, second):
        for name, reason in request.plan.parts[place].skipped:
            reasons.setdefault(name, f"{request.labels[place]}: {reason}")
    for place in (first, second):
        for name in request.plan.parts[place].names:
            if name not in names:
                reasons.setdefault(name, "compared with the base on different rows")
    ordered = tuple(name for name in request.plan.names if name in names)
    return Part(ordered, tuple(Skipped(*row) for row in reasons.items()))


def _execute(request, outputs, progress):
    """Carries out what is not there yet; returns the seconds that reading, compiling and computing took."""
    work = Work(
        request.base,
        tuple(request.posts.values()),
        request.plan,
        request.groups,
        request.top_k,
        request.dtype,
        request.method,
        request.control_draws if request.sampled else 0,
        request.seed,
        pictures=not request.history,
    )
    stacks = [stack for stack in request.plan.stacks if any(output.waits_for(stack) for output in outputs)]
    if progress and request.plan.warning:
        print(request.plan.warning, file=sys.stderr, flush=True)
    with Progress(stacks, sys.stderr if progress else None) as shown:
        return run_stacks(work, stacks, outputs, shown)


def _with_post(described, post):
    """A description of a run of one post, its sides in front."""
    return {"base": described["base"], "post": post, **{k: v for k, v in described.items() if k != "base"}}
