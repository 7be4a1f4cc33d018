"""A command on addresses with logins and signatures: neither in what it prints nor in what it leaves."""

import json
import shutil

import pytest

import polarax
from polarax.cli import main

SECRETS = ("alibaba", "sesame", "opensays")


@pytest.fixture
def urls(web, small):
    """Both checkpoints by the web server, and a function that gives their addresses with a signature."""
    shutil.copy(small.base, web.root / "base.safetensors")
    shutil.copy(small.post, web.root / "post.safetensors")
    host = web.url.replace("://", "://alibaba:sesame@")

    def signed(signature="opensaysme"):
        return [f"{host}{side}.safetensors?X-Amz-Signature={signature}&b=c" for side in ("base", "post")]

    return signed


def everything(capsys, folder=None):
    """What was printed, and what every file in a folder holds."""
    printed = "".join(capsys.readouterr())
    files = [path for path in folder.rglob("*") if path.is_file()] if folder else []
    texts = [printed, *(str(path) for path in files), *(path.read_bytes().decode("latin-1") for path in files)]
    for word in SECRETS:
        assert not any(word in text for text in texts), word
    return printed


def test_a_run(web, urls, tmp_path, capsys):
    base, post = urls()
    out = tmp_path / "run"
    assert main(["compare", f"--base={base}", f"--post={post}", f"--out={out}"]) == 0
    everything(capsys, out)
    shown = web.url.replace("://", "://***@")
    described = json.loads((out / "run.json").read_text())
    assert described["base"]["location"] == f"{shown}base.safetensors?***"
    assert described["post"]["location"] == f"{shown}post.safetensors?***"
    page = (out / "report.html").read_text()
    title = page.partition("<title>")[2].partition("</title>")[0]
    assert "base.safetensors" in title and "***" not in title


def test_it_is_gone_on_with_under_another_signature(urls, small, tmp_path, capsys):
    out = tmp_path / "run"
    polarax.compare(*urls(), out, progress=False)
    before = (out / "matrices.csv").read_bytes()
    polarax.compare(*urls("opensaysus"), out, progress=True)
    polarax.compare(small.base, small.post, out, progress=False)  # wherever it is
    assert (out / "matrices.csv").read_bytes() == before
    base, post = urls()
    with pytest.raises(polarax.UsageError, match="fingerprint of base was"):
        polarax.compare(post, base, out, progress=False)
    everything(capsys, out)


def test_a_plan(urls, capsys):
    base, post = urls()
    assert main(["plan", f"--base={base}", f"--post={post}", "--names"]) == 0
    everything(capsys)


@pytest.mark.parametrize("verbosity", [0, 1])
def test_errors(urls, tmp_path, capsys, verbosity):
    base, _ = urls()
    missing = base.replace("base", "nothing")
    for command, code in (
        (["compare", f"--base={base}", f"--post={missing}", f"--out={tmp_path}/a"], 2),
        (["compare", f"--base={base}", f"--out={tmp_path}/b", base], 2),
        (["plan", f"--base={base}", f"--post={base}", f"--include={base}"], 2),
        (["plan", f"--base={base}", f"--role_map={base}"], 2),
        (["report", f"--run={base}"], 2),
        ([base], 2),
    ):
        rest = [f"--verbosity={verbosity}"] if len(command) > 1 else []
        assert main([*command, *rest]) == code
        assert "polarax: " in everything(capsys)


def test_a_run_that_fails_part_way(web, urls, tmp_path, capsys, monkeypatch):
    compare = polarax.measuring.execution.StackReads

    def broken(*arguments):
        for side in ("base", "post"):
            (web.root / f"{side}.safetensors").unlink()
        return compare(*arguments)

    monkeypatch.setattr(polarax.measuring.execution, "StackReads", broken)
    base, post = urls()
    assert main(["compare", f"--base={base}", f"--post={post}", f"--out={tmp_path}/run", "--verbosity=1"]) == 1
    assert "Reading failed part-way" in everything(capsys, tmp_path / "run")
