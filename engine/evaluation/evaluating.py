"""`polarax.evaluate`: models and texts as a user gives them, measured, and written down."""

import dataclasses
import datetime
import os
import pathlib
import shutil
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from polarax.errors import UsageError
from polarax.evaluation.decoder import Decoder, load_decoder
from polarax.evaluation.generation import generate
from polarax.evaluation.measuring import Measured, Settings, measure
from polarax.evaluation.reading import read_out
from polarax.evaluation.tokens import (
    Tokenizer,
    check_vocabulary,
    encode,
    open_tokenizer,
    read_text,
    read_tokens,
    whole_numbers,
)
from polarax.evaluation.windows import check_tokens
from polarax.loaders import Checkpoint, open_checkpoint
from polarax.planning.environment import describe_environment
from polarax.results.files import write_json, writing

EVALUATION_FILE = "evaluation.json"
_CONTENTS = (EVALUATION_FILE, "report.html", "plots")


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What an evaluation found.

    Attributes:
        measured: On the text; None without one.
        content: All of it, ready for JSON: what evaluation.json says.
        path: The folder it was written to; None if it was not.
    """

    measured: Measured | None
    content: Mapping[str, Any]
    path: pathlib.Path | None = None

    def reading(self) -> list[str]:
        """What the numbers say, in sentences."""
        return list(self.content["reading"])


def evaluate(
    model: Any,
    *,
    text: str | os.PathLike | None = None,
    tokens: Any = None,
    reference: Any = None,
    tokenizer: str | os.PathLike | None = None,
    config: Mapping[str, Any] | None = None,
    out: str | os.PathLike | None = None,
    overwrite: bool = False,
    dtype: str = "float32",
    mesh: jax.sharding.Mesh | None = None,
    prompts: Sequence[str | Sequence[int]] = (),
    length: int = 64,
    temperature: float = 0.0,
    seed: int = 0,
    progress: Callable[[Iterable, int], Iterable] | None = None,
    **settings: Any,
) -> Evaluation:
    """Evaluates a model on a text: loss, attention entropy and, against a reference, divergence and CKA.

    >>> found = polarax.evaluate("path/to/model", text="path/to/text.txt")  # doctest: +SKIP
    >>> found.measured.perplexity  # doctest: +SKIP

    Args:
        model: Whatever `polarax.open_checkpoint` takes, of an architecture in `FAMILIES`; or a `Decoder`.
        text: Path of a text file.
        tokens: Token ids in place of a text: an array, or the path of a .npy, .json or text file.
        reference: Another model to compare it with, of the same vocabulary.
        tokenizer: tokenizer.json or a folder with it, where the model has none beside it.
        config: config.json as a mapping, where the model has none.
        out: Folder to write to, new or empty; None writes nothing.
        overwrite: Replace an evaluation that is in `out`.
        dtype: "float32" or "bfloat16".
        mesh: Devices to divide the models over; see `load_decoder`.
        prompts: To be continued: texts, or token ids.
        length: Tokens to add to each, at most.
        temperature: Of the draws; 0 takes the most probable token.
        seed: Of the draws.
        progress: Wraps the batches, of which it is told how many there are.
        **settings: Fields of `Settings`: window, stride, batch, cka_tokens, cka_gib.

    Raises:
        UsageError: Something does not fit: the text is too short, the architecture is not known, and the like.
        CheckpointError: A checkpoint cannot be read.
        RunError: The folder cannot be written.
    """
    started, began = datetime.datetime.now(datetime.UTC), time.monotonic()
    if text is not None and tokens is not None:
        raise UsageError("Both a text and tokens are given. Expected one of them.")
    if text is None and tokens is None and not prompts:
        raise UsageError("There is nothing to evaluate on: give a text, tokens or prompts.")
    how = Settings(**settings)
    folder = None if out is None else _check_out(out, overwrite)
    source, other_source = _opened(model), None if reference is None else _opened(reference)
    written = None if text is None else read_text(text)
    ids = _given(tokens)
    words = text is not None or any(isinstance(prompt, str) for prompt in prompts)
    tokenizes = open_tokenizer(model, tokenizer) if words else _optional(model, tokenizer, bool(prompts))
    loaded = _load(source, dtype, mesh, config)
    vocabulary = loaded.config.vocabulary
    if tokenizes is not None:
        check_vocabulary(tokenizes, vocabulary)
    if written is not None and tokenizes is not None:
        ids = encode(tokenizes, written)
    if ids is not None:
        check_tokens(ids, vocabulary, how.window, how.step)
    other = None if other_source is None else _load(other_source, dtype, mesh, config)
    if folder is not None:
        _make(folder)
    seconds = {"loading": time.monotonic() - began}
    measured = None
    if ids is not None:
        began = time.monotonic()
        measured = measure(loaded, ids, other, how, progress)
        seconds["measuring"] = time.monotonic() - began
    began = time.monotonic()
    texts = _continued(loaded, other, prompts, tokenizes, length, temperature, seed, _stops(source))
    if prompts:
        seconds["generating"] = time.monotonic() - began
    content = {
        "model": _described(source, loaded),
        "reference": None if other is None or other_source is None else _described(other_source, other),
        "text": {"path": str(text if text is not None else "tokens"), "tokens": 0 if ids is None else len(ids)},
        "settings": {**dataclasses.asdict(how), "stride": how.step, "batch": how.rows, "dtype": dtype},
        "generation": {"length": length, "temperature": temperature, "seed": seed} if prompts else None,
        "environment": describe_environment(),
        "started": started.isoformat(timespec="seconds"),
        "seconds": seconds,
        **_numbers(measured),
        "reading": read_out(measured),
        "texts": texts,
    }
    if folder is not None:
        with writing(folder):
            write_json(folder / EVALUATION_FILE, content)
    return Evaluation(measured, content, folder)


def _check_out(out: str | os.PathLike, overwrite: bool) -> pathlib.Path:
    """Checks that an evaluation may be written to a folder; touches nothing.

    Raises:
        UsageError: It is a file, or holds something.
    """
    path = pathlib.Path(out).expanduser()
    try:
        if path.exists() and not path.is_dir():
            raise UsageError(f"Output {path} is a file. Expected a new or empty folder.")
        if path.is_dir() and any(path.iterdir()):
            if not (path / EVALUATION_FILE).is_file():
                raise UsageError(f"Output {path} is not empty and is no evaluation. Nothing was written.")
            if not overwrite:
                raise UsageError(f"Output {path} holds an evaluation. Give another folder, or --overwrite it.")
    except OSError as error:
        raise UsageError(f"Output {path} cannot be read: {error.strerror}.") from error
    return path


def _make(path: pathlib.Path) -> None:
    """Makes the folder, without what an evaluation before has left there.

    Raises:
        UsageError: It cannot be made.
    """
    try:
        for name in _CONTENTS:
            if (path / name).is_dir():
                shutil.rmtree(path / name)
            else:
                (path / name).unlink(missing_ok=True)
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"Output {path} cannot be made: {error.strerror}.") from error


def _opened(source: Any) -> Checkpoint | Decoder:
    """A checkpoint whose headers are read; a decoder as it is."""
    return source if isinstance(source, Decoder) else open_checkpoint(source)


def _given(tokens: Any) -> np.ndarray | None:
    """Token ids from a file, or an array of them."""
    if tokens is None or isinstance(tokens, (str, os.PathLike)):
        return None if tokens is None else read_tokens(tokens)
    array = np.asarray(tokens)
    if array.ndim != 1 or not np.issubdtype(array.dtype, np.integer):
        raise UsageError(f"Tokens are {array.dtype} of shape {array.shape}. Expected a list of whole numbers.")
    return array


def _optional(model: Any, tokenizer: str | os.PathLike | None, wanted: bool) -> Tokenizer | None:
    """A tokenizer that only makes what is written readable, if there is one."""
    if tokenizer is None and not wanted:
        return None
    try:
        return open_tokenizer(model, tokenizer)
    except UsageError:
        if tokenizer is not None:
            raise
        return None


def _load(
    source: Checkpoint | Decoder, dtype: str, mesh: jax.sharding.Mesh | None, config: Mapping[str, Any] | None
) -> Decoder:
    return source if isinstance(source, Decoder) else load_decoder(source, dtype, mesh=mesh, config=config)


def _described(source: Checkpoint | Decoder, model: Decoder) -> dict[str, Any]:
    """Where a model is from, and what it is."""
    said: dict[str, Any] = {"location": "memory"}
    if isinstance(source, Checkpoint):
        said = {"location": source.location, "format": source.format, "fingerprint": source.fingerprint()}
    config = model.config
    sizes = {name: getattr(config, name) for name in ("layers", "hidden", "heads", "key_heads", "units", "vocabulary")}
    return {**said, "family": config.family, **sizes}


def _stops(source: Checkpoint | Decoder) -> tuple[int, ...]:
    """The tokens that end a text, as config.json has them."""
    if isinstance(source, Decoder):
        return ()
    return whole_numbers((source.config or {}).get("eos_token_id"))


def _continued(
    model: Decoder,
    reference: Decoder | None,
    prompts: Sequence[str | Sequence[int]],
    tokenizer: Tokenizer | None,
    length: int,
    temperature: float,
    seed: int,
    stop: Sequence[int],
) -> list[dict[str, Any]]:
    """The prompts with what either model adds to them."""
    if not prompts:
        return []
    ids: list[list[int]] = []
    for prompt in prompts:
        ids.append(encode(tokenizer, prompt).tolist() if isinstance(prompt, str) and tokenizer else [*map(int, prompt)])
    models = {"model": model} | ({} if reference is None else {"reference": reference})
    found = {
        name: generate(decoder, ids, length, temperature=temperature, seed=seed, stop=stop)
        for name, decoder in models.items()
    }
    texts: list[dict[str, Any]] = []
    for row, prompt in enumerate(prompts):
        text: dict[str, Any] = {"prompt": prompt if isinstance(prompt, str) else ids[row]}
        for name, tokens in found.items():
            text[f"{name}_tokens"] = tokens[row]
            text[name] = tokenizer.decode(tokens[row]) if tokenizer else " ".join(map(str, tokens[row]))
        texts.append(text)
    return texts


def _numbers(measured: Measured | None) -> dict[str, Any]:
    """What was measured, ready for JSON."""
    if measured is None:
        return {"numbers": None, "attention": None, "cka": None}
    names: tuple[str, ...] = ("windows", "tokens", "loss", "loss_error", "perplexity", "accuracy")
    if measured.divergence is not None:
        names += ("reference_loss", "divergence", "divergence_error", "agreement")
    attention = {"entropy": measured.attention_entropy.tolist(), "share": measured.attention_share.tolist()}
    if measured.reference_entropy is not None:
        attention["reference_entropy"] = measured.reference_entropy.tolist()
    cka = None
    if measured.cka is not None and measured.cka_layers is not None:
        layers, of_reference = measured.cka_layers
        cka = {"layers": layers, "reference_layers": of_reference, "tokens": measured.cka_tokens}
        cka["values"] = measured.cka.tolist()
    return {"numbers": {name: getattr(measured, name) for name in names}, "attention": attention, "cka": cka}
