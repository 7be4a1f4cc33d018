"""Files to read, written byte by byte or by the reference library."""

import json
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

SPELLINGS = {
    "float64": "F64",
    "float32": "F32",
    "float16": "F16",
    "bfloat16": "BF16",
    "float8_e4m3fn": "F8_E4M3",
    "float8_e5m2": "F8_E5M2",
    "int64": "I64",
    "int32": "I32",
    "int16": "I16",
    "int8": "I8",
    "uint64": "U64",
    "uint32": "U32",
    "uint16": "U16",
    "uint8": "U8",
    "bool": "BOOL",
}


@pytest.fixture(scope="session")
def dtypes() -> dict[str, np.dtype]:
    """Safetensors' spelling of every dtype that can be read, and the dtype itself."""
    return {
        spelling: np.dtype(getattr(np, name, None) or getattr(ml_dtypes, name)) for name, spelling in SPELLINGS.items()
    }


@pytest.fixture
def save() -> Callable[[pathlib.Path, Mapping[str, np.ndarray]], pathlib.Path]:
    """Writes arrays with the reference library."""

    def write(path: pathlib.Path, arrays: Mapping[str, np.ndarray]) -> pathlib.Path:
        safetensors.numpy.save_file(dict(arrays), path)
        return path

    return write


@pytest.fixture
def save_raw() -> Callable[..., pathlib.Path]:
    """Writes a header, true or false, and data."""

    def write(path: pathlib.Path, header: Any, data: bytes = b"", length: int | None = None):
        text = header if isinstance(header, bytes) else json.dumps(header).encode()
        size = len(text) if length is None else length
        path.write_bytes(size.to_bytes(8, "little") + text + data)
        return path

    return write
