"""The header of a safetensors file: what it promises, checked before any data is read.

A file is 8 bytes (the header's length, little-endian), the header (a JSON object of name to dtype,
shape and data offsets), and the data, which the tensors must cover without gaps or overlaps
(https://github.com/huggingface/safetensors, section Format). Files are untrusted: everything here
is judged by pure functions of bytes, and every failure names the file and the tensor.
"""

import json
import math
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

from polarax.loaders.checkpoint import CheckpointError
from polarax.loaders.dtypes import bits_of

LENGTH_BYTES = 8
"""Bytes before the header; they hold its length."""

MAX_HEADER_BYTES = 100_000_000
"""The limit of the reference implementation (`MAX_HEADER_SIZE` in its tensor.rs)."""

_LFS_POINTER = b"version "  # how the text begins that Git LFS puts in place of a file

_MAX_AXES = 64  # NumPy 2 has arrays of up to 64 axes
_MAX_BYTES = 2**63 - 1  # sizes and offsets beyond it are no longer machine integers


class Entry(NamedTuple):
    """One tensor as a header describes it."""

    name: str
    dtype: str  # spelling of the file: "BF16"
    shape: tuple[int, ...]
    start: int  # first byte in the file
    stop: int  # one past its last byte


class Header(NamedTuple):
    """What a header says."""

    entries: tuple[Entry, ...]  # in the order of their data
    metadata: dict[str, str]  # what the writer added


def header_length(prefix: bytes, file: str, size: int | None) -> int:
    """Length of the header in bytes, from the first 8 bytes of a file.

    Args:
        prefix: Those bytes; fewer if the file has no more.
        file: The file, for messages.
        size: Its size in bytes, if known.

    Raises:
        CheckpointError: If the file is too short, or the length is beyond the limit or beyond the
            file.
    """
    if len(prefix) < LENGTH_BYTES:
        problem = "is empty" if not prefix else f"has only {len(prefix)} bytes"
        raise CheckpointError(f"{file}: {problem}; expected a safetensors file")
    if prefix == _LFS_POINTER:
        raise CheckpointError(f"{file}: is a pointer of Git LFS and not the file itself: fetch it by git lfs pull")
    length = int.from_bytes(prefix, "little")
    if length > MAX_HEADER_BYTES:
        raise CheckpointError(
            f"{file}: not a safetensors file: its header would be {length} bytes long (limit {MAX_HEADER_BYTES})"
        )
    if size is not None and LENGTH_BYTES + length > size:
        raise CheckpointError(
            f"{file}: is truncated: its header ends at byte {LENGTH_BYTES + length}, the file at {size}"
        )
    return length


def parse_header(header: bytes, file: str, size: int | None) -> tuple[Entry, ...]:
    """The tensors that a header describes, in the order of their data; see `read_header`."""
    return read_header(header, file, size).entries


def read_header(header: bytes, file: str, size: int | None) -> Header:
    """The tensors that a header describes, and the writer's metadata.

    Args:
        header: The JSON text that follows the first 8 bytes.
        file: The file, for messages.
        size: Its size in bytes, if known.

    Raises:
        CheckpointError: If the header is not what the format prescribes, or the file is not as long
            as it says.
    """
    if not header.startswith(b"{"):  # the format allows white space after the object only
        raise CheckpointError(f"{file}: not a safetensors file: its header does not begin with {{")
    table = parse_json_object(header, f"{file}: header")
    metadata = table.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise CheckpointError(f"{file}: __metadata__ must be an object of strings")
    data_start = LENGTH_BYTES + len(header)
    entries = [_entry(name, value, file, data_start) for name, value in table.items()]
    entries.sort(key=lambda entry: (entry.start, entry.stop))
    _check_cover(entries, file, data_start, size)
    return Header(tuple(entries), metadata)


