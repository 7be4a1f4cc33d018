"""Edits of checkpoints: what was asked is checked, drafts are prepared, and what is finished takes its final name."""

import contextlib
import dataclasses
import functools
import json
import os
import pathlib
import shutil
import sys
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from polarax.editing.execution import Work, measurement_of, plan_stacks, run_stacks
from polarax.editing.journal import Journal
from polarax.editing.settings import EditSettings
from polarax.editing.table import COLUMNS, table_of_edit
from polarax.editing.targets import Targets, find_targets
from polarax.editing.together import FIRST_SECONDS, edit_together, take_part, tell_nothing
from polarax.errors import UsageError
from polarax.hosts import current
from polarax.loaders import Checkpoint, CheckpointError, Draft, RoleMap, open_checkpoint, open_draft
from polarax.loaders.adapters.on_base import is_adapter
from polarax.loaders.stores.store import local_path
from polarax.loaders.writing.files import check_target, disk_errors, sync
from polarax.loaders.writing.safetensors_draft import SafetensorsDraft
from polarax.measuring.kept_bases import kept_line
from polarax.measuring.progress import Progress
from polarax.planning.comparison_plan import memory_warning
from polarax.planning.environment import describe_environment
from polarax.planning.selection import Selection
from polarax.results.files import jsonable

PROVENANCE_FILE = "polarax_edit.json"
METADATA_KEY = "polarax_edit"

_PARTIAL = ".{}.partial"


class EditRequest(NamedTuple):
    """A checked request."""

    base: Checkpoint
    post: Checkpoint
    targets: Targets
    settings: EditSettings
    selection: Selection
    role_map: RoleMap | None
    memory_bytes: int
    alone: bool  # of one model
    keep_base: str | os.PathLike | None = None  # folder of decomposed bases


@dataclasses.dataclass(frozen=True)
class Edited:
    """What an edit wrote.

    Attributes:
        path: The folder that was asked for.
        rows: What was measured, a row for each matrix and strength.
        strengths: The folder of the checkpoint for each strength.
    """

    path: pathlib.Path
    rows: tuple[Mapping[str, Any], ...]
    strengths: Mapping[float, pathlib.Path]
    alone: bool
    notes: tuple[str, ...]

    def frame(self) -> Any:
        """A pandas DataFrame of `rows`."""
        import pandas as pd  # not at the top: it takes longer than small edits

        return pd.DataFrame([{name: row.get(name) for name in COLUMNS} for row in self.rows], columns=list(COLUMNS))

    def table(self) -> str:
        """Medians by role, for the terminal."""
        return table_of_edit(self.rows, alone=self.alone)


def check_edit(
    base: Any,
    post: Any,
    settings: EditSettings,
    selection: Selection,
    *,
    role_map: RoleMap | None = None,
    memory_gib: float,
    keep_base: str | os.PathLike | None = None,
) -> EditRequest:
    """Opens the checkpoints and chooses what is edited; reads headers alone.

    Args:
        base: The checkpoint before training; None for an edit of one model.
        post: The checkpoint after it.
        settings: Which edit.
        selection: Which matrices.
        role_map: The user's own table of names.
        memory_gib: Memory that the edit may take.
        keep_base: Folder that keeps the base decomposed, as for a comparison.

    Raises:
        CheckpointError: A checkpoint cannot be read, or the two have too little in common.
        UsageError: What was asked for cannot be met.
    """
    if not 0 < memory_gib < float("inf"):
        raise UsageError(f"memory_gib must be positive and finite. Got {memory_gib}.")
    if base is None and not settings.kind.alone:
        raise UsageError(f"--base is missing: --kind={settings.kind.name} needs the checkpoint before training too.")
    if keep_base:
        _check_keeping(settings, alone=base is None)
    opened_post = open_checkpoint(post)
    opened_base = opened_post if base is None else open_checkpoint(base)
    for opened in (opened_base, opened_post):
        if is_adapter(opened):
            raise CheckpointError(f"{opened.location}: is an adapter alone; merge it into its model, and edit that")
    targets = find_targets(opened_base, opened_post, selection, settings, role_map)
    return EditRequest(
        opened_base,
        opened_post,
        targets,
        settings,
        selection,
        role_map,
        int(memory_gib * 2**30),
        base is None,
        keep_base or None,
    )


