"""Usage: polarax history --checkpoints=FOLDER_OR_PATTERN [--base=BASE] --out=RUN.

Compares every saved step of a training run with its first one, or with --base, and writes a run for each, with tables,
pictures over the steps and a report with a slider. FOLDER is that of an Orbax CheckpointManager, or of any checkpoints
that are named after their steps. A step that cannot be read is left out, with the reason. The same command again
resumes an interrupted run. With --quick it takes a first look at every step, as `polarax compare --quick` does.
"""

from absl import flags

from polarax.commands.comparison_flags import define_option_flags, options_from_flags, print_closer, print_wrapped
from polarax.commands.report import write_pictures
from polarax.comparison import run_request
from polarax.errors import UsageError
from polarax.planning.devices import enable_compilation_cache
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
    flags.DEFINE_string("out", None, "Folder for the run: new, empty, or that of a run to resume.", flag_values=values)
    flags.DEFINE_boolean("overwrite", False, "Replace a run that is already in --out.", flag_values=values)
    flags.DEFINE_string(
        "compilation_cache", "~/.cache/polarax", "Folder that keeps compiled programs; '' for none.", flag_values=values
    )
    flags.DEFINE_boolean("plots", True, "Draw pictures (needs matplotlib).", flag_values=values)
    flags.DEFINE_boolean("report", True, "Write report.html of the pictures (needs jinja2).", flag_values=values)


def run(values: flags.FlagValues) -> int:
    """Compares; returns the exit code."""
    for name, what in (("checkpoints", "a folder of steps, or a pattern"), ("out", "the folder for the run")):
        if not values[name].value:
            raise UsageError(f"--{name} is missing: {what}.")
    if values.compilation_cache:
        enable_compilation_cache(values.compilation_cache)
    given = values.checkpoints[0] if len(values.checkpoints) == 1 else values.checkpoints
    request = check_history(given, values.base or None, options_from_flags(values))
    history = run_request(request, values.out, overwrite=values.overwrite)
    assert isinstance(history, History)
    print_wrapped(history.account())
    print()
    print(table_of_steps(history.frame()))
    print()
    print_wrapped(history.summary()["reading"])
    print_closer(history)
    print()
    try:
        for line in write_pictures(history, plots=values.plots, page=values.plots and values.report):
            print(line)
    except UsageError as error:  # a package is not installed: the numbers are there all the same
        print(error)
    print(f"Run: {history.path}")
    return 0
