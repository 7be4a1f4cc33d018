"""What is asked of a comparison, checked and planned before anything is read but headers."""

import contextlib
import gc
import math
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax

from polarax.errors import UsageError
from polarax.loaders import Checkpoint, CheckpointError, RoleMap, on_base, open_checkpoint, parse_role_map
from polarax.loaders.stores.store import local_path
from polarax.planning.as_typed import compare_as_typed
from polarax.planning.comparison_plan import Plan, plan_posts
from polarax.planning.devices import device_bytes, most_lanes
from polarax.planning.environment import describe_environment
from polarax.planning.measurement import Measurement
from polarax.planning.options import Options
from polarax.planning.post_labels import named_posts
from polarax.planning.selection import Selection

ONLY_POST = ""  # label of a post that is given alone


class Request(NamedTuple):
    """A checked request: what to compare and how."""

    base: Checkpoint
    posts: Mapping[str, Checkpoint]  # by label; that of one alone is `ONLY_POST`
    plan: Plan
    selection: Selection
    measurement: Measurement
    memory_gib: float
    role_map: RoleMap | None
    common_rows: bool
    between: bool = False  # compare the posts with each other too
    unusable: Mapping[str, str] | None = None  # steps of a history that cannot be compared, with the reason; else None
    as_typed: Sequence[str] | None = None  # the command that asks for it, word by word; None of parameters in memory
    keep_base: str | os.PathLike | None = None  # folder of decomposed bases

    @property
    def history(self) -> bool:
        """Whether the posts are steps of one training run."""
        return self.unusable is not None

    @property
    def several(self) -> bool:
        """Whether the posts have labels, and a folder each."""
        return ONLY_POST not in self.posts


def check_request(
    base: Any,
    post: Any,
    options: Options,
    *,
    between: bool = True,
    unusable: dict[str, str] | None = None,
    refused: list[Exception] | None = None,
    devices: Sequence[int] | None = None,
) -> Request:
    """Opens the checkpoints and plans the comparison; reads headers alone and writes nothing.

    Args:
        base: As for `polarax.compare`.
        post: One post, or several.
        options: Which matrices, and how.
        between: Compare several posts with each other too.
        unusable: For steps of a history: takes the labels of those that cannot be compared, with the reason, and they
            are left out; without it they are errors.
        refused: Takes the errors of posts of which too little can be compared, which are planned all the same; without
            it they are raised.
        devices: Number of devices and most lanes to plan for; by default those of this process (`local_layout`).

    Raises:
        CheckpointError: A checkpoint cannot be read, or the base and a post have nothing in common, or too little.
        UsageError: An argument cannot be met, or no matrix is left to compare.
    """
    selection = Selection.parse(options.include, options.exclude, options.roles, options.layers)
    measurement = Measurement.parse(options, pictures=unusable is None)
    if not 0 < options.memory_gib < math.inf:
        raise UsageError(f"memory_gib must be positive and finite. Got {options.memory_gib}.")
    if options.keep_base and not measurement.keeps_bases:
        raise UsageError(
            "keep_base has nothing to keep here: bases are decomposed for others than their posts by the method "
            "'gram' alone, and where singular vectors are asked for."
        )
    role_map = parse_role_map(options.role_map)
    count, lanes = local_layout() if devices is None else devices
    with without_garbage_collection():
        opened_base = open_checkpoint(base)
        posts = _open_posts(base, opened_base, post, unusable)
        between = between and len(posts) > 1
        plan = plan_posts(
            opened_base,
            posts,
            selection,
            measurement,
            memory_bytes=int(options.memory_gib * 2**30),
            devices=count,
            device_bytes=device_bytes(),
            lanes=lanes,
            role_map=role_map,
            common_rows=options.common_rows,
            between=between,
            allow_partial=options.allow_partial,
            unusable=unusable,
            refused=refused,
        )
    usable = {label: opened for label, opened in posts.items() if label not in (unusable or ())}
    return Request(
        opened_base,
        usable,
        plan,
        selection,
        measurement,
        options.memory_gib,
        role_map,
        options.common_rows,
        between,
        unusable,
        compare_as_typed(base, post, options, between=between),
        options.keep_base or None,
    )


def local_layout() -> tuple[int, int]:
    """Devices that this process has, and lanes that pay on them: what a plan depends on besides the request."""
    return jax.local_device_count(), most_lanes()


def _open_posts(
    base: Any, opened_base: Checkpoint, post: Any, unusable: dict[str, str] | None
) -> dict[str, Checkpoint]:
    """Opens the posts, adapters on the base; one that is the base, or another post, only once."""
    several = named_posts(post)
    opened: dict[str, Checkpoint] = {}
    known = {_location(base): opened_base} if _location(base) is not None else {}
    for label, source in ({ONLY_POST: post} if several is None else several).items():
        place = _location(source)
        if source is base or (place is not None and place in known):
            opened[label] = opened_base if source is base else known[place]
            continue
        try:
            opened[label] = on_base(open_checkpoint(source), opened_base)
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
    measurement = request.measurement
    return {
        "base": describe_side(request.base),
        "flags": {
            **request.selection.describe(),
            "metrics": measurement.groups,
            "quick": measurement.quick,
            "top_k": measurement.top_k,
            "dtype": measurement.dtype,
            "method": measurement.method,
            "memory_gib": request.memory_gib,
            "role_map": request.role_map.describe() if request.role_map else None,
            "common_rows": request.common_rows,
            "control_draws": measurement.control_draws,
            "seed": measurement.seed,
        },
        **({"as_typed": request.as_typed} if measurement.quick else {}),
        "matrices": request.plan.matrices,
        "environment": describe_environment(),
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def describe_side(checkpoint: Checkpoint) -> dict[str, str]:
    """Location and fingerprint of a checkpoint."""
    return {"location": checkpoint.location, "fingerprint": checkpoint.fingerprint()}
