"""Usage: polarax reproduce --base=BASE --post=POST --text=FILE [--text=FILE] --out=FOLDER.

Does the experiments of He and Cao (arXiv:2509.17866) on a base and a post of the Llama family: the post's weights are
changed by every kind of edit, and beside each stands a random change of the same size, matrix by matrix. Of every
changed model loss, KL divergence from the post, entropy of attention and CKA with the post are measured on each text.
Queries and keys are scaled by several factors, against attention at another temperature. Nothing of the changed
weights is written to disk. The same command again goes on where it was interrupted.
"""

from typing import Any

from absl import flags

from polarax.commands.model_flags import define_model_flags, read_config, write_pictures
from polarax.commands.shared_flags import enable_cache, print_files, require

_FACTORS = "0.5,0.8,0.9,1,1.1,1.25,2"


def define_flags(values: flags.FlagValues) -> None:
    """Defines the command's flags."""
    flags.DEFINE_string("base", None, "Checkpoint before training: file, folder or URL.", flag_values=values)
    flags.DEFINE_string("post", None, "Checkpoint after training.", flag_values=values)
    flags.DEFINE_multi_string("text", [], "Text file (UTF-8); may be repeated", flag_values=values)
    flags.DEFINE_string("out", None, "Folder to write to: new, empty, or to go on with.", flag_values=values)
    define_model_flags(values, whose="post", window=512, cka_tokens=1024, cka_gib=0.125)
    flags.DEFINE_string(
        "experiments", None, "Those to do, such as undo,replace-values,break-left; all by default.", flag_values=values
    )
    flags.DEFINE_string("roles", "q,k,v,o,gate,up,down", "Roles of the matrices to change.", flag_values=values)
    flags.DEFINE_string("layers", None, "Layers to change, such as 0,3-5; all by default.", flag_values=values)
    flags.DEFINE_float("factor", 1.1, "Of scale-values: what queries and keys are scaled by.", flag_values=values)
    flags.DEFINE_string("factors", _FACTORS, "Of the experiment of temperature; '' leaves it out.", flag_values=values)
    flags.DEFINE_integer("text_tokens", 4096, "Tokens taken of each text; 0: all.", lower_bound=0, flag_values=values)
    flags.DEFINE_string("method", "auto", "How to decompose, as for compare.", flag_values=values)
    flags.DEFINE_integer("seed", 0, "Of random changes and signs.", lower_bound=0, flag_values=values)


def run(values: flags.FlagValues) -> int:
    """Does the experiments; returns the exit code."""
    # Not at the top: --help is to take no time.
    from polarax.commands.comparison_flags import print_wrapped
    from polarax.report.reproduction.table import reproduction_tables
    from polarax.reproduction import reproduce

    require(
        values,
        base="the checkpoint before training",
        post="the checkpoint after training",
        text="a text to measure on",
        out="the folder to write to",
    )
    factors = _factors(values.factors)
    enable_cache(values)
    found = reproduce(
        values.base,
        values.post,
        values.text,
        values.out,
        tokenizer=values.tokenizer or None,
        config=read_config(values.config),
        experiments=values.experiments,
        roles=values.roles,
        layers=values.layers,
        factor=values.factor,
        factors=factors,
        text_tokens=values.text_tokens,
        window=values.window,
        batch=values.batch,
        cka_tokens=values.cka_tokens,
        cka_gib=values.cka_gib,
        dtype=values.dtype,
        method=values.method,
        seed=values.seed,
        say=_say,
    )
    for title, table in reproduction_tables(found.content):
        print(f"{title}\n\n{table}\n")
    print_wrapped(found.reading())
    print()
    print_files(write_pictures(values, found, _drawn, _write_page))
    print(f"Reproduction: {found.path} ({found.content['seconds']:.0f} s)")
    return 0


def _factors(text: str) -> list[float]:
    from polarax.errors import UsageError

    try:
        return [float(word) for word in text.split(",") if word.strip()]
    except ValueError as error:
        raise UsageError(f"--factors={text} cannot be read. Expected numbers: {_FACTORS}.") from error


def _say(line: str) -> None:
    import sys

    if sys.stderr.isatty():
        print(line, file=sys.stderr, flush=True)


def _drawn(found: Any) -> Any:
    from polarax.report.reproduction.pictures import draw_reproduction_plots

    return draw_reproduction_plots(found.content)


def _write_page(found: Any, figures: Any) -> Any:
    from polarax.report.reproduction.page import write_reproduction_report

    return write_reproduction_report(found.content, found.path, figures=figures)
