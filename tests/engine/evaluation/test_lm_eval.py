"""The adapter for the Language Model Evaluation Harness, on a task in a local file.

The harness brings some fifty packages, so `make test` installs it no more than torch: `pip install '.[lm-eval]'`, and
these tests run.
"""

import json
import types

import numpy as np
import pytest
import tokenizers
from tokenizers import models as tokenizer_models
from tokenizers import pre_tokenizers

from polarax.evaluation import generate, lm_eval_model, load_decoder
from tests.engine.evaluation import models
from tests.engine.evaluation.reference import decode

lm_eval = pytest.importorskip("lm_eval")

CONFIG = models.CONFIGS["llama"] | {"bos_token_id": 1, "eos_token_id": 95}
TENSORS = models.tensors_of(CONFIG)


@pytest.fixture(scope="module")
def adapter(tmp_path_factory):
    """Of a tiny model whose words are w0 to w95."""
    folder = models.save(tmp_path_factory.mktemp("model"), CONFIG, TENSORS)
    words = {f"w{number}": number for number in range(models.VOCABULARY)}
    tokenizer = tokenizers.Tokenizer(tokenizer_models.WordLevel(words, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))
    return lm_eval_model(folder, longest=16), load_decoder(folder)


def _request(*args):
    return types.SimpleNamespace(args=args)


def _logs(tokens):
    scores = decode(CONFIG, TENSORS, np.array(tokens)).scores
    scores = scores - scores.max(-1, keepdims=True)
    return scores - np.log(np.exp(scores).sum(-1, keepdims=True))


def test_likelihoods(adapter):
    found = adapter[0].loglikelihood([_request("w4 w5", " w6 w7"), _request("", "w8")], disable_tqdm=True)
    logs = _logs([4, 5, 6, 7])
    assert found[0][0] == pytest.approx(logs[1, 6] + logs[2, 7], rel=1e-4)
    assert found[1][0] == pytest.approx(_logs([1, 8])[0, 8], rel=1e-4)  # after the token that begins texts


def test_whole_texts(adapter):
    tokens = models.text(40).tolist()
    found = adapter[0].loglikelihood_rolling([_request(" ".join(f"w{token}" for token in tokens))])
    row = [1, *tokens]
    expected, done = 0.0, 0
    while done < len(tokens):  # 16 tokens seen at once, of which those count that no window before had
        last = min(done + 16, len(tokens))
        first = max(last - 16, 0)
        logs = _logs(row[first:last])
        expected += sum(logs[place - first, tokens[place]] for place in range(done, last))
        done = last
    assert found[0] == pytest.approx(expected, rel=1e-4)


def test_answers_end_where_the_task_says(adapter):
    model, decoder = adapter
    written = [f"w{token}" for token in generate(decoder, [[4, 5]], 6, stop=[95])[0]]
    given = {"until": [written[3]], "max_gen_toks": 6}
    answers = model.generate_until([_request("w4 w5", given), _request("w4 w5", {"until": [], "max_gen_toks": 6})])
    assert answers[0].split() == written[: written.index(written[3])] and answers[1].split() == written


def test_a_task_in_a_file(adapter, tmp_path):
    """Its accuracy is how often the likelier choice is the right one."""
    from lm_eval.tasks import TaskManager

    rng = np.random.default_rng(0)
    rows = []
    for _ in range(20):
        question, right, wrong = rng.integers(2, 95, size=(3, 2)).tolist()
        texts = [" ".join(f"w{token}" for token in part) for part in (question, right, wrong)]
        rows.append({"question": texts[0], "choices": texts[1:], "answer": 0})
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "task.yaml").write_text(
        "task: words\ndataset_path: json\noutput_type: multiple_choice\n"
        f"dataset_kwargs:\n  data_files:\n    test: {tmp_path / 'rows.jsonl'}\n"
        "test_split: test\ndoc_to_text: '{{question}}'\ndoc_to_choice: choices\ndoc_to_target: answer\n"
        "metric_list:\n  - metric: acc\n"
    )
    found = lm_eval.simple_evaluate(
        adapter[0],
        tasks=["words"],
        task_manager=TaskManager(include_path=str(tmp_path), include_defaults=False),
        bootstrap_iters=0,
    )
    right = 0
    for row in rows:
        question, *choices = ([int(word[1:]) for word in text.split()] for text in (row["question"], *row["choices"]))
        sums = [_logs([*question, *c])[[1, 2], c].sum() for c in choices]
        right += sums[0] > sums[1]
    assert found["results"]["words"]["acc,none"] == pytest.approx(right / len(rows))
