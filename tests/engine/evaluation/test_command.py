"""`polarax evaluate` and `polarax.evaluate`, from files to files; and what each bad input is answered with."""

import json
import shutil

import numpy as np
import pytest
import tokenizers
from tokenizers import models as tokenizer_models
from tokenizers import pre_tokenizers

import polarax
from polarax.evaluation.tokens import open_tokenizer, read_tokens, whole_numbers
from tests.engine.command import assert_one_line
from tests.engine.evaluation import models

WORDS = [f"w{number}" for number in range(models.VOCABULARY)]


def _tokenizer(folder, count=models.VOCABULARY):
    vocabulary = {word: number for number, word in enumerate([*WORDS, "more"][:count])}
    tokenizer = tokenizers.Tokenizer(tokenizer_models.WordLevel(vocabulary, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A model, a reference and a text."""
    folder = tmp_path_factory.mktemp("evaluate")
    for name, seed in (("model", 0), ("reference", 1)):
        config = models.CONFIGS["llama"] | {"eos_token_id": 95}
        models.save(folder / name, config, models.tensors_of(config, seed))
        _tokenizer(folder / name)
    (folder / "text.txt").write_text(" ".join(WORDS[token] for token in models.text(200)))
    np.save(folder / "tokens.npy", models.text(200))
    return folder


@pytest.fixture
def evaluate(cli, place, tmp_path):
    """Runs `polarax evaluate` on them, with other flags or other values of these."""

    def run(*more, **flags):
        given = {
            "model": place / "model",
            "text": place / "text.txt",
            "out": tmp_path / "out",
            "window": 32,
            "compilation_cache": "",
        } | flags
        return cli("evaluate", *(f"--{name}={value}" for name, value in given.items() if value is not None), *more)

    return run


def test_all_of_it(evaluate, place, tmp_path):
    done = evaluate(
        "--prompt=w1 w2", f"--prompts={_lines(tmp_path)}", reference=place / "reference", length=5, stride=20
    )
    assert done.code == 0, done.err
    content = json.loads((tmp_path / "out/evaluation.json").read_text())
    numbers = content["numbers"]
    assert content["settings"]["stride"] == 20 and content["model"]["family"] == "llama"
    assert numbers["tokens"] == 199 and numbers["windows"] == 10
    assert f"perplexity {numbers['perplexity']:.4g} over 199 tokens" in " ".join(done.out.split())
    assert np.shape(content["attention"]["entropy"]) == (3, 4) and np.shape(content["cka"]["values"]) == (4, 4)
    assert [text["prompt"] for text in content["texts"]] == ["w1 w2", "w3", "w4 w5"]
    for text in content["texts"]:
        assert text["model"].split() == [WORDS[token] for token in text["model_tokens"]] and "reference" in text
        assert f"model: {text['model']}" in done.out
    for name in ("plots/attention_entropy.png", "plots/cka.svg", "report.html"):
        assert (tmp_path / "out" / name).stat().st_size > 1000
    page = (tmp_path / "out/report.html").read_text()
    assert "Inside the model" in page and "By layer" in page and "w4 w5" in page and "All matrices" not in page


def _lines(folder):
    (folder / "prompts.txt").write_text("w3\n\nw4 w5\n")
    return folder / "prompts.txt"


def test_token_ids_are_as_good_as_a_text(evaluate, place, tmp_path):
    assert evaluate("--noplots").code == 0
    (tmp_path / "tokens.json").write_text(json.dumps(models.text(200).tolist()))
    (tmp_path / "tokens.txt").write_text(" ".join(map(str, models.text(200))))
    text = json.loads((tmp_path / "out/evaluation.json").read_text())["numbers"]
    for number, file in enumerate([place / "tokens.npy", tmp_path / "tokens.json", tmp_path / "tokens.txt"]):
        assert evaluate("--noplots", text=None, tokens=file, out=tmp_path / str(number)).code == 0
        assert json.loads((tmp_path / f"{number}/evaluation.json").read_text())["numbers"] == text
    assert isinstance(read_tokens(place / "tokens.npy"), np.memmap)


def test_prompts_alone_need_no_text(evaluate, tmp_path):
    done = evaluate("--prompt=w1", "--temperature=0.7", "--seed=3", text=None, length=4)
    assert done.code == 0 and "Prompt: w1" in done.out
    content = json.loads((tmp_path / "out/evaluation.json").read_text())
    assert content["numbers"] is None and content["generation"] == {"length": 4, "temperature": 0.7, "seed": 3}
    assert "No text was given" in (tmp_path / "out/report.html").read_text()
    assert not (tmp_path / "out/plots").exists()  # there is no picture


def test_a_model_that_adds_nothing_is_said_to(evaluate, place, tmp_path):
    assert evaluate("--prompt=w1", "--noplots", text=None, length=2).code == 0
    first = json.loads((tmp_path / "out/evaluation.json").read_text())["texts"][0]["model_tokens"][0]
    shutil.copytree(place / "model", tmp_path / "model")
    settings = json.loads((place / "model/config.json").read_text()) | {"eos_token_id": first}
    (tmp_path / "model/config.json").write_text(json.dumps(settings))
    done = evaluate("--prompt=w1", "--overwrite", text=None, length=2, model=tmp_path / "model")
    content = json.loads((tmp_path / "out/evaluation.json").read_text())
    assert content["texts"] == [{"prompt": "w1", "model_tokens": [], "model": ""}]
    for shown in (done.out, (tmp_path / "out/report.html").read_text()):
        assert "(nothing: it ends the text there)" in shown


def test_an_evaluation_is_replaced_only_if_that_is_asked_for(evaluate, tmp_path):
    assert evaluate("--noplots").code == 0
    assert_one_line(evaluate("--noplots"), tmp_path / "out", "holds an evaluation", "--overwrite")
    assert evaluate("--noplots", "--overwrite").code == 0
    (tmp_path / "other").mkdir()
    (tmp_path / "other/notes.txt").write_text("mine")
    assert_one_line(evaluate("--overwrite", out=tmp_path / "other"), "is not empty and is no evaluation")
    assert_one_line(evaluate(out=tmp_path / "other/notes.txt"), "is a file")


class TestBadInput:
    @pytest.mark.parametrize(
        ("flags", "words"),
        [
            ({"model": None}, ["--model is missing"]),
            ({"out": None}, ["--out is missing"]),
            ({"text": None}, ["nothing to evaluate on"]),
            ({"tokens": "tokens.npy"}, ["Both a text and tokens"]),
            ({"window": 500}, ["200 tokens", "a window of 500"]),
            ({"stride": 40}, ["stride of 40"]),
            ({"text": "/gone.txt"}, ["/gone.txt", "cannot be read", "No such file"]),
            ({"model": "/gone"}, ["/gone"]),
            ({"reference": "/gone"}, ["/gone", "no such file or folder"]),
            ({"tokenizer": "/gone"}, ["/gone", "no such file", "Give the tokenizer"]),
            ({"dtype": "float16"}, ["dtype"]),
        ],
    )
    def test_one_line_each(self, evaluate, flags, words):
        assert_one_line(evaluate(**flags), *words)

    def test_an_architecture_that_is_not_known(self, evaluate, place, tmp_path):
        config = models.CONFIGS["llama"] | {"model_type": "rwkv"}
        models.save(tmp_path / "rwkv", config, models.tensors_of(config))
        done = evaluate(model=tmp_path / "rwkv", tokenizer=place / "model")
        assert_one_line(done, "architecture 'rwkv'", "It knows llama, mistral, qwen2, qwen3, gemma, gemma2, gemma3")

    def test_a_tokenizer_of_another_model(self, evaluate, tmp_path):
        _tokenizer(tmp_path, models.VOCABULARY + 1)
        assert_one_line(evaluate(tokenizer=tmp_path), "up to 96", "embedding has 96", "do not belong together")

    def test_no_tokenizer_and_no_tokens(self, evaluate, place, tmp_path):
        config = models.CONFIGS["llama"]
        models.save(tmp_path / "bare", config, models.tensors_of(config))
        assert_one_line(evaluate(model=tmp_path / "bare"), "tokenizer.json: no such file", "or token ids")
        assert evaluate("--noplots", model=tmp_path / "bare", text=None, tokens=place / "tokens.npy").code == 0

    @pytest.mark.parametrize(
        ("name", "content", "words"),
        [
            ("tokens.txt", b"1 2 x", "is no list of token ids"),
            ("tokens.json", b'{"a": 1}', "Expected a list of whole numbers"),
            ("tokens.json", b"[1.5]", "Expected a list of whole numbers"),
            ("tokens.npy", b"nothing", "is no list of token ids"),
            ("tokens.txt", b"99 " * 40, "has token 99; the model's embedding has 96"),
        ],
    )
    def test_files_that_hold_no_tokens(self, evaluate, tmp_path, name, content, words):
        (tmp_path / name).write_bytes(content)
        assert_one_line(evaluate(text=None, tokens=tmp_path / name), words)

    def test_files_that_are_no_text_tokenizer_or_config(self, evaluate, tmp_path):
        (tmp_path / "file").write_bytes(b"\xff\xfe{")
        assert_one_line(evaluate(text=tmp_path / "file"), "is not UTF-8 text")
        assert_one_line(evaluate(tokenizer=tmp_path / "file"), "is no tokenizer")
        (tmp_path / "file").write_text("[1]")
        assert_one_line(evaluate(config=tmp_path / "file"), "holds no object of settings")
        (tmp_path / "file").write_text("{")
        assert_one_line(evaluate(config=tmp_path / "file"), "is no JSON")


def test_help_imports_nothing_heavy():
    import subprocess
    import sys

    code = (
        "import sys; from polarax.cli import main; main(['evaluate', '--help'])\n"
        "print([name for name in ('jax', 'numpy', 'flax', 'tokenizers') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.splitlines()[-1] == "[]" and "--reference" in done.stdout


def test_from_python_with_a_decoder_in_memory(place):
    model = polarax.evaluation.load_decoder(place / "model")
    found = polarax.evaluate(model, tokens=models.text(64), reference=place / "reference", window=32, prompts=[[1, 2]])
    assert found.path is None and found.content["model"]["location"] == "memory"
    assert found.measured.divergence > 0 and len(found.content["texts"][0]["model_tokens"]) > 0
    assert any("KL divergence" in line for line in found.reading())


def test_the_tokenizer_of_a_gguf_file_is_that_of_its_merges(tmp_path):
    gguf = pytest.importorskip("gguf")  # in the extra that the tests install
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("Ġ", "t"), ("h", "e"), ("Ġt", "he")]
    tokens = ["<s>", *alphabet, *("".join(pair) for pair in merges)]
    writer = gguf.GGUFWriter(tmp_path / "model.gguf", "llama")
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([3, *[1] * (len(tokens) - 1)])
    writer.add_token_merges([" ".join(pair) for pair in merges])
    writer.add_bos_token_id(0)
    writer.add_add_bos_token(True)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    tokenizer = open_tokenizer(tmp_path / "model.gguf")
    ids = tokenizer.encode("at the 12 the<s>").ids
    assert [tokens[number] for number in ids] == ["<s>", "a", "t", "Ġthe", "Ġ", "1", "2", "Ġthe", "<s>"]
    assert tokenizer.decode(ids) == "at the 12 the"


@pytest.mark.parametrize(
    ("setting", "expected"), [(95, (95,)), ([128001, 128009], (128001, 128009)), (None, ()), ([], ())]
)
def test_all_tokens_that_end_a_text_are_taken(setting, expected):
    """Llama 3's instruction models have several."""
    assert whole_numbers(setting) == expected
