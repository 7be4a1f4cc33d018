"""Loss, entropy, divergence and CKA of a text against NumPy in float64, from all its states at once."""

import math

import jax
import numpy as np
import pytest

from polarax import UsageError
from polarax.evaluation import Settings, load_decoder, measure
from polarax.evaluation.alignment import add_states, alignment, chosen_layers, first_sums
from polarax.evaluation.measuring import Mean
from polarax.evaluation.windows import batches, window_count
from tests.engine.evaluation import models
from tests.engine.evaluation.reference import decode

NAMES = ("gemma2", "qwen3")


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """A model and a reference of other family, depth and width, but of one vocabulary: decoders, and NumPy's."""
    found = []
    for name in NAMES:
        config = models.CONFIGS[name] | ({"hidden_size": 40, "num_hidden_layers": 2} if name == "qwen3" else {})
        tensors = models.tensors_of(config)
        decoder = load_decoder(models.save(tmp_path_factory.mktemp(name), config, tensors))
        found.append((decoder, lambda tokens, config=config, tensors=tensors: decode(config, tensors, tokens)))
    return found


def _log_softmax(scores):
    scores = scores - scores.max(-1, keepdims=True)
    return scores - np.log(np.exp(scores).sum(-1, keepdims=True))


def _windows(count, window, stride):
    """As the guide of transformers to the perplexity of models of fixed length: (begin, end, first new token)."""
    before = 0
    for begin in range(0, count, stride):
        end = min(begin + window, count)
        yield begin, end, before
        before = end
        if end == count:
            return


@pytest.mark.parametrize(
    ("count", "window", "stride"), [(96, 32, 32), (103, 24, 10), (70, 32, 32), (33, 32, 16), (24, 24, 1)]
)
def test_windows_are_those_of_the_guide(count, window, stride):
    tokens = np.arange(count)
    expected = list(_windows(count, window, stride))
    assert window_count(count, window, stride) == len(expected)
    found = []
    for batch in batches(tokens, window, stride, 2):
        for row, first, length in zip(*batch, strict=True):
            if length:
                begin = int(row[0])
                assert row[:length].tolist() == list(range(begin, begin + length))
                found.append((begin, begin + int(length), begin + int(first)))
    assert found == expected


@pytest.mark.parametrize(("window", "stride"), [(32, 32), (24, 10)])
def test_all_numbers_are_those_of_numpy(pair, window, stride):
    (model, numpy_model), (reference, numpy_reference) = pair
    tokens = models.text(103)
    measured = measure(model, tokens, reference, Settings(window=window, stride=stride, batch=3))
    losses, losses_reference, divergences, same, hits, of_windows = [], [], [], [], [], []
    entropies, shares, states, states_reference = [], [], [], []
    for begin, end, new in _windows(len(tokens), window, stride):
        found, other = numpy_model(tokens[begin:end]), numpy_reference(tokens[begin:end])
        logs, logs_reference = _log_softmax(found.scores), _log_softmax(other.scores)
        predicted = np.arange(max(new - begin, 1), end - begin)
        targets, places = tokens[begin:end][predicted], predicted - 1
        losses += (-logs[places, targets]).tolist()
        of_windows.append((-logs[places, targets].sum(), len(places)))
        losses_reference += (-logs_reference[places, targets]).tolist()
        divergences += (np.exp(logs_reference) * (logs_reference - logs)).sum(-1)[places].tolist()
        same += (logs.argmax(-1) == logs_reference.argmax(-1))[places].tolist()
        hits += (logs.argmax(-1)[places] == targets).tolist()
        chances = found.attention[:, :, new - begin :]
        entropy = -np.sum(chances * np.log(np.where(chances > 0, chances, 1)), axis=-1)
        entropies.append(entropy)
        queries = np.arange(new - begin, end - begin)
        visible = np.array([np.minimum(queries + 1, 8 if layer % 2 == 0 else 10**9) for layer in range(3)])[:, None]
        shares.append((entropy / np.log(np.maximum(visible, 2)))[:, :, queries > 0])
        states.append([array[new - begin :] for array in found.states])
        states_reference.append([array[new - begin :] for array in other.states])
    assert measured.tokens == len(losses) and measured.windows == len(of_windows)
    assert measured.loss == pytest.approx(np.mean(losses), rel=1e-5)
    assert measured.perplexity == pytest.approx(math.exp(np.mean(losses)), rel=1e-4)
    assert measured.reference_loss == pytest.approx(np.mean(losses_reference), rel=1e-5)
    assert measured.divergence == pytest.approx(np.mean(divergences), rel=1e-4)
    assert measured.agreement == pytest.approx(np.mean(same)) and measured.accuracy == pytest.approx(np.mean(hits))
    np.testing.assert_allclose(measured.attention_entropy, np.concatenate(entropies, axis=2).mean(2), atol=1e-4)
    np.testing.assert_allclose(measured.attention_share, np.concatenate(shares, axis=2).mean(2), atol=1e-4)
    sums, counts = np.array(of_windows).T
    residuals = sums - np.mean(losses) * counts
    error = math.sqrt(len(sums) / (len(sums) - 1) * (residuals**2).sum()) / counts.sum()
    assert measured.loss_error == pytest.approx(error, rel=1e-3)
    assert measured.cka_layers == ([0, 1, 2, 3], [0, 1, 2]) and measured.cka_tokens == len(tokens)
    for row, x in enumerate(map(np.concatenate, zip(*states, strict=True))):
        for column, y in enumerate(map(np.concatenate, zip(*states_reference, strict=True))):
            assert measured.cka[row, column] == pytest.approx(_cka(x, y), abs=2e-5)