def _check_keeping(settings: EditSettings, *, alone: bool) -> None:
    """Raises UsageError where no decomposed base could be used."""
    if alone or not settings.decomposes:
        why = "of one model" if alone else "that is not measured"
        raise UsageError(f"keep_base has nothing to keep here: {settings.kind.name} {why} decomposes no base.")
    measurement = measurement_of(settings)
    if not measurement.keeps_bases or measurement.dtype != "float64":
        raise UsageError(
            "keep_base has nothing to keep here: bases are decomposed for others than their posts by the method "
            f"'gram' in float64 alone. Got method={measurement.method}, {measurement.dtype}."
        )


def partial_folder(out: str | os.PathLike) -> pathlib.Path:
    """Where an edit is kept until it is finished: beside the folder that is to be written."""
    target = _target(out)
    return target.parent / _PARTIAL.format(target.name)


def _target(out: str | os.PathLike) -> pathlib.Path:
    return pathlib.Path(os.path.abspath(os.path.expanduser(os.fspath(out))))


def run_edit(request: EditRequest, out: str | os.PathLike, *, progress: bool = True) -> Edited | None:
    """Writes the checkpoints of a checked request.

    Args:
        request: What `check_edit` gave.
        out: Folder to write: new, or empty. Of several strengths it holds a folder for each. An edit that was
            interrupted there is resumed, and a finished one is left as it is.
        progress: Show progress on standard error.

    Returns:
        What was written; of several processes (`polarax.hosts.current`) the first one has it, and the others None.

    Raises:
        CheckpointError: The output is taken or cannot be written, or the source cannot be.
        UsageError: An unfinished edit of something else is in the way.
        RunError: Reading failed part-way; what is finished is kept for the next try.
    """
    target, partial = _target(out), partial_folder(out)
    description = _describe(request)
    hosts = current()
    if hosts is not None:
        hosts.agree("request", jsonable(description), FIRST_SECONDS)
        if not hosts.first:
            take_part(_work(request), partial, functools.partial(_drafts, request, description), hosts)
            return None
    finished = _finished_before(target, request, description)
    if finished is not None:
        if hosts is not None:
            tell_nothing(hosts)
        return finished
    check_target(target, *(_local(checkpoint) for checkpoint in (request.base, request.post)))
    for checkpoint in (request.base, request.post):
        _refuse_within(target, checkpoint)
    with contextlib.ExitStack() as stack:
        try:
            with disk_errors(target):
                journal = stack.enter_context(Journal(partial, description))
                journal.take_parts()
                drafts = _prepared_drafts(request, journal, description)
                work = _work(request)
                stacks = plan_stacks(work, journal.finished)
                warning = memory_warning(stacks, work.memory_bytes)
                if warning and progress:
                    print(warning, file=sys.stderr, flush=True)
                if progress and request.keep_base and stacks:
                    print(kept_line(stacks, request.keep_base), file=sys.stderr, flush=True)
                if hosts is not None:
                    edit_together(work, stacks, drafts, journal, hosts)
                else:
                    with Progress(stacks, sys.stderr if progress else None) as shown:
                        run_stacks(work, stacks, drafts, lambda _, rows: journal.add(rows), shown)
                rows = _in_order(journal.rows, request.targets)
                for draft, strength in zip(drafts, request.settings.strengths, strict=True):
                    mine = [row for row in rows if row["strength"] == strength]
                    draft.finish({PROVENANCE_FILE: _provenance(request, description, strength, mine)})
                if target.is_dir():
                    target.rmdir()  # it is empty
                journal.drafts.rename(target)
                sync(target.parent)
        except CheckpointError as error:
            _drop_if_empty(partial)
            raise error
    shutil.rmtree(partial, ignore_errors=True)
    return _edited(request, target, rows)


def _work(request: EditRequest) -> Work:
    return Work(request.base, request.post, request.targets, request.settings, request.memory_bytes, request.keep_base)


def _drafts(request: EditRequest, description: Mapping[str, Any], drafts: pathlib.Path) -> list[Draft]:
    """One for each strength, in a folder that is to hold all."""
    settings, edited = request.settings, {pair.post.tensor for pair in request.targets.pairs}
    edited |= {name for original in request.targets.copies.values() for name in original}
    opened = []
    for strength in settings.strengths:
        folder = drafts / _folder_name(strength) if settings.several else drafts
        metadata = {METADATA_KEY: json.dumps(jsonable({**description, "strengths": strength}))}
        opened.append(open_draft(request.post, folder, edited, dtype=settings.dtype, metadata=metadata))
    return opened


