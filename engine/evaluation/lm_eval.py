"""A decoder as a model of the Language Model Evaluation Harness (the package lm_eval), for any benchmark it has.

    import lm_eval
    from polarax.evaluation import lm_eval_model

    lm_eval.simple_evaluate(lm_eval_model("path/to/model"), tasks=["hellaswag"])

Requests are cut into tokens as the harness's own class for transformers does it: without special tokens, but for Gemma,
which begins each text with its first one.
"""

import itertools
import os
from collections.abc import Iterator, Sequence
from typing import Any

import jax

from polarax.errors import UsageError
from polarax.evaluation.decoder import Decoder, load_decoder
from polarax.evaluation.generation import generate
from polarax.evaluation.likelihood import log_likelihoods
from polarax.evaluation.tokens import check_vocabulary, open_tokenizer, whole_numbers
from polarax.loaders import open_checkpoint

_ANSWERS = 16  # written side by side
_LENGTH = 256  # tokens of an answer, where a task does not say; the harness's own


def lm_eval_model(
    model: Any,
    *,
    tokenizer: str | os.PathLike | None = None,
    dtype: str = "float32",
    mesh: jax.sharding.Mesh | None = None,
    longest: int = 2048,
    begin: int | None = None,
    end: int | None = None,
    special: bool | None = None,
) -> Any:
    """An `lm_eval.api.model.LM` of a decoder: `loglikelihood`, `loglikelihood_rolling` and `generate_until`.

    Args:
        model: Path of a checkpoint, or a `Decoder` that is loaded.
        tokenizer: tokenizer.json or a folder with it, where there is none beside the model.
        dtype: As in `load_decoder`.
        mesh: As in `load_decoder`.
        longest: Tokens that the model sees at once.
        begin: The token before a text that has no context; by default that of config.json, or else `end`.
        end: The token that ends a text; by default those of config.json, the first of which ends a text that is read.
        special: Whether texts begin with what the tokenizer puts there; by default those of Gemma do.

    Raises:
        UsageError: The package lm_eval is not installed, no token to begin with is known, or as in `load_decoder`.
        CheckpointError: The checkpoint cannot be read.
    """
    try:
        from lm_eval import utils
        from lm_eval.api.model import TemplateLM
    except ImportError as error:
        raise UsageError("The harness needs the package lm_eval: pip install 'polarax[lm-eval]'.") from error
    settings = {} if isinstance(model, Decoder) else open_checkpoint(model).config or {}
    ends = whole_numbers(settings.get("eos_token_id")) if end is None else (end,)
    begins = whole_numbers(settings.get("bos_token_id")) if begin is None else (begin,)
    if not (begins or ends):
        raise UsageError("No token is known that a text begins with: give begin=.")
    first, last = (begins or ends)[0], (ends or begins)[0]
    words = open_tokenizer(model, tokenizer)
    decoder = model if isinstance(model, Decoder) else load_decoder(model, dtype, mesh=mesh)
    check_vocabulary(words, decoder.config.vocabulary)
    with_special = decoder.config.family.startswith("gemma") if special is None else special

    class DecoderLM(TemplateLM):
        """The harness's side of it."""

        @property
        def eot_token_id(self) -> int:
            return last

        @property
        def prefix_token_id(self) -> int:
            return first

        def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
            special = with_special if add_special_tokens is None else add_special_tokens
            return list(words.encode(string, add_special_tokens=special).ids)

        def _loglikelihood_tokens(self, requests: Sequence[Any], **_: Any) -> list[tuple[float, bool]]:
            # What a continuation's last token is followed by is not asked: one token more than the model sees.
            pairs = [(context, continuation) for _, context, continuation in requests]
            return [(found.logarithm, found.greedy) for found in log_likelihoods(decoder, pairs, longest + 1)]

        def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
            windows = [list(self._windows(request.args[0])) for request in requests]
            found = iter(log_likelihoods(decoder, list(itertools.chain.from_iterable(windows)), longest + 1))
            return [sum(next(found).logarithm for _ in of_text) for of_text in windows]

        def _windows(self, text: str) -> Iterator[tuple[list[int], list[int]]]:
            """Context and continuation of each window of a text."""
            tokens = self.tok_encode(text, add_special_tokens=False)
            return map(
                utils.make_disjoint_window,
                utils.get_rolling_token_windows(tokens, prefix_token=first, max_seq_len=longest, context_len=1),
            )

        def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
            answers: dict[int, str] = {}

            def how(number: int) -> tuple[int, float]:
                given = requests[number].args[1]
                drawn = given.get("do_sample", given.get("temperature", 0.0) > 0)
                return int(given.get("max_gen_toks", _LENGTH)), float(given.get("temperature", 1.0)) if drawn else 0.0

            prompts = [self.tok_encode(request.args[0])[-longest:] or [first] for request in requests]
            order = sorted(range(len(requests)), key=lambda number: (how(number), len(prompts[number])))
            for (length, temperature), same in itertools.groupby(order, key=how):
                alike = list(same)
                for start in range(0, len(alike), _ANSWERS):
                    numbers = alike[start : start + _ANSWERS]
                    written = generate(
                        decoder,
                        [prompts[number][-max(1, longest - length) :] for number in numbers],
                        length,
                        temperature=temperature,
                        stop=ends,
                    )
                    for number, tokens in zip(numbers, written, strict=True):
                        answers[number] = _until(words.decode(tokens), requests[number].args[1].get("until", ()))
            return [answers[number] for number in range(len(requests))]

    return DecoderLM()


def _until(text: str, ends: str | Sequence[str]) -> str:
    """A text before the first of some strings."""
    for end in [ends] if isinstance(ends, str) else ends:
        if end:
            text = text.partition(end)[0]
    return text
