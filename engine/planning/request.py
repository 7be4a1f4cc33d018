"""What is asked of a comparison, checked and planned before anything is read but headers."""

import contextlib
import gc
import math
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import jax

from polarax import kernels
from polarax.errors import UsageError
from polarax.loaders import Checkpoint, CheckpointError, RoleMap, open_checkpoint, parse_role_map
from polarax.loaders.stores.store import local_path
from polarax.metrics import parse_metrics, sampled_metrics
from polarax.planning.comparison_plan import Plan, plan_posts
from polarax.planning.devices import most_lanes, working_dtype, working_method
from polarax.planning.environment import describe_environment
from polarax.planning.post_labels import named_posts
from polarax.planning.selection import Selection

DTYPES = ("auto", "float64", "float32")
DEFAULT_TOP_K = 16  # leading singular vectors compared, as in docs/definitions.md
DEFAULT_MEMORY_GIB = 4.0
DEFAULT_CONTROL_DRAWS = 0  # the closed forms are free
DEFAULT_SEED = 0


class Request(NamedTuple):
    """A checked request: what to compare and how."""

    base: Checkpoint
    posts: Mapping[str, Checkpoint]  # by label; one that has none is ""
    plan: Plan
    selection: Selection
    groups: tuple[str, ...]
    top_k: int
    dtype: str
    method: str
    memory_gib: float
    role_map: RoleMap | None
    common_rows: bool
    control_draws: int
    seed: int
    between: bool = False  # compare the posts with each other too
    unusable: Mapping[str, str] | None = None  # steps of a history that cannot be compared, with the reason; else None

    @property
    def history(self) -> bool:
        """Whether the posts are steps of one training run."""
        return self.unusable is not None

    @property
    def labels(self) -> tuple[str, ...]:
        """Of several posts; empty for one."""
        return tuple(label for label in self.posts if label)

    @property
    def sampled(self) -> bool:
        """Whether random changes are drawn: they are asked for, and a metric has use for them."""
        return self.control_draws > 0 and bool(sampled_metrics(self.groups))


def check_request(
    base: Any,
    post: Any,
    selection: Selection,
    *,
    metrics: str | Iterable[str] | None,
    dtype: str,
    top_k: int,
    method: str,
    memory_gib: float,
    role_map: str | os.PathLike | Mapping[str, Any] | None = None,
    common_rows: bool = False,
    control_draws: int = DEFAULT_CONTROL_DRAWS,
    seed: int = DEFAULT_SEED,
    between: bool = True,
    unusable: dict[str, str] | None = None,
) -> Request:
    """Opens the checkpoints and plans the comparison; reads headers alone and writes nothing.

    Args:
        base: As for `polarax.compare`, and so are all others but the last.
        post: One post, or several.
        selection: Which matrices to keep.
        metrics: Groups of metrics.
        dtype: Working precision.
        top_k: Leading singular vectors whose subspaces are compared.
        method: How to decompose.
        memory_gib: Memory that a run may take on the host.
        role_map: A table of names.
        common_rows: Compare embeddings of different vocabularies on their common rows.
        control_draws: Random changes of each kind.
        seed: What they are drawn from.
        between: Compare several posts with each other too.
        unusable: For steps of a history: takes the labels of those that cannot be compared, with the reason, and they
            are left out; without it they are errors.

    Raises:
        CheckpointError: A checkpoint cannot be read, or the base and a post have nothing in common.
        UsageError: An argument cannot be met, or no matrix is left to compare.
    """
    groups = parse_metrics(metrics)
    if dtype not in DTYPES:
        raise UsageError(f"Unknown dtype {dtype!r}. Expected one of {', '.join(DTYPES)}.")
    if top_k < 1:
        raise UsageError(f"top_k must be at least 1. Got {top_k}.")
    if method not in kernels.SVD_METHODS:
        raise UsageError(f"Unknown method {method!r}. Expected one of {', '.join(kernels.SVD_METHODS)}.")
    if not 0 < memory_gib < math.inf:
        raise UsageError(f"memory_gib must be positive and finite. Got {memory_gib}.")
    for name, number in (("control_draws", control_draws), ("seed", seed)):
        if number < 0:
            raise UsageError(f"{name} must be at least 0. Got {number}.")
    dtype, method = working_dtype(dtype), working_method(method)
    table = parse_role_map(role_map)
    with without_garbage_collection():
        opened_base = open_checkpoint(base)
        posts = _open_posts(base, opened_base, post, unusable)
        between = between and len(posts) > 1
        plan = plan_posts(
            opened_base,
            posts,
            selection,
            memory_bytes=int(memory_gib * 2**30),
            dtype=dtype,
            method=method,
            devices=jax.local_device_count(),
            lanes=most_lanes(),
            role_map=table,
            common_rows=common_rows,
            draws=control_draws if sampled_metrics(groups) else 0,
            between=between,
            unusable=unusable,
        )
    return Request(
        opened_base,
        {label: opened for label, opened in posts.items() if label not in (unusable or ())},
        plan,
        selection,
        groups,
        top_k,
        dtype,
        method,
        memory_gib,
        table,
        common_rows,
        control_draws,
        seed,
        between,
        unusable,
    )


def _open_posts(
    base: Any, opened_base: Checkpoint, post: Any, unusable: dict[str, str] | None
) -> dict[str, Checkpoint]:
    """Opens the posts; one that is the base, or another post, only once."""
    several = named_posts(post)
    opened: dict[str, Checkpoint] = {}
    known = {_location(base): opened_base} if _location(base) is not None else {}
    for label, source in ({"": post} if several is None else several).items():
        place = _location(source)
        if source is base or (place is not None and place in known):
            opened[label] = opened_base if source is base else known[place]
            continue
        try:
            opened[label] = open_checkpoint(source)
        except CheckpointError as error:
            if unusable is None:
                raise
            unusable[label] = str(error)
            continue
        if place is not None:
            known[place] = opened[label]
    return opened


def _location(source: Any) -> str | None:
    """What tells two paths or URLs apart; None for parameters in memory."""
    if not isinstance(source, (str, bytes, os.PathLike)):
        return None
    text = os.fsdecode(source)
    path = local_path(text) if text else None
    return text if path is None else os.path.realpath(path)


@contextlib.contextmanager
def without_garbage_collection() -> Iterator[None]:
    """For making very many objects that stay: looking for garbage among them takes a third of the time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def describe_request(request: Request) -> dict[str, Any]:
    """What run.json says of all posts together, but for what was compared; JSON-ready."""
    return {
        "base": _side(request.base),
        "flags": {
            **request.selection.describe(),
            "metrics": request.groups,
            "top_k": request.top_k,
            "dtype": request.dtype,
            "method": request.method,
            "memory_gib": request.memory_gib,
            "role_map": request.role_map.describe() if request.role_map else None,
            "common_rows": request.common_rows,
            "control_draws": request.control_draws,
            "seed": request.seed,
        },
        "matrices": request.plan.matrices,
        "environment": describe_environment(),
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def describe_posts(request: Request) -> dict[str, dict[str, str]]:
    """Label -> location and fingerprint of each post."""
    return {label: _side(post) for label, post in request.posts.items()}


def _side(checkpoint):
    return {"location": checkpoint.location, "fingerprint": checkpoint.fingerprint()}