def _prepared_drafts(request: EditRequest, journal: Journal, description: Mapping[str, Any]) -> list[Draft]:
    drafts = _drafts(request, description, journal.drafts)
    if current() is not None and not all(draft.shared for draft in drafts):
        raise CheckpointError(
            f"{request.post.location}: several processes can write safetensors alone; it is {request.post.format}. "
            "Give --distributed=off, on one host"
        )
    if journal.prepared and all(draft.lasts for draft in drafts):
        return drafts
    shutil.rmtree(journal.drafts, ignore_errors=True)
    first = drafts[0]
    if isinstance(first, SafetensorsDraft):
        first.check_space(journal.folder, len(drafts))
    for draft in drafts:
        draft.prepare()
    journal.begin()
    return drafts


def _folder_name(strength: float) -> str:
    return f"strength-{strength:g}"


def _describe(request: EditRequest) -> dict[str, Any]:
    """What is done, JSON-ready: the same for an edit that is resumed."""
    environment = describe_environment()
    sides = {"post": request.post} if request.alone else {"base": request.base, "post": request.post}
    return {
        **request.settings.describe(),
        "strengths": list(request.settings.strengths),
        **{
            side: {"location": checkpoint.location, "fingerprint": checkpoint.fingerprint()}
            for side, checkpoint in sides.items()
        },
        "selection": request.selection.describe(),
        "role_map": request.role_map.describe() if request.role_map else None,
        "measured": request.settings.measure,
        "matrices": len(request.targets.pairs),
        "polarax": environment["versions"]["polarax"],
    }


def _provenance(
    request: EditRequest, description: Mapping[str, Any], strength: float, rows: Sequence[Mapping[str, Any]]
) -> bytes:
    content = {
        **description,
        "strength": strength,
        "weight": request.settings.kind.weight,
        "environment": describe_environment(),
        "notes": request.targets.notes,
        "edited": rows,
        "left": [row._asdict() for row in request.targets.left],
    }
    return (json.dumps(jsonable(content), indent=1, allow_nan=False) + "\n").encode()


def _finished_before(target: pathlib.Path, request: EditRequest, description: Mapping[str, Any]) -> Edited | None:
    """What a finished edit of the same wrote there; None if there is none."""
    rows: list[Mapping[str, Any]] = []
    for strength in request.settings.strengths:
        folder = target / _folder_name(strength) if request.settings.several else target
        try:
            content = json.loads((folder / PROVENANCE_FILE).read_text(encoding="utf-8"))
            rows += content["edited"]
        except (OSError, ValueError, KeyError, TypeError):
            return None
        if any(content.get(name) != value for name, value in jsonable(description).items()):
            return None
    return _edited(request, target, rows)


def _edited(request: EditRequest, target: pathlib.Path, rows: Sequence[Mapping[str, Any]]) -> Edited:
    settings = request.settings
    folders = {t: target / _folder_name(t) if settings.several else target for t in settings.strengths}
    return Edited(target, tuple(_in_order(rows, request.targets)), folders, request.alone, request.targets.notes)


def _in_order(rows: Sequence[Mapping[str, Any]], targets: Targets) -> list[Mapping[str, Any]]:
    place = {pair.name: index for index, pair in enumerate(targets.pairs)}
    return sorted(rows, key=lambda row: place.get(row["name"], 0))


def _local(checkpoint: Checkpoint) -> str | None:
    path = local_path(checkpoint.location) if "://" not in checkpoint.location else None
    return None if path is None else path if os.path.isdir(path) else os.path.dirname(path)


def _refuse_within(target: pathlib.Path, checkpoint: Checkpoint) -> None:
    """Refuses an output in the folder of a checkpoint, or around it; beside a single file is well."""
    path = local_path(checkpoint.location) if "://" not in checkpoint.location else None
    if path is None:
        return
    source, real = pathlib.Path(os.path.realpath(path)), pathlib.Path(os.path.realpath(target))
    if source.is_dir() and source in real.parents:
        raise CheckpointError(f"{target}: is inside of {path}, which is read; choose another folder")
    if real in source.parents:
        raise CheckpointError(f"{target}: holds {path}, which is read; choose another folder")


def _drop_if_empty(partial: pathlib.Path) -> None:
    """Removes the folder of an edit that was refused before anything was prepared."""
    if partial.is_dir() and not (partial / "checkpoint").exists():
        shutil.rmtree(partial, ignore_errors=True)
