"""`polarax.reproduction.reproduce`: every experiment on the post, each beside a random change of the same size."""

import dataclasses
import datetime
import hashlib
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from polarax.editing.settings import EditSettings
from polarax.editing.targets import find_targets
from polarax.errors import UsageError
from polarax.evaluation import Decoder, Measured, Settings, load_decoder, measure
from polarax.evaluation.tokens import Tokenizer, check_vocabulary, encode, open_tokenizer, read_text
from polarax.evaluation.windows import check_tokens
from polarax.loaders import Checkpoint, Pair, open_checkpoint
from polarax.planning.environment import describe_environment
from polarax.planning.selection import Selection
from polarax.reproduction.experiments import Experiment, chosen_experiments
from polarax.reproduction.journal import REPRODUCTION_FILE, Journal, opened_journal
from polarax.reproduction.reading import read_out
from polarax.reproduction.temperature import AGREES, at_temperature, difference, scaled, why_not_exact
from polarax.reproduction.weights import drift, edited, place_of, randomly_changed
from polarax.results.files import write_json, writing

LINEAR_ROLES = "q,k,v,o,gate,up,down"
FACTORS = (0.5, 0.8, 0.9, 1.0, 1.1, 1.25, 2.0)
_ALIKE = ("family", "layers", "hidden", "heads", "key_heads", "head_size", "units", "vocabulary")


@dataclasses.dataclass(frozen=True)
class Reproduction:
    """What the experiments found.

    Attributes:
        content: All of it, ready for JSON: what reproduction.json says.
        path: The folder it was written to.
    """

    content: Mapping[str, Any]
    path: pathlib.Path

    def reading(self) -> list[str]:
        """What the numbers say, in sentences."""
        return list(self.content["reading"])


class _Text(NamedTuple):
    label: str
    tokens: np.ndarray


class _Bench(NamedTuple):
    """What every experiment needs."""

    base: Checkpoint
    post: Checkpoint
    model: Decoder  # the post's
    texts: Sequence[_Text]
    how: Settings
    seed: int
    selection: Selection


