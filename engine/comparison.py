"""polarax.compare: reads checkpoints stack by stack, measures, and writes a run directory, or one for each post."""

import contextlib
import hashlib
import itertools
import json
import os
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from polarax.errors import RunError
from polarax.hosts import Hosts, current
from polarax.loaders import CheckpointError, Skipped
from polarax.measuring.execution import Work, run_stacks
from polarax.measuring.kept_bases import kept_line
from polarax.measuring.moved_layers import LayerSearch
from polarax.measuring.outputs import Output, Readers
from polarax.measuring.progress import Progress
from polarax.measuring.together import join_parts, measure_together, missing_stacks
from polarax.metrics import columns
from polarax.metrics.look import with_look
from polarax.metrics.relation import is_rearranged, looks_strange
from polarax.planning.comparison_plan import Part
from polarax.planning.measurement import Measurement
from polarax.planning.options import (
    DEFAULT_CONTROL_DRAWS,
    DEFAULT_MEMORY_GIB,
    DEFAULT_SEED,
    DEFAULT_TOP_K,
    Options,
)
from polarax.planning.partners import coverage_between, describe_coverage
from polarax.planning.request import Request, check_request, describe_request, describe_side
from polarax.results.closer import check_within, closer_folder, write_full_rows
from polarax.results.directory import BETWEEN_FOLDER, asked, claim_directory, write_summary
from polarax.results.files import jsonable, locked, writing
from polarax.results.parts import Parts
from polarax.results.remote.staging import shelf_of
from polarax.results.remote.transfer import run_folder
from polarax.results.run import Run
from polarax.results.run_directory import RunWriter
from polarax.results.runs import Runs, open_run
from polarax.results.runs_directory import RunsWriter, write_side_by_side
from polarax.results.shelf import Shelf

# How long the other processes wait for the first, which looks through what is there already.
_FIRST_SECONDS = 600


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
    keep_base: str | os.PathLike | None = None,
    role_map: str | os.PathLike | Mapping[str, Any] | None = None,
    common_rows: bool = False,
    allow_partial: bool = False,
    quick: bool = False,
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
            path: "rl=path". By default a post is named after its folder.
        out: Folder for the run; None keeps it in a temporary folder for as long as the result lives. A run with
            the same inputs and arguments that is there already, interrupted or finished, is resumed. Over a first look
            (`quick`) at the same inputs, a full analysis of some of its matrices takes the place of their rows.
        include: Regular expressions; a matrix is compared if one is found in its name.
        exclude: Regular expressions; a matrix is left out if one is found in its name.
        roles: Roles to compare, such as "q,o"; all by default.
        layers: Layers to compare, such as "0,3-5"; all by default.
        metrics: Groups of metrics: change, scaling, rotation, budget, fit, overlap, leading, shape; all by
            default.
        dtype: Working precision, "float64" or "float32"; "auto" is float64 where that is fast.
        top_k: Leading singular vectors whose subspaces are compared.
        method: How to decompose, one of `polarax.kernels.SVD_METHODS`.
        memory_gib: Memory that a run may take on the host, over that of an idle process; a matrix that needs more is
            named on standard error before any work, and computed alone.
        keep_base: Folder that keeps the base decomposed for the next comparison with it: other posts, other metrics,
            the next step. What is there is found by the matrices' own bytes, and never trusted from another version.
        role_map: A table of names of your own, or the JSON file it is in: see `polarax.loaders.parse_role_map`.
        common_rows: Compare embeddings and heads of different vocabularies on the rows that both have.
        allow_partial: Compare what is paired even where more than half of either model's matrix weights has no partner.
        quick: A first look: the leading `top_k` singular values and vectors, norms, and what follows from them, without
            decomposing. `Run.closer` says which matrices a full analysis is worth its time of.
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
        CheckpointError: A checkpoint cannot be read, or the two have nothing in common, or too little.
        UsageError: An argument cannot be met, or `out` holds a run of other inputs or arguments.
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
    run = run_request(check_request(base, post, options, between=between), out, overwrite=overwrite, progress=progress)
    assert run is not None  # one process alone
    return run


def run_request(
    request: Request,
    out: str | os.PathLike | None,
    *,
    overwrite: bool = False,
    progress: bool = True,
) -> Run | Runs | None:
    """Runs a checked request. Arguments, result and errors as for `compare`.

    Of several processes (`polarax.hosts.current`) the first one has the result, and the others None.
    """
    temporary = None
    if out is None:
        temporary = tempfile.TemporaryDirectory(prefix="polarax-")
        out = temporary.name
    description = _describe(request)
    hosts = current()
    if hosts is not None:
        hosts.agree("request", jsonable(asked(description.whole) | _planned(request)), _FIRST_SECONDS)
        if not hosts.first:
            _take_part(request, out, hosts)
            return None
    with run_folder(out, overwrite=overwrite, progress=progress) as path:
        closer = None if overwrite else closer_folder(path, description.whole)
        if closer is None:
            run = _write(request, description, path, shelf_of(path), [], overwrite, progress)
        else:
            run = _look_closer(request, description, path, closer, progress)
    if temporary is not None:
        run.keep_alive(temporary)
    return run


