"""A decoder for lm-evaluation-harness, which asks models in three ways: any of its benchmarks then runs in JAX.

What is asked is tokenized and cut as by the harness's own models of transformers (lm_eval/api/model.py, TemplateLM),
so that scores can be compared.
"""

import importlib
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax

from polarax.errors import UsageError
from polarax.evaluation.decoder import Decoder, load_decoder
from polarax.evaluation.generation import generate
from polarax.evaluation.likelihood import log_likelihoods
from polarax.evaluation.tokens import Tokenizer, check_vocabulary, open_tokenizer
from polarax.loaders import open_checkpoint

_LONGEST = 2048  # tokens that a model sees, unless it is made for less
_LENGTH = 256  # tokens to write, unless a task says how many: the harness's own default
_ROWS = 8  # prompts that are continued at a time
_SCORED = 1024  # continuations that are scored at a time: enough to put those of about one length together
_END = "eos_token_id"
_START = "bos_token_id"


def lm_eval_model(
    path: str | os.PathLike,
    *,
    dtype: str = "float32",
    mesh: jax.sharding.Mesh | None = None,
    tokenizer: str | os.PathLike | None = None,
    config: Mapping[str, Any] | None = None,
    max_length: int | None = None,
    special_tokens: bool | None = None,
    seed: int = 0,
) -> Any:
    """A model for `lm_eval.simple_evaluate`.

    >>> model = lm_eval_model("path/to/model")  # doctest: +SKIP
    >>> lm_eval.simple_evaluate(model, tasks=["arc_easy"])["results"]  # doctest: +SKIP

    Args:
        path: Whatever `polarax.open_checkpoint` takes, of an architecture in `FAMILIES`.
        dtype: "float32" or "bfloat16".
        mesh: Devices to divide it over; see `load_decoder`.
        tokenizer: tokenizer.json or a folder with it, where the model has none beside it.
        config: config.json as a mapping, where the model has none.
        max_length: Tokens that the model sees; by default what it is made for, 2048 at most.
        special_tokens: Whether texts begin with the special tokens that the tokenizer adds; by default those of Gemma
            do, as in the harness.
        seed: Of draws, where a task asks for a temperature.

    Raises:
        UsageError: lm_eval is not installed, the architecture is not known, or the tokenizer does not fit.
        CheckpointError: The checkpoint cannot be read.
    """
    try:
        base = importlib.import_module("lm_eval.api.model").LM
    except ImportError as error:
        raise UsageError("The harness needs the package lm_eval: pip install 'polarax[lm-eval]'.") from error
    checkpoint = open_checkpoint(path)
    tokenizes = open_tokenizer(path, tokenizer)
    model = load_decoder(checkpoint, dtype, mesh=mesh, config=config)
    check_vocabulary(tokenizes, model.config.vocabulary)
    settings = {**(config or {}), **(checkpoint.config or {})}
    given = max_length or min(_LONGEST, int(settings.get("max_position_embeddings") or _LONGEST))
    if special_tokens is None:
        special_tokens = model.config.family.startswith("gemma")

    class Model(HarnessAnswers, base):
        """The answers, as the harness's own kind of model."""

        def __init__(self) -> None:
            base.__init__(self)
            HarnessAnswers.__init__(
                self,
                model,
                tokenizes,
                _tokens_of(settings, _END),
                _tokens_of(settings, _START),
                given,
                special_tokens,
                seed,
            )

    return Model()


def _tokens_of(settings: Mapping[str, Any], name: str) -> tuple[int, ...]:
    """One token of a configuration, or several, or none."""
    value = settings.get(name)
    return tuple(token for token in (value if isinstance(value, list) else [value]) if isinstance(token, int))


