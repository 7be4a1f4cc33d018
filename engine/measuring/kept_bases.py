"""Bases that are kept decomposed, for the next comparison with them: other posts, other metrics, the next step.

A decomposition is looked up by the matrix's own bytes as they are stored, not by where it came from: a base that was
changed in any way is another one, and one that was copied or renamed is not. Besides these the key has everything that
the numbers depend on: dtypes, shape, method, and the versions and source of what computes. What another version wrote
is never read.

One file for each matrix, with a digest of its arrays: written whole or not at all, read when its stack's turn comes.
Files that are torn, broken or of another shape are made again. There is no lock: two processes that keep the same
matrix write the same file, and the later one takes its place in one step.
"""

import contextlib
import hashlib
import json
import math
import os
import pathlib
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from polarax.errors import UsageError
from polarax.kernels.gram import RightFrame
from polarax.kernels.methods.gram_route import Base, Decomposed
from polarax.measuring.program_cache import source_digest, versions
from polarax.planning.measurement import Measurement
from polarax.planning.stacks import Stack

ENDING = ".base"
PARTIAL = ".partial"
ABANDONED = 3600  # seconds after which a file that is still partial has no writer any more

_MAGIC = b"polarax base 1\n"
_DIGEST = hashlib.sha256().digest_size
_LARGEST_HEADER = 1 << 16  # bytes
_FLOAT = np.dtype(np.float64).itemsize  # of all that is kept


class Form(NamedTuple):
    """What a decomposition depends on beside the matrix itself."""

    method: str  # how it is decomposed
    dtype: str  # working dtype
    versions: str  # of what computes: packages, and the digest of this package's source


def form_of(measurement: Measurement) -> Form | None:
    """What decompositions of a run depend on; None if the source that computes them was changed since it was loaded."""
    source = source_digest()
    return None if source is None else Form(measurement.method, measurement.dtype, f"{versions()} source {source}")


class KeptBases:
    """A folder of decomposed matrices.

    Args:
        folder: Where they are; it is made when the first is written.
        form: What they were computed with.
    """

    def __init__(self, folder: str | os.PathLike, form: Form):
        self._folder, self._form = pathlib.Path(folder).expanduser(), form

    def name_of(self, matrix: np.ndarray) -> str:
        """The name of a matrix's file.

        Args:
            matrix: (m, n) in its stored dtype, as it is computed. All its bytes are read, about a second a GiB: the
                fingerprint of a checkpoint costs less, but sees samples alone.
        """
        digest = hashlib.sha256(matrix.dtype.name.encode())
        digest.update(_bytes_of(np.ascontiguousarray(matrix)))
        return self._prefix(matrix.shape) + digest.hexdigest() + ENDING

    def may_have(self, shape: Sequence[int]) -> bool:
        """Whether there is any matrix of that shape, in this form."""
        return any(self._folder.glob(f"{self._prefix(shape)}*{ENDING}"))

    def read(self, name: str, shapes: Mapping[str, Sequence[int]]) -> dict[str, np.ndarray] | None:
        """The arrays of a matrix, float64; None if they are not there, or not whole.

        Args:
            name: From `name_of`.
            shapes: What arrays there are, and their shapes.
        """
        try:
            with open(self._folder / name, "rb") as file:
                return _read(file, name, {kind: tuple(shape) for kind, shape in shapes.items()})
        except OSError:
            return None

    def write(self, name: str, arrays: Mapping[str, np.ndarray]) -> None:
        """Keeps the arrays of a matrix, float64.

        Raises:
            UsageError: The folder cannot be written.
        """
        content = {kind: np.asarray(values, np.float64, order="C") for kind, values in arrays.items()}
        header = json.dumps({"name": name, "shapes": {kind: values.shape for kind, values in content.items()}}).encode()
        digest = hashlib.sha256(header)
        temporary = None
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._remove_abandoned()
            descriptor, temporary = tempfile.mkstemp(suffix=PARTIAL, dir=self._folder)
            with open(descriptor, "wb") as file:
                file.write(_MAGIC + len(header).to_bytes(8, "little") + header)
                for values in content.values():
                    digest.update(_bytes_of(values))
                    file.write(_bytes_of(values))
                file.write(digest.digest())
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, self._folder / name)
        except OSError as error:
            if temporary is not None:
                with contextlib.suppress(OSError):
                    os.unlink(temporary)
            raise UsageError(f"Bases cannot be kept at {self._folder}: {error.strerror or error}.") from error

    def _prefix(self, shape):
        about = hashlib.sha256(json.dumps(self._form).encode()).hexdigest()[:16]
        return f"{about}-{'x'.join(map(str, shape))}-"

    def _remove_abandoned(self) -> None:
        for path in self._folder.glob(f"*{PARTIAL}"):
            with contextlib.suppress(OSError):
                if path.stat().st_mtime < time.time() - ABANDONED:
                    path.unlink()