class _Description(NamedTuple):
    """What run.json says of a request."""

    common: dict[str, Any]
    sides: list[dict[str, str]]  # of each post
    whole: dict[str, Any]


def _describe(request: Request) -> _Description:
    common, sides = describe_request(request), [describe_side(post) for post in request.posts.values()]
    whole = _describe_all(request, common, sides) if request.several else {**common, "post": sides[0]}
    return _Description(common, sides, whole)


def _write(request, description, path, shelf, within, overwrite, progress):
    """Carries out a request, into the run directory at `path`: `within` a folder that all processes share."""
    with contextlib.ExitStack() as open_writers:
        if request.several:
            path, overwrite = claim_directory(path, description.whole, overwrite=overwrite), False
            together = open_writers.enter_context(contextlib.closing(RunsWriter(path, description.whole)))
        else:
            together = None
        outputs = {
            comparison.folder: _open_output(open_writers, request, description, comparison, path, overwrite)
            for comparison in _comparisons(request)
        }
        seconds = _execute(request, outputs, shelf, within, progress)
        _relate(request, list(outputs.values()))
        for output in outputs.values():
            output.writer.finish(seconds, Run(output.writer.path).summary())
        if together is not None:
            together.finish(seconds, Runs.open(together.path))
    return open_run(path)


def _planned(request: Request) -> dict[str, str]:
    """What of a plan all processes must have alike: which matrices are in which stack."""
    content = json.dumps([[stack.label, [pair.name for pair in stack.pairs]] for stack in request.plan.stacks])
    return {"plan": hashlib.sha256(content.encode()).hexdigest()[:16]}


def _take_part(request: Request, out: str | os.PathLike, hosts: Hosts) -> None:
    """What every process but the first does: measures what it takes of what the first one says is missing."""
    missing = hosts.get("missing", _FIRST_SECONDS)
    stacks = {stack.number: stack for stack in request.plan.stacks}
    readers = {comparison.folder: _readers(request, comparison) for comparison in _comparisons(request)}
    shelf = Shelf.open(out)
    for name in missing["within"]:
        shelf = shelf.within(name)
    measure_together(
        _work(request),
        readers,
        Parts(shelf, hosts.process),
        [stacks[number].part(start, count) for number, start, count in missing["stacks"]],
        hosts,
        None,
    )


def _look_closer(request, description, path, folder, progress):
    """Runs a full analysis of matrices that the run at `path` has had a first look at, and lays it over that."""
    labels = [] if not request.several else list(request.posts)
    check_within(path, {label: part.names for label, part in zip(labels or [""], request.plan.parts, strict=True)})
    with writing(path):
        lock = locked(path)
    with contextlib.closing(lock):
        within = list(folder.relative_to(path).parts)
        _write(request, description, folder, shelf_of(path), within, False, progress)
        run = open_run(path)
        runs = [run] if isinstance(run, Run) else list(run.each())
        for one in runs:
            write_full_rows(one.path, one.description)
            if one.finished:
                write_summary(one.path, one.summary())
        if isinstance(run, Runs) and run.finished:
            write_side_by_side(run)
            write_summary(run.path, run.summary())
    return open_run(path)


class _Comparison(NamedTuple):
    """What one run directory holds: the base and a post, or two posts of which the first stands as the base."""

    posts: tuple[int, ...]  # places of one or two
    folder: str  # within that of all; "" for a post that is alone
    measurement: Measurement


def _comparisons(request: Request) -> list[_Comparison]:
    labels, measurement = list(request.posts), request.measurement
    comparisons = [_Comparison((place,), label, measurement) for place, label in enumerate(labels)]
    comparisons += [
        _Comparison((i, j), f"{BETWEEN_FOLDER}/{labels[i]}/{labels[j]}", measurement.between_posts())
        for i, j in _pairs(request)
    ]
    return comparisons


def _pairs(request):
    """Places of the posts that are compared with each other."""
    return list(itertools.combinations(range(len(request.posts)), 2)) if request.between else []


def _describe_all(request, described, sides):
    """What run.json says of several posts together."""
    labels = list(request.posts)
    return {
        **described,
        "posts": dict(zip(labels, sides, strict=True)),
        "flags": described["flags"] | {"between": request.between},
        "between": [[labels[i], labels[j]] for i, j in _pairs(request)],
        **({"history": True, "unusable": request.unusable} if request.history else {}),
    }