def reproduce(
    base: Any,
    post: Any,
    texts: Sequence[str | os.PathLike],
    out: str | os.PathLike,
    *,
    tokenizer: str | os.PathLike | None = None,
    config: Mapping[str, Any] | None = None,
    experiments: str | None = None,
    roles: str = LINEAR_ROLES,
    layers: str | None = None,
    factor: float = 1.1,
    factors: Sequence[float] = FACTORS,
    text_tokens: int = 4096,
    window: int = 512,
    batch: int = 0,
    cka_tokens: int = 1024,
    cka_gib: float = 0.125,
    dtype: str = "float32",
    method: str = "auto",
    seed: int = 0,
    say: Callable[[str], None] = lambda line: None,
) -> Reproduction:
    """Changes the post's weights in every way that the experiments ask for, and measures what the model then does.

    Each change stands beside a random one of the same size, matrix by matrix: W_p + t G with ||t G|| the norm of the
    change. One changed model is in memory at a time, beside the post, and nothing of it is written to disk. What is
    finished is kept in `out`: the same call again goes on from there.

    Args:
        base: Whatever `polarax.open_checkpoint` takes: the weights before training.
        post: The same for those after it, of an architecture that the decoder knows.
        texts: Text files.
        out: Folder to write to: new, empty, or of the same call.
        tokenizer: tokenizer.json or a folder with it, where the post has none beside it.
        config: config.json as a mapping, where the checkpoints have none.
        experiments: Names of `EXPERIMENTS` with commas; all by default.
        roles: Of the matrices that are changed.
        layers: Of the matrices that are changed, such as "0,3-5"; all by default.
        factor: That queries and keys are scaled by in the experiment scale-values.
        factors: That they are scaled by in the experiment of temperature.
        text_tokens: How many tokens of each text are taken, from its beginning; 0 for all.
        window: Tokens that the model sees at once.
        batch: Windows at a time; 0 for as many as 4096 tokens have.
        cka_tokens: How many tokens CKA is taken of; 0 for no CKA.
        cka_gib: Memory for its sums.
        dtype: Of computing: "float32" or "bfloat16".
        method: How to decompose.
        seed: Of random changes and signs.
        say: Is told what is done.

    Raises:
        UsageError: Something does not fit: architectures differ, a text is shorter than a window, and the like.
        CheckpointError: A checkpoint cannot be read.
        RunError: The folder cannot be written.
    """
    started = datetime.datetime.now(datetime.UTC)
    chosen = chosen_experiments(experiments)
    if not texts:
        raise UsageError("There is no text to evaluate on.")
    if not np.isfinite([factor, *factors]).all() or min([factor, *factors]) <= 0:
        raise UsageError("Factors of queries and keys must be finite and above 0.")
    how = Settings(window, 0, batch, cka_tokens, cka_gib)
    of_base, of_post = open_checkpoint(base), open_checkpoint(post)
    _check_architectures(of_base, of_post, config)
    words = open_tokenizer(post, tokenizer)
    read = _read_texts(texts, words, text_tokens)
    model = load_decoder(of_post, dtype, config=config)
    _check_texts(read, words, model.config.vocabulary, window)
    selection = Selection.parse(None, None, roles, layers)
    bench = _Bench(of_base, of_post, model, read, how, seed, selection)
    pairs = _matrices(bench)
    settings = {**dataclasses.asdict(how), "dtype": dtype, "method": method, "seed": seed, "factor": factor}
    request = {
        "base": of_base.fingerprint(),
        "post": of_post.fingerprint(),
        "texts": [[text.label, hashlib.sha256(np.asarray(text.tokens).tobytes()).hexdigest()] for text in read],
        "selection": selection.describe(),
        **settings,
    }
    with opened_journal(out, request) as journal:
        say("the post as it is")
        of_post_alone = journal.part("post", lambda: {"texts": _measured(bench, model, None)})
        say("the base as it is")
        of_base_alone = journal.part(
            "base", lambda: {"texts": _measured(bench, _base_decoder(bench, dtype, config), model)}
        )
        rows = []
        for number, experiment in enumerate(chosen):
            say(f"{experiment.name} ({number + 1} of {len(chosen)})")
            changed = [pair for pair in pairs if experiment.changes(pair.role)]
            if changed:
                rows.append(_run(bench, experiment, experiment.settings(factor, seed, method), changed, journal))
        temperature = _temperature(bench, journal, factors, say)
        content = {
            "base": {"location": of_base.location, **of_base_alone},
            "post": {"location": of_post.location, **of_post_alone},
            "texts": [{"label": text.label, "tokens": len(text.tokens)} for text in read],
            "settings": {**settings, "batch": how.rows},
            "selection": selection.describe(),
            "environment": describe_environment(),
            "started": started.isoformat(timespec="seconds"),
            "seconds": (datetime.datetime.now(datetime.UTC) - started).total_seconds(),
            "experiments": rows,
            "temperature": temperature,
        }
        content["reading"] = read_out(content)
        with writing(journal.folder):
            write_json(journal.folder / REPRODUCTION_FILE, content)
        return Reproduction(content, journal.folder)


def _check_architectures(base: Checkpoint, post: Checkpoint, config: Mapping[str, Any] | None) -> None:
    kinds = [(checkpoint.config or config or {}).get("model_type") for checkpoint in (base, post)]
    if kinds[0] != kinds[1]:
        raise UsageError(f"The base is a {kinds[0]} model, the post a {kinds[1]} model. Expected one architecture.")


def _read_texts(texts: Sequence[str | os.PathLike], tokenizer: Tokenizer, most: int) -> list[_Text]:
    """The token ids of each text; labels are names of files, or paths where two have the same name."""
    names = [pathlib.Path(text).name for text in texts]
    labels = names if len(set(names)) == len(names) else [os.fspath(text) for text in texts]
    if len(set(labels)) < len(labels):
        raise UsageError(f"A text is given twice: {', '.join(labels)}.")
    found = [encode(tokenizer, read_text(text)) for text in texts]
    return [_Text(label, tokens[: most or None]) for label, tokens in zip(labels, found, strict=True)]


def _check_texts(texts: Sequence[_Text], words: Tokenizer, vocabulary: int, window: int) -> None:
    check_vocabulary(words, vocabulary)
    for text in texts:
        try:
            check_tokens(text.tokens, vocabulary, window, window)
        except UsageError as error:
            raise UsageError(f"{text.label}: {error}") from error


