"""Checkpoints in safetensors files: headers first, tensors by byte range."""

import functools
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from polarax.loaders.byte_runs import ByteRun, Extent, plan_byte_runs
from polarax.loaders.checkpoint import Checkpoint, CheckpointError, Read, TensorInfo, Wanted, check_out
from polarax.loaders.config import read_adapter_config, read_config
from polarax.loaders.dtypes import dtype_of
from polarax.loaders.formats.safetensors_header import LENGTH_BYTES, Entry
from polarax.loaders.slices import ElementRun, Index, plan_run
from polarax.loaders.stores.store import Store

LOCAL_GAP = 64 * 1024
"""Bytes between two tensors of a local file that are read along: about what a disk reads ahead anyway."""

REMOTE_GAP = 1 << 20
"""The same over a network: what it sends in the time that a request takes (some 50 ms at 20 MB/s)."""

# Bytes of a run: short enough for several threads to share the work of a window, long enough for a
# request to be worth it.
_LONGEST_RUN = 32 << 20

_OF_META = ".attention.wq"  # in names of Meta and Mistral, whose configuration is in another file


class SafetensorsCheckpoint(Checkpoint):
    """The tensors of one or more safetensors files."""

    def __init__(
        self,
        location: str,
        store: Store,
        entries: dict[str, tuple[str, Entry]],
        index_file: str | None = None,
        *,
        notes: tuple[str, ...] = (),
        aliases: Mapping[str, str] | None = None,
    ):
        """Lists tensors whose headers have been read.

        Args:
            location: What the user gave, for messages.
            store: Holds the files.
            entries: File and header entry of each tensor.
            index_file: The index, if there is one.
            notes: What to say of the choice of files.
            aliases: Names that are not stored, each with the stored tensor that has its values.
        """
        infos = {name: _info(entry) for name, (_, entry) in entries.items()}
        super().__init__(location, "safetensors", infos)
        self._store = store
        self._entries = entries
        self.index_file = index_file
        self._notes = notes
        self._aliases = dict(aliases or {})

    @property
    def notes(self) -> tuple[str, ...]:
        """Which files beside those that are read were passed over, and why."""
        return self._notes

    @property
    def aliases(self) -> Mapping[str, str]:
        """What the writer left out as it was another tensor too, such as a head tied to its embedding."""
        return self._aliases

    @functools.cached_property
    def config(self) -> Mapping[str, Any] | None:  # type: ignore[override]
        """The object in config.json beside the files, or in params.json; None if there is none that can be read."""
        return read_config(self._store, meta=any(_OF_META in name for name in self._tensors))

    @functools.cached_property
    def file_metadata(self) -> Mapping[str, str]:  # type: ignore[override]
        """The strings in the headers of all files, which are read anew for them; of two for one key the last one."""
        texts = (self.header(file) for file in self.shards())
        return {key: value for text in texts for key, value in json.loads(text).get("__metadata__", {}).items()}

    @functools.cached_property
    def adapter_config(self) -> Mapping[str, Any] | None:  # type: ignore[override]
        """The object in adapter_config.json beside the files; None if there is none, or it cannot be read."""
        return read_adapter_config(self._store)

    def read(self, name: str, index: Index = None) -> Read:
        """Starts to read a tensor, or part of it; see `Checkpoint.read`. The array is read-only."""
        return self._start(self._part(name, index))

    def read_into(self, name: str, out: np.ndarray, index: Index = None) -> Read:
        """Starts to read into an array of the caller; see `Checkpoint.read_into`."""
        return self.read_many([Wanted(name, index, out)])[0]

    def read_many(self, wanted: Sequence[Wanted]) -> list[Read]:
        """Starts to read several tensors, joined to runs; see `Checkpoint.read_many`."""
        parts = [self._part(name, index) for name, index, _ in wanted]
        for part, (_, _, out) in zip(parts, wanted, strict=True):
            if out is not None:
                check_out(out, part.wanted_shape, part.dtype, part.subject)
        gap = LOCAL_GAP if self._store.is_local else REMOTE_GAP
        runs = plan_byte_runs([part.extent for part in parts], gap, _LONGEST_RUN)
        reads: dict[int, Read] = {}
        for run in runs:
            if len(run.parts) == 1 and wanted[run.parts[0]].out is None:
                reads[run.parts[0]] = self._start(parts[run.parts[0]])
            else:
                reads.update(self._start_run(run, parts, wanted))
        for index, (part, item) in enumerate(zip(parts, wanted, strict=True)):
            if index not in reads:  # no bytes
                read = self._start(part)
                reads[index] = read if item.out is None else read.into(item.out)
        return [reads[index] for index in range(len(wanted))]

    def shards(self) -> dict[str, list[Entry]]:
        """The files, with the tensors in each in the order of their data. Files without tensors are not among them."""
        shards: dict[str, list[Entry]] = {}
        for file, entry in self._entries.values():
            shards.setdefault(file, []).append(entry)
        return shards

    def header(self, file: str) -> bytes:
        """The JSON text at the beginning of a file, read anew.

        Raises:
            CheckpointError: If it cannot be read.
        """
        prefix = self._store.wait(self._store.read(file, 0, LENGTH_BYTES), file)
        if prefix is not None:
            stop = LENGTH_BYTES + int.from_bytes(prefix.tobytes(), "little")
            text = self._store.wait(self._store.read(file, LENGTH_BYTES, stop), file)
            if text is not None:
                return text.tobytes()
        raise CheckpointError(f"{self._store.path(file)}: the file is gone")

    def extent(self, name: str) -> Extent:
        """File and bytes of a whole tensor."""
        self._info(name)
        file, entry = self._entries[name]
        return Extent(file, entry.start, entry.stop)

    @property
    def store(self) -> Store:
        """Holds the files."""
        return self._store

    def _part(self, name: str, index: Index) -> "_Part":
        dtype = self._readable_dtype(name)
        file, entry = self._entries[name]
        run = plan_run(entry.shape, index)
        start = entry.start + run.start * dtype.itemsize
        stop = entry.start + run.stop * dtype.itemsize
        return _Part(run, dtype, Extent(file, start, stop), f"{self._store.path(file)}: tensor {name!r}")

    def _start(self, part: "_Part") -> Read:
        """Starts to read one part; its bytes are allocated when its turn comes."""
        return Read(self._store.read(*part.extent), part.decode, part.subject)

    def _start_run(self, run: ByteRun, parts: Sequence["_Part"], wanted: Sequence[Wanted]) -> dict[int, Read]:
        """Starts to read several parts at once, each into where it is wanted, gaps into what is dropped."""
        buffers: list[memoryview] = []
        decoders: dict[int, Callable[[Any], np.ndarray]] = {}
        position = run.start
        for index in run.parts:
            part, out = parts[index], wanted[index].out
            if part.extent.start > position:
                buffers.append(memoryview(bytearray(part.extent.start - position)))
            position = part.extent.stop
            direct = out is not None and out.flags.c_contiguous and part.is_whole
            data = _bytes_of(out) if out is not None and direct else np.empty(part.nbytes, np.uint8)
            buffers.append(data.data)
            decoders[index] = part.filled(data, out, direct)
        future = self._store.fill(run.file, run.start, buffers)
        return {index: Read(future, decode, parts[index].subject) for index, decode in decoders.items()}


