"""Usage: polarax history --checkpoints=FOLDER_OR_PATTERN [--base=BASE] --out=RUN.

Compares every saved step of a training run with its first one, or with --base, and writes a run for each, with tables,
pictures over the steps and a report with a slider. FOLDER is that of an Orbax CheckpointManager, or of any checkpoints
that are named after their steps. A step that cannot be read is left out, with the reason. The same command again
resumes an interrupted run. With --quick it takes a first look at every step, as `polarax compare --quick` does.
"""

from absl import flags

from polarax.commands.comparison_flags import define_option_flags, options_from_flags, print_closer, print_wrapped
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
from polarax.report.steps_table import table_of_steps
from polarax.results.runs import History
from polarax.step_comparison import check_history


def define_flags(values: flags.FlagValues) -> None:
    """Defines the command's flags."""
    flags.DEFINE_multi_string(
        "checkpoints",
        [],
        "Folder with a checkpoint for each step, or a pattern in quotes, such as 'runs/checkpoint-*'; may be repeated",
        flag_values=values,
    )
    flags.DEFINE_string("base", None, "What the steps are compared with; the first one by default.", flag_values=values)
    define_option_flags(values)
    flags.DEFINE_string(
        "out",
        None,
        "Folder for the run, a path or gs://, s3://: new, empty, or that of a run to resume.",
        flag_values=values,
    )
    flags.DEFINE_boolean("overwrite", False, "Replace a run that is already in --out.", flag_values=values)
    define_host_flags(values)
    define_cache_flag(values)
    define_picture_flags(values)


def run(values: flags.FlagValues) -> int:
    """Compares; returns the exit code."""
    require(values, checkpoints="a folder of steps, or a pattern", out="the folder for the run")
    enable_cache(values)
    given = values.checkpoints[0] if len(values.checkpoints) == 1 else values.checkpoints
    with joined_from_flags(values) as hosts:
        options = options_from_flags(values)
        request = check_history(given, values.base or None, options, devices=planned_devices(hosts))
        history = run_request(request, values.out, overwrite=values.overwrite)
        if history is not None:
            assert isinstance(history, History)
            _print(values, history)
    return 0


def _print(values: flags.FlagValues, history: History) -> None:
    print_wrapped(history.account())
    print()
    print(table_of_steps(history.frame()))
    print()
    print_wrapped(history.summary()["reading"])
    print_closer(history)
    print()
    print_files(write_pictures(history, plots=values.plots, page=values.plots and values.report))
    print(f"Run: {history.location}")
