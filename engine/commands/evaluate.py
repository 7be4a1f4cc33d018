"""Usage: polarax evaluate --model=MODEL [--reference=REFERENCE] --text=FILE --out=FOLDER.

Runs a model of the Llama family (Llama, Mistral, Qwen 2 and 3, Gemma 1 to 3) on a text and writes evaluation.json:
loss and perplexity over windows, and the entropy of attention by layer and head. Against a reference model it adds the
KL divergence of the next token's distribution (reference || model), how often both find the same token most probable,
and linear CKA of the hidden states of all layers with all. With --prompt it also lets the models write. Sums alone are
kept, so memory does not grow with the text.
"""

import json
from collections.abc import Iterable, Mapping
from typing import Any

from absl import flags

_DTYPES = ("float32", "bfloat16")


def define_flags(values: flags.FlagValues) -> None:
    """Defines the command's flags."""
    flags.DEFINE_string("model", None, "Checkpoint of the model: file, folder or URL.", flag_values=values)
    flags.DEFINE_string("reference", None, "Checkpoint of a model to compare it with.", flag_values=values)
    flags.DEFINE_string("text", None, "Text file (UTF-8).", flag_values=values)
    flags.DEFINE_string(
        "tokens", None, "File of token ids in place of --text: .npy, .json, or numbers.", flag_values=values
    )
    flags.DEFINE_string(
        "tokenizer", None, "tokenizer.json, or a folder with it; by default beside the model.", flag_values=values
    )
    flags.DEFINE_string("config", None, "config.json, where a checkpoint has none.", flag_values=values)
    flags.DEFINE_integer("window", 1024, "Tokens that the model sees at once.", lower_bound=2, flag_values=values)
    flags.DEFINE_integer(
        "stride",
        0,
        "Tokens from one window to the next, of which only those count that are new; 0: --window.",
        lower_bound=0,
        flag_values=values,
    )
    flags.DEFINE_integer(
        "batch", 0, "Windows at a time; 0: as many as 4096 tokens have.", lower_bound=0, flag_values=values
    )
    flags.DEFINE_enum("dtype", _DTYPES[0], _DTYPES, "Of weights and computing.", flag_values=values)
    flags.DEFINE_integer(
        "cka_tokens", 8192, "Tokens that CKA is taken of; 0: no CKA.", lower_bound=0, flag_values=values
    )
    flags.DEFINE_float(
        "cka_gib",
        2.0,
        "Memory for the sums of CKA; where it is too little for all layers, fewer are taken, evenly spread.",
        lower_bound=0.0,
        flag_values=values,
    )
    flags.DEFINE_multi_string("prompt", [], "A text to continue; may be repeated", flag_values=values)
    flags.DEFINE_string("prompts", None, "File of texts to continue, one a line.", flag_values=values)
    flags.DEFINE_integer("length", 64, "Tokens to add to a prompt, at most.", lower_bound=1, flag_values=values)
    flags.DEFINE_float(
        "temperature",
        0.0,
        "At which tokens are drawn; 0: the most probable one.",
        lower_bound=0.0,
        flag_values=values,
    )
    flags.DEFINE_integer("seed", 0, "Of the draws.", lower_bound=0, upper_bound=2**31 - 1, flag_values=values)
    flags.DEFINE_string("out", None, "Folder to write to; new or empty.", flag_values=values)
    flags.DEFINE_boolean("overwrite", False, "Replace an evaluation that is already in --out.", flag_values=values)
    flags.DEFINE_string(
        "compilation_cache", "~/.cache/polarax", "Folder that keeps compiled programs; '' for none.", flag_values=values
    )
    flags.DEFINE_boolean("plots", True, "Draw pictures (needs matplotlib).", flag_values=values)
    flags.DEFINE_boolean("report", True, "Write report.html of the pictures (needs jinja2).", flag_values=values)


def run(values: flags.FlagValues) -> int:
    """Evaluates; returns the exit code."""
    # Not at the top: --help is to take no time.
    from polarax.commands.comparison_flags import print_wrapped
    from polarax.errors import UsageError
    from polarax.evaluation.evaluating import evaluate
    from polarax.evaluation.tokens import read_text
    from polarax.planning.devices import enable_compilation_cache
    from polarax.report.evaluation_table import evaluation_table

    for name, what in (("model", "the checkpoint to evaluate"), ("out", "the folder to write to")):
        if not values[name].value:
            raise UsageError(f"--{name} is missing: {what}.")
    prompts = list(values.prompt)
    if values.prompts:
        prompts += [line for line in read_text(values.prompts).splitlines() if line.strip()]
    if values.compilation_cache:
        enable_compilation_cache(values.compilation_cache)
    found = evaluate(
        values.model,
        text=values.text or None,
        tokens=values.tokens or None,
        reference=values.reference or None,
        tokenizer=values.tokenizer or None,
        config=read_config(values.config),
        out=values.out,
        overwrite=values.overwrite,
        dtype=values.dtype,
        prompts=prompts,
        length=values.length,
        temperature=values.temperature,
        seed=values.seed,
        progress=_bar,
        window=values.window,
        stride=values.stride,
        batch=values.batch,
        cka_tokens=values.cka_tokens,
        cka_gib=values.cka_gib,
    )
    content = found.content
    if content["numbers"]:
        print(evaluation_table(content))
        print()
        print_wrapped(found.reading())
        print()
    for text in content["texts"]:
        print_wrapped([f"Prompt: {text['prompt']}"])
        for name in ("model", "reference"):
            if name in text:
                print_wrapped([f"  {name}: {text[name]}"])
        print()
    assert found.path is not None
    try:
        for line in _write_pictures(content, found.path, values.plots, values.plots and values.report):
            print(line)
    except UsageError as error:  # a package is not installed: the numbers are there all the same
        print(error)
    seconds = ", ".join(f"{what} {taken:.1f} s" for what, taken in content["seconds"].items())
    print(f"Evaluation: {found.path} ({seconds})")
    return 0


def read_config(path: str | None) -> Mapping[str, Any] | None:
    """The settings in a config.json; None without one."""
    if not path:
        return None
    from polarax.errors import UsageError
    from polarax.evaluation.tokens import read_text

    try:
        settings = json.loads(read_text(path))
    except ValueError as error:
        raise UsageError(f"{path}: is no JSON: {error}") from error
    if not isinstance(settings, dict):
        raise UsageError(f"{path}: holds no object of settings.")
    return settings


def _bar(work: Iterable, count: int) -> Iterable:
    import sys

    from tqdm import tqdm

    return tqdm(work, total=count, unit=" batches", disable=not sys.stderr.isatty(), dynamic_ncols=True)


def _write_pictures(content: Mapping[str, Any], folder: Any, plots: bool, page: bool) -> Iterable[str]:
    from polarax.report.evaluation_page import write_evaluation_report
    from polarax.report.plots.evaluation import draw_evaluation_plots
    from polarax.report.plots.gallery import write_plots

    if not plots:
        return
    figures = draw_evaluation_plots(content)
    for path in write_plots(figures, folder / "plots"):
        yield f"Plot: {path}"
    if page:
        yield f"Report: {write_evaluation_report(content, folder, figures=figures)}"
