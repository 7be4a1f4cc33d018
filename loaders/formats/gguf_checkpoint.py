"""GGUF files, as llama.cpp writes them: tensors memory-mapped, dequantised one by one when they are read.

The `gguf` package (the extra of the same name) reads the headers and dequantises. A quantised tensor is read as
float32: what the file means, which differs from the original weights by the rounding of its type. `dtype_name` says
which that is ("Q4_1"), and docs/formats.md how large its rounding is.
"""

import functools
import importlib
import math
import os
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
import tensorstore as ts

from polarax.loaders.checkpoint import INTERLEAVED, Checkpoint, CheckpointError, Read, TensorInfo, brief_reason
from polarax.loaders.formats.format import Format
from polarax.loaders.formats.gguf_byte_order import in_native_order, open_reader, order_of
from polarax.loaders.slices import Index, axis_slices
from polarax.loaders.stores.store import local_path

_SUFFIX = ".gguf"

# Types that are stored as they are; every other one is a quantisation, or an integer.
_PLAIN = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "I8": np.dtype(np.int8),
    "I16": np.dtype(np.int16),
    "I32": np.dtype(np.int32),
    "I64": np.dtype(np.int64),
}

# Architectures whose queries and keys llama.cpp's converter reorders, for rotary embeddings that turn neighbours
# instead of halves: the classes in its conversion/*.py that call `permute` (or `_reverse_hf_permute`, the same), or
# that leave LlamaModel's `undo_permute = True` and its `modify_tensors` as they are. Llama 4, Apertus, Afmoe and
# DeepSeek from V2 on are not among them. What is made of Mistral's own files is of the same architectures, and has its
# rows in that order from the start.
_PERMUTED = {
    *("llama", "llama-embed", "eagle3", "mistral3", "arcee", "smollm3", "deci", "nanbeige"),
    *("granite", "granitemoe", "granitehybrid", "granite_swa"),
    *("baichuan", "xverse", "minicpm", "internlm2", "olmo", "arctic", "chameleon", "llada", "deepseek", "bailingmoe"),
}
_REORDERED = re.compile(r"blk\.([0-9]{1,6})\.attn_([qk])\.weight")

_SHARD = re.compile(r"(.*)-([0-9]{5})-of-([0-9]{5})\.gguf")

# Settings of config.json as GGUF calls them, below the architecture's name.
_SETTINGS = {
    "num_attention_heads": "attention.head_count",
    "num_key_value_heads": "attention.head_count_kv",
    "head_dim": "attention.key_length",
    "hidden_size": "embedding_length",
    "num_hidden_layers": "block_count",
    "intermediate_size": "feed_forward_length",
    "max_position_embeddings": "context_length",
    "rms_norm_eps": "attention.layer_norm_rms_epsilon",
    "rope_theta": "rope.freq_base",
    "sliding_window": "attention.sliding_window",
    "attn_logit_softcapping": "attn_logit_softcapping",
    "final_logit_softcapping": "final_logit_softcapping",
}
_SCALING = {
    "type": "rope.scaling.type",
    "factor": "rope.scaling.factor",
    "original_max_position_embeddings": "rope.scaling.original_context_length",
}


class _Tensor(NamedTuple):
    """A tensor of a file, mapped into memory."""

    file: str
    data: np.ndarray  # as stored: (..., row), a row in bytes where it is quantised
    kind: str  # GGUF's name of its type
    dtype: np.dtype | None  # in which it is read; None if it cannot be
    shape: tuple[int, ...]  # as NumPy has it: GGUF counts axes from the other end
    heads: int | None  # of a reordered matrix; None if it is not, or if how many there are is unknown
    reordered: bool = False  # a reordered matrix whose rows cannot be put back
    block_bytes: int = 0  # of a quantised type, where two bytes in its fields are to be exchanged
    undecoded: str = ""  # of a quantised type that cannot be read: what it is, in words


