"""The texts at the beginning of safetensors files and of an index, changed where the data behind them is."""

import json
from collections.abc import Mapping, Sequence

import numpy as np

from polarax.loaders.dtypes import spelling_of
from polarax.loaders.formats.safetensors_header import Entry, parse_json_object

_ALIGNMENT = 8  # of the data, as the reference implementation pads its headers with spaces


def with_dtypes(header: bytes, entries: Sequence[Entry], dtypes: Mapping[str, np.dtype]) -> bytes:
    """A header in which some tensors have other dtypes, and all the offsets that follow from it."""
    table = json.loads(header)  # checked when it was read
    position = 0
    for entry in entries:
        item = table[entry.name]
        size = entry.stop - entry.start
        if entry.name in dtypes:
            dtype = dtypes[entry.name]
            item["dtype"] = spelling_of(dtype)
            size = int(np.prod(entry.shape, dtype=object)) * dtype.itemsize
        item["data_offsets"] = [position, position + size]
        position += size
    return _padded(table)


def with_metadata(header: bytes, strings: Mapping[str, str]) -> bytes:
    """A header with some more strings in its metadata, of which "format" is one that PyTorch's readers insist on."""
    if not strings:
        return header
    table = json.loads(header)
    metadata = {"format": "pt", **table.pop("__metadata__", {}), **strings}
    return _padded({"__metadata__": metadata, **table})


def _padded(table: dict) -> bytes:
    text = json.dumps(table, separators=(",", ":"), ensure_ascii=False).encode()
    return text + b" " * (-len(text) % _ALIGNMENT)


def with_total_size(index: bytes, change: int) -> bytes:
    """An index whose total size, if it has one, is that of the new data."""
    table = parse_json_object(index, "index")
    metadata = table.get("metadata")
    if not isinstance(metadata, dict) or type(metadata.get("total_size")) is not int:
        return index
    metadata["total_size"] += change
    return json.dumps(table, indent=2, ensure_ascii=False).encode() + b"\n"
