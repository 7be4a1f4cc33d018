"""Texts as token ids: by a model's tokenizer.json, by what a GGUF file says of its tokenizer, or given as ids."""

import json
import os
import pathlib
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from polarax.errors import UsageError
from polarax.loaders.hub_cache import resolve_hub_path
from polarax.loaders.stores.store import local_path

TOKENIZER = "tokenizer.json"
_INSTALL = "Tokenizing needs the tokenizers package: pip install 'polarax[evaluate]'; or give token ids."


class Tokenizer(Protocol):
    """What is used of `tokenizers.Tokenizer`."""

    def encode(self, sequence: str, *, add_special_tokens: bool = True) -> Any:
        """Something that has `ids`."""

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """The text of ids."""
        ...

    def get_vocab(self, with_added_tokens: bool = True) -> dict[str, int]:
        """Every token's id."""
        ...


def open_tokenizer(model: Any, tokenizer: str | os.PathLike | None = None) -> Tokenizer:
    """The tokenizer of a model.

    Args:
        model: Path of the checkpoint, beside which tokenizer.json lies; a GGUF file has its own.
        tokenizer: Path of tokenizer.json or of a folder with it, instead.

    Raises:
        UsageError: There is none, it cannot be read, or the package tokenizers is not installed.
    """
    try:
        import tokenizers
    except ImportError as error:
        raise UsageError(_INSTALL) from error
    place = model if tokenizer is None else tokenizer
    if not isinstance(place, (str, os.PathLike)):
        raise UsageError(f"A model in memory has no {TOKENIZER}: give the tokenizer, or token ids.")
    path = local_path(resolve_hub_path(os.fspath(place)))
    if path is None:
        raise UsageError(f"{place}: {TOKENIZER} is read from this machine only: give it, or token ids.")
    file = pathlib.Path(path)
    if tokenizer is None and file.suffix == ".gguf":
        from polarax.evaluation.gguf_tokenizer import gguf_tokenizer

        return gguf_tokenizer(file)
    if file.is_dir():
        file = file / TOKENIZER
    elif tokenizer is None:
        file = file.parent / TOKENIZER
    if not file.is_file():
        raise UsageError(f"{file}: no such file. Give the tokenizer, or token ids.")
    try:
        return tokenizers.Tokenizer.from_file(str(file))
    except Exception as error:  # the package raises no other class
        raise UsageError(f"{file}: is no tokenizer: {error}") from error


def whole_numbers(value: Any) -> tuple[int, ...]:
    """The ids of a setting of config.json that may be one, a list or nothing: of tokens that end a text, say."""
    return tuple(token for token in (value if isinstance(value, list) else [value]) if isinstance(token, int))


def check_vocabulary(tokenizer: Tokenizer, vocabulary: int) -> None:
    """Refuses a tokenizer that has tokens of which the model has no embedding.

    Raises:
        UsageError: It has.
    """
    largest = max(tokenizer.get_vocab().values(), default=-1)
    if largest >= vocabulary:
        raise UsageError(
            f"The tokenizer has tokens up to {largest}; the model's embedding has {vocabulary}, up to "
            f"{vocabulary - 1}: they do not belong together."
        )


def read_text(path: str | os.PathLike) -> str:
    """The text in a file of UTF-8.

    Raises:
        UsageError: It cannot be read, or is something else.
    """
    try:
        return pathlib.Path(path).expanduser().read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: is not UTF-8 text: {error.reason} at byte {error.start}.") from error
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror}.") from error


def encode(tokenizer: Tokenizer, text: str) -> np.ndarray:
    """The token ids of a text, with the special tokens that the tokenizer adds; (count,) int32."""
    return np.array(tokenizer.encode(text).ids, np.int32)


def read_tokens(path: str | os.PathLike) -> np.ndarray:
    """Token ids from a file: .npy, which is mapped into memory, .json with a list, or text with numbers.

    Raises:
        UsageError: It cannot be read, or is no list of whole numbers.
    """
    file = pathlib.Path(path).expanduser()
    try:
        if file.suffix == ".npy":
            tokens = np.load(file, mmap_mode="r", allow_pickle=False)
        elif file.suffix == ".json":
            tokens = np.asarray(json.loads(file.read_text(encoding="utf-8")))
        else:
            tokens = np.array(file.read_text(encoding="utf-8").split(), dtype=np.int64)
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror or error}.") from error
    except (ValueError, OverflowError) as error:
        raise UsageError(f"{path}: is no list of token ids: {error}") from error
    if tokens.ndim != 1 or not np.issubdtype(tokens.dtype, np.integer):
        raise UsageError(f"{path}: {tokens.dtype} of shape {tokens.shape}. Expected a list of whole numbers.")
    return tokens