class HarnessAnswers:
    """What the harness asks of a model.

    Args:
        model: The decoder.
        tokenizer: Its tokenizer.
        ends: Tokens that end a text.
        starts: Tokens that begin one: the first of them, or else of `ends`, stands before a text without a context;
            token 0 where there are none.
        max_length: Tokens that the model sees.
        special_tokens: Whether texts begin with the tokenizer's special tokens.
        seed: Of draws.
    """

    def __init__(
        self,
        model: Decoder,
        tokenizer: Tokenizer,
        ends: Sequence[int],
        starts: Sequence[int],
        max_length: int,
        special_tokens: bool = False,
        seed: int = 0,
    ):
        self._decoder, self._tokenizer, self._seed = model, tokenizer, seed
        self._ends, self._prefix = tuple(ends), next(iter([*starts, *ends]), 0)
        self._longest, self._special_tokens = max_length, special_tokens

    def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Logarithm of the probability of continuations after their contexts, and whether they are the greedy ones.

        Args:
            requests: `lm_eval` instances, whose `args` are context and continuation.
            disable_tqdm: Show no bar.
        """
        pairs = [self._pair(*request.args) for request in requests]
        found: list[tuple[float, bool]] = []
        for part in _in_parts(pairs, _SCORED, disable_tqdm, "loglikelihood"):
            # What is predicted last is not seen: a row may have one token more than the model sees.
            found += [(each.logarithm, each.greedy) for each in log_likelihoods(self._decoder, part, self._longest + 1)]
        return found

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """Logarithm of the probability of whole texts, each from its beginning, in windows of the model's length.

        Args:
            requests: `lm_eval` instances, whose `args` are one text.
            disable_tqdm: Show no bar.
        """
        pairs, owners = [], []
        for number, request in enumerate(requests):
            for pair in self._windows(self._encode(request.args[0], special_tokens=False)):
                pairs.append(pair)
                owners.append(number)
        totals, place = [0.0] * len(requests), 0
        for part in _in_parts(pairs, _SCORED, disable_tqdm, "loglikelihood_rolling"):
            for each in log_likelihoods(self._decoder, part, self._longest + 1):
                totals[owners[place]] += each.logarithm
                place += 1
        return totals

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """What the model adds to prompts, up to a text that ends it.

        Args:
            requests: `lm_eval` instances, whose `args` are a prompt and a mapping: until, max_gen_toks, do_sample,
                temperature.
            disable_tqdm: Show no bar.

        Raises:
            UsageError: A setting of the mapping is not known here (top_p and the like), where it would change a text.
        """
        found: dict[int, str] = {}
        groups: dict[Any, list[int]] = {}
        for number, request in enumerate(requests):
            groups.setdefault(_settings_of(request.args[1]), []).append(number)
        rows = []
        for (until, length, temperature), numbers in groups.items():
            prompts = {number: self._prompt(requests[number].args[0], length) for number in numbers}
            numbers.sort(key=lambda number: len(prompts[number]))  # prompts of about one length together
            for first in range(0, len(numbers), _ROWS):
                some = numbers[first : first + _ROWS]
                rows.append((until, length, temperature, some, [prompts[number] for number in some]))
        for ((until, length, temperature, some, ids),) in _in_parts(rows, 1, disable_tqdm, "generate_until"):
            written = generate(self._decoder, ids, length, temperature=temperature, seed=self._seed, stop=self._ends)
            for number, tokens in zip(some, written, strict=True):
                found[number] = _cut(self._tokenizer.decode(tokens), until)
        return [found[number] for number in range(len(requests))]

    def _encode(self, text: str, *, special_tokens: bool) -> list[int]:
        return list(self._tokenizer.encode(text, add_special_tokens=special_tokens).ids)

    def _pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """Token ids of both; spaces that end a context belong to what follows, as tokenizers have it."""
        if not context:
            ids = self._encode(continuation, special_tokens=False)
            return ([self._prefix], ids) if not ids or ids[0] != self._prefix or len(ids) < 2 else (ids[:1], ids[1:])
        bare = context.rstrip()
        whole = self._encode(context + continuation, special_tokens=self._special_tokens)
        before = self._encode(bare, special_tokens=self._special_tokens) if bare else []
        return before or [self._prefix], whole[len(before) :]

    def _windows(self, tokens: list[int]) -> Iterable[tuple[list[int], list[int]]]:
        """What is seen and what is predicted, every token once; the last window sees as much as any."""
        row = [self._prefix, *tokens]
        for first in range(0, len(tokens), self._longest):
            last = min(first + self._longest, len(tokens))
            yield row[max(0, last - self._longest) : first + 1], row[first + 1 : last + 1]

    def _prompt(self, text: str, length: int) -> list[int]:
        """The end of a prompt that leaves room for what is written."""
        ids = self._encode(text, special_tokens=self._special_tokens) or [self._prefix]
        return ids[-max(1, self._longest - length) :]


def _settings_of(given: Mapping[str, Any]) -> tuple[tuple[str, ...], int, float]:
    """The texts that end one, how many tokens, and the temperature."""
    rest = dict(given)
    until = rest.pop("until", None) or ()
    length = int(rest.pop("max_gen_toks", rest.pop("max_new_tokens", _LENGTH)))
    sampled = rest.pop("do_sample", None)
    temperature = float(rest.pop("temperature", 0.0) or 0.0)
    if sampled is False:
        temperature = 0.0
    elif sampled and not temperature:
        temperature = 1.0
    if rest and temperature:
        raise UsageError(f"Texts are drawn by temperature alone. Got {', '.join(sorted(rest))}.")
    return (until,) if isinstance(until, str) else tuple(until), length, temperature


def _cut(text: str, until: Sequence[str]) -> str:
    """The text before the first place where one of some others begins."""
    ends = [text.find(end) for end in until if end and end in text]
    return text[: min(ends)] if ends else text


def _in_parts(items: Sequence[Any], size: int, silent: bool, name: str) -> Iterable[Sequence[Any]]:
    """The items, so many at a time, with a bar."""
    from tqdm import tqdm

    with tqdm(total=len(items), desc=name, disable=silent or None) as bar:
        for first in range(0, len(items), size):
            part = items[first : first + size]
            yield part
            bar.update(len(part))