def _matrices(bench: _Bench) -> tuple[Pair, ...]:
    """The matrices that were chosen, all of them the decoder's."""
    found = find_targets(bench.base, bench.post, bench.selection, EditSettings.parse("replace-values"))
    for pair in found.pairs:
        place_of(pair, bench.model.config.layers)
    return found.pairs


def _base_decoder(bench: _Bench, dtype: str, config: Mapping[str, Any] | None) -> Decoder:
    model = load_decoder(bench.base, dtype, config=config)
    for name in _ALIKE:
        values = [getattr(one.config, name) for one in (model, bench.model)]
        if values[0] != values[1]:
            raise UsageError(f"The base has {name.replace('_', ' ')} {values[0]}, the post {values[1]}.")
    return model


def _run(
    bench: _Bench, experiment: Experiment, settings: EditSettings | None, pairs: Sequence[Pair], journal: Journal
) -> dict[str, Any]:
    """An experiment and its control."""

    def change() -> dict[str, Any]:
        model, changes = edited(bench.model, bench.base, bench.post, pairs, settings)
        return {"drift": drift(changes), "changes": [change._asdict() for change in changes], **_texts(bench, model)}

    def control() -> dict[str, Any]:
        norms = {change["name"]: change["norm"] for change in found["changes"]}
        model, changes = randomly_changed(bench.model, pairs, norms, bench.seed)
        return {"drift": drift(changes), **_texts(bench, model)}

    found = journal.part(experiment.name, change)
    random = journal.part(f"{experiment.name}.random", control)
    edit = {name: value for name, value in found.items() if name != "changes"}
    return {
        "name": experiment.name,
        "weight": experiment.weight,
        "asks": experiment.asks,
        "matrices": len(found["changes"]),
        "edit": edit,
        "random": dict(random),
    }


def _texts(bench: _Bench, model: Decoder) -> dict[str, Any]:
    return {"texts": _measured(bench, model, bench.model)}


def _measured(bench: _Bench, model: Decoder, reference: Decoder | None) -> dict[str, Any]:
    """What each text says of a model."""
    return {text.label: _numbers(measure(model, text.tokens, reference, bench.how)) for text in bench.texts}


def _numbers(measured: Measured) -> dict[str, Any]:
    numbers = {name: getattr(measured, name) for name in ("tokens", "loss", "loss_error", "perplexity", "accuracy")}
    numbers["entropy"] = float(measured.attention_entropy.mean())
    numbers["entropy_by_layer"] = measured.attention_entropy.mean(axis=1).tolist()
    if measured.divergence is not None:
        names = ("divergence", "divergence_error", "agreement")
        numbers |= {name: getattr(measured, name) for name in names}
    if measured.cka is not None and measured.cka_layers is not None:
        same = np.diag(measured.cka)
        numbers["cka"], numbers["cka_lowest"] = float(np.nanmean(same)), float(np.nanmin(same))
        numbers["cka_layers"], numbers["cka_by_layer"] = measured.cka_layers[0], same.tolist()
    return numbers


def _temperature(
    bench: _Bench, journal: Journal, factors: Sequence[float], say: Callable[[str], None]
) -> dict[str, Any]:
    """Queries and keys scaled by each factor, against attention at another temperature."""
    reasons, rows = why_not_exact(bench.model.config), []
    text = bench.texts[0]
    for c in sorted(set(factors)):
        say(f"temperature: queries and keys times {c:g}")

        def at(c: float = c) -> dict[str, Any]:
            weights, attention = scaled(bench.model, c), at_temperature(bench.model, c)
            row: dict[str, Any] = {
                "c": c,
                "difference": difference(weights, attention, text.tokens[: bench.how.window]),
            }
            row["scaled"] = _numbers(measure(weights, text.tokens, bench.model, bench.how))
            if reasons:
                row["at_temperature"] = _numbers(measure(attention, text.tokens, bench.model, bench.how))
            return row

        rows.append(journal.part(f"temperature-{c:g}", at))
    return {
        "exact": not reasons,
        "why_not": reasons,
        "within": AGREES,
        "largest_difference": max((row["difference"] for row in rows), default=0.0),
        "text": text.label,
        "rows": rows,
    }
