"""A checkpoint whose scaled weights of one byte are read as what they mean: float32, the stored number times its scale.

Bytes are read as they are stored, together with the scales of those rows, and multiplied when the result is asked for.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from polarax.loaders.checkpoint import Checkpoint, CheckpointError, Read, TensorInfo, Wanted, check_out
from polarax.loaders.scales import Scale, find_scales
from polarax.loaders.slices import Index, axis_slices

_DTYPE = np.dtype(np.float32)

# Elements that are turned into numbers at a time: what is made of them on the way stays in the processor's cache.
_CHUNK = 1 << 16


def with_scales(checkpoint: Checkpoint) -> Checkpoint:
    """The checkpoint with its scaled weights as float32; itself if it has none, and no names of a library's own."""
    scales = find_scales(checkpoint)
    if not scales.known and not scales.renamed:
        return checkpoint
    return ScaledCheckpoint(checkpoint, scales.known, scales.renamed)


class ScaledCheckpoint(Checkpoint):
    """The tensors of another checkpoint, without the scales of its weights, which are in their numbers.

    Each weight has the name that the model has for it, whatever the library called what it stored.

    Attributes:
        stored: The checkpoint as it is stored.
    """

    def __init__(self, stored: Checkpoint, scales: Mapping[str, Scale], renamed: Mapping[str, str] | None = None):
        """Lists what the other checkpoint lists.

        Args:
            stored: The other checkpoint.
            scales: By the name under which a weight is listed; for each that has one.
            renamed: Tensors without a scale that are listed under another name: that one, and their own.
        """
        self.stored = stored
        self._scales = dict(scales)
        self._stored_names = {name: scale.weight for name, scale in scales.items()} | dict(renamed or {})
        listed = {name: other for other, name in self._stored_names.items()}
        hidden = {scale.tensor for scale in scales.values()}
        names = [listed.get(name, name) for name in stored.names() if name not in hidden]
        infos = {name: self._info_of(name) for name in names}
        super().__init__(stored.location, stored.format, infos)

    @property
    def config(self) -> Mapping[str, Any] | None:
        """The other checkpoint's configuration."""
        return self.stored.config

    @property
    def notes(self) -> tuple[str, ...]:
        """The other checkpoint's notes."""
        return self.stored.notes

    @property
    def aliases(self) -> Mapping[str, str]:
        """The other checkpoint's aliases, but those of scales."""
        return {alias: name for alias, name in self.stored.aliases.items() if name in self}

    @property
    def adapter_config(self) -> Mapping[str, Any] | None:
        """The other checkpoint's adapter_config.json."""
        return self.stored.adapter_config

    @property
    def file_metadata(self) -> Mapping[str, str]:
        """The other checkpoint's."""
        return self.stored.file_metadata

    def why_no_array(self, name: str) -> str | None:
        """See `Checkpoint.why_no_array`."""
        return self.stored.why_no_array(self.stored_name(name))

    def row_order(self, name: str) -> str:
        """See `Checkpoint.row_order`."""
        return self.stored.row_order(self.stored_name(name))

    def undecoded(self, name: str) -> str:
        """See `Checkpoint.undecoded`."""
        return self.stored.undecoded(self.stored_name(name))

    def shares_values(self, name: str, other: str) -> bool:
        """Whether two tensors are one array, and so are their scales."""
        pairs = [(self.stored_name(name), self.stored_name(other))]
        scale, scale_other = self._scales.get(name), self._scales.get(other)
        if scale is not None and scale_other is not None:
            pairs.append((scale.tensor, scale_other.tensor))
        return (scale is None) == (scale_other is None) and all(self.stored.shares_values(*pair) for pair in pairs)

    def is_transposed(self, name: str) -> bool:
        """See `Checkpoint.is_transposed`."""
        return self.stored.is_transposed(self.stored_name(name))

    def stored_name(self, name: str) -> str:
        """What the file calls the tensor that is listed under a name."""
        return self._stored_names.get(name, name)

    def is_scaled(self, name: str) -> bool:
        """Whether a tensor is a weight that is stored with a scale."""
        return name in self._scales

    def read(self, name: str, index: Index = None) -> Read:
        """Starts to read a tensor, or part of it; see `Checkpoint.read`."""
        return self.read_many([Wanted(name, index)])[0]

    def read_into(self, name: str, out: np.ndarray, index: Index = None) -> Read:
        """Starts to read into an array of the caller; see `Checkpoint.read_into`."""
        return self.read_many([Wanted(name, index, out)])[0]

    def read_many(self, wanted: Sequence[Wanted]) -> list[Read]:
        """Starts to read several tensors, weights together with their scales; see `Checkpoint.read_many`."""
        asked: list[Wanted] = []
        places: list[tuple[int, int | None]] = []  # in `asked`: of each tensor, and of its scale
        taken: dict[tuple, int] = {}  # several matrices may share a scale
        for item in wanted:
            self._info(item.name)  # what is hidden is not to be read
            scale, asked_of_scale = self._scales.get(item.name), None
            place = len(asked)
            if scale is None:
                asked.append(item._replace(name=self.stored_name(item.name)))
            else:
                positions = self._positions(item.name, item.slices)
                if item.out is not None:
                    check_out(item.out, tuple(map(len, positions)), _DTYPE, f"{self.location}: tensor {item.name!r}")
                asked.append(item._replace(name=scale.weight, out=None))
                part = scale.part(positions)
                key = (scale.tensor, *((cut.start, cut.stop) for cut in part or ()))
                asked_of_scale = taken.setdefault(key, len(asked))
                if asked_of_scale == len(asked):
                    asked.append(Wanted(scale.tensor, part))
            places.append((place, asked_of_scale))
        reads = self.stored.read_many(asked)
        return [
            reads[place] if asked_of_scale is None else self._scaled(item, reads[place], reads[asked_of_scale])
            for item, (place, asked_of_scale) in zip(wanted, places, strict=True)
        ]

    def read_bytes(self, wanted: Wanted) -> int:
        """Bytes that a read takes from the store: those of the weight as it is stored, and of its scales."""
        self._info(wanted.name)
        count = self.stored.read_bytes(wanted._replace(name=self.stored_name(wanted.name)))
        scale = self._scales.get(wanted.name)
        if scale is None:
            return count
        return count + self.stored.read_bytes(
            Wanted(scale.tensor, scale.part(self._positions(wanted.name, wanted.slices)))
        )

    def fingerprint(self) -> str:
        """The digest of the checkpoint as it is stored, scales and all; see `Checkpoint.fingerprint`."""
        return self.stored.fingerprint()

    def _info_of(self, name: str) -> TensorInfo:
        stored, scale, own = self.stored, self._scales.get(name), self.stored_name(name)
        shape, words, nbytes = stored.shape(own), stored.dtype_name(own), stored.nbytes(own)
        if scale is None:
            return TensorInfo(shape, stored.dtype(own), words, nbytes)
        return TensorInfo(shape, _DTYPE, f"{words}, scaled", nbytes + stored.nbytes(scale.tensor))

    def _positions(self, name: str, index: Index) -> list[range]:
        """The positions that are read along each axis of a tensor."""
        shape = self.shape(name)
        return [range(*cut.indices(size)) for cut, size in zip(axis_slices(shape, index), shape, strict=True)]

    def _scaled(self, wanted: Wanted, weight: Read, scale: Read) -> Read:
        """The read of a weight whose bytes and scales are being read."""
        name, index, out = wanted
        layout, shape = self._scales[name], self.shape(name)

        def decode(stored: np.ndarray) -> np.ndarray:
            positions = self._positions(name, index)
            lookups = layout.lookups(shape, positions)
            factors = layout.arrange(scale.result())
            if stored.shape != tuple(map(len, positions)):
                raise CheckpointError(f"{self.location}: tensor {name!r} has shape {stored.shape} when it is read")
            array = np.empty(stored.shape, _DTYPE) if out is None else out
            with np.errstate(over="ignore", invalid="ignore"):
                _multiply(stored, factors, lookups, array)
            return array

        return weight.then(decode)