class _Part(NamedTuple):
    """The bytes of (part of) a tensor, and what they mean."""

    run: ElementRun
    dtype: np.dtype
    extent: Extent
    subject: str

    @property
    def nbytes(self) -> int:
        return self.extent.stop - self.extent.start

    @property
    def wanted_shape(self) -> tuple[int, ...]:
        return tuple(len(range(*cut.indices(size))) for cut, size in zip(self.run.cut, self.run.shape, strict=True))

    @property
    def is_whole(self) -> bool:
        """Whether all the bytes that are read are wanted, in their order."""
        return self.wanted_shape == self.run.shape and all((cut.step or 1) > 0 for cut in self.run.cut)

    def decode(self, data: np.ndarray | None) -> np.ndarray:
        """The wanted array, of the bytes that `Store.read` gives, without a copy."""
        if data is None:
            raise CheckpointError(f"{self.subject}: the file is gone")
        everything: tuple[Any, ...] = (*self.run.cut, ...)  # an array even if there is one element alone
        array = data.view(self.dtype).reshape(self.run.shape)[everything]
        array.flags.writeable = False
        return array

    def filled(self, data: np.ndarray, out: np.ndarray | None, direct: bool) -> Callable[[Any], np.ndarray]:
        """What gives the wanted array when `data` has been filled, directly into `out` or not."""

        def decode(filled: bool) -> np.ndarray:
            if not filled:
                raise CheckpointError(f"{self.subject}: the file is gone")
            if out is None:
                return self.decode(data)
            if not direct:
                out[...] = self.decode(data)
            return out

        return decode


def _bytes_of(array: np.ndarray) -> np.ndarray:
    """The memory of a C-contiguous array, as bytes."""
    return array.reshape(-1).view(np.uint8)


def _info(entry: Entry) -> TensorInfo:
    return TensorInfo(entry.shape, *_dtype_and_name(entry.dtype), entry.stop - entry.start)


@functools.lru_cache  # NumPy makes a dtype's name anew each time; a checkpoint has few of them and very many tensors
def _dtype_and_name(spelling: str) -> tuple[np.dtype | None, str]:
    dtype = dtype_of(spelling)
    return dtype, spelling if dtype is None else dtype.name
