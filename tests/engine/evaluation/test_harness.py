"""The adapter for lm-evaluation-harness: its three answers against float64, and a task of a local file where it is."""

import importlib.util
import json
import sys
import types
from typing import Any, NamedTuple

import numpy as np
import pytest

import polarax
from polarax.evaluation import lm_eval_model
from tests.engine.evaluation import models
from tests.engine.evaluation.reference import decode
from tests.engine.reproduction.pairs import WORDS, save_tokenizer

CONFIG = models.CONFIGS["llama"] | {"eos_token_id": 95, "bos_token_id": 94}
TENSORS = models.tensors_of(CONFIG)
MAX_LENGTH = 16


class Request(NamedTuple):
    """What the harness's `Instance` shows of itself."""

    args: tuple


class StandIn:
    """For `lm_eval.api.model.LM`: what the adapter takes of it."""

    def __init__(self):
        self.is_set_up = True


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = models.save(tmp_path_factory.mktemp("harness") / "model", CONFIG, TENSORS)
    save_tokenizer(path)
    return path


@pytest.fixture
def model(folder, monkeypatch) -> Any:
    module = types.ModuleType("lm_eval.api.model")
    module.LM = StandIn
    for name in ("lm_eval", "lm_eval.api"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, "lm_eval.api.model", module)
    return lm_eval_model(folder, max_length=MAX_LENGTH)


def _words(tokens) -> str:
    return " ".join(WORDS[token] for token in tokens)


def _logarithms(row) -> np.ndarray:
    """Of the probability of every token (columns) after each place of a row."""
    scores = decode(CONFIG, TENSORS, np.array(row)).scores
    top = scores.max(-1, keepdims=True)
    return scores - top - np.log(np.exp(scores - top).sum(-1, keepdims=True))


def test_it_is_the_harness_own_kind_of_model(model):
    assert isinstance(model, StandIn) and model.is_set_up


@pytest.mark.parametrize("space", ["", " "])
def test_loglikelihood(model, space):
    context, continuation = [3, 1, 4, 1, 5], [9, 2, 6]
    given = _words(context) + space, (" " * (not space)) + _words(continuation)
    found = model.loglikelihood([Request(given), Request(("", _words([7, 8])))], disable_tqdm=True)
    logarithms = _logarithms(context + continuation)[len(context) - 1 : -1]
    expected = sum(row[token] for row, token in zip(logarithms, continuation, strict=True))
    assert found[0][0] == pytest.approx(expected, rel=1e-5)
    assert found[0][1] == [int(row.argmax()) for row in logarithms] == continuation or found[0][1] is False
    beginning = _logarithms([94, 7, 8])  # no context: the token that begins a text stands before it
    assert found[1][0] == pytest.approx(beginning[0][7] + beginning[1][8], rel=1e-5)


def test_a_greedy_continuation_is_known(model):
    row = [3, 1, 4]
    row.append(int(_logarithms(row)[-1].argmax()))
    greedy, other = model.loglikelihood(
        [Request((_words(row[:3]), f" {_words(row[3:])}")), Request((_words(row[:3]), f" {_words([row[3] ^ 1])}"))]
    )
    assert greedy[1] and not other[1] and greedy[0] > other[0]


def test_a_long_context_is_cut_from_its_beginning(model):
    tokens = models.text(40).tolist()
    (found,) = model.loglikelihood([Request((_words(tokens[:38]), f" {_words(tokens[38:])}"))])
    row = tokens[-(MAX_LENGTH + 1) :]  # the last one is predicted, not seen
    logarithms = _logarithms(row[:-1])
    assert found[0] == pytest.approx(logarithms[-2][row[-2]] + logarithms[-1][row[-1]], rel=1e-5)


@pytest.mark.parametrize("count", [5, 16, 17, 39])
def test_loglikelihood_rolling(model, count):
    tokens = models.text(count).tolist()
    found = model.loglikelihood_rolling([Request((_words(tokens),)), Request((_words(tokens[:2]),))])
    # Windows of MAX_LENGTH inputs; the last one ends with the text and sees as much as any.
    row, expected = [94, *tokens], 0.0
    for first in range(0, count, MAX_LENGTH):
        last = min(first + MAX_LENGTH, count)
        begin = max(0, last - MAX_LENGTH)
        logarithms = _logarithms(row[begin:last])
        expected += sum(logarithms[place - begin][row[place + 1]] for place in range(first, last))
    assert found[0] == pytest.approx(expected, rel=1e-5)
    start = _logarithms(row[:2])
    assert found[1] == pytest.approx(start[0][tokens[0]] + start[1][tokens[1]], rel=1e-5)


def _greedy(row, count):
    row = list(row)
    for _ in range(count):
        row.append(int(_logarithms(row)[-1].argmax()))
        if row[-1] == 95:
            return row[:-1]
    return row


def test_generate_until(model):
    prompts = [[3, 1, 4, 1, 5], [9, 2], models.text(30).tolist()]
    whole = [_greedy(prompt[-(MAX_LENGTH - 6) :], 6)[len(prompt[-(MAX_LENGTH - 6) :]) :] for prompt in prompts]
    asked = {"until": ["\n\n"], "max_gen_toks": 6, "do_sample": False, "temperature": 0.0}
    found = model.generate_until([Request((_words(prompt), asked)) for prompt in prompts])
    assert [text.split() for text in found] == [[WORDS[token] for token in tokens] for tokens in whole]
    end = WORDS[whole[0][2]]
    (cut,) = model.generate_until([Request((_words(prompts[0]), asked | {"until": f" {end}"}))])
    assert cut.split() == found[0].split()[: found[0].split().index(end)]


def test_what_is_drawn_is_asked_for_by_temperature_alone(model):
    asked = {"until": [], "max_gen_toks": 4, "do_sample": True, "temperature": 0.7}
    texts = [model.generate_until([Request(("w1 w2", asked))]) for _ in range(2)]
    assert texts[0] == texts[1]
    with pytest.raises(polarax.UsageError, match="top_p"):
        model.generate_until([Request(("w1", asked | {"top_p": 0.9}))])


def test_without_the_package(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval.api.model", None)
    with pytest.raises(polarax.UsageError, match=r"polarax\[lm-eval\]"):
        lm_eval_model(folder)


TASK = """task: which_follows
dataset_path: json
dataset_kwargs:
  data_files:
    test: {data}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{text}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{answer}}}}"
metric_list:
  - metric: acc
"""


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("lm_eval") is None, reason="lm_eval is not installed")
def test_a_task_of_a_local_file(folder, tmp_path):
    import lm_eval
    from lm_eval.tasks import TaskManager

    rows, right = [], 0
    for seed in range(12):
        context = models.text(6, seed=seed).tolist()
        choices = [seed, seed + 20, seed + 40]
        logarithms = _logarithms(context)[-1]
        best = int(np.argmax([logarithms[choice] for choice in choices]))
        answer = best if seed % 3 else (best + 1) % 3
        right += answer == best
        rows.append({"text": _words(context), "choices": [WORDS[choice] for choice in choices], "answer": answer})
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "which_follows.yaml").write_text(TASK.format(data=tmp_path / "rows.jsonl"))
    manager = TaskManager(include_path=str(tmp_path), include_defaults=False)
    found = lm_eval.simple_evaluate(lm_eval_model(folder), tasks=["which_follows"], task_manager=manager)
    assert found["results"]["which_follows"]["acc,none"] == pytest.approx(right / 12)
