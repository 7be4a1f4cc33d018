"""Usage: polarax report --run=RUN.

Writes report.html into the folder of a run, finished or interrupted: one self-contained page with the reading, pictures
and a sortable table of all matrices; and the pictures by themselves, as PNG and SVG, into its folder plots.
"""

from collections.abc import Iterator, Sequence

from absl import flags

from polarax.errors import UsageError
from polarax.results.run import Run
from polarax.results.run_directory import PLOTS_FOLDER
from polarax.results.runs import History, Runs, open_run


def define_flags(values: flags.FlagValues) -> None:
    """Defines the command's flags."""
    flags.DEFINE_string("run", None, "Folder of the run, as compare wrote it.", flag_values=values)
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
    for line in write_pictures(open_run(values.run), plots=values.plots, page=True, matrices=values.matrix):
        print(line)
    return 0


def write_pictures(run: Run | Runs, *, plots: bool, page: bool, matrices: Sequence[str] = ()) -> Iterator[str]:
    """Writes the pictures of a run as files, its page, or both; yields a line on each file as it is there.

    Of several posts also those of each.

    Raises:
        UsageError: A package is not installed, or a matrix is not in the run.
        RunError: A file cannot be written.
    """
    from polarax.findings.chosen import choose_matrices
    from polarax.report.page import write_report
    from polarax.report.plots import draw_plots, write_plots

    if not (plots or page):
        return
    if isinstance(run, History):
        from polarax.report.history.page import write_history_report
        from polarax.report.history.plots import draw_history_plots

        if plots:
            for path in write_plots(run, run.path / PLOTS_FOLDER, draw_history_plots(run.frame())):
                yield f"Plot: {path}"
        if page:
            yield f"Report: {write_history_report(run)}"
        return
    if isinstance(run, Runs):
        from polarax.report.posts.page import write_posts_report
        from polarax.report.posts.plots import draw_posts_plots

        for one in run.each():
            yield from write_pictures(one, plots=plots, page=page, matrices=matrices)
        if plots:
            for path in write_plots(run, run.path / PLOTS_FOLDER, draw_posts_plots(run)):
                yield f"Plot: {path}"
        if page:
            yield f"Report: {write_posts_report(run)}"
        return
    choose_matrices(run.frame(), matrices)  # a wrong name is told before anything is drawn
    figures = draw_plots(run)
    if plots:
        for path in write_plots(run, run.path / PLOTS_FOLDER, figures):
            yield f"Plot: {path}"
    if page:
        yield f"Report: {write_report(run, matrices=matrices, figures=figures)}"