def _cka(x, y):
    x, y = x - x.mean(0), y - y.mean(0)
    return np.linalg.norm(x.T @ y) ** 2 / (np.linalg.norm(x.T @ x) * np.linalg.norm(y.T @ y))


def test_cka_survives_states_far_from_zero():
    """Some numbers of real states are thousands of times their spread from 0."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 300, 6)) * np.geomspace(1, 30, 6) + 3000 * rng.normal(size=6)
    y = x @ rng.normal(size=(6, 5)) + rng.normal(size=(2, 300, 5))
    sums, counts = None, np.ones(100, np.float32)
    for part in range(3):
        place = slice(100 * part, 100 * part + 100)
        pieces = x[:, place].astype(np.float32), y[:, place].astype(np.float32)
        sums = add_states(first_sums(*pieces, counts) if sums is None else sums, *pieces, counts)
    found = alignment(sums)
    for row in range(2):
        for column in range(2):
            assert found[row, column] == pytest.approx(_cka(x[row], y[column]), abs=1e-4)


def test_a_model_is_its_own_best_reference(pair):
    model = pair[0][0]
    measured = measure(model, models.text(90), model, Settings(window=30))
    assert measured.divergence == pytest.approx(0, abs=1e-6) and measured.agreement == 1
    np.testing.assert_allclose(np.diag(measured.cka), 1, atol=1e-5)
    np.testing.assert_array_equal(measured.attention_entropy, measured.reference_entropy)


def test_fewer_tokens_and_layers_where_all_are_too_many(pair):
    (model, _), (reference, _) = pair
    settings = Settings(window=32, cka_tokens=40, cka_gib=6 * 40 * 40 * 4 / 2**30)
    measured = measure(model, models.text(128), reference, settings)
    assert measured.cka_layers == ([0, 3], [0, 2]) and 30 <= measured.cka_tokens <= 44
    assert measure(model, models.text(64), reference, Settings(window=32, cka_tokens=0)).cka is None
    assert chosen_layers((31, 31), (576, 576), 2 * 2**30) == (list(range(31)), list(range(31)))


def test_nothing_grows_with_the_text(pair, monkeypatch):
    """The same programs, and as many arrays on the device, for a text four times as long."""
    (model, _), (reference, _) = pair
    settings = Settings(window=16, batch=4)
    counts = []
    for length in (128, 512):
        alive = []
        measure(
            model,
            models.text(length),
            reference,
            settings,
            lambda work, _, alive=alive: (alive.append(len(jax.live_arrays())) or batch for batch in work),
        )
        counts.append(max(alive))
    assert counts[0] == counts[1]


def test_a_mean_and_its_error():
    mean = Mean()
    assert math.isnan(mean.value) and math.isnan(mean.error)
    mean.add(np.array([2.0, 0.0]), np.array([2, 0]))
    assert mean.value == 1 and math.isnan(mean.error)
    mean.add(np.array([6.0]), np.array([2]))
    assert mean.value == 2 and mean.error == pytest.approx(1.0)  # two windows at 1 and 3: 2 / sqrt(2) / sqrt(2)


@pytest.mark.parametrize(
    ("tokens", "settings", "message"),
    [
        (np.arange(5), {"window": 6}, "has 5 tokens, less than a window of 6"),
        (np.array([0, 1, 96]), {"window": 3}, "has token 96; the model's embedding has 96 tokens, from 0 to 95"),
        (np.array([0, -1, 9]), {"window": 3}, "has token -1"),
        (np.arange(5), {"window": 3, "stride": 4}, "a stride of 4. Expected"),
        (np.arange(5), {"window": 1}, "A window of 1 tokens"),
    ],
)
def test_texts_that_cannot_be_evaluated(pair, tokens, settings, message):
    with pytest.raises(UsageError, match=message):
        measure(pair[0][0], tokens, None, Settings(**settings))


def test_another_vocabulary_is_no_reference(pair, tmp_path):
    config = models.CONFIGS["llama"] | {"vocab_size": 90}
    other = load_decoder(models.save(tmp_path, config, models.tensors_of(config)))
    with pytest.raises(UsageError, match="The model has 96 tokens, the reference 90"):
        measure(pair[0][0], models.text(64), other, Settings(window=32))