def _readers(request, comparison):
    """What one run directory says of each stack."""
    alone = len(comparison.posts) == 1
    part = request.plan.parts[comparison.posts[0]] if alone else _part_between(request, *comparison.posts)
    return Readers(comparison.posts, part, comparison.measurement)


def _open_output(open_writers, request, description, comparison, path, overwrite):
    """Opens the writer of one run directory."""
    described = description.common
    *first, last = (description.sides[place] for place in comparison.posts)
    readers = _readers(request, comparison)
    part = readers.part
    posts = list(request.posts.values())
    before, after = [request.base, *(posts[place] for place in comparison.posts)][-2:]
    said = {
        "base": described["base"],
        "post": last,
        **described,
        **({"within": comparison.folder} if request.several else {}),
        "matrices": len(part.names),
        "coverage": describe_coverage(part.coverage, before, after),
    }
    if first:
        asked = {"metrics": comparison.measurement.groups, "control_draws": comparison.measurement.control_draws}
        said |= {"base": first[0], "flags": described["flags"] | asked, "changes_from": described["base"]}
    folder = claim_directory(path / comparison.folder, said, overwrite=overwrite)
    measurement = comparison.measurement
    header = columns(
        measurement.groups,
        sampled=bool(measurement.draws),
        own_spectrum=measurement.own_spectrum,
        between=bool(first),
        by_products=measurement.by_products,
        quick=measurement.quick,
    )
    if measurement.quick:
        header = with_look(header)
    writer = RunWriter(folder, said, header, part.skipped)
    open_writers.enter_context(contextlib.closing(writer))
    return Output(writer, readers, request.plan)


def _part_between(request, first, second):
    """What can be compared of two posts: what both have of the base, in one stack."""
    labels = list(request.posts)
    both = [stack.between(first, second) for stack in request.plan.stacks if {first, second} <= {*stack.posts}]
    pairs = [pair for stack in both for pair in stack.pairs]
    names = {pair.name for pair in pairs}
    reasons: dict[str, str] = {}
    for place in (first, second):
        for name, reason in request.plan.parts[place].skipped:
            reasons.setdefault(name, f"{labels[place]}: {reason}")
    for place in (first, second):
        for name in request.plan.parts[place].names:
            if name not in names:
                reasons.setdefault(name, "compared with the base on different rows")
    ordered = tuple(name for name in request.plan.names if name in names)
    of_first, of_second = (request.plan.parts[place].coverage for place in (first, second))
    coverage = coverage_between(of_first, of_second, pairs)
    return Part(ordered, tuple(Skipped(*row) for row in reasons.items()), coverage)


def _relate(request, outputs):
    """Finds the matrices that are others of the base: only what was measured tells which have little of their own."""
    posts = tuple(request.posts.values())
    searches: dict[int, LayerSearch] = {}
    for output in outputs:
        *first, post = (posts[place] for place in output.posts)
        base = first[0] if first else request.base
        search = searches.setdefault(id(base), LayerSearch(base, request.role_map))
        frame = Run(output.writer.path).frame()
        strange = frozenset(frame.loc[looks_strange(frame) & ~is_rearranged(frame), "name"])
        try:
            moved = search.find(post, output.pairs, output.skipped, strange)
        except CheckpointError as error:
            raise RunError(f"Reading failed part-way: {error}") from error
        if moved.relations or moved.layers:
            output.writer.relate(*moved)


def _work(request):
    return Work(request.base, tuple(request.posts.values()), request.plan, request.measurement, request.keep_base)


def _execute(request, outputs, shelf, within, progress):
    """Carries out what is not there yet; returns the seconds that reading, compiling and computing took."""
    stacks = [stack for stack in request.plan.stacks if any(output.waits_for(stack) for output in outputs.values())]
    if progress and request.plan.warning:
        print(request.plan.warning, file=sys.stderr, flush=True)
    if progress and request.keep_base and stacks:
        print(kept_line(stacks, request.keep_base), file=sys.stderr, flush=True)
    for name in within:
        shelf = shelf.within(name)
    hosts, parts = current(), Parts(shelf, 0)
    parts.look()
    if hosts is None and not parts.any:
        with Progress(stacks, sys.stderr if progress else None) as shown:
            return run_stacks(_work(request), stacks, list(outputs.values()), shown)
    missing = list(missing_stacks(stacks, outputs, parts))
    if hosts is not None:
        places = [(stack.number, stack.start, len(stack.pairs)) for stack in missing]
        hosts.put("missing", {"within": within, "stacks": places})
    readers = {run: output.readers for run, output in outputs.items()}
    with Progress(missing, sys.stderr if progress and hosts is None else None) as shown:
        seconds = measure_together(_work(request), readers, parts, missing, hosts, shown)
    join_parts(stacks, outputs, parts)
    if hosts is None:
        parts.clear()
    else:
        hosts.last.append(parts.clear)
    return seconds