class GgufCheckpoint(Checkpoint):
    """The tensors of one or more GGUF files."""

    def __init__(self, location: str, tensors: Mapping[str, _Tensor], config: Mapping[str, Any]):
        """Lists tensors whose headers have been read.

        Args:
            location: What the user gave, for messages.
            tensors: By name.
            config: The files' settings under the names of config.json.
        """
        super().__init__(location, "GGUF", {name: _info(tensor) for name, tensor in tensors.items()})
        self._mapped = dict(tensors)
        self._config = config

    @property
    def config(self) -> Mapping[str, Any]:
        """The number of heads and the like, from the file's own metadata."""
        return self._config

    def row_order(self, name: str) -> str:
        """See `Checkpoint.row_order`."""
        self._info(name)
        return INTERLEAVED if self._mapped[name].reordered else ""

    def undecoded(self, name: str) -> str:
        """See `Checkpoint.undecoded`."""
        self._info(name)
        return self._mapped[name].undecoded

    def read(self, name: str, index: Index = None) -> Read:
        """Reads a tensor, or part of it; see `Checkpoint.read`. Quantised ones are given as float32.

        Only the rows asked for are read from the file and dequantised, except of reordered queries and keys.
        """
        dtype = self._readable_dtype(name)
        tensor = self._mapped[name]
        slices = axis_slices(tensor.shape, index)
        subject = f"{tensor.file}: tensor {name!r}"

        def decode(data: np.ndarray) -> np.ndarray:
            columns: Any = (..., *slices[-1:])
            try:
                if tensor.heads is not None:
                    return _restored(_values(data, tensor, dtype), tensor.heads)[slices]
                return _values(data[slices[:-1]], tensor, dtype)[columns]
            except Exception as error:  # of the package, which checks little
                raise CheckpointError(f"{subject}: cannot be dequantised: {brief_reason(error)}") from error

        return Read(_done(tensor.data), decode, subject)


class GgufFormat(Format):
    """Files of llama.cpp."""

    name = "GGUF"
    suffixes = (_SUFFIX,)

    def open(self, source: Any) -> GgufCheckpoint:
        """Opens a file and, if it is one of several shards, the others."""
        return open_gguf(source)

    def files_in(self, folder: str) -> list[str]:
        """The checkpoints in a local folder: of one in several shards, the first shard."""
        models: dict[tuple[str, ...], str] = {}
        for name in super().files_in(folder):
            shard = _SHARD.fullmatch(name)
            models.setdefault((shard[1], shard[3]) if shard else (name,), name)
        return list(models.values())


def open_gguf(source: str) -> GgufCheckpoint:
    """Opens a GGUF file and, if it is one of several shards, the others.

    Raises:
        CheckpointError: If it is not on this machine, the `gguf` package is not installed, or a file is damaged.
    """
    path = local_path(source)
    if path is None:
        raise CheckpointError(f"{source}: GGUF is read from local files only; download it first")
    try:
        gguf = importlib.import_module("gguf")
    except ImportError as error:
        raise CheckpointError(f"{path}: reading GGUF needs the gguf package: pip install 'polarax[gguf]'") from error
    tensors: dict[str, _Tensor] = {}
    config: dict[str, Any] = {}
    for file in _shards(path):
        reader = _opened(gguf, file)
        config = config or _config(reader)
        other_order = reader.byte_order == "S"
        for tensor in reader.tensors:
            if tensor.name in tensors:
                raise CheckpointError(f"{file}: tensor {tensor.name!r} is also in {tensors[tensor.name].file}")
            tensors[tensor.name] = _tensor(gguf, file, tensor, config, other_order)
    return GgufCheckpoint(source, tensors, config)


def _shards(path: str) -> list[str]:
    folder, name = os.path.split(path)
    match = _SHARD.fullmatch(name)
    if match is None:
        return [path]
    count = int(match[3])
    files = [os.path.join(folder, f"{match[1]}-{number:05}-of-{match[3]}{_SUFFIX}") for number in range(1, count + 1)]
    missing = [file for file in files if not os.path.exists(file)]
    if missing or not files:
        raise CheckpointError(f"{missing[0] if missing else path}: no such file; {name} is one of {count} shards")
    return files


def _opened(gguf: Any, file: str) -> Any:
    if not os.path.isfile(file):
        raise CheckpointError(f"{file}: no such file")
    try:
        reader = open_reader(gguf, file)
    except Exception as error:  # whatever the bytes happen to mean to it
        raise CheckpointError(f"{file}: is not a GGUF file, or is damaged: {brief_reason(error)}") from error
    size = os.path.getsize(file)
    for tensor in reader.tensors:
        end = int(tensor.data_offset) + int(tensor.n_bytes)
        if end > size or tensor.data.nbytes != tensor.n_bytes:
            raise CheckpointError(
                f"{file}: is truncated: expected at least {end} bytes for {tensor.name!r}, the file has {size}"
            )
    return reader


