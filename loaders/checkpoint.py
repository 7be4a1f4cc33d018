"""What every checkpoint offers, whatever its format: names, shapes, dtypes, asynchronous reads."""

import abc
import concurrent.futures
import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorstore as ts

from polarax.loaders.slices import Index, plan_run
from polarax.loaders.stores.addresses import redact, redact_location

# What a fingerprint reads: a page of each of at most this many tensors, 4 MiB in all, so that it
# stays cheap over a network. Common models have fewer tensors than that, and every one of theirs is
# sampled.
_FINGERPRINT_TENSORS = 1024
_FINGERPRINT_BYTES = 4096

BASE_OWN = "not adapted: the base's own weights"
"""Why a tensor of a model that is another one with an adapter is not compared: it cannot differ."""

INTERLEAVED = "interleaved"
"""The order of rows of queries and keys in which the two of a head that turn together for rotary embeddings are
neighbours, as in Meta's files; in Hugging Face's they are half a head apart."""

_REASON_LENGTH = 300  # characters of a storage error that a message repeats


class CheckpointError(ValueError):
    """A checkpoint that cannot be used as it is.

    The message is one line that names the file, the tensor and what was expected; of addresses without what may be
    secret.
    """

    def __init__(self, message: str):
        super().__init__(redact(" ".join(message.splitlines())))


def brief_reason(error: Exception) -> str:
    """What an error of the storage layer says, cut short: it may quote a server's whole page."""
    text = redact(str(error))  # before it is cut: half of an address is none
    return text if len(text) <= _REASON_LENGTH else text[: _REASON_LENGTH - 3] + "..."


def check_out(out: np.ndarray, shape: tuple[int, ...], dtype: np.dtype, subject: str) -> None:
    """Refuses an array that cannot take what is read.

    Raises:
        ValueError: If its shape or dtype differ, or it is read-only.
    """
    if out.shape != shape or out.dtype != dtype or not out.flags.writeable:
        kind = "" if out.flags.writeable else "read-only "
        raise ValueError(f"{subject}: out must be {dtype} of shape {shape}. Got {kind}{out.dtype} of shape {out.shape}")


class TensorInfo(NamedTuple):
    """What is known of a tensor before its data is read."""

    shape: tuple[int, ...]  # matrices as (out, in)
    dtype: np.dtype | None  # None if NumPy and ml_dtypes have no such type
    dtype_name: str  # NumPy's name of it ("bfloat16"), or the store's own spelling
    nbytes: int  # bytes in the store


class Wanted(NamedTuple):
    """What to read of a tensor, and where to."""

    name: str
    slices: Index = None  # which part of it: `index` of `Checkpoint.read`
    out: np.ndarray | None = None  # filled and returned, if there is one


class Read:
    """A read under way: wait for it with `result`, in a coroutine with `await asyncio.to_thread(read.result)`.

    Many may be in flight at once; their number and the bytes they hold are the caller's to bound.
    """

    def __init__(
        self,
        future: "ts.Future | concurrent.futures.Future",
        decode: Callable[[Any], np.ndarray],
        subject: str,
    ):
        """Wraps a future of stored data.

        Args:
            future: Gives what `decode` takes.
            decode: Turns that into the array.
            subject: What is being read, for messages.
        """
        self._future = future
        self._decode = decode
        self._subject = subject

    def result(self, timeout: float | None = None) -> np.ndarray:
        """The array, in the stored dtype; it may be read-only and need not be C-contiguous.

        Args:
            timeout: Seconds to wait; None waits for as long as it takes.

        Raises:
            CheckpointError: If the store fails, or no longer holds what its header promised.
            TimeoutError: If `timeout` passed first.
        """
        try:
            stored = self._future.result(timeout=timeout)
        except TimeoutError:
            raise
        except Exception as error:
            raise self._failure(error) from error
        return self._decode(stored)

    def into(self, out: np.ndarray) -> "Read":
        """The same read, with its array copied into `out`, which is the result.

        Raises:
            ValueError: On waiting, if shape or dtype of `out` differ.
        """

        def copy(array: np.ndarray) -> np.ndarray:
            check_out(out, array.shape, array.dtype, self._subject)
            out[...] = array
            return out

        return self.then(copy)

    def then(self, function: Callable[[np.ndarray], np.ndarray]) -> "Read":
        """The same read, whose result `function` turns into another array when it is asked for."""
        return Read(self._future, lambda stored: function(self._decode(stored)), self._subject)

    def _failure(self, error: Exception) -> CheckpointError:
        return CheckpointError(f"{self._subject}: cannot be read: {brief_reason(error)}")