def _multiply(stored: np.ndarray, factors: np.ndarray, lookups: Sequence[np.ndarray | None], out: np.ndarray) -> None:
    """Fills `out` with numbers of one byte times the factors that belong to them, all of one rank."""
    # Of 256 possible numbers a table is 50 times quicker than the conversions of ml_dtypes.
    table = np.arange(256, dtype=np.uint8).view(stored.dtype).astype(_DTYPE)
    codes = stored.view(np.uint8)
    for place in np.ndindex(*stored.shape[:-2]):
        of_place = tuple(
            0 if lookup is None else int(lookup[index]) for lookup, index in zip(lookups[:-2], place, strict=True)
        )
        _multiply_matrix(codes[place], factors[of_place], lookups[-2], lookups[-1], table, out[place])


def _multiply_matrix(
    codes: np.ndarray,
    factors: np.ndarray,
    row_lookup: np.ndarray | None,
    column_lookup: np.ndarray | None,
    table: np.ndarray,
    out: np.ndarray,
) -> None:
    rows, columns = codes.shape
    if not codes.size:
        return
    step = max(1, _CHUNK // columns)
    cuts = set(range(0, rows, step))
    if row_lookup is not None and column_lookup is not None:  # so that the rows of a chunk have the same factors
        cuts |= set((np.flatnonzero(np.diff(row_lookup)) + 1).tolist())
    starts = sorted(cuts)
    for start, stop in zip(starts, [*starts[1:], rows], strict=True):
        if row_lookup is None:
            of_rows = factors
        elif column_lookup is None:
            of_rows = factors[row_lookup[start:stop]]
        else:
            of_rows = factors[row_lookup[start] : row_lookup[start] + 1]
        part = out[start:stop]
        np.take(table, codes[start:stop], out=part, mode="clip")
        np.multiply(part, of_rows if column_lookup is None else of_rows[:, column_lookup], out=part)