def _read(file, name, shapes):
    """The arrays of an open file; None if it is not whole, or not of this name and these shapes."""
    if file.read(len(_MAGIC)) != _MAGIC:
        return None
    length = int.from_bytes(file.read(8), "little")
    if length > _LARGEST_HEADER:
        return None
    header = file.read(length)
    expected = {"name": name, "shapes": {kind: list(shape) for kind, shape in shapes.items()}}
    try:
        if json.loads(header) != expected:
            return None
    except ValueError:
        return None
    body = sum(math.prod(shape) for shape in shapes.values()) * _FLOAT
    if os.fstat(file.fileno()).st_size != len(_MAGIC) + 8 + length + body + _DIGEST:
        return None  # before memory is taken for it
    digest = hashlib.sha256(header)
    arrays = {}
    for kind in json.loads(header)["shapes"]:
        arrays[kind] = np.empty(shapes[kind], np.float64)
        part = _bytes_of(arrays[kind])
        if file.readinto(part) != part.nbytes:
            return None
        digest.update(part)
    return arrays if file.read() == digest.digest() else None


def _bytes_of(array: np.ndarray) -> memoryview:
    """The bytes of an array that is contiguous, without a copy."""
    return array.reshape(-1).view(np.uint8).data


class KeptStack:
    """What is kept of the bases of a stack's matrices.

    Args:
        folder: Where.
        bases: (count, m, n) in the stored dtype, on the host.
    """

    def __init__(self, folder: KeptBases, bases: np.ndarray):
        self._folder, self._shapes = folder, kept_shapes(bases.shape[-1])
        self._names = [folder.name_of(base) for base in bases]
        self._there: set[str] = set()

    def load(self) -> Base | None:
        """All of them; None if any is missing."""
        found = []
        for name in self._names:
            arrays = self._folder.read(name, self._shapes)
            if arrays is not None:
                self._there.add(name)
                found.append(arrays)
        if len(found) < len(self._names):
            return None
        arrays = {kind: np.stack([arrays[kind] for arrays in found]) for kind in self._shapes}
        return _base({**arrays, "resolved": arrays["resolved"] > 0, "finite": np.ones(len(found), bool)})

    def store(self, base: Base) -> None:
        """Keeps those that are finite and could not be loaded.

        Raises:
            UsageError: The folder cannot be written.
        """
        frame, finite = jax.device_get((base.decomposed.frame, base.decomposed.finite))
        gram = jax.device_get(base.gram)
        for index, name in enumerate(self._names):
            if finite[index] and name not in self._there:
                kept = {"values": frame.values, "vectors": frame.rows, "gram": gram, "resolved": frame.resolved}
                self._folder.write(name, {kind: arrays[index] for kind, arrays in kept.items()})


class KeptShapes:
    """The same of a stack that is not read yet: shapes and dtypes.

    Args:
        folder: Where.
        bases: (count, m, n), shape and dtype.
    """

    def __init__(self, folder: KeptBases, bases: jax.ShapeDtypeStruct):
        self._folder, self._bases = folder, bases

    def load(self) -> Base | None:
        """What will be loaded, most likely; None if nothing can be there."""
        count, *shape = self._bases.shape
        if not self._folder.may_have(shape):
            return None
        return kept_structure(count, shape[-1])

    def store(self, base: Base) -> None:
        """Nothing is there to be kept."""


def _base(arrays: Mapping[str, Any]) -> Base:
    """The base of a route, of what `kept_shapes` names and whether it is finite."""
    frame = RightFrame(arrays["values"], arrays["vectors"], arrays["resolved"])
    return Base(None, arrays["gram"], Decomposed(frame, arrays["finite"]))


def kept_shapes(columns: int) -> dict[str, tuple[int, ...]]:
    """What is kept of a tall matrix (m, r) by its Gram matrix: singular values, right vectors, the Gram matrix.

    `resolved` is 1 where all singular values are large enough for this route.
    """
    return {"values": (columns,), "vectors": (columns, columns), "gram": (columns, columns), "resolved": ()}


def kept_structure(count: int, columns: int) -> Base:
    """Shapes and dtypes of what `KeptStack` loads for some matrices."""
    kinds = kept_shapes(columns).items()
    arrays = {kind: jax.ShapeDtypeStruct((count, *of_one), np.float64) for kind, of_one in kinds}
    return _base(arrays | dict.fromkeys(("resolved", "finite"), jax.ShapeDtypeStruct((count,), np.bool_)))


def kept_bytes(stacks: Iterable[Stack]) -> int:
    """Bytes that the bases of these stacks take on the disk, to be said beforehand; less where some are the same.

    What is stored in float64 is not kept: what it is divided by depends on the posts.
    """
    total = 0
    for stack in stacks:
        first = stack.members[0]
        if np.float64 not in (first[0].dtype_base, *(pair.dtype_post for pair in first)):
            numbers = sum(math.prod(shape) for shape in kept_shapes(stack.shape[1]).values())
            total += len(stack.pairs) * (numbers * _FLOAT + len(_MAGIC) + 8 + _DIGEST)
    return total


def kept_line(stacks: Iterable[Stack], folder: str | os.PathLike) -> str:
    """One line on what is kept."""
    return f"about {kept_bytes(stacks) / 2**20:.1f} MiB of decomposed bases at {os.fspath(folder)}, once they are kept"
