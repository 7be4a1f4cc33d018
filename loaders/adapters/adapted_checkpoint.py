"""A checkpoint whose adapted weights are read as what they mean: W + scale B A.

The weight and the factors of the rows that are asked for are read together, and added when the result is asked for, in
float64 and rounded once.
"""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from polarax.loaders.adapters.addition import Addition
from polarax.loaders.checkpoint import Checkpoint, CheckpointError, Read, TensorInfo, Wanted, check_out
from polarax.loaders.slices import Index, axis_slices

_FLOAT32, _FLOAT64 = np.dtype(np.float32), np.dtype(np.float64)


class Weight(NamedTuple):
    """Where a tensor is stored, and what is added to it."""

    checkpoint: Checkpoint
    tensor: str
    addition: Addition | None = None  # of a matrix


class AdaptedCheckpoint(Checkpoint):
    """The tensors of a model with their adapters in them. The factors themselves are not listed."""

    def __init__(
        self,
        model: Checkpoint,
        adapter: Checkpoint,
        weights: Mapping[str, Weight],
        unusable: Mapping[str, str] | None = None,
        notes: Sequence[str] = (),
    ):
        """Lists what is given.

        Args:
            model: Where the weights of the model are.
            adapter: Where the factors are; of a model that has its adapters in it, the same.
            weights: By the name that each is listed with.
            unusable: Listed tensors that cannot be compared, with the reason.
            notes: What there is to say of the checkpoint as a whole.
        """
        self._model, self._adapter = model, adapter
        self._weights = dict(weights)
        self._unusable = dict(unusable or {})
        self._notes = tuple(notes)
        infos = {name: self._info_of(weight) for name, weight in self._weights.items()}
        kind = f"{model.format} with adapters" if adapter is model else f"adapter in {adapter.format} on {model.format}"
        super().__init__(adapter.location, kind, infos)

    @property
    def config(self) -> Mapping[str, Any] | None:
        """The model's configuration."""
        return self._model.config

    @property
    def unusable(self) -> Mapping[str, str]:
        """See `Checkpoint.unusable`."""
        return {**self._model.unusable, **self._unusable}

    @property
    def notes(self) -> tuple[str, ...]:
        """See `Checkpoint.notes`."""
        return (*self._model.notes, *self._notes)

    @property
    def aliases(self) -> Mapping[str, str]:
        """The model's aliases of tensors that are as they are there; see `Checkpoint.aliases`."""
        return {
            alias: name
            for alias, name in self._model.aliases.items()
            if name in self._weights and self._weights[name] == Weight(self._model, name)
        }

    @property
    def file_metadata(self) -> Mapping[str, str]:
        """The model's; see `Checkpoint.file_metadata`."""
        return self._model.file_metadata

    def why_no_array(self, name: str) -> str | None:
        """See `Checkpoint.why_no_array`."""
        self._info(name)
        return self._weights[name].checkpoint.why_no_array(self._weights[name].tensor)

    def row_order(self, name: str) -> str:
        """See `Checkpoint.row_order`."""
        self._info(name)
        return self._weights[name].checkpoint.row_order(self._weights[name].tensor)

    def undecoded(self, name: str) -> str:
        """See `Checkpoint.undecoded`."""
        self._info(name)
        return self._weights[name].checkpoint.undecoded(self._weights[name].tensor)

    def is_adapted(self, name: str) -> bool:
        """Whether something is added to a tensor."""
        return name in self._weights and self._weights[name].addition is not None

    def is_decoded(self, name: str) -> bool:
        """Whether a tensor is stored in another way than it is read, as an adapted one is."""
        self._info(name)
        weight = self._weights[name]
        return weight.addition is not None or weight.checkpoint.is_decoded(weight.tensor)

    def is_transposed(self, name: str) -> bool:
        """See `Checkpoint.is_transposed`."""
        self._info(name)
        return self._weights[name].checkpoint.is_transposed(self._weights[name].tensor)

    def shares_values(self, name: str, other: str) -> bool:
        """Whether two tensors are one array, to which nothing is added."""
        self._info(name), self._info(other)
        one, two = self._weights[name], self._weights[other]
        return (
            one.addition is two.addition is None
            and one.checkpoint is two.checkpoint
            and one.checkpoint.shares_values(one.tensor, two.tensor)
        )

    def read(self, name: str, index: Index = None) -> Read:
        """Starts to read a tensor, or part of it; see `Checkpoint.read`."""
        return self.read_many([Wanted(name, index)])[0]

    def read_into(self, name: str, out: np.ndarray, index: Index = None) -> Read:
        """Starts to read into an array of the caller; see `Checkpoint.read_into`."""
        return self.read_many([Wanted(name, index, out)])[0]

    def read_many(self, wanted: Sequence[Wanted]) -> list[Read]:
        """Starts to read several tensors, weights together with their factors; see `Checkpoint.read_many`."""
        asked = _Asked()
        places = []
        for item in wanted:
            parts = self._parts(item)
            if len(parts) > 1 and item.out is not None:
                shape = tuple(len(range(*cut.indices(size))) for cut, size in self._cuts(item))
                check_out(item.out, shape, self._readable_dtype(item.name), self._subject(item.name))
            places.append([asked.add(*part) for part in parts])
        reads = asked.start()
        results = []
        for item, (weight, *factors) in zip(wanted, places, strict=True):
            read = reads[weight]
            results.append(self._sum(item, read, [reads[place] for place in factors]) if factors else read)
        return results

    def read_bytes(self, wanted: Wanted) -> int:
        """Bytes that a read takes from the store: those of the weight, and of its factors."""
        return sum(checkpoint.read_bytes(part) for checkpoint, part in self._parts(wanted))

    def fingerprint(self) -> str:
        """A digest of what is stored and of the scales; see `Checkpoint.fingerprint`."""
        digest = hashlib.blake2b(digest_size=8)
        for checkpoint in dict.fromkeys((self._model, self._adapter)):
            digest.update(checkpoint.fingerprint().encode())
        for name, weight in sorted(self._weights.items(), key=lambda item: item[0]):
            digest.update(repr((name, weight.tensor, weight.addition)).encode())
        return digest.hexdigest()

    def _info_of(self, weight: Weight) -> TensorInfo:
        checkpoint, tensor, addition = weight
        shape, dtype = checkpoint.shape(tensor), checkpoint.dtype(tensor)
        words, nbytes = checkpoint.dtype_name(tensor), checkpoint.nbytes(tensor)
        if addition is None:
            return TensorInfo(shape, dtype, words, nbytes)
        nbytes += sum(self._adapter.nbytes(part.name) for part in addition.wanted((slice(None), slice(None))))
        return TensorInfo(shape, _FLOAT64 if dtype == _FLOAT64 else _FLOAT32, f"{words} + LoRA", nbytes)

    def _cuts(self, wanted: Wanted) -> list[tuple[slice, int]]:
        """Along each axis the part of a tensor that is wanted, and its size."""
        shape = self.shape(wanted.name)
        return list(zip(axis_slices(shape, wanted.slices), shape, strict=True))

    def _parts(self, wanted: Wanted) -> list[tuple[Checkpoint, Wanted]]:
        """What has to be read of a weight, and of its factors."""
        self._info(wanted.name)  # what is hidden is not to be read
        checkpoint, tensor, addition = self._weights[wanted.name]
        if addition is None:
            return [(checkpoint, wanted._replace(name=tensor))]
        cuts = [cut for cut, _ in self._cuts(wanted)]
        return [
            (checkpoint, Wanted(tensor, wanted.slices)),
            *((self._adapter, part) for part in addition.wanted(cuts)),
        ]

    def _sum(self, wanted: Wanted, weight: Read, factors: Sequence[Read]) -> Read:
        """The read of a weight that is being read, as are its factors."""
        name, _, out = wanted
        addition, dtype = self._weights[name].addition, self._readable_dtype(name)
        assert addition is not None
        shape = tuple(len(range(*cut.indices(size))) for cut, size in self._cuts(wanted))

        def add(stored: np.ndarray) -> np.ndarray:
            if stored.shape != shape:
                raise CheckpointError(f"{self._subject(name)} has shape {stored.shape} when it is read")
            array = np.empty(shape, dtype) if out is None else out
            addition.add_to(stored, factors, array)
            return array

        return weight.then(add)

    def _subject(self, name: str) -> str:
        return f"{self.location}: tensor {name!r}"


class _Asked:
    """What is to be read of several checkpoints, so that each is asked once."""

    def __init__(self) -> None:
        self._wanted: dict[Checkpoint, list[Wanted]] = {}
        self._places: list[tuple[Checkpoint, int]] = []

    def add(self, checkpoint: Checkpoint, wanted: Wanted) -> int:
        """Notes what is wanted; returns its place among all."""
        of_checkpoint = self._wanted.setdefault(checkpoint, [])
        self._places.append((checkpoint, len(of_checkpoint)))
        of_checkpoint.append(wanted)
        return len(self._places) - 1

    def start(self) -> list[Read]:
        """Starts all of it; a read for each place."""
        reads = {checkpoint: checkpoint.read_many(wanted) for checkpoint, wanted in self._wanted.items()}
        return [reads[checkpoint][place] for checkpoint, place in self._places]
