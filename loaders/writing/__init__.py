"""Checkpoints written like ones that were read: copies with some tensors replaced, and drafts that are edited."""

import pathlib
from collections.abc import Callable, Collection, Mapping
from typing import Any

from polarax.loaders.checkpoint import Checkpoint, CheckpointError
from polarax.loaders.dtypes import is_floating
from polarax.loaders.formats.msgpack_checkpoint import MsgpackCheckpoint
from polarax.loaders.formats.orbax_checkpoint import OrbaxCheckpoint
from polarax.loaders.formats.safetensors_checkpoint import SafetensorsCheckpoint
from polarax.loaders.scaled_checkpoint import ScaledCheckpoint
from polarax.loaders.writing.copies import Replacement, write_checkpoint
from polarax.loaders.writing.draft import Draft
from polarax.loaders.writing.msgpack_draft import MsgpackDraft
from polarax.loaders.writing.orbax_draft import OrbaxDraft
from polarax.loaders.writing.rounding import rounded
from polarax.loaders.writing.safetensors_draft import SafetensorsDraft

__all__ = ["Draft", "Replacement", "open_draft", "rounded", "write_checkpoint"]

_CONVERT = "convert it to safetensors in bfloat16 first"


def open_draft(
    source: Checkpoint,
    folder: pathlib.Path,
    edited: Collection[str],
    *,
    dtype: Any = None,
    metadata: Mapping[str, str] | None = None,
) -> Draft:
    """The draft of a checkpoint like `source`; nothing is written yet.

    Args:
        source: What `open_checkpoint` gave.
        folder: To write into; it does not exist, or was prepared by an earlier process.
        edited: Tensors that are replaced, all or a part.
        dtype: That these are stored in, of safetensors; by default each keeps its own.
        metadata: Strings to add to the metadata of the files, where the format has any.

    Raises:
        CheckpointError: If there is no such tensor, one cannot be written as it is stored, or the format cannot be.
    """
    for name in edited:
        if source.is_decoded(name) or source.undecoded(name) or not is_floating(source.dtype(name)):
            raise CheckpointError(
                f"{source.location}: tensor {name!r} is stored as {source.dtype_name(name)}, which cannot be written "
                f"back; leave it out, or {_CONVERT}"
            )
    stored_names: Callable[[str], str] = str
    if isinstance(source, ScaledCheckpoint):
        stored_names, source = source.stored_name, source.stored
    if isinstance(source, SafetensorsCheckpoint):
        return SafetensorsDraft(source, folder, edited, dtype, metadata or {}, stored_names)
    if dtype is not None:
        raise CheckpointError(
            f"{source.location}: another dtype is written to safetensors alone; it is {source.format}"
        )
    if isinstance(source, OrbaxCheckpoint):
        return OrbaxDraft(source, folder, edited)
    if isinstance(source, MsgpackCheckpoint):
        return MsgpackDraft(source, folder, edited)
    raise CheckpointError(
        f"{source.location}: only safetensors, Orbax and Flax checkpoints are written; it is {source.format}: "
        f"{_CONVERT}"
    )
