"""Usage: polarax evaluate --model=MODEL [--reference=REFERENCE] --text=FILE --out=FOLDER.

Runs a model of the Llama family (Llama, Mistral, Qwen 2 and 3, Gemma 1 to 3) on a text and writes evaluation.json:
loss and perplexity over windows, and the entropy of attention by layer and head. Against a reference model it adds the
KL divergence of the next token's distribution (reference || model), how often both find the same token most probable,
and linear CKA of the hidden states of all layers with all. With --prompt it also lets the models write. Sums alone are
kept, so memory does not grow with the text.
"""

from collections.abc import Iterable
from typing import Any

from absl import flags

from polarax.commands.model_flags import define_model_flags, read_config, write_pictures
from polarax.commands.shared_flags import enable_cache, print_files, require


def define_flags(values: flags.FlagValues) -> None:
    """Defines the command's flags."""
    flags.DEFINE_string("model", None, "Checkpoint of the model: file, folder or URL.", flag_values=values)
    flags.DEFINE_string("reference", None, "Checkpoint of a model to compare it with.", flag_values=values)
    flags.DEFINE_string("text", None, "Text file (UTF-8).", flag_values=values)
    flags.DEFINE_string(
        "tokens", None, "File of token ids in place of --text: .npy, .json, or numbers.", flag_values=values
    )
    define_model_flags(values, whose="model", window=1024, cka_tokens=8192, cka_gib=2.0)
    flags.DEFINE_integer(
        "stride",
        0,
        "Tokens from one window to the next, of which only those count that are new; 0: --window.",
        lower_bound=0,
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


def run(values: flags.FlagValues) -> int:
    """Evaluates; returns the exit code."""
    # Not at the top: --help is to take no time.
    from polarax.commands.comparison_flags import print_wrapped
    from polarax.evaluation.evaluating import evaluate
    from polarax.evaluation.tokens import read_text
    from polarax.report.evaluation_table import evaluation_table, rows_of_texts

    require(values, model="the checkpoint to evaluate", out="the folder to write to")
    prompts = list(values.prompt)
    if values.prompts:
        prompts += [line for line in read_text(values.prompts).splitlines() if line.strip()]
    enable_cache(values)
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
    for prompt, texts in rows_of_texts(content):
        print_wrapped([f"Prompt: {prompt}", *(f"  {name}: {text}" for name, text in texts)])
        print()
    assert found.path is not None
    print_files(write_pictures(values, found, _drawn, _write_page))
    seconds = ", ".join(f"{what} {taken:.1f} s" for what, taken in content["seconds"].items())
    print(f"Evaluation: {found.path} ({seconds})")
    return 0


def _bar(work: Iterable, count: int) -> Iterable:
    import sys

    from tqdm import tqdm

    return tqdm(work, total=count, unit=" batches", disable=not sys.stderr.isatty(), dynamic_ncols=True)


def _drawn(found: Any) -> Any:
    from polarax.report.plots.evaluation import draw_evaluation_plots

    return draw_evaluation_plots(found.content)


def _write_page(found: Any, figures: Any) -> Any:
    from polarax.report.evaluation_page import write_evaluation_report

    return write_evaluation_report(found.content, found.path, figures=figures)
