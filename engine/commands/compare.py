"""Usage: polarax compare --base=BASE --post=POST [--post=POST ...] --out=RUN.

Decomposes every 2-D weight of two checkpoints and writes a run directory: matrices.csv (one row per matrix, each
headline number beside its control), spectra, summary, plots and a report. Prints how much of either model was compared,
the table by role and what stands out.
Of several posts it writes a run for each into a folder of its own, one for each two of them, and tables and a report
that put them side by side; --post=LABEL=PATH names them. The same command again resumes an interrupted run.
With --quick it takes a first look, without decomposing, and ends with the command that analyses in full what stands
out: in the same folder, where those rows take the place of the first look's.
"""

from absl import flags

from polarax.commands.comparison_flags import (
    define_comparison_flags,
    print_closer,
    print_wrapped,
    request_from_flags,
)
from polarax.commands.report import write_pictures
from polarax.commands.shared_flags import (
    define_cache_flag,
    define_host_flags,
    define_picture_flags,
    enable_cache,
    joined_from_flags,
    planned_devices,
    print_files,
    require,
)
from polarax.comparison import run_request
from polarax.report.posts_table import table_of_posts
from polarax.report.table import table_by_role
from polarax.results.run import Run
from polarax.results.runs import Runs


def define_flags(values: flags.FlagValues) -> None:
    """Defines the command's flags."""
    define_comparison_flags(values)
    flags.DEFINE_string(
        "out",
        None,
        "Folder for the run, a path or gs://, s3://; new or empty, or that of a run that was interrupted.",
        flag_values=values,
    )
    flags.DEFINE_boolean("overwrite", False, "Replace a run that is already in --out.", flag_values=values)
    define_host_flags(values)
    define_cache_flag(values)
    define_picture_flags(values)


def run(values: flags.FlagValues) -> int:
    """Compares; returns the exit code."""
    require(values, out="the folder for the run")
    enable_cache(values)
    with joined_from_flags(values) as hosts:
        request = request_from_flags(values, devices=planned_devices(hosts))
        result = run_request(request, values.out, overwrite=values.overwrite)
        if result is not None:
            _print(values, result)
    return 0


def _print(values: flags.FlagValues, result: Run | Runs) -> None:
    summary = result.summary()
    print_wrapped(result.account())
    print()
    print(table_by_role(summary) if isinstance(result, Run) else table_of_posts(summary))
    print()
    print_wrapped(summary["reading"])
    print_closer(result)
    print()
    print_files(write_pictures(result, plots=values.plots, page=values.plots and values.report))
    seconds = result.description["seconds"]
    look = "first look: " if result.first_look else ""
    print(f"Run: {result.location} ({look}{', '.join(f'{what} {taken:.1f} s' for what, taken in seconds.items())})")
