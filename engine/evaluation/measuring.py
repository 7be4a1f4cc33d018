"""A model on a text, window by window: sums that do not grow with the text, and what they come to."""

import dataclasses
import math
from collections.abc import Callable, Iterable
from typing import Any

import jax
import numpy as np

from polarax.errors import UsageError
from polarax.evaluation.alignment import Sums, add_states, alignment, chosen_layers, first_sums
from polarax.evaluation.decoder import Decoder
from polarax.evaluation.decoder.sharding import tokens_sharding
from polarax.evaluation.programs import next_tokens, run_model
from polarax.evaluation.windows import Batch, batches, check_tokens, window_count

_BATCH_TOKENS = 4096  # of a batch, unless it is given: enough for products to run at full speed


@dataclasses.dataclass(frozen=True)
class Settings:
    """How a text is evaluated.

    Attributes:
        window: Tokens that a model sees at once.
        stride: Tokens from one window to the next; 0 for `window`.
        batch: Windows at a time; 0 for as many as 4096 tokens have.
        cka_tokens: How many of the text's tokens CKA is taken of, evenly spread; 0 for no CKA.
        cka_gib: Memory for its sums; where that is too little for all layers with all, fewer are taken.
    """

    window: int = 1024
    stride: int = 0
    batch: int = 0
    cka_tokens: int = 8192
    cka_gib: float = 2.0

    @property
    def step(self) -> int:
        """Tokens from one window to the next."""
        return self.stride or self.window

    @property
    def rows(self) -> int:
        """Windows at a time."""
        return self.batch or max(1, _BATCH_TOKENS // self.window)


class Mean:
    """A mean over tokens and its standard error, from sums over windows.

    Tokens of a window depend on one another, so windows are what varies: the error is that of a ratio of two sums.
    """

    def __init__(self) -> None:
        self._sums = np.zeros(5)  # value, tokens, value^2, value x tokens, tokens^2
        self._windows = 0

    def add(self, values: np.ndarray, tokens: np.ndarray) -> None:
        """Adds windows: the sum over each one's tokens, and how many those are."""
        values, tokens = (np.asarray(array, np.float64) for array in (values, tokens))
        self._sums += [values.sum(), tokens.sum(), values @ values, values @ tokens, tokens @ tokens]
        self._windows += int((tokens > 0).sum())

    @property
    def value(self) -> float:
        """The mean; NaN of nothing."""
        return float(self._sums[0] / self._sums[1]) if self._sums[1] else math.nan

    @property
    def error(self) -> float:
        """Its standard error; NaN of less than two windows."""
        if self._windows < 2:
            return math.nan
        mean, (_, tokens, squares, products, squared) = self.value, self._sums
        spread = max(squares - 2 * mean * products + mean**2 * squared, 0.0)
        return float(math.sqrt(spread * self._windows / (self._windows - 1)) / tokens)


@dataclasses.dataclass(frozen=True)
class Measured:
    """What a text said of a model, in nats; the last six are None without a reference.

    Attributes:
        windows: Of the text.
        tokens: That were predicted.
        loss: Mean over these.
        loss_error: Its standard error, over windows.
        accuracy: Share of tokens that were the most probable ones.
        attention_entropy: Mean over queries, (layers, heads).
        attention_share: The same, of the entropy of looking at all visible tokens alike.
        reference_loss: Of the reference.
        divergence: Mean Kullback-Leibler divergence of the next token's distribution from the reference's.
        divergence_error: Its standard error, over windows.
        agreement: Share of places where both models find the same token most probable.
        cka: Linear CKA, (layers, layers of the reference), NaN where states do not vary; None where it was not asked.
        cka_layers: Which layers its rows and columns are; 0 is the embedding. None with it.
        cka_tokens: How many tokens it is of.
        reference_entropy: Like `attention_entropy`, of the reference.
    """

    windows: int
    tokens: int
    loss: float
    loss_error: float
    accuracy: float
    attention_entropy: np.ndarray
    attention_share: np.ndarray
    reference_loss: float | None = None
    divergence: float | None = None
    divergence_error: float | None = None
    agreement: float | None = None
    cka: np.ndarray | None = None
    cka_layers: tuple[list[int], list[int]] | None = None
    cka_tokens: int = 0
    reference_entropy: np.ndarray | None = None

    @property
    def perplexity(self) -> float:
        """The exponential of the loss."""
        return math.exp(min(self.loss, 700.0))


def measure(
    model: Decoder,
    tokens: np.ndarray,
    reference: Decoder | None = None,
    settings: Settings | None = None,
    progress: Callable[[Iterable[Batch], int], Iterable[Batch]] | None = None,
) -> Measured:
    """Evaluates a decoder on a text.

    Args:
        model: The decoder.
        tokens: (count,) integers; may be mapped from a file.
        reference: Another decoder to compare it with, of the same vocabulary.
        settings: How; the defaults otherwise.
        progress: Wraps the batches, of which it is told how many there are.

    Raises:
        UsageError: The text is shorter than a window or has tokens that are not in the vocabulary, or the two
            vocabularies differ.
    """
    settings = settings or Settings()
    check_tokens(tokens, model.config.vocabulary, settings.window, settings.step)
    if reference is not None and reference.config.vocabulary != model.config.vocabulary:
        raise UsageError(
            f"The model has {model.config.vocabulary} tokens, the reference {reference.config.vocabulary}: "
            "their distributions cannot be compared."
        )
    with_cka = reference is not None and settings.cka_tokens > 0
    every = max(1, -(-len(tokens) // settings.cka_tokens)) if with_cka else 0
    work = batches(tokens, settings.window, settings.step, settings.rows)
    windows = window_count(len(tokens), settings.window, settings.step)
    sums = _Sums(model, reference, settings, every)
    for batch in progress(work, -(-windows // settings.rows)) if progress else work:
        sums.add(batch)
    return sums.measured(windows)


class _Sums:
    """All that is kept from batch to batch."""

    def __init__(self, model: Decoder, reference: Decoder | None, settings: Settings, every: int):
        self._model, self._reference, self._every = model, reference, min(every, settings.window)
        self._means = {name: Mean() for name in ("loss", "hit", "loss_reference", "divergence", "agreement")}
        self._entropy: list[Any] = []  # of each model: sums of entropy, share, queries, queries with a choice
        self._cka: Sums | None = None
        self._waiting: list[tuple[Any, np.ndarray, list[Any]]] = []
        if every and reference is not None:
            configs = model.config, reference.config
            self._layers = chosen_layers(
                (configs[0].layers + 1, configs[1].layers + 1),
                (configs[0].hidden, configs[1].hidden),
                settings.cka_gib * 2**30,
            )

    def add(self, batch: Batch) -> None:
        """Computes a batch; its numbers are fetched while the next one is computed."""
        place = _place(self._model, len(batch.tokens))
        tokens = jax.device_put(batch.tokens, place)
        states, seen = run_model(self._model, tokens, batch.counted_from, batch.lengths, self._every)
        seens, states_reference = [seen], None
        if self._reference is not None:
            states_reference, other = run_model(self._reference, tokens, batch.counted_from, batch.lengths, self._every)
            seens.append(other)
        told = next_tokens(self._model, states, tokens, self._reference, states_reference)
        places = np.arange(batch.tokens.shape[1]) + 1  # of the token that is predicted
        counts = (places >= np.maximum(batch.counted_from, 1)[:, None]) & (places < batch.lengths[:, None])
        if self._every and self._reference is not None:
            self._add_states(batch, *seens)
        self._waiting.append((told, counts, [seen._replace(states=None) for seen in seens]))
        if len(self._waiting) > 1:
            self._fetch()

    def _add_states(self, batch: Batch, seen: Any, other: Any) -> None:
        places = np.arange(0, batch.tokens.shape[1], self._every)
        counts = (places >= batch.counted_from[:, None]) & (places < batch.lengths[:, None])
        weights = counts.reshape(-1).astype(np.float32)
        x, y = (part.states[np.array(layers)] for part, layers in zip((seen, other), self._layers, strict=True))
        if self._cka is None:
            self._cka = first_sums(x, y, weights)
        self._cka = add_states(self._cka, x, y, weights)

    def _fetch(self) -> None:
        told, counts, seens = self._waiting.pop(0)
        for name, values in told._asdict().items():
            if values is not None:
                self._means[name].add((np.asarray(values, np.float64) * counts).sum(axis=1), counts.sum(axis=1))
        numbers = [tuple(np.asarray(part, np.float64) for part in seen[:4]) for seen in seens]
        before = self._entropy or [(0.0,) * 4] * len(seens)
        self._entropy = [
            tuple(old + new for old, new in zip(*both, strict=True)) for both in zip(before, numbers, strict=True)
        ]

    def measured(self, windows: int) -> Measured:
        """What it all came to."""
        while self._waiting:
            self._fetch()
        loss, hit, *_ = self._means.values()
        (entropies, shares, queries, with_choice), *others = self._entropy
        found: dict[str, Any] = {}
        if others:
            divergence = self._means["divergence"]
            found = {
                "reference_loss": self._means["loss_reference"].value,
                "divergence": divergence.value,
                "divergence_error": divergence.error,
                "agreement": self._means["agreement"].value,
                "reference_entropy": others[0][0] / others[0][2],
            }
        if self._cka is not None:
            found |= {"cka": alignment(self._cka), "cka_layers": self._layers, "cka_tokens": int(self._cka.rows)}
        return Measured(
            windows,
            int(loss._sums[1]),
            loss.value,
            loss.error,
            hit.value,
            entropies / queries,
            shares / max(with_choice, 1.0),
            **found,
        )


def _place(model: Decoder, batch: int) -> jax.sharding.Sharding | None:
    """Where tokens go: divided as the model is."""
    sharding = model.embed_tokens.embedding[...].sharding
    mesh = getattr(sharding, "mesh", None)
    return tokens_sharding(mesh if isinstance(mesh, jax.sharding.Mesh) else None, batch)
