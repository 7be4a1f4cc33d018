"""Arrays of a run directory: zarr3 through tensorstore."""

import os
import re

import numpy as np
import tensorstore as ts


def write_array(path: str | os.PathLike, values: np.ndarray) -> None:
    """Writes one zarr3 array at `path`, replacing what is there.

    Raises:
        OSError: It cannot be written: a full disk, say.
    """
    values = np.ascontiguousarray(values)
    try:
        store = ts.open(
            _spec(path),
            create=True,
            delete_existing=True,
            dtype=values.dtype,
            shape=values.shape,
            chunk_layout=ts.ChunkLayout(chunk_shape=[max(1, length) for length in values.shape]),
        ).result()
        store.write(values).result()
    except ValueError as error:  # what TensorStore makes of every failure of a file system
        raise os_error(error) from error


def os_error(error: BaseException) -> OSError:
    """The system's own error where TensorStore's message, of many lines, names it."""
    code = re.search(r"os_error_code='(\d+)'", str(error))
    return OSError(int(code[1]), os.strerror(int(code[1]))) if code else OSError(" ".join(str(error).split()))


def read_array(path: str | os.PathLike, row: int | None = None) -> np.ndarray:
    """Reads a zarr3 array, or one row of it."""
    store = ts.open(_spec(path), open=True, read=True).result()
    return np.asarray((store if row is None else store[row]).read().result())


def _spec(path):
    return {"driver": "zarr3", "kvstore": {"driver": "file", "path": os.path.abspath(path) + "/"}}
