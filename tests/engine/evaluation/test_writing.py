"""What a model writes, and how probable it finds what is given, against its scores without a cache."""

import numpy as np
import pytest

from polarax import UsageError
from polarax.evaluation import generate, load_decoder, log_likelihoods
from tests.engine.evaluation import models
from tests.engine.evaluation.reference import decode

PROMPTS = [models.text(length, seed=length).tolist() for length in (3, 11, 20)]


@pytest.fixture(scope="module", params=["llama_yarn", "gemma3"])
def model(request, tmp_path_factory):
    """A decoder, and its scores by NumPy."""
    config, tensors = models.CONFIGS[request.param], models.tensors_of(models.CONFIGS[request.param])
    folder = models.save(tmp_path_factory.mktemp("model"), config, tensors)
    return load_decoder(folder), lambda tokens: decode(config, tensors, np.asarray(tokens)).scores


def test_greedy_texts_are_those_of_whole_passes(model):
    decoder, scores = model
    found = generate(decoder, PROMPTS, 12)
    for prompt, written in zip(PROMPTS, found, strict=True):
        tokens = list(prompt)
        for token in written:
            row = scores(tokens)[-1]
            assert row.max() - row[token] < 1e-4 * np.abs(row).max()  # the first, or next to it by a rounding
            tokens.append(token)
        assert len(written) == 12


def test_a_stop_token_ends_a_text_and_is_left_out(model):
    whole = generate(model[0], PROMPTS, 12)
    stop = whole[1][4]
    cut = generate(model[0], PROMPTS, 12, stop=[stop])
    assert cut == [row[: row.index(stop)] if stop in row else row for row in whole]


def test_draws_follow_seed_and_place_alone(model):
    decoder, _ = model
    drawn = generate(decoder, PROMPTS, 8, temperature=1.0, seed=5)
    assert drawn == generate(decoder, PROMPTS, 8, temperature=1.0, seed=5)
    assert drawn != generate(decoder, PROMPTS, 8, temperature=1.0, seed=6)
    assert drawn[:2] == generate(decoder, PROMPTS[:2], 8, temperature=1.0, seed=5)
    assert generate(decoder, PROMPTS, 8, temperature=1e-4, seed=5) == generate(decoder, PROMPTS, 8)


def test_first_tokens_are_drawn_as_often_as_they_are_probable(model):
    decoder, scores = model
    draws = 4000
    row = scores(PROMPTS[0])[-1] / 2.0
    chances = np.exp(row - row.max())
    chances /= chances.sum()
    drawn = np.bincount(np.ravel(generate(decoder, [PROMPTS[0]] * draws, 1, temperature=2.0)), minlength=96) / draws
    # Five standard deviations of each share: by chance alone one of 96 is beyond them once in 20,000 runs.
    assert np.all(np.abs(drawn - chances) < 5 * np.sqrt(chances * (1 - chances) / draws) + 1 / draws)


def test_likelihoods_of_continuations(model):
    decoder, scores = model
    continuations = [models.text(length, seed=9).tolist() for length in (1, 4, 2)]
    greedy = generate(decoder, PROMPTS[:1], 3)[0]
    pairs = [*zip(PROMPTS, continuations, strict=True), (PROMPTS[0], greedy)]
    found = log_likelihoods(decoder, pairs)
    for (prompt, continuation), likelihood in zip(pairs, found, strict=True):
        rows = scores([*prompt, *continuation])
        logs = (
            rows
            - np.log(np.exp(rows - rows.max(-1, keepdims=True)).sum(-1, keepdims=True))
            - rows.max(-1, keepdims=True)
        )
        places = np.arange(len(prompt) - 1, len(prompt) + len(continuation) - 1)
        assert likelihood.logarithm == pytest.approx(logs[places, continuation].sum(), rel=1e-4)
    assert found[-1].greedy and not all(likelihood.greedy for likelihood in found[:-1])


def test_a_long_context_loses_its_beginning(model):
    decoder, _ = model
    long = models.text(30).tolist()
    assert log_likelihoods(decoder, [(long, [3, 4])], longest=12)[0].logarithm == pytest.approx(
        log_likelihoods(decoder, [(long[-10:], [3, 4])])[0].logarithm, rel=1e-5
    )


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda model: generate(model, [[]]), "Prompt 1 has no tokens"),
        (lambda model: generate(model, [[1], [99]]), "Prompt 2 has token 99; the model's embedding has 96"),
        (lambda model: generate(model, [[1]], 0), "0 tokens at temperature 0.0"),
        (lambda model: generate(model, [[1]], 3, temperature=-1.0), "at temperature -1.0"),
        (lambda model: log_likelihoods(model, [([], [1])]), "has no tokens"),
        (lambda model: log_likelihoods(model, [([1], [1] * 9)], longest=9), "has 9 tokens. The model sees 9"),
    ],
)
def test_what_cannot_be_written(model, call, message):
    with pytest.raises(UsageError, match=message):
        call(model[0])


def test_no_prompts_no_texts(model):
    assert generate(model[0], []) == [] and log_likelihoods(model[0], []) == []
