"""Usage: polarax compare --base=BASE --post=POST --out=RUN.

Decomposes every 2-D weight of two checkpoints and writes a run directory: matrices.csv (one row per matrix, each
headline number beside its control), spectra, summary, plots. Prints the table by role and what stands out. The same
command again goes on where a run was interrupted.
"""

import textwrap

from absl import flags

from polarax.commands.comparison_flags import define_comparison_flags, request_from_flags
from polarax.comparison import run_request
from polarax.devices import enable_compilation_cache
from polarax.errors import UsageError
from polarax.report.table import table_by_role


def define_flags(values: flags.FlagValues) -> None:
    """Defines the command's flags."""
    define_comparison_flags(values)
    flags.DEFINE_string(
        "out", None, "Folder for the run; new or empty, or that of a run that was interrupted.", flag_values=values
    )
    flags.DEFINE_boolean("overwrite", False, "Replace a run that is already in --out.", flag_values=values)
    flags.DEFINE_string(
        "compilation_cache", "~/.cache/polarax", "Folder that keeps compiled programs; '' for none.", flag_values=values
    )
    flags.DEFINE_boolean("plots", True, "Draw the plots (needs matplotlib).", flag_values=values)


def run(values: flags.FlagValues) -> int:
    """Compares; returns the exit code."""
    if not values.out:
        raise UsageError("--out is missing: the folder for the run.")
    if values.compilation_cache:
        enable_compilation_cache(values.compilation_cache)
    result = run_request(request_from_flags(values), values.out, overwrite=values.overwrite)
    summary = result.summary()
    print(table_by_role(summary))
    print()
    for sentence in summary["reading"]:
        print(textwrap.fill(sentence, 110, subsequent_indent="  ", break_on_hyphens=False))
    print()
    if values.plots:
        for line in _draw(result):
            print(line)
    seconds = result.description["seconds"]
    print(f"Run: {result.path} ({', '.join(f'{what} {taken:.1f} s' for what, taken in seconds.items())})")
    return 0


def _draw(result):
    from polarax.report.plots import write_plots

    try:
        return [f"Plot: {path}" for path in write_plots(result, result.path / "plots")]
    except UsageError as error:  # no matplotlib: the numbers are there all the same
        return [str(error)]