class Checkpoint(abc.ABC):
    """The tensors of one model, listed without reading them, and read one by one.

    Attributes:
        location: What the user gave, to be shown and stored: of an address without login and query.
        format: What kind of checkpoint it is, in words.
    """

    def __init__(self, location: str, format: str, tensors: Mapping[str, TensorInfo]):
        self.location = redact_location(location)
        self.format = format
        self._tensors = dict(tensors)

    def names(self) -> tuple[str, ...]:
        """Every tensor, in file order."""
        return tuple(self._tensors)

    def __contains__(self, name: object) -> bool:
        return name in self._tensors

    @property
    def config(self) -> Mapping[str, Any] | None:
        """What the model's config.json says, under the names of Hugging Face; None if there is none."""
        return None

    @property
    def notes(self) -> tuple[str, ...]:
        """What a user should know of the choice of its files, a line each: what was passed over, and why."""
        return ()

    @property
    def aliases(self) -> Mapping[str, str]:
        """Names of tensors that are not stored, each with the stored tensor that has its values."""
        return {}

    @property
    def file_metadata(self) -> Mapping[str, str]:
        """What the files say of themselves beside their tensors; empty where a format has no place for it."""
        return {}

    def row_order(self, name: str) -> str:
        """`INTERLEAVED` of queries and keys that are read with their rows in that order; "" of others."""
        return ""

    def undecoded(self, name: str) -> str:
        """What a quantised tensor is, in words, that is known as such and cannot be read; "" of others."""
        return ""

    def why_no_array(self, name: str) -> str | None:
        """Of something that is listed but is no array, what it is, as a reason to leave it out; None of an array."""
        return None

    def shares_values(self, name: str, other: str) -> bool:
        """Whether two tensors are one array, as far as can be told without reading them."""
        return False

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor; a matrix as (out, in), whichever way round it is stored."""
        return self._info(name).shape

    def dtype(self, name: str) -> np.dtype | None:
        """Dtype in which a tensor is read, if need be from ml_dtypes; None if there is none for it."""
        return self._info(name).dtype

    def dtype_name(self, name: str) -> str:
        """The stored dtype in words: "bfloat16", or as the file spells it where `dtype` is None."""
        return self._info(name).dtype_name

    def nbytes(self, name: str) -> int:
        """Size of a tensor in the store, in bytes."""
        return self._info(name).nbytes

    def is_decoded(self, name: str) -> bool:
        """Whether a tensor is stored in another way than it is read: quantised, or with a scale."""
        info = self._info(name)
        return info.dtype is not None and info.nbytes != math.prod(info.shape) * info.dtype.itemsize

    def is_transposed(self, name: str) -> bool:
        """Whether a tensor is shown with its axes in the reverse order of those that it is stored with."""
        return False

    @property
    def unusable(self) -> Mapping[str, str]:
        """Tensors that are listed but not to be compared, each with the reason; `BASE_OWN` is one."""
        return {}

    @property
    def adapter_config(self) -> Mapping[str, Any] | None:
        """What adapter_config.json beside the weights says of low-rank adapters among them; None if there is none."""
        return None

    @abc.abstractmethod
    def read(self, name: str, index: Index = None) -> Read:
        """Starts to read a tensor, or part of it.

        Args:
            name: One of `names()`.
            index: None for all of it, a slice of rows, or a tuple of slices; NumPy's meaning, on
                the (out, in) view. Only the rows between the first and the last one asked for are
                read from the store.

        Returns:
            A `Read`, which gives the array in the stored dtype.

        Raises:
            CheckpointError: If there is no such tensor, or its dtype has no NumPy type.
            TypeError: If `index` holds anything but slices.
            IndexError: If it has more slices than the tensor has axes.
        """

    def read_into(self, name: str, out: np.ndarray, index: Index = None) -> Read:
        """Starts to read a tensor, or part of it, into an array of the caller, such as a layer of a stack.

        Where the bytes can be had as they are and `out` is C-contiguous, they go there without another copy.
        `out` must not be touched before the read has been waited for.

        Args:
            name: One of `names()`.
            out: An array of the stored dtype and of the shape of what is read.
            index: As in `read`.

        Returns:
            A `Read` that gives `out`.

        Raises:
            ValueError: If shape or dtype of `out` differ; some formats say so only when waited for.
            CheckpointError, TypeError, IndexError: As in `read`.
        """
        return self.read(name, index).into(out)

    def read_many(self, wanted: Sequence[Wanted]) -> list[Read]:
        """Starts to read several tensors at once; what lies beside each other in a file is read as one.

        Args:
            wanted: What to read, and where to. All of it is in flight together: its bytes are the caller's to bound.

        Returns:
            A `Read` for each.

        Raises:
            ValueError, CheckpointError, TypeError, IndexError: As in `read_into`.
        """
        return [
            self.read(name, index) if out is None else self.read_into(name, out, index) for name, index, out in wanted
        ]

    def read_bytes(self, wanted: Wanted) -> int:
        """Bytes that a read takes from the store, and about what it takes of memory until it is used.

        Raises:
            CheckpointError, TypeError, IndexError: As in `read`.
        """
        info = self._info(wanted.name)
        if wanted.slices is None:
            return info.nbytes
        run = plan_run(info.shape, wanted.slices)
        return (run.stop - run.start) * self._readable_dtype(wanted.name).itemsize

    def fingerprint(self) -> str:
        """A short hexadecimal digest, for a fraction of the cost of reading the checkpoint.

        It covers every name, shape and dtype, and one page (4 KiB) from the middle of each tensor
        (of 1024 tensors spread evenly, where there are more). It depends on the content alone, not
        on files, shards or their order. A change outside the sampled pages goes unseen: it is there
        to notice that another checkpoint was given, not to prove that two are equal.

        Raises:
            CheckpointError: If a sample cannot be read.
        """
        digest = hashlib.blake2b(digest_size=8)
        names = sorted(self._tensors)
        for name in names:
            info = self._tensors[name]
            digest.update(repr((name, info.shape, info.dtype_name)).encode())
        readable = [name for name in names if self._tensors[name].dtype is not None]
        step = max(1, math.ceil(len(readable) / _FINGERPRINT_TENSORS))
        samples = [self.read(name, self._sample(name)) for name in readable[::step]]
        for sample in samples:
            digest.update(sample.result().tobytes())
        return digest.hexdigest()

    def _info(self, name: str) -> TensorInfo:
        try:
            return self._tensors[name]
        except KeyError:
            raise CheckpointError(f"{self.location}: has no tensor {name!r}") from None

    def _readable_dtype(self, name: str) -> np.dtype:
        info = self._info(name)
        if info.dtype is None:
            raise CheckpointError(
                f"{self.location}: tensor {name!r} is stored as {info.dtype_name}, which cannot be read"
            )
        return info.dtype

    def _sample(self, name: str) -> tuple[slice, ...]:
        """An index of about a page from the middle of a tensor, contiguous in C order."""
        shape = self.shape(name)
        itemsize = self._readable_dtype(name).itemsize
        index: list[slice] = []
        for axis, size in enumerate(shape):
            step_bytes = max(1, itemsize * math.prod(shape[axis + 1 :]))
            count = min(size, max(1, _FINGERPRINT_BYTES // step_bytes))
            low = (size - count) // 2
            index.append(slice(low, low + count))
            if count > 1:
                break
        return tuple(index)
