"""Usage: polarax report --run=RUN.

Writes report.html into the folder of a run, finished or interrupted: one self-contained page with the reading, pictures
and a sortable table of all matrices; and the pictures by themselves, as PNG and SVG, into its folder plots.
"""

import functools
from collections.abc import Iterator, Sequence

from absl import flags

from polarax.commands.comparison_flags import print_wrapped
from polarax.errors import UsageError
from polarax.planning.request import without_garbage_collection
from polarax.results.directory import PLOTS_FOLDER
from polarax.results.remote.staging import location_of, settle
from polarax.results.run import Run
from polarax.results.runs import History, Runs, open_run


def define_flags(values: flags.FlagValues) -> None:
    """Defines the command's flags."""
    flags.DEFINE_string(
        "run", None, "Folder of the run, as compare wrote it: a path, or gs://, s3://.", flag_values=values
    )
    flags.DEFINE_multi_string(
        "matrix",
        [],
        "Name of a matrix to draw by itself; may be repeated. By default those that stand out, and one of each role",
        flag_values=values,
    )
    flags.DEFINE_boolean("plots", True, "Write the pictures as files too.", flag_values=values)


def run(values: flags.FlagValues) -> int:
    """Reports; returns the exit code."""
    if not values.run:
        raise UsageError("--run is missing: the folder of a run.")
    result = open_run(values.run)
    print_wrapped(result.account())
    for line in write_pictures(result, plots=values.plots, page=True, matrices=values.matrix):
        print(line)
    return 0


def write_pictures(run: Run | Runs, *, plots: bool, page: bool, matrices: Sequence[str] = ()) -> Iterator[str]:
    """Writes the pictures of a run as files, its page, or both; yields a line on each file as it is there.

    Of several posts also those of each.

    Raises:
        UsageError: A package is not installed, or a matrix is not in the run.
        RunError: A file cannot be written.
    """
    from polarax.report.plots.gallery import write_plots

    if not (plots or page):
        return
    if isinstance(run, Runs) and not isinstance(run, History):
        for one in run.each():
            yield from write_pictures(one, plots=plots, page=page, matrices=matrices)
    with without_garbage_collection():
        figures, write = _drawn(run, matrices)
        if plots:
            for path in write_plots(figures, run.path / PLOTS_FOLDER):
                yield f"Plot: {location_of(path)}"
        if page:
            yield f"Report: {location_of(write(figures=figures))}"
    settle(run.path)


def _drawn(run, matrices):
    """The pictures of a run, and what writes its page with them."""
    from polarax.findings.chosen import choose_matrices
    from polarax.report.history_page import write_history_report
    from polarax.report.plots.gallery import draw_history_plots, draw_plots, draw_posts_plots
    from polarax.report.posts_page import write_posts_report
    from polarax.report.run_page import write_report

    if isinstance(run, History):
        return draw_history_plots(run.frame()), functools.partial(write_history_report, run)
    if isinstance(run, Runs):
        return draw_posts_plots(run), functools.partial(write_posts_report, run)
    choose_matrices(run.frame(), matrices)  # a wrong name is told before anything is drawn
    return draw_plots(run), functools.partial(write_report, run, matrices=matrices)