def _tensor(gguf: Any, file: str, tensor: Any, config: Mapping[str, Any], other_order: bool) -> _Tensor:
    shape = tuple(int(size) for size in reversed(tensor.shape.tolist()))
    reordered = len(shape) == 2 and _is_reordered(tensor.name, config)
    heads = _heads_to_restore(tensor.name, config) if reordered else None
    if heads is not None and (heads < 1 or shape[0] % (2 * heads)):
        raise CheckpointError(f"{file}: tensor {tensor.name!r}: {shape[0]} rows are no {heads} heads of even size")
    kind, dtype = tensor.tensor_type.name, _read_dtype(gguf, tensor.tensor_type)
    entry = _Tensor(file, tensor.data, kind, dtype, shape, heads, reordered and heads is None)
    if other_order and tensor.data.dtype == np.uint8 and dtype is not None:
        _, block_bytes = gguf.GGML_QUANT_SIZES[tensor.tensor_type]
        order = order_of(kind, tensor.data, block_bytes)
        if order.reason:
            return entry._replace(dtype=None, undecoded=order.reason)
        return entry._replace(block_bytes=block_bytes if order.exchanged else 0)
    return entry


def _is_reordered(name: str, config: Mapping[str, Any]) -> bool:
    """Whether the converter reordered the rows of a tensor of this name."""
    return config.get("model_type") in _PERMUTED and _REORDERED.fullmatch(name) is not None


def _heads_to_restore(name: str, config: Mapping[str, Any]) -> int | None:
    """How many heads a reordered tensor has; None if the file does not say."""
    match = _REORDERED.fullmatch(name)
    if match is None:
        return None
    heads = config.get("num_attention_heads")
    heads = config.get("num_key_value_heads", heads) if match[2] == "k" else heads
    if isinstance(heads, list):  # one for each layer
        heads = heads[int(match[1])] if int(match[1]) < len(heads) else None
    return heads if isinstance(heads, int) else None


@functools.cache
def _read_dtype(gguf: Any, kind: Any) -> np.dtype | None:
    """The dtype in which tensors of a type are read; None if the package cannot dequantise it."""
    if kind.name in _PLAIN:
        return _PLAIN[kind.name]
    _, block_bytes = gguf.GGML_QUANT_SIZES[kind]
    try:
        gguf.quants.dequantize(np.zeros((1, block_bytes), np.uint8), kind)
    except NotImplementedError:
        return None
    return np.dtype(np.float32)


def _config(reader: Any) -> dict[str, Any]:
    """The file's settings under the names of config.json."""
    architecture = _setting(reader, "general.architecture")
    settings = {name: _setting(reader, f"{architecture}.{key}") for name, key in _SETTINGS.items()}
    scaling = {name: _setting(reader, f"{architecture}.{key}") for name, key in _SCALING.items()}
    if scaling["type"] not in (None, "none"):
        settings["rope_scaling"] = scaling
    # The converter has already put fused matrices in blocks, whatever the original's settings.
    return {"model_type": architecture, "multi_query": False} | {
        name: value for name, value in settings.items() if value is not None
    }


def _setting(reader: Any, key: str) -> Any:
    """One value; None if there is none, or if it cannot be read."""
    field = reader.get_field(key)
    try:
        return field.contents() if field is not None else None
    except Exception:  # bytes that are no text, and the like
        return None


def _info(tensor: _Tensor) -> TensorInfo:
    plain = _PLAIN.get(tensor.kind)
    words = tensor.undecoded or (plain.name if plain else tensor.kind)
    return TensorInfo(tensor.shape, tensor.dtype, words, tensor.data.nbytes)


def _values(data: np.ndarray, tensor: _Tensor, dtype: np.dtype) -> np.ndarray:
    """The numbers that stored rows mean."""
    if tensor.block_bytes:
        data = in_native_order(data, tensor.kind, tensor.block_bytes)
    if tensor.kind in _PLAIN:
        return data.view(dtype) if data.dtype == np.uint8 else data.astype(dtype, copy=False)
    gguf = importlib.import_module("gguf")
    shape = (*data.shape[:-1], tensor.shape[-1])
    if not math.prod(shape):
        return np.empty(shape, dtype)
    values = gguf.quants.dequantize(np.ascontiguousarray(data), gguf.GGMLQuantizationType[tensor.kind])
    return values.reshape(shape).astype(dtype, copy=False)


def _restored(matrix: np.ndarray, heads: int) -> np.ndarray:
    """The rows in the order of the original: the inverse of LlamaModel.permute."""
    rows, *rest = matrix.shape
    return matrix.reshape(heads, rows // heads // 2, 2, *rest).swapaxes(1, 2).reshape(rows, *rest)


def _done(value: Any) -> ts.Future:
    promise: ts.Promise
    future: ts.Future
    promise, future = ts.Promise.new()
    promise.set_result(value)
    return future