def parse_json_object(text: bytes, subject: str) -> dict[str, Any]:
    """A JSON object in strict UTF-8 without duplicate keys.

    Args:
        text: The JSON text.
        subject: What it is, for messages.

    Raises:
        CheckpointError: If it is anything else.
    """
    try:
        value = json.loads(text.decode("utf-8"), object_pairs_hook=_without_duplicates, parse_constant=_no_constant)
        if b"\\u" in text:  # half a surrogate pair, which only an escape can bring here, is no text
            json.dumps(value, ensure_ascii=False).encode()
    except RecursionError:
        raise CheckpointError(f"{subject} is nested too deeply") from None
    except ValueError as error:  # of the decoder, of the parser, of the two hooks, or of the encoder
        raise CheckpointError(f"{subject} is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{subject} must be a JSON object. Got {type(value).__name__}")
    return value


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) < len(pairs):
        counts = Counter(key for key, _ in pairs)
        raise ValueError(f"duplicate key {next(key for key, count in counts.items() if count > 1)!r}")
    return table


def _no_constant(literal: str) -> Any:
    raise ValueError(f"{literal} is not a JSON value")


def _entry(name: str, value: Any, file: str, data_start: int) -> Entry:
    """The checked entry of one tensor."""
    subject = f"{file}: tensor {name!r}"
    if not isinstance(value, dict):
        raise CheckpointError(f"{subject}: expected an object with dtype, shape, data_offsets")
    try:
        dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    except KeyError as missing:
        raise CheckpointError(f"{subject}: {missing.args[0]} is missing") from None
    if not isinstance(dtype, str):
        raise CheckpointError(f"{subject}: dtype must be a string. Got {_brief(dtype)}")
    if not isinstance(shape, list) or len(shape) > _MAX_AXES or not _are_sizes(shape):
        raise CheckpointError(
            f"{subject}: shape must be at most {_MAX_AXES} integers of 0 or more. Got {_brief(shape)}"
        )
    if not isinstance(offsets, list) or len(offsets) != 2 or not _are_sizes(offsets):
        raise CheckpointError(f"{subject}: data_offsets must be two integers of 0 or more. Got {_brief(offsets)}")
    start, stop = offsets
    if start > stop:
        raise CheckpointError(f"{subject}: data_offsets run backwards: {_brief(offsets)}")

    bits = bits_of(dtype)
    # Zeros are left out of this product: NumPy refuses (0, 2**62, 2**62) too.
    if math.prod(filter(None, shape)) * max(bits or 8, 8) > 8 * _MAX_BYTES:
        raise CheckpointError(f"{subject}: shape {_brief(shape)} is beyond any memory")
    if bits is not None and math.prod(shape) * bits != 8 * (stop - start):
        raise CheckpointError(
            f"{subject}: {dtype} of shape {_brief(shape)} takes {math.prod(shape) * bits / 8:.15g} "
            f"bytes, data_offsets hold {stop - start}"
        )
    return Entry(name, dtype, tuple(shape), data_start + start, data_start + stop)


def _are_sizes(values: list) -> bool:
    """Whether all are integers in bounds; bool is an int too, and not wanted."""
    return not values or (set(map(type, values)) == {int} and min(values) >= 0 and max(values) <= _MAX_BYTES)


def _brief(value: Any) -> str:
    """`value` for a message, cut short: it comes from the file and may be huge."""
    text = json.dumps(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _check_cover(entries: Sequence[Entry], file: str, data_start: int, size: int | None) -> None:
    """Checks that the entries, sorted by offset, cover the data without gaps or overlaps."""
    end = data_start
    last: Entry | None = None
    for entry in entries:
        if entry.start == end and (size is None or entry.stop <= size):
            end, last = entry.stop, entry
            continue
        subject = f"{file}: tensor {entry.name!r}"
        before = "the header" if last is None else repr(last.name)
        if size is not None and entry.stop > size:
            raise CheckpointError(
                f"{subject} ends at byte {entry.stop}, the file at {size}: it is truncated or its header wrong"
            )
        if entry.start < end:
            raise CheckpointError(f"{subject} begins at byte {entry.start} and overlaps {before}, which ends at {end}")
        raise CheckpointError(f"{subject} begins at byte {entry.start}; expected {end}, where {before} ends")
    if size is not None and size > end:
        before = "the header" if last is None else repr(last.name)
        raise CheckpointError(f"{file}: has {size - end} bytes after {before}, which belong to no tensor")
